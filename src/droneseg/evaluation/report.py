"""Markdown and JSON report of one model; formatting of figures."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from droneseg.core.classes import CLASSES, FOREGROUND
from droneseg.core.files import atomic_directory, write_bytes, write_text
from droneseg.core.images import Image, encode_png
from droneseg.core.masks import Mask, MaskKind, read_mask
from droneseg.core.metrics import background_share, pixel_accuracy
from droneseg.evaluation.bootstrap import Interval, bootstrap_intervals, mean_interval
from droneseg.evaluation.evaluate import Compared, Evaluation, boundary_error, calibrate
from droneseg.evaluation.plots import contact_sheet, plot_calibration, plot_confusion, plot_intervals

_MUCH_BACKGROUND = 0.01

REPORT_NAME = "report.json"
REPORT_MARKER = ".droneseg-report"
"""What tells a folder that may be replaced from somebody else's with a report.json in it."""
TITLES = {
    "miou": "mIoU",
    "image_wise_miou": "image-wise mIoU",
    "pixel_accuracy": "pixel accuracy",
    "unsafe_landing_rate": "unsafe landing rate",
    "landing_recall": "landing recall",
    "boundary_error_px": "boundary error (pixels)",
}


def figure_title(name: str) -> str:
    """Return a figure's name as people read it."""
    kind, _, of = name.partition("/")
    return f"{ {'iou': 'IoU', 'dice': 'Dice'}[kind] } {of}" if of else TITLES.get(name, name)


def number(value: float | None, *, signed: bool = False) -> str:
    """Return a figure with three decimals, a dash for none."""
    return "-" if value is None else f"{value:+.3f}" if signed else f"{value:.3f}"


def interval_text(interval: Interval) -> str:
    """Return the ends of an interval, a dash if it has none."""
    if interval.low is None or interval.high is None:
        return "-"
    return f"{interval.low:.3f} to {interval.high:.3f}"


def significance_label(difference: Interval) -> str:
    """Return whether a difference is significant: "higher", "lower", "not significant" or "no interval"."""
    if difference.low is None or difference.high is None:
        return "no interval"
    return "higher" if difference.low > 0 else "lower" if difference.high < 0 else "not significant"


def background_note(confusion: list[list[int]]) -> str:
    """Say what it means that much of the truth is of no class; empty if little is."""
    share = float(background_share(np.array(confusion)))
    if not share >= _MUCH_BACKGROUND:
        return ""
    return (
        f"{share:.1%} of the true pixels are background: what is predicted there counts as wrong for IoU, and as not "
        "unsafe for landing, so mIoU is too low and the unsafe landing rate flatters."
    )


SHOWN_IMAGES = 4
FindImage = Callable[[str], Image | None]
"""Returns the photograph of a stem, RGB (H, W, 3) uint8, if there is one."""


def measure(evaluation: Evaluation, *, truth_kind: MaskKind, max_pixels: int) -> dict[str, Any]:
    """Compute everything a report holds, as JSON can hold it.

    Args:
        evaluation: Predictions held against truth.
        truth_kind: Whether the true masks say their class by colour or by id.
        max_pixels: Largest mask accepted.
    """
    images = evaluation.images
    matrices = np.stack([image.matrix for image in images])
    distances = np.array([_distance(image, truth_kind, max_pixels) for image in images])
    known = [image for image in images if image.confidence is not None]
    calibration = calibrate(
        np.array([image.confidence for image in known], np.float64),
        np.array([float(pixel_accuracy(image.matrix)) for image in known]),
    )
    intervals = bootstrap_intervals(matrices) | {"boundary_error_px": mean_interval(distances)}
    return {
        "images": len(images),
        "without_prediction": list(evaluation.without_prediction),
        "figures": {name: asdict(interval) for name, interval in intervals.items()},
        "classes": [entry.name for entry in CLASSES],
        "confusion": matrices.sum(axis=0).tolist(),
        "calibration": asdict(calibration) if calibration else None,
        "per_image": {
            image.stem: {
                "miou": image.miou,
                "pixel_accuracy": float(pixel_accuracy(image.matrix)),
                "boundary_error_px": float(distance),
                "confidence": image.confidence,
            }
            for image, distance in zip(images, distances, strict=True)
        },
    }


def write_report(
    evaluation: Evaluation,
    out: Path,
    *,
    title: str,
    truth_kind: MaskKind,
    max_pixels: int,
    find_image: FindImage,
    replace: bool = False,
) -> dict[str, Any]:
    """Write report.md, report.json and the plots to a folder; photographs go to `pictures`, which git ignores.

    Args:
        evaluation: Predictions held against truth.
        out: Folder of the report.
        title: First line.
        truth_kind: Whether the true masks say their class by colour or by id.
        max_pixels: Largest mask accepted.
        find_image: Gives the photographs of the best and worst images; without one, the masks alone are shown.
        replace: Whether an older report may be replaced.

    Returns:
        What is in report.json.

    Raises:
        OutputExistsError: If the folder holds something and `replace` is false.
        MissingDependencyError: If matplotlib or OpenCV is not installed.
    """
    found = measure(evaluation, truth_kind=truth_kind, max_pixels=max_pixels)
    with atomic_directory(out, marker=REPORT_MARKER, replace=replace) as aside:
        write_text(aside / REPORT_MARKER, "")
        write_text(aside / REPORT_NAME, json.dumps(found, indent=2) + "\n")
        plot_confusion(np.array(found["confusion"]), aside / "confusion.png")
        plot_intervals(_class_intervals(found["figures"]), aside / "classes.png", title="IoU with 95 % intervals")
        if found["calibration"]:
            plot_calibration(found["per_image"].values(), aside / "calibration.png")
        shown = _write_pictures(evaluation.images, aside / "pictures", truth_kind, max_pixels, find_image)
        write_text(aside / "report.md", _markdown(found, title, shown))
    return found


_METHOD = """\
Intervals: percentile bootstrap, 2,000 draws of whole images, 95 %. mIoU is the mean over classes 1-5 that occur, from
one confusion matrix over all images; image-wise mIoU is the mean of each image's own. The unsafe landing rate is the
share of the pixels called landing zone that are obstacle, water or moving object; read it beside the landing recall.
The boundary error is the mean distance between predicted and true borders, both ways.
"""


def _distance(image: Compared, truth_kind: MaskKind, max_pixels: int) -> float:
    return boundary_error(
        read_mask(image.truth, truth_kind, max_pixels=max_pixels),
        read_mask(image.prediction, "ids", max_pixels=max_pixels),
    )


def _class_intervals(figures: Mapping[str, Mapping[str, float | None]]) -> dict[str, Interval]:
    names = {"mIoU": "miou", **{entry.name: f"iou/{entry.name}" for entry in FOREGROUND}}
    return {shown: Interval(**figures[name]) for shown, name in names.items()}


def _write_pictures(
    images: Sequence[Compared], folder: Path, truth_kind: MaskKind, max_pixels: int, find_image: FindImage
) -> dict[str, list[str]]:
    """Draw the best and worst images; return their stems."""
    ranked = sorted((image for image in images if image.miou is not None), key=lambda image: image.miou or 0.0)
    count = min(SHOWN_IMAGES, len(ranked) // 2)
    chosen = {"worst": ranked[:count], "best": ranked[len(ranked) - count :][::-1]}
    # photographs may be under terms that forbid passing them on
    write_text(folder / ".gitignore", "*\n")
    for name, group in chosen.items():
        for place, image in enumerate(group, start=1):
            truth = read_mask(image.truth, truth_kind, max_pixels=max_pixels)
            photograph = find_image(image.stem)
            row: tuple[Image, Mask, Mask] = (
                np.full((*truth.shape, 3), 255, np.uint8) if photograph is None else photograph,
                truth,
                read_mask(image.prediction, "ids", max_pixels=max_pixels),
            )
            sheet = contact_sheet([row], caption=f"{image.stem}   mIoU of this image {image.miou:.3f}")
            write_bytes(folder / f"{name}_{place}.png", encode_png(sheet))
    return {name: [image.stem for image in group] for name, group in chosen.items()}


def _markdown(found: dict[str, Any], title: str, shown: dict[str, list[str]]) -> str:
    figures = {name: Interval(**values) for name, values in found["figures"].items()}
    lines = [f"# {title}", "", f"{found['images']} images.", "", "| figure | value | 95 % interval |", "|---|---|---|"]
    lines += [
        f"| {name} | {number(figures[key].value)} | {interval_text(figures[key])} |" for key, name in TITLES.items()
    ]
    if note := background_note(found["confusion"]):
        lines += ["", f"**{note}**"]
    lines += ["", "| class | IoU | 95 % interval | Dice | 95 % interval |", "|---|---|---|---|---|"]
    for entry in FOREGROUND:
        lines.append(
            f"| {entry.name} | {_cells(figures[f'iou/{entry.name}'])} | {_cells(figures[f'dice/{entry.name}'])} |"
        )
    lines += ["", "![IoU by class](classes.png)", "", "![confusion matrix](confusion.png)", ""]
    calibration = found["calibration"]
    if calibration:
        confidence, accuracy = calibration["mean_confidence"], calibration["mean_accuracy"]
        lines.append(
            f"Confidence: {confidence:.1%} on average, right on {accuracy:.1%} of pixels "
            f"({calibration['overconfidence']:+.1%}); expected calibration error over images "
            f"{calibration['expected_calibration_error']:.3f}."
        )
        lines += ["", "![confidence and accuracy](calibration.png)", ""]
    else:
        lines += ["Confidence: not known; these masks have no `predictions.jsonl` beside them.", ""]
    for name, stems in shown.items():
        lines += [f"## {name.capitalize()} images", ""]
        lines += [f"![{stem}](pictures/{name}_{place}.png)" for place, stem in enumerate(stems, start=1)] + [""]
    return "\n".join([*lines, _METHOD])


def _cells(interval: Interval) -> str:
    return f"{number(interval.value)} | {interval_text(interval)}"
