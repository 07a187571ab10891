"""The `droneseg predict`, `probabilities` and `label` commands."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from droneseg.cli import console
from droneseg.cli.console import Json, Model, Part, SplitFile
from droneseg.core.errors import ConfigurationError, DatasetError
from droneseg.core.runtimes import RuntimeName

if TYPE_CHECKING:
    from droneseg.core.image_files import ImageFiles
    from droneseg.core.masks import MaskFormat
    from droneseg.core.prediction import Segmenter
    from droneseg.flows.label import LabelResult
    from droneseg.flows.map_plan import MapPlan
    from droneseg.flows.probabilities import FoldModel, MapResult, MapScores, ProbabilityIndex
    from droneseg.inference.batch import FileResult, ViewOptions
    from droneseg.model.bundle import Bundle


_NAMED = 3
"""Largest number of images that a line lists by name."""
_REMEDIES = {"unknown_scale": "--gsd, --height", "unknown_pitch": "--height, --gsd", "unknown_camera": "--gsd"}
"""Options that replace missing metadata, by the code of the warning."""


class PredictedMasks(StrEnum):
    """Format of predicted masks."""

    COLOURS = "colours"
    IDS = "ids"


def predict(
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT", help="Images, folders, datasets or glob patterns.")],
    out: Annotated[Path, typer.Option(help="Folder for the masks, named like the images.", show_default=False)],
    model: Model = None,
    profile: Annotated[
        str | None,
        typer.Option(
            help="exact: same result as nnU-Net with mirroring; fast: one pass; best, twin, int8: if the bundle has "
            "them. Default: $DRONESEG_PROFILE or the bundle's default."
        ),
    ] = None,
    runtime: Annotated[RuntimeName | None, typer.Option(help="Inference runtime; default: $DRONESEG_RUNTIME.")] = None,
    split: SplitFile = None,
    part: Annotated[Part | None, typer.Option(help="Part of the split to use; default: test.")] = None,
    gsd: console.Gsd = None,
    height: console.Height = None,
    plain: console.Plain = False,
    mask_format: Annotated[
        PredictedMasks,
        typer.Option(
            "--format",
            help="Format of the masks. colours: palette PNG of class colours; ids: grey images of class ids, which "
            "nnU-Net's tools read: PNG, or the file ending of an image NAME_0000.",
        ),
    ] = PredictedMasks.COLOURS,
    overlay: Annotated[
        bool, typer.Option("--overlay", help="Also write NAME_overlay.png: the mask drawn over the image.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Predict all images again and replace any existing masks.")
    ] = False,
    json: Json = False,
) -> None:
    """Segment images and write their masks.

    Masks are named like the images; those of NAME_0000.png, or of NAME_0000.png, NAME_0001.png and NAME_0002.png with
    one channel each, as in nnU-Net, are named NAME.png.

    Images are resampled to the ground resolution of the model. Their metres per pixel come from --gsd, --height or the
    metadata of each file. Images that were already predicted with the same model and options are
    skipped. If a file cannot be read, it is reported, the other files are predicted, and the exit code is 1.
    """
    from droneseg.inference.batch import require_output
    from droneseg.inference.segmenter import load_segmenter

    view = console.view_options(gsd, height, plain=plain)
    part_name = console.choose_part(split, part, default=Part.TEST)
    settings = console.settings()
    images = _find_images(inputs, model, split, part_name)
    require_output(images, out, mask_format=mask_format.value, overlay=overlay, force=force)
    segmenter = load_segmenter(settings, model=model, profile=profile, runtime=runtime)
    results = _predict(segmenter, images, out, view=view, mask_format=mask_format.value, overlay=overlay, force=force)
    _show_warnings(results)
    if json:
        shown = [result.model_dump(mode="json") for result in results]
        console.show_json({"model_id": segmenter.model_id, "results": shown})
    else:
        configuration = f"model {segmenter.model_id}, {segmenter.profile}, {segmenter.runtime}"
        _show_results(results, out, configuration, overlay=overlay)
    if any(result.status == "failed" for result in results):
        raise typer.Exit(1)


def _show_warnings(results: Sequence[FileResult]) -> None:
    """Write each warning once to stderr, with the images it is about and the options that help."""
    images = defaultdict(list)
    for result in results:
        for warning in result.warnings:
            images[warning].append(Path(result.source).name)
    for warning, names in images.items():
        about = ", ".join(names) if len(names) <= _NAMED else f"{len(names)} images"
        options = f" ({_REMEDIES[warning.code]})." if warning.code in _REMEDIES else "."
        console.err().print(f"warning: {about}: {warning.message.removesuffix('.')}{options}", markup=False)


def _show_results(results: Sequence[FileResult], out: Path, configuration: str, *, overlay: bool) -> None:
    """Write the number of images by status, the images with the lowest confidence, and where the overlays are."""
    counts = Counter[str](result.status for result in results)
    statuses = ("predicted", "skipped", "failed")
    summary = ", ".join(f"{counts[status]} {status}" for status in statuses if counts[status])
    console.out().print(f"{out}: {summary} ({configuration})", markup=False)
    rated = sorted((result.confidence, Path(result.source).name) for result in results if result.confidence is not None)
    if len(rated) > 1:
        lowest = ", ".join(f"{name} {confidence:.1%}" for confidence, name in rated[:_NAMED])
        console.out().print(f"lowest confidence: {lowest}", markup=False)
    if overlay and rated:
        from droneseg.inference.batch import OVERLAY_SUFFIX

        console.out().print(f"overlays: {out / f'*{OVERLAY_SUFFIX}'}", markup=False)


def _find_images(inputs: list[str], model: Path | None, split: Path | None, part: str) -> list[ImageFiles]:
    """Return the images of the inputs, or only those in one part of a split."""
    images = console.find_images([_image_folder(entry) for entry in inputs], model)
    if not split:
        return images
    from droneseg.data.splits import read_split, stems_of_split

    # a dataset names an image NAME_0000.png like its file, unless it has nnU-Net's format
    listed = stems_of_split(split)
    by_stem = {image.stem if image.stem in listed else image.file.stem: image for image in images}
    chosen = set(getattr(read_split(split, list(by_stem)), part))
    if not chosen:
        raise DatasetError(f"{split} has no images in its part {part}. Choose another part with --part.")
    return [image for stem, image in by_stem.items() if stem in chosen]


def _image_folder(entry: str) -> str:
    """Return the image folder of a dataset; any other input unchanged."""
    from droneseg.core.images import SUFFIXES
    from droneseg.data.dataset import find_dataset

    folder = Path(entry)
    if not folder.is_dir() or any(file.suffix.lower() in SUFFIXES for file in folder.iterdir()):
        return entry
    try:
        return str(find_dataset(folder).images)
    except DatasetError:
        return entry


def _predict(
    segmenter: Segmenter,
    images: list[ImageFiles],
    out: Path,
    *,
    view: ViewOptions,
    mask_format: MaskFormat,
    overlay: bool,
    force: bool,
) -> list[FileResult]:
    """Predict files with a progress bar; failures are reported as they occur."""
    from droneseg.inference.batch import predict_files

    max_pixels = console.settings().max_pixels
    results = []
    with console.progress_bar("images") as progress:
        for result in predict_files(
            segmenter,
            images,
            out,
            view=view,
            mask_format=mask_format,
            overlay=overlay,
            force=force,
            max_pixels=max_pixels,
        ):
            results.append(result)
            progress(len(results), len(images))
            if result.error:
                console.err().print(f"failed: {result.source}: {result.error}", markup=False)
    return results


def probabilities(
    source: Annotated[
        Path, typer.Argument(metavar="DATA", help="Dataset, or folder of photographs.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Folder for the maps, named like the images.", show_default=False)],
    models: Annotated[
        list[Path] | None,
        typer.Option("--model", help="Bundle, repeatable: one for each fold, in order; default: $DRONESEG_MODEL."),
    ] = None,
    profile: Annotated[str | None, typer.Option(help="Profile of the bundles; default: that of each bundle.")] = None,
    runtime: Annotated[RuntimeName | None, typer.Option(help="Inference runtime; default: $DRONESEG_RUNTIME.")] = None,
    split: Annotated[
        Path | None, typer.Option("--split", help="Split file; predicts its folds, or the part given by --part.")
    ] = None,
    part: Annotated[Part | None, typer.Option(help="Part of the split to predict, with a single model.")] = None,
    fold: Annotated[list[int] | None, typer.Option(help="Fold to predict, from 0, repeatable; default: all.")] = None,
    gsd: console.Gsd = None,
    height: console.Height = None,
    plain: console.Plain = False,
    temperature: Annotated[
        float, typer.Option(min=0.05, max=20, help="Divide the logits by this number; 1 gives uncalibrated maps.")
    ] = 1.0,
    by_place: Annotated[
        bool, typer.Option("--by-place", help="Match the photographs, and print the metrics of each place.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Predict all photographs again.")] = False,
    json: Json = False,
) -> None:
    """Write class probability maps, out of fold or of one model.

    With the folds of --split, each photograph is predicted by the model that was not trained on its place.
    `droneseg models upgrade --out-of-fold` calibrates a bundle on such maps. Maps of one model can serve as the targets
    of a knowledge distillation. Photographs whose map is up to date are skipped. If a file fails, the others are still
    predicted, and the exit code is 1.
    """
    from droneseg.flows.map_plan import empty_index
    from droneseg.flows.probabilities import MapOptions, make_maps, require_map_folder, score_maps, write_index

    view = console.view_options(gsd, height, plain=plain)
    settings = console.settings()
    require_map_folder(out)
    folders = models or [settings.model]
    plan = _plan_maps(source, split, part, fold, folders[0])
    opened = _fold_models(folders, plan, profile, runtime)
    options = MapOptions(settings.max_pixels, view, temperature, force)
    index = empty_index(plan, source, split, opened, profile=profile, temperature=temperature)
    with console.progress_bar("photographs") as progress:
        done = 0

        def show(result: MapResult, total: int) -> None:
            nonlocal done
            done += 1
            progress(done, total)
            if result.error:
                console.err().print(f"failed: {result.stem}: {result.error}", markup=False)

        index = make_maps(opened, plan.tasks, index, out, options, show)
    if by_place:
        index = index.model_copy(update={"places": _find_places(plan, index)})
        write_index(index, out)
    scores = score_maps(index)
    if json:
        console.show_json({"index": index.model_dump(mode="json"), "scores": asdict(scores) if scores else None})
    else:
        _show_maps(index, scores, out)
    if index.failed:
        raise typer.Exit(1)


def _plan_maps(source: Path, split: Path | None, part: Part | None, fold: list[int] | None, model: Path) -> MapPlan:
    """Return the plan of the maps.

    Raises:
        typer.BadParameter: If the options cannot be combined, or the split lacks the folds.
    """
    from droneseg.flows.map_plan import plan_maps
    from droneseg.model.bundle import read_channel_order

    if (part or fold) and not split:
        raise typer.BadParameter("--part and --fold require --split FILE", param_hint="--part" if part else "--fold")
    if part and fold:
        raise typer.BadParameter("cannot be combined with --part", param_hint="--fold")
    try:
        return plan_maps(
            source,
            split,
            part=part.value if part else None,
            folds=fold or (),
            channel_order=read_channel_order(model),
        )
    except ConfigurationError as error:
        raise typer.BadParameter(str(error), param_hint="--fold" if fold else "--split") from error


def _fold_models(
    folders: Sequence[Path], plan: MapPlan, profile: str | None, runtime: RuntimeName | None
) -> list[FoldModel]:
    """Return the model of each fold; every bundle is verified before the first prediction."""
    from droneseg.flows.probabilities import FoldModel
    from droneseg.inference.segmenter import load_segmenter
    from droneseg.model.bundle import read_bundle

    numbers: tuple[int | None, ...] = plan.folds or (None,)
    if len(folders) != len(numbers):
        expected = f"{len(numbers)} (folds {', '.join(map(str, plan.folds))})" if plan.folds else "1"
        raise typer.BadParameter(f"{len(folders)} given, expected {expected}", param_hint="--model")
    settings = console.settings()
    models = []
    for number, folder in zip(numbers, folders, strict=True):
        bundle = read_bundle(folder)
        if number is not None:
            _note_other_fold(bundle, number, plan.first_nnunet_fold + number)
        start = partial(load_segmenter, settings, model=folder, profile=profile, runtime=runtime)
        models.append(FoldModel(number, start, bundle.model_id, bundle.manifest.class_table))
    return models


def _note_other_fold(bundle: Bundle, number: int, nnunet_fold: int) -> None:
    """Write a note if a model was not trained as the fold whose photographs it will predict."""
    trained = bundle.manifest.provenance.folds
    if trained != (nnunet_fold,):
        console.err().print(
            f"note: {bundle.folder} was trained as fold {', '.join(map(str, trained))} of nnU-Net, but fold {number} "
            f"of the split is fold {nnunet_fold} of nnU-Net. Check that the model was not trained on the photographs "
            "that it predicts.",
            markup=False,
        )


def _find_places(plan: MapPlan, index: ProbabilityIndex) -> dict[str, list[str]]:
    from droneseg.data.image_matching import find_matches
    from droneseg.flows.probabilities import group_places

    settings = console.settings()
    with console.progress_bars("features", "matches") as progress:
        matches = find_matches(
            {task.stem: task.image for task in plan.tasks if task.stem in index.photographs},
            cache=settings.cache_dir.expanduser() / "scenes",
            max_pixels=settings.max_pixels,
            progress=progress,
        )
    return group_places(list(index.photographs), matches)


def _show_maps(index: ProbabilityIndex, scores: MapScores | None, out: Path) -> None:
    from droneseg.model.bundle import table_of

    dropped = sum(map(len, index.dropped.values()))
    left_out = (
        f", {dropped} dropped by the folds, {len(index.never_validated)} never validated" if index.dropped else ""
    )
    console.out().print(
        f"{out}: {len(index.photographs)} maps ({index.kind}), {len(index.failed)} failed{left_out}", markup=False
    )
    if not scores:
        return
    rows = [
        [title, str(group.photographs), *_group_cells(group.miou, group.unsafe_landing_rate, group.landing_recall)]
        for title, group in (
            *((f"fold {name}", group) for name, group in scores.by_fold.items()),
            *scores.by_place.items(),
        )
    ]
    total = scores.scores
    rows.append(["all", str(total.images), *_group_cells(total.miou, total.unsafe_landing_rate, total.landing_recall)])
    if note := table_of(index.classes).landing_note:
        console.err().print(f"note: {note}", markup=False)
    title = f"mIoU of the classes: {', '.join(f'{n} {console.number(v)}' for n, v in total.per_class_iou.items())}"
    console.out().print(console.table(title, ["", "photographs", "mIoU", "unsafe", "recall"], rows))
    if scores.miou_quartiles:
        low, first, median, third, high = (f"{value:.3f}" for value in scores.miou_quartiles)
        console.out().print(
            f"mIoU over {len(scores.by_place)} places: {low} to {high}, quartiles {first}, {median}, {third}"
        )


def _group_cells(miou: float | None, unsafe: float | None, recall: float | None) -> list[str]:
    return [console.number(miou), console.percent(unsafe), console.percent(recall)]


def label(
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT", help="Photographs, folders or glob patterns.")],
    out: Annotated[Path, typer.Option(help="Folder for the labelled dataset.", show_default=False)],
    model: Model = None,
    profile: Annotated[str | None, typer.Option(help="Profile; default: the bundle's default.")] = None,
    runtime: Annotated[RuntimeName | None, typer.Option(help="Inference runtime; default: $DRONESEG_RUNTIME.")] = None,
    gsd: console.Gsd = None,
    height: console.Height = None,
    exposures: Annotated[
        str, typer.Option(metavar="1,F,...", help="Brightness factors at which to predict, 0.2 to 5, one of them 1.")
    ] = "0.6,1,1.6",
    mirrored: Annotated[bool, typer.Option(help="Also predict mirrored copies.")] = True,
    min_agreement: Annotated[
        float,
        typer.Option(min=0, max=1, help="Pixels whose label at most this share of the views predicts get weight 0."),
    ] = 0.75,
    min_confidence: Annotated[
        float, typer.Option(min=0, max=1, help="Pixels whose label has at most this mean probability get weight 0.")
    ] = 0.6,
    overlay: Annotated[
        bool,
        typer.Option("--overlay", help="Also write overlays/NAME.png, with stronger colours for larger weights."),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Label all photographs again.")] = False,
    json: Json = False,
) -> None:
    """Label photographs without masks, for self-training.

    Each photograph is predicted at two sizes and several exposures, and mirrored. Pixels on which these views agree get
    a large weight, others a small one or 0. Look at the overlays, then add the labelled photographs to a training with
    `droneseg data convert DATA --add OUT`. Labels that are up to date are kept. If a file fails, the others are still
    labelled, and the exit code is 1.
    """
    from droneseg.flows.label import LabelOptions, label_photographs, require_label_folder
    from droneseg.inference.segmenter import load_segmenter
    from droneseg.model.bundle import read_bundle

    view = console.view_options(gsd, height, plain=False)
    settings = console.settings()
    try:
        factors = tuple(float(factor) for factor in exposures.split(","))
        options = LabelOptions(
            settings.max_pixels, view, factors, mirrored, min_agreement, min_confidence, overlay, force
        )
    except (ValueError, ConfigurationError) as error:
        raise typer.BadParameter(str(error), param_hint="--exposures, --min-agreement or --min-confidence") from error
    require_label_folder(out)
    images = console.find_images(inputs, model)
    segmenter = load_segmenter(settings, model=model, profile=profile, runtime=runtime)
    manifest = read_bundle(model or settings.model).manifest
    results = []
    with console.progress_bar("photographs") as progress:
        for result in label_photographs(segmenter, manifest, images, out, options):
            results.append(result)
            progress(len(results), len(images))
            if result.error:
                console.err().print(f"failed: {result.source}: {result.error}", markup=False)
    _show_labels(results, out, json=json)
    if any(result.error for result in results):
        raise typer.Exit(1)


def _show_labels(results: Sequence[LabelResult], out: Path, *, json: bool) -> None:
    records = [result.record for result in results if result.record]
    failed = {str(result.source): result.error for result in results if result.error}
    if json:
        console.show_json({"photographs": [record.model_dump(mode="json") for record in records], "failed": failed})
        return
    rows = [
        [
            record.stem,
            console.percent(record.mean_weight),
            console.percent(record.unlabelled_share),
            *(console.percent(share) for name, share in record.class_fractions.items() if name != "background"),
        ]
        for record in records
    ]
    classes = [name for name in (records[0].class_fractions if records else ()) if name != "background"]
    columns = ["photograph", "weight", "no weight", *classes]
    console.out().print(console.table(f"{out}: {len(records)} labelled, {len(failed)} failed", columns, rows))
