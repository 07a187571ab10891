"""The `droneseg data` commands."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from droneseg.cli import console
from droneseg.cli.console import Json, Part, Plot, Records
from droneseg.core.classes import Normalisation
from droneseg.core.errors import ConfigurationError, DatasetError

if TYPE_CHECKING:
    from droneseg.core.classes import ClassTable
    from droneseg.data.convert import Conversion
    from droneseg.data.dataset import Inspection, Pair
    from droneseg.data.importer import ImportedDataset
    from droneseg.data.scene_split import SceneFolds, SceneSplit
    from droneseg.data.splits import Split
    from droneseg.data.stats import DatasetStats
    from droneseg.monitoring.log_reader import HardCase

_MIN_SIDE, _MAX_SIDE = 32, 8192
_DEFAULT_SHARE = 0.15


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
        check = console.command("data", "check", folder)
        console.out().print(f"{len(downloaded.problems)} problem(s): see `{check}`", markup=False)
    console.show_next("data", "split", folder, "--out", "data.json")


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
        Path | None,
        typer.Option(
            help="CSV file with the columns r, g, b and class, or index and class for grey masks of ids. If missing, "
            "the command writes a template. Default: colours.csv, or the classes of nnU-Net's dataset.json."
        ),
    ] = None,
    mask_suffix: Annotated[str, typer.Option(help="End of the mask names before the extension, such as _mask.")] = "",
    classes: console.Classes = None,
    gsd: Annotated[
        float | None,
        typer.Option(
            help="Metres per pixel of all images, recorded for `data convert`; default: the metadata of each image."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a dataset imported earlier.")] = False,
    json: Json = False,
) -> None:
    """Import images and masks with other colours or formats.

    They may also be a part of a raw dataset of nnU-Net. Images are copied unchanged; masks are rewritten in the colours
    of the class table. Names in the column name of the table are kept as fine classes. The class ignore is for pixels
    without a label, which training ignores.

    If the table is missing, it is written with all colours of the masks. If any of them is not the colour of a
    class, the exit code is 1: fill in the column class and run the command again.
    """
    from droneseg.data.dataset import find_raw_part
    from droneseg.data.importer import import_dataset, require_pairs
    from droneseg.data.mask_legend import legend_of_labels, read_legend

    max_pixels = console.settings().max_pixels
    pairs = require_pairs(images, masks, mask_suffix)
    if find_raw_part(images, masks) and not (colours or classes):
        legend = legend_of_labels(masks.parent)
    else:
        table, colours = console.class_table(classes), colours or Path("colours.csv")
        if not colours.exists():
            _write_legend(colours, pairs, table)
        legend = read_legend(colours, table)
    with console.progress_bar("pairs") as progress:
        imported = import_dataset(
            pairs, legend, out, gsd_m=gsd, replace=force, max_pixels=max_pixels, progress=progress
        )
    if json:
        console.show_json(imported)
    else:
        _show_imported(imported)


def _write_legend(colours: Path, pairs: Sequence[Pair], classes: ClassTable) -> None:
    """Write a table of all colours or ids in the masks.

    Raises:
        ConfigurationError: If any of them is not the colour of a class, so that the table must be filled in.
    """
    from droneseg.data.mask_legend import write_legend

    max_pixels = console.settings().max_pixels
    with console.progress_bar("masks") as progress:
        number, unknown = write_legend(colours, pairs, classes, max_pixels=max_pixels, progress=progress)
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
    if imported.fine_classes:
        console.out().print(f"{imported.fine_classes} fine classes in fine_masks and fine_classes.csv")
    if imported.ignores_background:
        console.out().print("training ignores background pixels: `droneseg data convert` leaves them without a label")
    console.show_next("data", "check", imported.folder)


@app.command()
def check(source: Source, classes: console.Classes = None, json: Json = False) -> None:
    """Report all problems in a dataset.

    Every file is decoded. The exit code is 1 if there is a problem.
    """
    inspection = _inspect(source, classes)
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


def _inspect(source: Path, classes: Path | None) -> Inspection:
    from droneseg.data.dataset import inspect_dataset

    with console.progress_bar("pairs") as progress:
        return inspect_dataset(
            source, console.mask_colours(classes), max_pixels=console.settings().max_pixels, progress=progress
        )


@app.command()
def stats(source: Source, classes: console.Classes = None, plot: Plot = None, json: Json = False) -> None:
    """Show image sizes and class frequencies."""
    from droneseg.data.stats import compute_stats, plot_stats

    console.check_plot_suffix(plot)
    inspection = _inspect(source, classes)
    if not inspection.facts:
        raise DatasetError(f"{inspection.root} has no valid pairs:", inspection.problems)
    stats = compute_stats(inspection.facts, inspection.classes)
    if plot:
        plot_stats(inspection.facts, inspection.classes, plot)
    if json:
        console.show_json(stats)
    else:
        _show_stats(stats, inspection.root)
        if plot:
            console.out().print(f"plot: {plot}")
    if inspection.problems:
        check = console.command("data", "check", source, *(("--classes", classes) if classes else ()))
        console.err().print(
            f"note: {len(inspection.problems)} problem(s); these files are left out. See `{check}`", markup=False
        )


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
    val_share: Annotated[
        float | None,
        typer.Option(min=0, max=0.9, help="Share of the validation part; default: 0.15; with --folds, 0."),
    ] = None,
    test_share: Annotated[
        float | None, typer.Option(min=0, max=0.9, help="Share of the test part; default: 0.15; with --folds, 0.")
    ] = None,
    folds: Annotated[
        int | None, typer.Option(min=2, help="Also split the training part into this number of folds.")
    ] = None,
    of: Annotated[
        Path | None, typer.Option(help="Existing split whose training part is split into folds; needs --folds.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Random seed; the same seed gives the same split.")] = 0,
    classes: console.Classes = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the split file if it exists.")] = False,
    json: Json = False,
) -> None:
    """Split a dataset into parts.

    With --folds, the training part is also split into folds for cross-validation. It then contains all images, unless
    --of, --val-share or --test-share are given.
    """
    from droneseg.data.splits import check_split_writable, write_split

    if of and (folds is None or val_share is not None or test_share is not None):
        raise typer.BadParameter(
            "needs --folds, and cannot be combined with --val-share or --test-share", param_hint="--of"
        )
    check_split_writable(out, replace=force)
    shares = {
        name: (0.0 if folds else _DEFAULT_SHARE) if share is None else share
        for name, share in (("val_share", val_share), ("test_share", test_share))
    }
    if by is SplitBy.RANDOM:
        random = _random_split(source, of, shares, folds, seed)
        write_split(random, out, replace=force)
        _show_random_split(random, out, json=json)
    else:
        scenes, scene_folds = _scene_split(source, classes, of, shares, folds, seed)
        split = replace(scenes.split, folds=scene_folds.folds) if scene_folds else scenes.split
        write_split(split, out, replace=force)
        _show_scene_split(scenes, scene_folds, out, json=json)


def _random_split(source: Path, of: Path | None, shares: dict[str, float], folds: int | None, seed: int) -> Split:
    from droneseg.data.dataset import list_pairs
    from droneseg.data.splits import random_folds, random_split, read_split

    listing = list_pairs(source)
    if listing.problems:
        raise DatasetError(
            f"{listing.root} has {len(listing.problems)} problem(s) in its file names; see also `droneseg data check`:",
            listing.problems,
        )
    stems = [pair.stem for pair in listing.photographs]
    split = read_split(of, stems) if of else random_split(stems, **shares, seed=seed)
    return replace(split, folds=random_folds(split.train, folds, seed=seed)) if folds else split


def _scene_split(
    source: Path, classes: Path | None, of: Path | None, shares: dict[str, float], folds: int | None, seed: int
) -> tuple[SceneSplit, SceneFolds | None]:
    from droneseg.data.dataset import list_pairs
    from droneseg.data.image_matching import find_matches
    from droneseg.data.scene_split import describe_split, fold_by_scene, split_by_scene
    from droneseg.data.splits import read_split

    settings = console.settings()
    images = {pair.stem: pair.files for pair in list_pairs(source).photographs}
    base = read_split(of, list(images)) if of else None
    inspection = _inspect(source, classes)
    if inspection.problems:
        raise DatasetError(f"{inspection.root} has {len(inspection.problems)} problem(s):", inspection.problems)
    with console.progress_bars("features", "matches") as progress:
        cache = settings.cache_dir.expanduser() / "scenes"
        matches = find_matches(images, cache=cache, max_pixels=settings.max_pixels, progress=progress)
    pixels = {facts.stem: facts.class_pixels for facts in inspection.facts if facts.stem in images}
    names = inspection.classes.names
    if base:
        scenes = describe_split(matches, pixels, names, base)
    else:
        scenes = split_by_scene(matches, pixels, names, **shares, seed=seed)
    train = {stem: pixels[stem] for stem in scenes.split.train}
    return scenes, fold_by_scene(matches, train, names, count=folds, seed=seed) if folds else None


def _show_random_split(split: Split, out: Path, *, json: bool) -> None:
    sizes = {name: len(part) for name, part in split.parts.items() if name != "dropped" or part}
    folds = [{"train": len(fold.train), "val": len(fold.val)} for fold in split.folds]
    if json:
        console.show_json(sizes | {"by": SplitBy.RANDOM.value} | ({"folds": folds} if folds else {}))
        return
    console.out().print(f"{out}: {', '.join(f'{size} {part}' for part, size in sizes.items())} (random)")
    for number, fold in enumerate(folds, start=1):
        console.out().print(f"fold {number}: {fold['train']} train, {fold['val']} val")
    console.err().print("note: images of the same place can be in different parts of a random split")


def _show_scene_split(scenes: SceneSplit, folds: SceneFolds | None, out: Path, *, json: bool) -> None:
    sizes = {name: len(part) for name, part in scenes.split.parts.items()}
    if json:
        console.show_json(
            sizes
            | {
                "by": SplitBy.SCENE.value,
                "crossing": scenes.crossing,
                "groups": scenes.groups,
                "shares": scenes.class_shares,
            }
            | ({"folds": _fold_rows(folds)} if folds else {})
        )
        return
    columns = {part: (sizes[part], scenes.groups[part], scenes.class_shares[part]) for part in scenes.class_shares}
    _show_parts(str(out), columns)
    console.out().print(f"{scenes.crossing} matches between different parts; {sizes['dropped']} images dropped")
    if scenes.crossing:
        console.err().print("note: the parts of this split share places, so metrics on val and test are too high")
    if folds:
        _show_folds(folds)


def _fold_rows(folds: SceneFolds) -> list[dict[str, object]]:
    return [
        {name: len(part) for name, part in asdict(fold).items()} | {"groups": groups, "shares": shares}
        for fold, groups, shares in zip(folds.folds, folds.groups, folds.class_shares, strict=True)
    ]


def _show_folds(folds: SceneFolds) -> None:
    columns = {}
    for number, fold in enumerate(folds.folds):
        for name, part in (("train", fold.train), ("val", fold.val)):
            columns[f"{name} {number + 1}"] = (len(part), folds.groups[number][name], folds.class_shares[number][name])
    _show_parts("folds", columns)
    dropped = [len(fold.dropped) for fold in folds.folds]
    console.out().print(
        f"{folds.crossing} matches between train and val of a fold; images dropped: {', '.join(map(str, dropped))}; "
        f"images never validated: {len(folds.never_validated)}"
    )


def _show_parts(title: str, columns: dict[str, tuple[int, int, dict[str, float]]]) -> None:
    """Print a table with the images, places and class shares of parts."""
    rows = [
        ["images", *(str(images) for images, _, _ in columns.values())],
        ["places", *(str(places) for _, places, _ in columns.values())],
    ]
    names = next(iter(columns.values()))[2]
    rows += [[name, *(console.percent(shares[name]) for _, _, shares in columns.values())] for name in names]
    console.out().print(console.table(title, ["", *columns], rows))


@app.command()
def convert(
    source: Source,
    raw: Annotated[
        Path | None, typer.Option(help="nnU-Net's folder of raw datasets; default: $nnUNet_raw or nnUNet_raw.")
    ] = None,
    split_file: Annotated[Path | None, typer.Option("--split", help="Split file to use.")] = None,
    test_share: Annotated[
        float | None, typer.Option(min=0, max=0.9, help="Share of the test part without --split; default: 0.2.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Random seed for choosing the test part.")] = 0,
    unknown: Annotated[Unknown, typer.Option(help="Handling of mask colours that belong to no class.")] = Unknown.FAIL,
    normalisation: Annotated[
        Normalisation, typer.Option(help="How nnU-Net normalises the colour channels.")
    ] = Normalisation.RGB_TO_0_1,
    add: Annotated[
        list[Path] | None, typer.Option(help="Further dataset, for training in every fold; repeatable.")
    ] = None,
    gsd: Annotated[
        float | None,
        typer.Option(
            help="Metres per pixel of all images of SOURCE; default: as recorded by the import, or in their metadata."
        ),
    ] = None,
    classes: console.Classes = None,
    ignore_background: Annotated[
        bool,
        typer.Option(
            "--ignore-background", help="Treat background pixels as unlabelled, so that training ignores them."
        ),
    ] = False,
    boxes: Annotated[
        Path | None,
        typer.Option(
            help="JSON file with boxes around people or vehicles, {stem: [[x0, y0, x1, y1], ...]}, in pixels."
        ),
    ] = None,
    box_weight: Annotated[
        float | None,
        typer.Option(
            help="Factor of the weight of moving objects inside the boxes; above 0, at most 2.55; default: 2."
        ),
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Convert a dataset to nnU-Net's raw format.

    Fine masks and weights of the dataset become additional targets. Generated images are never used for validation or
    test.
    """
    from droneseg.data.convert import DEFAULT_BOX_WEIGHT, DEFAULT_TEST_SHARE, ConversionOptions, convert_dataset

    if box_weight is not None and boxes is None:
        raise typer.BadParameter("needs --boxes FILE", param_hint="--box-weight")
    if test_share is not None and split_file:
        raise typer.BadParameter("cannot be combined with --split, which has a test part", param_hint="--test-share")
    settings = console.settings()
    options = ConversionOptions(
        split_file=split_file,
        test_share=DEFAULT_TEST_SHARE if test_share is None else test_share,
        seed=seed,
        unknown=unknown.value,
        normalisation=normalisation,
        added=tuple(add or ()),
        gsd_m=gsd,
        ignore_background=ignore_background,
        boxes_file=boxes,
        box_weight=DEFAULT_BOX_WEIGHT if box_weight is None else box_weight,
        colours=console.mask_colours(classes),
    )
    with console.progress_bar("pairs") as progress:
        converted = convert_dataset(
            source,
            raw or settings.nnunet_raw,
            options,
            force=force,
            max_pixels=settings.max_pixels,
            progress=progress,
        )
    if json:
        console.show_json(converted)
    else:
        _show_conversion(converted)


def _show_conversion(converted: Conversion) -> None:
    for note in converted.notes:
        console.out().print(f"note: {note}", markup=False)
    if converted.replaced_pixels:
        console.out().print(f"note: {converted.replaced_pixels:,} pixels of unknown colour became background")
    if converted.ignored_pixels:
        console.out().print(f"note: {converted.ignored_pixels:,} pixels have no label, so training ignores them")
    console.out().print(
        f"{converted.folder}: cases: {converted.train} training, {converted.test} test, {converted.dropped} dropped",
        markup=False,
    )
    details = {
        "generated": converted.generated,
        "with ground resolution": converted.known_gsd,
        "with fine classes": converted.fine_cases,
        "folds": converted.folds,
    }
    if any(details.values()):
        console.out().print(", ".join(f"{name}: {number}" for name, number in details.items() if number))


@app.command()
def augment(
    source: Source,
    out: Annotated[Path, typer.Option(help="Dataset folder to create.", show_default=False)],
    split_file: Annotated[
        Path | None, typer.Option("--split", help="Split file; default: all images are in the training part.")
    ] = None,
    part: Annotated[Part, typer.Option(help="Part of the split to generate from.")] = Part.TRAIN,
    water: Annotated[
        float,
        typer.Option(min=0, max=20, help="Images with generated water per image; 0.5: one for half of the images."),
    ] = 0.5,
    ground: Annotated[
        float, typer.Option(min=0, max=20, help="Images with ground from other images, inserted like water, per image.")
    ] = 0.5,
    shadow: Annotated[
        float, typer.Option(min=0, max=20, help="Images with shadows of clouds, trees and walls, per image.")
    ] = 0.25,
    seed: Annotated[int, typer.Option(min=0, help="Random seed; the same seed gives the same images.")] = 0,
    originals: Annotated[
        bool,
        typer.Option("--originals/--no-originals", help="Whether the new dataset also contains the original images."),
    ] = True,
    force: Force = False,
    json: Json = False,
) -> None:
    """Add images with generated water, other ground and shadows.

    Writes a complete dataset with generated.json and an extended split.json. Masks change with the images. Obstacles,
    people and cars mostly stay above inserted water and ground.
    """
    from droneseg.data.augment import AugmentOptions, augment_dataset

    options = AugmentOptions(water, ground, shadow, seed, part.value, originals)
    with console.progress_bars("textures", "images") as progress:
        augmented = augment_dataset(
            source,
            out,
            options,
            split_file=split_file,
            replace=force,
            max_pixels=console.settings().max_pixels,
            progress=progress,
        )
    if json:
        console.show_json(augmented)
        return
    generated = ", ".join(f"{number} {kind}" for kind, number in augmented.generated.items())
    console.out().print(
        f"{out}: {augmented.originals} original and {sum(augmented.generated.values())} generated pairs ({generated}); "
        f"{console.percent(augmented.laid_share)} of the pixels of generated images are inserted water or ground",
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
