"""The `droneseg data` commands."""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from droneseg.cli import console
from droneseg.cli.console import Json, Plot, Records
from droneseg.core.classes import Normalisation
from droneseg.core.errors import ConfigurationError, DatasetError

if TYPE_CHECKING:
    from droneseg.data.dataset import Inspection, Pair
    from droneseg.data.importer import ImportedDataset
    from droneseg.data.scene_split import SceneSplit
    from droneseg.data.splits import Split
    from droneseg.data.stats import DatasetStats
    from droneseg.monitoring.log_reader import HardCase

_MIN_SIDE, _MAX_SIDE = 32, 8192


class SplitBy(StrEnum):
    """Method of splitting a dataset."""

    SCENE = "scene"
    RANDOM = "random"


class Unknown(StrEnum):
    """Handling of mask colours that belong to no class."""

    FAIL = "fail"
    BACKGROUND = "background"


Source = Annotated[Path, typer.Argument(help="Dataset folder.", show_default=False)]
Force = Annotated[bool, typer.Option("--force", help="Replace the dataset if it exists.")]

app = typer.Typer(help="Download, import, check, split and convert datasets.", no_args_is_help=True)


@app.callback()
def data() -> None:
    """Download, import, check, split and convert datasets."""
    console.exit_on_sigterm()


@app.command()
def download(
    folder: Annotated[Path, typer.Argument(help="Folder to create.")] = Path("data/drone"),
    dataset: Annotated[
        str | None, typer.Option(help="Kaggle dataset as OWNER/NAME; default: the dataset that defines the classes.")
    ] = None,
    version: Annotated[int | None, typer.Option(min=1, help="Version of the dataset; default: the latest.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier download.")] = False,
) -> None:
    """Download a dataset from Kaggle, or resume a download.

    Only images and masks are unpacked. Needs KAGGLE_API_TOKEN, or KAGGLE_USERNAME and KAGGLE_KEY.
    """
    from droneseg.data.kaggle import DATASET, Credentials, download_dataset

    settings = console.settings()
    token, key = (
        secret.get_secret_value() if secret else None for secret in (settings.kaggle_api_token, settings.kaggle_key)
    )
    with console.progress_bars("MB", "files") as progress:
        downloaded = download_dataset(
            folder,
            dataset or DATASET,
            version=version,
            credentials=Credentials(token, settings.kaggle_username, key),
            replace=force,
            progress=progress,
        )
    left_out = f" ({downloaded.left_out} other files were not unpacked)" if downloaded.left_out else ""
    console.out().print(f"{downloaded.folder}: {downloaded.pairs} pairs{left_out}", markup=False)
    if downloaded.problems:
        console.out().print(f"{len(downloaded.problems)} problem(s): see `droneseg data check {folder}`", markup=False)
    console.out().print(f"next: droneseg data split {folder} --out data.json", markup=False)


@app.command()
def sample(
    folder: Annotated[Path, typer.Argument(help="Folder to create.", show_default=False)],
    count: Annotated[int, typer.Option(min=1, help="Number of pairs.")] = 24,
    size: Annotated[str, typer.Option(help="Size of the images in pixels, as WIDTHxHEIGHT.")] = "480x368",
    seed: Annotated[int, typer.Option(min=0, help="Random seed; the same seed gives the same scenes.")] = 0,
    force: Force = False,
) -> None:
    """Generate aerial scenes with exact masks.

    The dataset has the folder layout of the Kaggle dataset.
    """
    from droneseg.data.synthetic import write_samples

    with console.progress_bar("scenes") as progress:
        write_samples(folder, count=count, size=_parse_size(size), seed=seed, replace=force, progress=progress)
    console.out().print(f"{count} generated pairs in {folder}")


def _parse_size(text: str) -> tuple[int, int]:
    """Return width and height.

    Raises:
        typer.BadParameter: If the text is not WIDTHxHEIGHT, or a side is too short or too long.
    """
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    width, height = (int(match[1]), int(match[2])) if match else (0, 0)
    if min(width, height) < _MIN_SIDE or max(width, height) > _MAX_SIDE:
        raise typer.BadParameter(
            f"{text!r} is not WIDTHxHEIGHT with sides of {_MIN_SIDE} to {_MAX_SIDE} pixels, such as 960x736"
        )
    return width, height


@app.command("import")
@app.command("adopt", hidden=True)  # earlier name, kept for scripts
def import_dataset(
    images: Annotated[Path, typer.Argument(help="Folder of images.", show_default=False)],
    masks: Annotated[
        Path, typer.Argument(help="Folder of masks with the same file names, except for suffixes.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Dataset folder to create.", show_default=False)],
    colours: Annotated[
        Path,
        typer.Option(help="CSV file with the columns r, g, b and class. If missing, the command writes a template."),
    ] = Path("colours.csv"),
    mask_suffix: Annotated[str, typer.Option(help="End of the mask names before the extension, such as _mask.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Replace a dataset imported earlier.")] = False,
    json: Json = False,
) -> None:
    """Import images and masks with other class colours.

    Images are copied unchanged; masks are rewritten in the colours of the five classes.

    If the colour table is missing, it is written with all colours of the masks. If any of them is not the colour of a
    class, the exit code is 1: fill in the column class and run the command again.
    """
    from droneseg.data.importer import import_dataset, read_colours, require_pairs

    max_pixels = console.settings().max_pixels
    pairs = require_pairs(images, masks, mask_suffix)
    if not colours.exists():
        _write_colour_table(colours, pairs)
    class_ids = read_colours(colours)
    with console.progress_bar("pairs") as progress:
        imported = import_dataset(pairs, class_ids, out, replace=force, max_pixels=max_pixels, progress=progress)
    if json:
        console.show_json(imported)
    else:
        _show_imported(imported)


def _write_colour_table(colours: Path, pairs: Sequence[Pair]) -> None:
    """Write a table of all colours in the masks.

    Raises:
        ConfigurationError: If any of them is not the colour of a class, so that the table must be filled in.
    """
    from droneseg.data.importer import write_colours

    max_pixels = console.settings().max_pixels
    with console.progress_bar("masks") as progress:
        number, unknown = write_colours(colours, pairs, max_pixels=max_pixels, progress=progress)
    if unknown:
        raise ConfigurationError(
            f"{colours} did not exist and was created with the {number} colours of the masks. "
            "Fill in the column class and run the command again."
        )


def _show_imported(imported: ImportedDataset) -> None:
    total = sum(imported.pixels.values())
    rows = [[name, console.percent(pixels / total)] for name, pixels in imported.pixels.items()]
    title = f"{imported.folder}: {imported.pairs} pairs"
    console.out().print(console.table(title, ["class", "share of pixels"], rows))
    console.out().print(f"next: droneseg data check {imported.folder}", markup=False)


@app.command()
def check(source: Source, json: Json = False) -> None:
    """Report all problems in a dataset.

    Every file is decoded. The exit code is 1 if there is a problem.
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
        verdict = f"{len(inspection.problems)} problem(s)" if inspection.problems else "no problems"
        console.out().print(f"{inspection.root}: {len(inspection.facts)} valid pairs, {verdict}", markup=False)
    if inspection.problems:
        raise typer.Exit(1)


def _inspect(source: Path) -> Inspection:
    from droneseg.data.dataset import inspect_dataset

    with console.progress_bar("pairs") as progress:
        return inspect_dataset(source, max_pixels=console.settings().max_pixels, progress=progress)


@app.command()
def stats(source: Source, plot: Plot = None, json: Json = False) -> None:
    """Show image sizes and class frequencies."""
    from droneseg.data.stats import compute_stats, plot_stats

    console.check_plot_suffix(plot)
    inspection = _inspect(source)
    if not inspection.facts:
        raise DatasetError(f"{inspection.root} has no valid pairs:", inspection.problems)
    stats = compute_stats(inspection.facts)
    if plot:
        plot_stats(inspection.facts, plot)
    if json:
        console.show_json(stats)
    else:
        _show_stats(stats, inspection.root)
        if plot:
            console.out().print(f"plot: {plot}")
    if inspection.problems:
        count = len(inspection.problems)
        console.err().print(f"note: {count} problem(s); these files are left out. See `droneseg data check {source}`")


def _show_stats(stats: DatasetStats, root: Path) -> None:
    rows = [
        [name, console.percent(share), f"{stats.class_images[name]} of {stats.pairs}", "#" * round(20 * share)]
        for name, share in stats.class_shares.items()
    ]
    table = console.table(str(root), ["class", "share of pixels", "in images", ""], rows)
    table.columns[3].justify = "left"
    console.out().print(table)
    for title, counts in (("sizes", stats.sizes), ("formats", stats.formats)):
        console.out().print(f"{title}: {', '.join(f'{name} ({count})' for name, count in counts.items())}")


@app.command()
def split(
    source: Source,
    out: Annotated[Path, typer.Option(help="Split file to write.", show_default=False)],
    by: Annotated[
        SplitBy,
        typer.Option(help="scene: images of one place go to one part, found by image matching; random: at random."),
    ] = SplitBy.SCENE,
    val_share: Annotated[float, typer.Option(min=0, max=0.9, help="Share of the validation part.")] = 0.15,
    test_share: Annotated[float, typer.Option(min=0, max=0.9, help="Share of the test part.")] = 0.15,
    seed: Annotated[int, typer.Option(min=0, help="Random seed; the same seed gives the same split.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace the split file if it exists.")] = False,
    json: Json = False,
) -> None:
    """Split a dataset into training, validation and test."""
    from droneseg.data.splits import check_split_writable, write_split

    check_split_writable(out, replace=force)
    if by is SplitBy.RANDOM:
        random = _random_split(source, val_share, test_share, seed)
        write_split(random, out, replace=force)
        _show_random_split(random, out, json=json)
    else:
        scenes = _scene_split(source, val_share, test_share, seed)
        write_split(scenes.split, out, replace=force)
        _show_scene_split(scenes, out, json=json)


def _random_split(source: Path, val_share: float, test_share: float, seed: int) -> Split:
    from droneseg.data.dataset import list_pairs
    from droneseg.data.splits import random_split

    listing = list_pairs(source)
    if listing.problems:
        raise DatasetError(
            f"{listing.root} has {len(listing.problems)} problem(s) in its file names; see also `droneseg data check`:",
            listing.problems,
        )
    return random_split([pair.stem for pair in listing.pairs], val_share=val_share, test_share=test_share, seed=seed)


def _scene_split(source: Path, val_share: float, test_share: float, seed: int) -> SceneSplit:
    from droneseg.data.dataset import list_pairs
    from droneseg.data.image_matching import find_matches
    from droneseg.data.scene_split import split_by_scene

    settings = console.settings()
    inspection = _inspect(source)
    if inspection.problems:
        raise DatasetError(f"{inspection.root} has {len(inspection.problems)} problem(s):", inspection.problems)
    with console.progress_bars("features", "matches") as progress:
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


def _show_random_split(split: Split, out: Path, *, json: bool) -> None:
    sizes = {"train": len(split.train), "val": len(split.val), "test": len(split.test)}
    if json:
        console.show_json(sizes | {"by": SplitBy.RANDOM.value})
        return
    console.out().print(f"{out}: {', '.join(f'{size} {part}' for part, size in sizes.items())} (random)")
    console.err().print("note: images of the same place can be in different parts of a random split")


def _show_scene_split(scenes: SceneSplit, out: Path, *, json: bool) -> None:
    sizes = {name: len(getattr(scenes.split, name)) for name in ("train", "val", "test", "dropped")}
    if json:
        console.show_json(
            sizes
            | {
                "by": SplitBy.SCENE.value,
                "crossing": scenes.crossing,
                "groups": scenes.groups,
                "shares": scenes.class_shares,
            }
        )
        return
    parts = list(scenes.class_shares)
    rows = [
        ["images", *(str(sizes[part]) for part in parts)],
        ["places", *(str(scenes.groups[part]) for part in parts)],
    ]
    rows += [
        [name, *(console.percent(scenes.class_shares[part][name]) for part in parts)]
        for name in scenes.class_shares[parts[0]]
    ]
    console.out().print(console.table(str(out), ["", *parts], rows))
    console.out().print(f"{scenes.crossing} matches between different parts; {sizes['dropped']} images dropped")


@app.command()
def convert(
    source: Source,
    raw: Annotated[
        Path | None, typer.Option(help="nnU-Net's folder of raw datasets; default: $nnUNet_raw or nnUNet_raw.")
    ] = None,
    split_file: Annotated[Path | None, typer.Option("--split", help="Split file to use.")] = None,
    test_share: Annotated[
        float, typer.Option(min=0, max=0.9, help="Share of the test part, if there is no split file.")
    ] = 0.2,
    seed: Annotated[int, typer.Option(min=0, help="Random seed for choosing the test part.")] = 0,
    unknown: Annotated[Unknown, typer.Option(help="Handling of mask colours that belong to no class.")] = Unknown.FAIL,
    normalisation: Annotated[
        Normalisation, typer.Option(help="How nnU-Net normalises the colour channels.")
    ] = Normalisation.RGB_TO_0_1,
    force: Force = False,
    json: Json = False,
) -> None:
    """Convert a dataset to nnU-Net's raw format."""
    from droneseg.data.convert import convert_dataset

    settings = console.settings()
    with console.progress_bar("pairs") as progress:
        converted = convert_dataset(
            source,
            raw or settings.nnunet_raw,
            split_file=split_file,
            test_share=test_share,
            seed=seed,
            unknown=unknown.value,
            normalisation=normalisation,
            force=force,
            max_pixels=settings.max_pixels,
            progress=progress,
        )
    if json:
        console.show_json(converted)
        return
    for note in converted.notes:
        console.out().print(f"note: {note}", markup=False)
    if converted.replaced_pixels:
        console.out().print(f"note: {converted.replaced_pixels:,} pixels of unknown colour became background")
    console.out().print(
        f"{converted.folder}: cases: {converted.train} training, {converted.test} test, {converted.dropped} dropped",
        markup=False,
    )


@app.command("hard-cases")
def hard_cases(
    number: Annotated[int, typer.Option("--n", min=1, help="Maximum number of images to list.")] = 20,
    last: Annotated[int, typer.Option(min=1, help="Number of most recent records to search.")] = 1000,
    records: Records = None,
    out: Annotated[Path | None, typer.Option(help="Copy the stored images and their masks to this folder.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the output folder if it exists.")] = False,
    json: Json = False,
) -> None:
    """List the images with the least confident predictions.

    These are candidates for labelling. Services store a share of their images, set by DRONESEG_SAMPLE_SHARE. With
    --out, only stored images are listed.
    """
    from droneseg.monitoring.log_reader import fetch_hard_cases, find_hard_cases, row_of

    url = records or console.settings().records_url
    cases = find_hard_cases(url, number, last=last, sampled=out is not None)
    if out:
        copied = fetch_hard_cases(url, cases, out, replace=force)
        console.err().print(f"{out}: {copied} images and their masks", markup=False)
    if json:
        console.show_json([row_of(case) for case in cases])
    else:
        _show_hard_cases(cases)


def _show_hard_cases(cases: list[HardCase]) -> None:
    rows = [
        [
            console.number(case.confidence),
            f"{case.time:%Y-%m-%d %H:%M}",
            case.model_id,
            (case.source or "unnamed")[:24],
            case.sample or "not stored",
        ]
        for case in cases
    ]
    columns = ["confidence", "time (UTC)", "model", "source", "stored image"]
    console.out().print(console.table("least confident predictions", columns, rows))
