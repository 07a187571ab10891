"""The `droneseg export`, `predict`, `evaluate` and `drift` commands."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from droneseg.cli import console
from droneseg.cli.console import Json, Model, Part, Records, SplitFile
from droneseg.core.errors import DatasetError, DronesegError, ModelError
from droneseg.core.runtimes import RuntimeName

if TYPE_CHECKING:
    from droneseg.core.images import Image
    from droneseg.core.prediction import Segmenter
    from droneseg.evaluation.evaluate import Evaluation
    from droneseg.inference.batch import FileResult, ViewOptions
    from droneseg.model.bundle import Bundle
    from droneseg.nnunet.paths import NnunetPaths


_NAMED = 3
"""Largest number of images that a line lists by name."""
_REMEDIES = {"unknown_scale": "--gsd, --height", "unknown_pitch": "--height, --gsd", "unknown_camera": "--gsd"}
"""Options that replace missing metadata, by the code of the warning."""


class TruthKind(StrEnum):
    """Encoding of ground truth masks."""

    COLOURS = "colours"
    IDS = "ids"


def export(
    source: Annotated[
        Path | None,
        typer.Option("--from", help="nnU-Net's model folder; default: the only one in nnUNet_results."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the bundle; default: $DRONESEG_MODEL.")] = None,
    checkpoint: Annotated[str, typer.Option(help="File name of the checkpoint in each fold.")] = "checkpoint_final.pth",
    fold: Annotated[
        list[int] | None, typer.Option(help="Fold to export, repeatable; default: the average of all folds.")
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Add a profile with a calibrated INT8 network.")] = False,
    default_profile: Annotated[str, typer.Option(help="Default profile of the bundle.")] = "fast",
    licence: Annotated[
        str, typer.Option("--license", help="Licence of the weights.")
    ] = "the terms of the data it was trained on",
    train_gsd: console.TrainGsd = None,
    train_gsd_range: console.TrainGsdRange = None,
    train_gsd_source: console.TrainGsdSource = None,
    images: Annotated[int, typer.Option(min=4, help="Maximum number of images to measure the profiles on.")] = 8,
    gsd: console.Gsd = None,
    height: console.Height = None,
    plain: console.Plain = False,
    trust: Annotated[
        bool, typer.Option("--trust", help="Load a checkpoint that can run code. Use only if you trust its source.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the bundle if it exists.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Write the manifest to stdout.")] = False,
) -> None:
    """Export a trained model to a bundle for inference.

    The bundle needs neither torch nor nnU-Net. The exported network is compared with the trained one, and every
    profile is measured on the validation images; --gsd, --height and --plain apply to them. With --train-gsd, images
    are resampled to the ground resolution of the training images.
    """
    from droneseg.core.files import check_writable
    from droneseg.model.bundle import MANIFEST_NAME

    ground = console.training_ground(train_gsd, train_gsd_range, train_gsd_source)
    view = console.view_options(gsd, height, plain=plain)
    settings = console.settings()
    target = out or settings.model
    check_writable(target, marker=MANIFEST_NAME, replace=force)
    console.require_nnunet()
    from droneseg.flows.export import export_model
    from droneseg.nnunet.paths import NnunetPaths

    paths = NnunetPaths.from_settings(settings)
    model_folder = source or _only_trained_model(paths)
    bundle = export_model(
        model_folder,
        paths,
        target,
        checkpoint=checkpoint,
        folds=tuple(fold) if fold else None,
        trust=trust,
        int8=int8,
        default_profile=default_profile,
        licence=licence,
        ground=ground,
        view=view,
        images=images,
        on_step=console.show_step,
    )
    _upload_bundle(bundle, model_folder)
    if json:
        console.show_json(bundle.manifest.model_dump(mode="json"))
    else:
        _show_bundle(bundle)


def _only_trained_model(paths: NnunetPaths) -> Path:
    """Return the folder of the only trained model.

    Raises:
        ModelError: If there are none or several.
    """
    from droneseg.nnunet.paths import trained_folders

    folders = trained_folders(paths.results)
    if len(folders) == 1:
        return folders[0]
    if not folders:
        raise ModelError(f"No trained model in {paths.results}. Train one with `droneseg train`.")
    names = "".join(f"\n  - {folder}" for folder in folders)
    raise ModelError(f"Several trained models in {paths.results}. Choose one with --from:{names}")


def _upload_bundle(bundle: Bundle, model_folder: Path) -> None:
    """Upload the bundle to W&B if the training was tracked; a failed upload is only reported."""
    from droneseg.model.bundle import MANIFEST_NAME
    from droneseg.nnunet.wandb_logger import choose_mode, send_bundle

    key = console.settings().wandb_api_key
    choose_mode("auto", api_key=key.get_secret_value() if key else None)
    provenance = bundle.manifest.provenance
    try:
        run = send_bundle(
            model_folder / f"fold_{provenance.folds[0]}",
            bundle.folder,
            [MANIFEST_NAME, *bundle.manifest.files],
            bundle.manifest.model_dump(mode="json"),
            name=f"bundle-{provenance.configuration}",
        )
    except DronesegError as error:
        console.err().print(f"note: the bundle was not uploaded to W&B: {error}", markup=False)
        return
    if run:
        console.err().print(f"note: the bundle was uploaded to W&B as an artifact of run {run}", markup=False)


def _show_bundle(bundle: Bundle) -> None:
    manifest = bundle.manifest
    rows = [
        [
            f"{name}{' (default)' if name == manifest.default_profile else ''}",
            console.percent(profile.figures["agreement_with_exact"], 2),
            console.number(profile.figures["miou"]),
        ]
        for name, profile in manifest.profiles.items()
    ]
    title = f"measured on: {(manifest.quality or {}).get('data', '-')}"
    console.out().print(console.table(title, ["profile", "agreement with exact", "mIoU"], rows))
    console.out().print(f"{bundle.folder}: model {bundle.model_id}, {manifest.description}", markup=False)


def predict(
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT", help="Images, folders, datasets or glob patterns.")],
    out: Annotated[Path, typer.Option(help="Folder for the masks, named like the images.", show_default=False)],
    model: Model = None,
    profile: Annotated[
        str | None,
        typer.Option(
            help="exact: same result as nnU-Net with mirroring; fast: one pass; int8: if the bundle has it. "
            "Default: $DRONESEG_PROFILE or the bundle's default."
        ),
    ] = None,
    runtime: Annotated[RuntimeName | None, typer.Option(help="Inference runtime; default: $DRONESEG_RUNTIME.")] = None,
    split: SplitFile = None,
    part: Annotated[Part | None, typer.Option(help="Part of the split to use; default: test.")] = None,
    gsd: console.Gsd = None,
    height: console.Height = None,
    plain: console.Plain = False,
    overlay: Annotated[
        bool, typer.Option("--overlay", help="Also write NAME_overlay.png: the mask drawn over the image.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Predict all images again and replace any existing masks.")
    ] = False,
    json: Json = False,
) -> None:
    """Segment images and write their masks.

    Images are resampled to the ground resolution of the model. Their metres per pixel come from --gsd, --height or the
    metadata of each file. Images that were already predicted with the same model and options are
    skipped. If a file cannot be read, it is reported, the other files are predicted, and the exit code is 1.
    """
    from droneseg.inference.batch import require_output
    from droneseg.inference.segmenter import load_segmenter

    view = console.view_options(gsd, height, plain=plain)
    part_name = console.choose_part(split, part, default=Part.TEST)
    settings = console.settings()
    images = _find_images(inputs, split, part_name)
    require_output(images, out, overlay=overlay, force=force)
    segmenter = load_segmenter(settings, model=model, profile=profile, runtime=runtime)
    results = _predict(segmenter, images, out, view=view, overlay=overlay, force=force)
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


def _find_images(inputs: list[str], split: Path | None, part: str) -> list[Path]:
    """Return the image files of the inputs, or only those in one part of a split."""
    from droneseg.inference.batch import find_inputs

    images = find_inputs([_image_folder(entry) for entry in inputs])
    if not split:
        return images
    from droneseg.data.splits import read_split

    stems = set(getattr(read_split(split, [image.stem for image in images]), part))
    return [image for image in images if image.stem in stems]


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
    segmenter: Segmenter, images: list[Path], out: Path, *, view: ViewOptions, overlay: bool, force: bool
) -> list[FileResult]:
    """Predict files with a progress bar; failures are reported as they occur."""
    from droneseg.inference.batch import predict_files

    max_pixels = console.settings().max_pixels
    results = []
    with console.progress_bar("images") as progress:
        for result in predict_files(
            segmenter, images, out, view=view, overlay=overlay, force=force, max_pixels=max_pixels
        ):
            results.append(result)
            progress(len(results), len(images))
            if result.error:
                console.err().print(f"failed: {result.source}: {result.error}", markup=False)
    return results


def evaluate(
    predictions: Annotated[Path, typer.Argument(help="Folder of predicted masks.", show_default=False)],
    truth: Annotated[
        Path, typer.Argument(help="Folder of ground truth masks, or a dataset folder.", show_default=False)
    ],
    truth_kind: Annotated[
        TruthKind, typer.Option("--truth", help="Encoding of the ground truth masks: class colours or class ids.")
    ] = TruthKind.COLOURS,
    report: Annotated[
        Path | None, typer.Option(help="Write a report with confidence intervals and plots to this folder.")
    ] = None,
    scores: Annotated[Path | None, typer.Option(help="Write the metrics to this JSON file, for DVC.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the report if it exists.")] = False,
    json: Json = False,
) -> None:
    """Compare predicted masks with ground truth masks.

    Masks are matched by file name.
    """
    from droneseg.core.files import check_writable
    from droneseg.evaluation.evaluate import evaluate_folder
    from droneseg.evaluation.report import REPORT_MARKER

    max_pixels = console.settings().max_pixels
    if report:
        check_writable(report, marker=REPORT_MARKER, replace=force)
    with console.progress_bar("masks") as progress:
        evaluation = evaluate_folder(
            predictions, _mask_folder(truth), truth_kind=truth_kind.value, max_pixels=max_pixels, progress=progress
        )
    if scores:
        _write_scores(evaluation, scores)
    if report:
        _write_report(evaluation, report, predictions, truth, truth_kind)
    if json:
        console.show_json(_evaluation_json(evaluation))
        return
    _show_evaluation(evaluation)
    if report:
        console.out().print(f"report: {report / 'report.md'}", markup=False)


def _mask_folder(truth: Path) -> Path:
    """Return the folder of masks: `truth` itself if it contains PNG files, otherwise that of the dataset."""
    if not truth.is_dir() or any(truth.glob("*.png")):
        return truth
    from droneseg.data.dataset import find_dataset

    return find_dataset(truth).masks


def _write_report(evaluation: Evaluation, report: Path, predictions: Path, truth: Path, truth_kind: TruthKind) -> None:
    from droneseg.evaluation.report import write_report

    max_pixels = console.settings().max_pixels
    write_report(
        evaluation,
        report,
        title=f"Quality of {predictions.name}",
        truth_kind=truth_kind.value,
        max_pixels=max_pixels,
        find_image=_image_finder(truth, max_pixels),
        replace=True,  # the folder was checked before the evaluation
    )


def _image_finder(truth: Path, max_pixels: int) -> Callable[[str], Image | None]:
    """Return a function that reads the image of a stem from a dataset folder; it returns None if there is none."""
    from droneseg.core.images import SUFFIXES, read_image
    from droneseg.data.dataset import find_dataset

    try:
        folder = find_dataset(truth).images
    except DatasetError:
        return lambda _stem: None

    def find_image(stem: str) -> Image | None:
        for suffix in SUFFIXES:
            if (folder / f"{stem}{suffix}").is_file():
                return read_image(folder / f"{stem}{suffix}", max_pixels=max_pixels)
        return None

    return find_image


def _write_scores(evaluation: Evaluation, file: Path) -> None:
    from json import dumps

    from droneseg.core.files import write_text

    write_text(file, dumps(vars(evaluation.scores), indent=2) + "\n")


def _evaluation_json(evaluation: Evaluation) -> dict[str, object]:
    return {
        "scores": vars(evaluation.scores),
        "image_miou": {image.stem: image.miou for image in evaluation.images},
        "without_prediction": evaluation.without_prediction,
    }


def _show_evaluation(evaluation: Evaluation) -> None:
    from droneseg.evaluation.report import background_note

    scores = evaluation.scores
    rows = [
        [name, console.number(scores.per_class_iou[name]), console.number(scores.per_class_dice[name])]
        for name in scores.per_class_iou
    ]
    console.out().print(console.table(f"{scores.images} images", ["class", "IoU", "Dice"], rows))
    console.out().print(
        f"mIoU {console.number(scores.miou)}   image-wise mIoU {console.number(scores.image_wise_miou)}"
    )
    console.out().print(
        f"unsafe landing rate {console.percent(scores.unsafe_landing_rate)}   "
        f"landing recall {console.percent(scores.landing_recall)}   "
        f"pixel accuracy {console.percent(scores.pixel_accuracy)}"
    )
    if note := background_note(scores.confusion):
        console.err().print(f"note: {note}")
    if missing := len(evaluation.without_prediction):
        console.err().print(f"note: {missing} ground truth masks have no prediction and are not counted")


def drift(
    number: Annotated[
        int, typer.Option("--n", min=20, max=20_000, help="Maximum number of recent records to compare.")
    ] = 200,
    model: Model = None,
    records: Records = None,
    reports: Annotated[
        str | None, typer.Option(help="Folder or URL for the report; default: $DRONESEG_REPORTS_URL.")
    ] = None,
    metrics: Annotated[
        Path | None, typer.Option(help="Also write the result to this file, for the Prometheus textfile collector.")
    ] = None,
    json: Json = False,
) -> None:
    """Compare recent predictions with the validation images.

    Writes an HTML report and a JSON file to --reports. The exit code is 0 whether or not drift is found.
    """
    from droneseg.monitoring.drift_report import make_report

    settings = console.settings()
    with console.spinner("reading records and writing the report"):
        report = make_report(
            model or settings.model, records or settings.records_url, reports or settings.reports_url, number
        )
    if metrics:
        from droneseg.monitoring.prometheus import write_drift

        write_drift(metrics, drifted=report.drifted, share=report.share)
    if json:
        console.show_json(report.model_dump())
        return
    console.out().print(report.message, markup=False)
    console.out().print(f"report: {report.url}", markup=False)
