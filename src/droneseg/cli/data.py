"""`droneseg data ...`: download, make, look at, split and convert datasets."""

import re
import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from droneseg.cli import adopt, environment, hard_cases, output, split

if TYPE_CHECKING:
    from droneseg.data.dataset import Inspection

app = typer.Typer(help="Download, make, check, split and convert datasets.", no_args_is_help=True)

app.command()(adopt.adopt)
app.command()(split.split)
app.command("hard-cases")(hard_cases.hard_cases)


@app.callback()
def data() -> None:
    """Download, make, check, split and convert datasets."""
    # like Ctrl-C: what is half written is taken away before the end
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))


Source = Annotated[Path, typer.Argument(help="Dataset folder.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Write JSON to stdout.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is already there.")]


class Unknown(StrEnum):
    """What to do with unknown colours."""

    FAIL = "fail"
    BACKGROUND = "background"


class Scaling(StrEnum):
    """Normalisation of the colours."""

    RGB_TO_0_1 = "rgb_to_0_1"
    ZSCORE = "zscore"


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match or min(int(match[1]), int(match[2])) < 32 or max(int(match[1]), int(match[2])) > 8192:
        raise typer.BadParameter(f"{text!r} is not WIDTHxHEIGHT with sides of 32 to 8192, such as 960x736")
    return int(match[1]), int(match[2])


@app.command()
def sample(
    folder: Annotated[Path, typer.Argument(help="Folder to make.", show_default=False)],
    count: Annotated[int, typer.Option(min=1, help="Number of pairs.")] = 24,
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT in pixels.")] = "480x368",
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal scenes.")] = 0,
    force: Force = False,
) -> None:
    """Generate aerial scenes with exact masks, in the Kaggle layout."""
    from droneseg.data.synthetic import write_samples

    with output.progress("scenes") as progress:
        write_samples(folder, count=count, size=_size(size), seed=seed, replace=force, progress=progress)
    output.out().print(f"{count} generated pairs in {folder}")


@app.command()
def download(
    folder: Annotated[Path, typer.Argument(help="Folder to make.")] = Path("data/drone"),
    dataset: Annotated[
        str | None, typer.Option(help="OWNER/NAME at Kaggle; default: the set that the classes are from.")
    ] = None,
    version: Annotated[int | None, typer.Option(min=1, help="Which version; default: the newest.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier download.")] = False,
) -> None:
    """Download a dataset from Kaggle; interrupted, the same command goes on.

    Only photographs and masks are unpacked. It needs KAGGLE_API_TOKEN, or KAGGLE_USERNAME and KAGGLE_KEY.
    """
    from droneseg.data.kaggle import DATASET, Credentials, download_dataset

    settings = environment.settings()
    token, key = (
        secret.get_secret_value() if secret else None for secret in (settings.kaggle_api_token, settings.kaggle_key)
    )
    with output.progress_of("MB", "files") as progress:
        done = download_dataset(
            folder,
            dataset or DATASET,
            version=version,
            credentials=Credentials(token, settings.kaggle_username, key),
            replace=force,
            progress=progress,
        )
    left_out = f" ({done.left_out} files nobody needs here were left out)" if done.left_out else ""
    output.out().print(f"{done.folder}: {done.pairs} pairs{left_out}", markup=False)
    if done.problems:
        output.out().print(f"{len(done.problems)} problem(s): see `droneseg data check {folder}`", markup=False)
    output.out().print(f"next: droneseg data split {folder} --out split.json", markup=False)


def _inspect(source: Path) -> "Inspection":
    from droneseg.data.dataset import inspect_dataset

    with output.progress("pairs") as progress:
        return inspect_dataset(source, max_pixels=environment.settings().max_pixels, progress=progress)


@app.command()
def check(source: Source, json: Json = False) -> None:
    """Report all problems of a folder at once.

    Every file is decoded. Exit code 1 if there is a problem.
    """
    inspection = _inspect(source)
    if json:
        output.show_json(
            {
                "root": inspection.root,
                "good_pairs": len(inspection.facts),
                "problems": inspection.problems,
                "notes": inspection.notes,
            }
        )
    else:
        for note in inspection.notes:
            output.out().print(f"note: {note}", markup=False)
        for problem in inspection.problems:
            output.out().print(f"problem: {problem}", markup=False)
        verdict = f"{len(inspection.problems)} problem(s)" if inspection.problems else "no problem"
        output.out().print(f"{inspection.root}: {len(inspection.facts)} good pairs, {verdict}", markup=False)
    if inspection.problems:
        raise typer.Exit(1)


@app.command()
def stats(
    source: Source,
    plot: Annotated[Path | None, typer.Option(help="Draw sizes and class shares into this file.")] = None,
    json: Json = False,
) -> None:
    """Show sizes and class shares, as a table and a plot."""
    from droneseg.core.errors import DatasetError
    from droneseg.data.stats import compute_stats, plot_stats

    output.require_plot_suffix(plot)
    inspection = _inspect(source)
    if not inspection.facts:
        raise DatasetError(f"{inspection.root} has no good pair:", inspection.problems)
    found = compute_stats(inspection.facts)
    if plot:
        plot_stats(inspection.facts, plot)
    if json:
        output.show_json(found)
    else:
        rows = [
            [name, output.percent(share), f"{found.class_images[name]} of {found.pairs}", "#" * round(20 * share)]
            for name, share in found.class_shares.items()
        ]
        shown = output.table(f"{inspection.root}", ["class", "share of pixels", "in photographs", ""], rows)
        shown.columns[3].justify = "left"
        output.out().print(shown)
        for what, counts in (("sizes", found.sizes), ("formats", found.formats)):
            output.out().print(f"{what}: {', '.join(f'{name} ({number})' for name, number in counts.items())}")
        if plot:
            output.out().print(f"plot: {plot}")
    if inspection.problems:
        output.err().print(f"{len(inspection.problems)} problem(s) left out; see `droneseg data check {source}`")


@app.command()
def convert(
    source: Source,
    raw: Annotated[
        Path | None, typer.Option(help="nnU-Net's folder of raw datasets; default: $nnUNet_raw or nnUNet_raw.")
    ] = None,
    split_file: Annotated[Path | None, typer.Option("--split", help="Split file to follow.")] = None,
    test_share: Annotated[float, typer.Option(min=0, max=0.9, help="Test part, without a split file.")] = 0.2,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of the test part.")] = 0,
    unknown: Annotated[Unknown, typer.Option(help="What to do with colours of no class.")] = Unknown.FAIL,
    normalisation: Annotated[Scaling, typer.Option(help="How nnU-Net scales colours.")] = Scaling.RGB_TO_0_1,
    force: Force = False,
    json: Json = False,
) -> None:
    """Convert the Kaggle layout into nnU-Net's raw dataset."""
    from droneseg.data.convert import Normalisation, convert_dataset

    settings = environment.settings()
    with output.progress("pairs") as progress:
        done = convert_dataset(
            source,
            raw or settings.nnunet_raw,
            split_file=split_file,
            test_share=test_share,
            seed=seed,
            unknown=unknown.value,
            normalisation=Normalisation(normalisation.value),
            force=force,
            max_pixels=settings.max_pixels,
            progress=progress,
        )
    if json:
        output.show_json(done)
        return
    for note in done.notes:
        output.out().print(f"note: {note}", markup=False)
    if done.replaced_pixels:
        output.out().print(f"note: {done.replaced_pixels:,} pixels of unknown colour became background")
    output.out().print(f"{done.folder}: {done.train} training cases, {done.test} test cases, {done.dropped} dropped")
