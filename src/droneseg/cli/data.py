"""The `droneseg data` commands."""

import re
import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from droneseg.cli import console

if TYPE_CHECKING:
    from droneseg.data.dataset import Inspection
    from droneseg.data.scene_split import SceneSplit
    from droneseg.data.splits import Split


def import_dataset(
    images: Annotated[Path, typer.Argument(help="Folder of photographs.", show_default=False)],
    masks: Annotated[Path, typer.Argument(help="Folder of masks of the same stems.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder to make.", show_default=False)],
    colours: Annotated[
        Path,
        typer.Option(help="CSV with the columns r, g, b and class. If it is not there, it is written to be filled in."),
    ] = Path("colours.csv"),
    mask_suffix: Annotated[str, typer.Option(help="What masks have at the end of their stem, such as _mask.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Replace a dataset that was made so before.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Write JSON to stdout.")] = False,
) -> None:
    """Make a dataset of your own folders and colours: photographs as they are, masks in the five classes' colours.

    The first time it writes a table of the colours that occur and, unless all are the classes' own, exits with 1: say
    the class of each, and run again.
    """
    from droneseg.core.errors import ConfigurationError
    from droneseg.data.importer import import_dataset as make
    from droneseg.data.importer import pair_up, read_colours, write_colours

    max_pixels = console.settings().max_pixels
    pairs = pair_up(images, masks, mask_suffix)
    if not colours.exists():
        with console.progress("masks") as progress:
            number, strange = write_colours(colours, pairs, max_pixels=max_pixels, progress=progress)
        if strange:
            raise ConfigurationError(
                f"{colours} was not there to say which colour is which class, and was written, with the {number} "
                "colours of the masks. Fill in its column class, and run this again."
            )
    table = read_colours(colours)
    with console.progress("pairs") as progress:
        done = make(pairs, table, out, replace=force, max_pixels=max_pixels, progress=progress)
    if json:
        console.show_json(done)
        return
    total = sum(done.pixels.values())
    rows = [[name, console.percent(pixels / total)] for name, pixels in done.pixels.items()]
    console.out().print(console.table(f"{done.folder}: {done.pairs} pairs", ["class", "share of pixels"], rows))
    console.out().print(f"next: droneseg data check {out}", markup=False)


class SplitBy(StrEnum):
    """How a split is made."""

    SCENE = "scene"
    RANDOM = "random"


def split(
    source: Annotated[Path, typer.Argument(help="Dataset folder.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Split file to write.", show_default=False)],
    by: Annotated[
        SplitBy, typer.Option(help="scene: no place in two parts, found from the pictures; random: by chance.")
    ] = SplitBy.SCENE,
    val_share: Annotated[float, typer.Option(min=0, max=0.9, help="Share for validation.")] = 0.15,
    test_share: Annotated[float, typer.Option(min=0, max=0.9, help="Share for the test.")] = 0.15,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal splits.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace an older split file.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Write JSON to stdout.")] = False,
) -> None:
    """Deal the photographs to train, validation and test."""
    from droneseg.data.splits import require_split_place, write_split

    require_split_place(out, replace=force)
    if by is SplitBy.RANDOM:
        made = _random_split(source, val_share, test_share, seed)
        write_split(made, out, replace=force)
        described = {"train": len(made.train), "val": len(made.val), "test": len(made.test), "by": by.value}
        if json:
            console.show_json(described)
            return
        console.out().print(f"{out}: {len(made.train)} train, {len(made.val)} val, {len(made.test)} test ({by.value})")
        console.err().print("note: one place can be in several parts of a random split if photographs share it")
        return
    found = _scene_split(source, val_share, test_share, seed)
    write_split(found.split, out, replace=force)
    sizes = {name: len(getattr(found.split, name)) for name in ("train", "val", "test", "dropped")}
    if json:
        console.show_json(
            sizes | {"by": by.value, "crossing": found.crossing, "groups": found.groups, "shares": found.class_shares}
        )
        return
    parts = list(found.class_shares)
    rows = [
        ["photographs", *(str(sizes[part]) for part in parts)],
        ["places", *(str(found.groups[part]) for part in parts)],
        *(
            [name, *(console.percent(found.class_shares[part][name]) for part in parts)]
            for name in found.class_shares[parts[0]]
        ),
    ]
    console.out().print(console.table(str(out), ["", *parts], rows))
    console.out().print(f"{found.crossing} matches cross from one part to another; {sizes['dropped']} dropped")


def _random_split(source: Path, val_share: float, test_share: float, seed: int) -> "Split":
    from droneseg.core.errors import DatasetError
    from droneseg.data.dataset import list_pairs
    from droneseg.data.splits import random_split

    listing = list_pairs(source)
    if listing.problems:
        raise DatasetError(
            f"{listing.root} has {len(listing.problems)} problem(s) in its file names; see also `droneseg data check`:",
            listing.problems,
        )
    return random_split([pair.stem for pair in listing.pairs], val_share=val_share, test_share=test_share, seed=seed)


def _scene_split(source: Path, val_share: float, test_share: float, seed: int) -> "SceneSplit":
    from droneseg.core.errors import DatasetError
    from droneseg.data.dataset import inspect_dataset, list_pairs
    from droneseg.data.image_matching import find_matches
    from droneseg.data.scene_split import split_by_scene

    settings = console.settings()
    with console.progress("pairs") as progress:
        inspection = inspect_dataset(source, max_pixels=settings.max_pixels, progress=progress)
    if inspection.problems:
        raise DatasetError(f"{inspection.root} has {len(inspection.problems)} problem(s):", inspection.problems)
    with console.progress_of("features", "matches") as progress:
        matches = find_matches(
            {pair.stem: pair.image for pair in list_pairs(source).pairs},
            cache=settings.cache_dir.expanduser() / "scenes",
            max_pixels=settings.max_pixels,
            progress=progress,
        )
    return split_by_scene(
        matches,
        {facts.stem: facts.class_pixels for facts in inspection.facts},
        val_share=val_share,
        test_share=test_share,
        seed=seed,
    )


def hard_cases(
    number: Annotated[int, typer.Option("--n", min=1, help="How many, at most.")] = 20,
    last: Annotated[int, typer.Option(min=1, help="Of how many of the last records.")] = 1000,
    records: Annotated[str | None, typer.Option(help="Folder or URL; default: $DRONESEG_RECORDS_URL.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Copy the photographs that were kept, and their masks, into this folder.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace such a folder that is there.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Write JSON to stdout.")] = False,
) -> None:
    """List the photographs a model was least sure of, for labelling.

    Services keep a share of the photographs with DRONESEG_SAMPLE_SHARE; with --out only those are taken.
    """
    from droneseg.monitoring.log_reader import fetch_hard_cases, find_hard_cases, row_of

    place = records or console.settings().records_url
    found = find_hard_cases(place, number, last=last, sampled=out is not None)
    if out:
        copied = fetch_hard_cases(place, found, out, replace=force)
        console.err().print(f"{out}: {copied} photographs and their masks", markup=False)
    if json:
        console.show_json([row_of(case) for case in found])
        return
    rows = [
        [
            console.figure(case.confidence),
            f"{case.time:%Y-%m-%d %H:%M}",
            case.model_id,
            (case.source or "no name")[:24],
            case.sample or "not kept",
        ]
        for case in found
    ]
    columns = ["confidence", "time (UTC)", "model", "source", "photograph"]
    console.out().print(console.table("least confident first", columns, rows))


app = typer.Typer(help="Download, make, check, split and convert datasets.", no_args_is_help=True)

app.command()(import_dataset)
app.command()(split)
app.command("hard-cases")(hard_cases)


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

    with console.progress("scenes") as progress:
        write_samples(folder, count=count, size=_size(size), seed=seed, replace=force, progress=progress)
    console.out().print(f"{count} generated pairs in {folder}")


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

    settings = console.settings()
    token, key = (
        secret.get_secret_value() if secret else None for secret in (settings.kaggle_api_token, settings.kaggle_key)
    )
    with console.progress_of("MB", "files") as progress:
        done = download_dataset(
            folder,
            dataset or DATASET,
            version=version,
            credentials=Credentials(token, settings.kaggle_username, key),
            replace=force,
            progress=progress,
        )
    left_out = f" ({done.left_out} files nobody needs here were left out)" if done.left_out else ""
    console.out().print(f"{done.folder}: {done.pairs} pairs{left_out}", markup=False)
    if done.problems:
        console.out().print(f"{len(done.problems)} problem(s): see `droneseg data check {folder}`", markup=False)
    console.out().print(f"next: droneseg data split {folder} --out data.json", markup=False)


def _inspect(source: Path) -> "Inspection":
    from droneseg.data.dataset import inspect_dataset

    with console.progress("pairs") as progress:
        return inspect_dataset(source, max_pixels=console.settings().max_pixels, progress=progress)


@app.command()
def check(source: Source, json: Json = False) -> None:
    """Report all problems of a folder at once.

    Every file is decoded. Exit code 1 if there is a problem.
    """
    inspection = _inspect(source)
    if json:
        console.show_json(
            {
                "root": inspection.root,
                "good_pairs": len(inspection.facts),
                "problems": inspection.problems,
                "notes": inspection.notes,
            }
        )
    else:
        for note in inspection.notes:
            console.out().print(f"note: {note}", markup=False)
        for problem in inspection.problems:
            console.out().print(f"problem: {problem}", markup=False)
        verdict = f"{len(inspection.problems)} problem(s)" if inspection.problems else "no problem"
        console.out().print(f"{inspection.root}: {len(inspection.facts)} good pairs, {verdict}", markup=False)
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

    console.require_plot_suffix(plot)
    inspection = _inspect(source)
    if not inspection.facts:
        raise DatasetError(f"{inspection.root} has no good pair:", inspection.problems)
    found = compute_stats(inspection.facts)
    if plot:
        plot_stats(inspection.facts, plot)
    if json:
        console.show_json(found)
    else:
        rows = [
            [name, console.percent(share), f"{found.class_images[name]} of {found.pairs}", "#" * round(20 * share)]
            for name, share in found.class_shares.items()
        ]
        shown = console.table(f"{inspection.root}", ["class", "share of pixels", "in photographs", ""], rows)
        shown.columns[3].justify = "left"
        console.out().print(shown)
        for what, counts in (("sizes", found.sizes), ("formats", found.formats)):
            console.out().print(f"{what}: {', '.join(f'{name} ({number})' for name, number in counts.items())}")
        if plot:
            console.out().print(f"plot: {plot}")
    if inspection.problems:
        console.err().print(f"{len(inspection.problems)} problem(s) left out; see `droneseg data check {source}`")


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

    settings = console.settings()
    with console.progress("pairs") as progress:
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
        console.show_json(done)
        return
    for note in done.notes:
        console.out().print(f"note: {note}", markup=False)
    if done.replaced_pixels:
        console.out().print(f"note: {done.replaced_pixels:,} pixels of unknown colour became background")
    console.out().print(f"{done.folder}: {done.train} training cases, {done.test} test cases, {done.dropped} dropped")
