"""Markdown and JSON report of one model; formatting of metrics."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from pydantic import BaseModel, ConfigDict

from droneseg.core.classes import BACKGROUND_ID, BACKGROUND_NAME, ClassTable, Role
from droneseg.core.files import atomic_directory, write_bytes, write_text
from droneseg.core.images import Image, encode_png
from droneseg.core.masks import MaskKind
from droneseg.core.metrics import background_share, pixel_accuracy
from droneseg.evaluation.bootstrap import Interval, bootstrap_intervals, mean_interval
from droneseg.evaluation.evaluate import Calibration, EvaluatedImage, Evaluation, boundary_error, calibrate
from droneseg.evaluation.plots import contact_sheet, plot_calibration, plot_confusion, plot_intervals

REPORT_NAME = "report.json"
REPORT_MARKER = ".droneseg-report"
"""Hidden file in every report folder; a folder without it is not replaced."""
TITLES = {
    "miou": "mIoU",
    "image_wise_miou": "image-wise mIoU",
    "pixel_accuracy": "pixel accuracy",
    "unsafe_landing_rate": "unsafe landing rate",
    "landing_recall": "landing recall",
    "boundary_error_px": "boundary error (pixels)",
}
SHOWN_IMAGES = 4
"""Number of best and of worst images in a report."""
_MUCH_BACKGROUND = 0.01

FindImage = Callable[[str], Image | None]
"""Function that returns the image of a stem, RGB (H, W, 3) uint8, or None if there is none."""

_METHOD = """\
Intervals: percentile bootstrap over images, 2,000 resamples, 95 %. mIoU is the mean IoU of the foreground classes that
occur, computed from one confusion matrix over all images; image-wise mIoU is the mean of the mIoU of each image. The
boundary error is the mean distance between predicted and true borders, in both directions. Pixels without a label are
left out of everything.
"""
_LANDING_METHOD = """\
The unsafe landing rate is the share of the pixels predicted as {landing} that are {unsafe}; read it together with the
landing recall, the share of the true pixels of {landing} that are predicted as such.
"""


class ImageMetrics(BaseModel):
    """Metrics of one image.

    Attributes:
        miou: Mean IoU; None if the image contains no foreground class.
        pixel_accuracy: Share of correctly predicted pixels, 0 to 1; None if no pixel has a label.
        boundary_error_px: Mean distance between predicted and true borders in pixels; None if no pixel has a label.
        confidence: Mean probability of the predicted class; None if it is not known.
    """

    model_config = ConfigDict(frozen=True)
    miou: float | None
    pixel_accuracy: float | None
    boundary_error_px: float | None
    confidence: float | None


class QualityReport(BaseModel):
    """Metrics of a model on a set of images; the content of report.json.

    Attributes:
        images: Number of images.
        without_prediction: Stems of true masks without a prediction.
        figures: Metrics over all images, by name.
        classes: Names of the classes, in the order of their ids.
        landing_note: Why landing figures are missing, as a sentence; empty if none is.
        confusion: Pixel counts, shape (C, C); rows are true classes, columns predicted ones.
        calibration: Confidence compared with accuracy; None if no confidence is known.
        per_image: Metrics of each image, by stem.
    """

    model_config = ConfigDict(frozen=True)
    images: int
    without_prediction: list[str]
    figures: dict[str, Interval]
    classes: list[str]
    landing_note: str = ""
    confusion: list[list[int]]
    calibration: Calibration | None
    per_image: dict[str, ImageMetrics]


def figure_title(name: str) -> str:
    """Return the title of a metric in reports, such as "IoU water" for "iou/water"."""
    kind, _, class_name = name.partition("/")
    return f"{ {'iou': 'IoU', 'dice': 'Dice'}[kind] } {class_name}" if class_name else TITLES.get(name, name)


def number(value: float | None, *, signed: bool = False) -> str:
    """Return a value with three decimals, or a dash for None."""
    return "-" if value is None else f"{value:+.3f}" if signed else f"{value:.3f}"


def interval_text(interval: Interval) -> str:
    """Return the ends of an interval as "LOW to HIGH", or a dash if it has none."""
    if interval.low is None or interval.high is None:
        return "-"
    return f"{interval.low:.3f} to {interval.high:.3f}"


def significance_label(difference: Interval) -> str:
    """Return whether a difference is significant: "higher", "lower", "not significant" or "no interval"."""
    if difference.low is None or difference.high is None:
        return "no interval"
    return "higher" if difference.low > 0 else "lower" if difference.high < 0 else "not significant"


def background_note(confusion: ArrayLike, classes: ClassTable) -> str:
    """Return a warning if a large share of the true pixels is background, otherwise an empty string.

    Args:
        confusion: Pixel counts, shape (C, C); rows are true classes.
        classes: Class table.
    """
    share = float(background_share(np.array(confusion)))
    if not share >= _MUCH_BACKGROUND:
        return ""
    name = classes[BACKGROUND_ID].name
    name = name if name == BACKGROUND_NAME else f"{name}, the {BACKGROUND_NAME}"
    note = f"{share:.1%} of the true pixels are {name}. Predictions there count "
    if classes.landing_note:
        return f"{note}as wrong for IoU, so mIoU is underestimated."
    return (
        f"{note}as wrong for IoU and as safe for landing, so mIoU is underestimated and the unsafe landing rate looks "
        "better than it is."
    )


def measure(evaluation: Evaluation, *, truth_kind: MaskKind, max_pixels: int) -> QualityReport:
    """Compute the metrics of a report.

    Args:
        evaluation: Evaluation of a folder of predicted masks.
        truth_kind: Encoding of the true masks: class colours, class ids, or nnU-Net's labels.
        max_pixels: Maximum number of pixels of a mask.

    Raises:
        MissingDependencyError: If OpenCV is not installed.
    """
    classes = evaluation.classes
    matrices = np.stack([image.matrix for image in evaluation.images])
    per_image = {image.stem: _measure_image(evaluation, image, truth_kind, max_pixels) for image in evaluation.images}
    distances = np.array([metrics.boundary_error_px for metrics in per_image.values()], np.float64)  # None becomes NaN
    confidence, accuracy = _confidence_and_accuracy(per_image)
    return QualityReport(
        images=len(evaluation.images),
        without_prediction=list(evaluation.without_prediction),
        figures=bootstrap_intervals(matrices, classes) | {"boundary_error_px": mean_interval(distances)},
        classes=list(classes.names),
        landing_note=classes.landing_note,
        confusion=matrices.sum(axis=0).tolist(),
        calibration=calibrate(np.array(confidence, np.float64), np.array(accuracy, np.float64)),
        per_image=per_image,
    )


def _measure_image(
    evaluation: Evaluation, image: EvaluatedImage, truth_kind: MaskKind, max_pixels: int
) -> ImageMetrics:
    distance = boundary_error(
        evaluation.read_truth(image, truth_kind, max_pixels=max_pixels),
        evaluation.read_prediction(image, max_pixels=max_pixels),
        evaluation.classes,
    )
    if not image.matrix.any():
        return ImageMetrics(miou=None, pixel_accuracy=None, boundary_error_px=None, confidence=image.confidence)
    return ImageMetrics(
        miou=image.miou,
        pixel_accuracy=float(pixel_accuracy(image.matrix)),
        boundary_error_px=distance,
        confidence=image.confidence,
    )


def _confidence_and_accuracy(per_image: Mapping[str, ImageMetrics]) -> tuple[list[float], list[float]]:
    """Return confidence and pixel accuracy of the images of which both are known."""
    known = [
        (image.confidence, image.pixel_accuracy)
        for image in per_image.values()
        if image.confidence is not None and image.pixel_accuracy is not None
    ]
    return [confidence for confidence, _ in known], [accuracy for _, accuracy in known]


def write_report(
    evaluation: Evaluation,
    out: Path,
    *,
    title: str,
    truth_kind: MaskKind,
    max_pixels: int,
    find_image: FindImage,
    replace: bool = False,
) -> QualityReport:
    """Write report.md, report.json and plots to a folder, and images to its subfolder `pictures`, which git ignores.

    Args:
        evaluation: Evaluation of a folder of predicted masks.
        out: Folder of the report.
        title: Heading of report.md.
        truth_kind: Encoding of the true masks: class colours, class ids, or nnU-Net's labels.
        max_pixels: Maximum number of pixels of a mask.
        find_image: Function that returns the image of a stem; if it returns None, masks are shown on white.
        replace: Whether to replace an older report.

    Raises:
        OutputExistsError: If the folder exists and may not be replaced.
        MissingDependencyError: If matplotlib or OpenCV is not installed.
    """
    report = measure(evaluation, truth_kind=truth_kind, max_pixels=max_pixels)
    chosen = _choose_images(evaluation.images)
    with atomic_directory(out, marker=REPORT_MARKER, replace=replace) as staging_dir:
        write_text(staging_dir / REPORT_MARKER, "")
        write_text(staging_dir / REPORT_NAME, json.dumps(report.model_dump(mode="json"), indent=2) + "\n")
        plot_confusion(np.array(report.confusion), report.classes, staging_dir / "confusion.png")
        plot_intervals(_class_intervals(report), staging_dir / "classes.png", title="IoU with 95 % intervals")
        if report.calibration:
            plot_calibration(*_confidence_and_accuracy(report.per_image), staging_dir / "calibration.png")
        pictures = staging_dir / "pictures"
        # the licence of the images may forbid redistribution
        write_text(pictures / ".gitignore", "*\n")
        for name, images in chosen.items():
            for index, image in enumerate(images, start=1):
                sheet = _draw_image(evaluation, image, truth_kind, max_pixels, find_image)
                write_bytes(pictures / f"{name}_{index}.png", encode_png(sheet))
        write_text(staging_dir / "report.md", _markdown(report, evaluation.classes, title, chosen))
    return report


def _class_intervals(report: QualityReport) -> dict[str, Interval]:
    names = {"mIoU": "miou", **{name: f"iou/{name}" for name in report.classes[1:]}}
    return {label: report.figures[name] for label, name in names.items()}


def _choose_images(images: Sequence[EvaluatedImage]) -> dict[str, list[EvaluatedImage]]:
    """Return the worst and the best images, at most half of all images each."""
    ranked = sorted((image for image in images if image.miou is not None), key=lambda image: image.miou or 0.0)
    count = min(SHOWN_IMAGES, len(ranked) // 2)
    return {"worst": ranked[:count], "best": ranked[len(ranked) - count :][::-1]}


def _draw_image(
    evaluation: Evaluation, image: EvaluatedImage, truth_kind: MaskKind, max_pixels: int, find_image: FindImage
) -> Image:
    """Draw an image with its true and predicted mask."""
    truth = evaluation.read_truth(image, truth_kind, max_pixels=max_pixels)
    prediction = evaluation.read_prediction(image, max_pixels=max_pixels)
    pixels = find_image(image.stem)
    if pixels is None:
        pixels = np.full((*truth.shape, 3), 255, np.uint8)
    caption = f"{image.stem}   mIoU {image.miou:.3f}"
    return contact_sheet([(pixels, truth, prediction)], evaluation.classes, caption=caption)


def _markdown(
    report: QualityReport, classes: ClassTable, title: str, chosen: Mapping[str, Sequence[EvaluatedImage]]
) -> str:
    lines = [f"# {title}", "", f"{report.images} images.", "", *_metrics_table(report)]
    for note in filter(None, (report.landing_note, background_note(report.confusion, classes))):
        lines += ["", f"**{note}**"]
    lines += ["", *_class_table(report)]
    lines += ["", "![IoU by class](classes.png)", "", "![confusion matrix](confusion.png)", ""]
    lines += _calibration_lines(report.calibration)
    for name, images in chosen.items():
        lines += [f"## {name.capitalize()} images", ""]
        lines += [f"![{image.stem}](pictures/{name}_{index}.png)" for index, image in enumerate(images, start=1)]
        lines += [""]
    return "\n".join([*lines, _METHOD + _landing_method(classes)])


def _landing_method(classes: ClassTable) -> str:
    """Return how the landing figures are computed, by the names of the classes; empty if there are none."""
    if classes.landing_note:
        return ""
    landing, unsafe = (
        " or ".join(classes[i].name for i in ids) for ids in (classes.ids_of(Role.LANDING), classes.unsafe_ids)
    )
    return _LANDING_METHOD.format(landing=landing, unsafe=unsafe)


def escape(name: str) -> str:
    """Return a class name for a cell of a Markdown table."""
    return name.replace("|", "\\|")


def _metrics_table(report: QualityReport) -> list[str]:
    rows = [f"| {title} | {_cells(report.figures[name])} |" for name, title in TITLES.items() if name in report.figures]
    return ["| metric | value | 95 % interval |", "|---|---|---|", *rows]


def _class_table(report: QualityReport) -> list[str]:
    rows = [
        f"| {escape(name)} | {_cells(report.figures[f'iou/{name}'])} | {_cells(report.figures[f'dice/{name}'])} |"
        for name in report.classes[1:]
    ]
    return ["| class | IoU | 95 % interval | Dice | 95 % interval |", "|---|---|---|---|---|", *rows]


def _calibration_lines(calibration: Calibration | None) -> list[str]:
    if calibration is None:
        return ["Confidence: unknown, because there is no `predictions.jsonl` next to the masks.", ""]
    summary = (
        f"Confidence: {calibration.mean_confidence:.1%} on average, with {calibration.mean_accuracy:.1%} of the pixels "
        f"correct ({calibration.overconfidence:+.1%}); expected calibration error over images "
        f"{calibration.expected_calibration_error:.3f}."
    )
    return [summary, "", "![confidence and accuracy](calibration.png)", ""]


def _cells(interval: Interval) -> str:
    return f"{number(interval.value)} | {interval_text(interval)}"
