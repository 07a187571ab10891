"""`droneseg evaluate`: how good are predicted masks."""

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from droneseg.cli import environment, output

if TYPE_CHECKING:
    from droneseg.core.images import Image
    from droneseg.evaluation.evaluate import Evaluation


class TruthKind(StrEnum):
    """How true masks say their class."""

    COLOURS = "colours"
    IDS = "ids"


def evaluate(
    predictions: Annotated[Path, typer.Argument(help="Folder of predicted masks.", show_default=False)],
    truth: Annotated[Path, typer.Argument(help="Folder of true masks, or a dataset folder.", show_default=False)],
    truth_kind: Annotated[
        TruthKind, typer.Option("--truth", help="Whether true masks say their class by colour or by id.")
    ] = TruthKind.COLOURS,
    report: Annotated[
        Path | None, typer.Option(help="Write a report with intervals, plots and pictures to this folder.")
    ] = None,
    scores: Annotated[Path | None, typer.Option(help="Write the figures into this JSON file, for DVC.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an older report.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Write JSON to stdout.")] = False,
) -> None:
    """Score predicted masks against true ones of the same stem."""
    from droneseg.core.files import require_free
    from droneseg.evaluation.evaluate import evaluate_folder
    from droneseg.evaluation.report import REPORT_MARKER

    max_pixels = environment.settings().max_pixels
    if report:
        require_free(report, marker=REPORT_MARKER, replace=force)
    with output.progress("masks") as progress:
        found = evaluate_folder(
            predictions, _mask_folder(truth), truth_kind=truth_kind.value, max_pixels=max_pixels, progress=progress
        )
    if scores:
        from json import dumps

        from droneseg.core.files import write_text

        write_text(scores, dumps(vars(found.scores), indent=2) + "\n")
    if report:
        from droneseg.evaluation.report import write_report

        write_report(
            found, report, title=f"Quality of {predictions.name}", truth_kind=truth_kind.value, max_pixels=max_pixels,
            find_image=_photograph_finder(truth, max_pixels), replace=force,
        )  # fmt: skip
    if json:
        output.show_json(_as_json(found))
        return
    _show_evaluation(found)
    if report:
        output.out().print(f"report: {report / 'report.md'}", markup=False)


def _as_json(found: "Evaluation") -> dict[str, object]:
    return {
        "scores": vars(found.scores),
        "image_miou": {image.stem: image.miou for image in found.images},
        "without_prediction": found.without_prediction,
    }


def _show_evaluation(found: "Evaluation") -> None:
    from droneseg.evaluation.report import background_note

    scores = found.scores
    rows = [
        [name, output.figure(scores.per_class_iou[name]), output.figure(scores.per_class_dice[name])]
        for name in scores.per_class_iou
    ]
    output.out().print(output.table(f"{scores.images} images", ["class", "IoU", "Dice"], rows))
    output.out().print(f"mIoU {output.figure(scores.miou)}   image-wise mIoU {output.figure(scores.image_wise_miou)}")
    output.out().print(
        f"unsafe landing rate {output.percent(scores.unsafe_landing_rate)}   "
        f"landing recall {output.percent(scores.landing_recall)}   "
        f"pixel accuracy {output.percent(scores.pixel_accuracy)}"
    )
    if note := background_note(scores.confusion):
        output.err().print(f"note: {note}")
    if found.without_prediction:
        output.err().print(f"note: {len(found.without_prediction)} true masks have no prediction and do not count")


def _photograph_finder(truth: Path, max_pixels: int) -> "Callable[[str], Image | None]":
    """Return what finds the photograph of a stem in a dataset folder; None for each elsewhere."""
    from droneseg.core.errors import DatasetError
    from droneseg.core.images import SUFFIXES, read_image
    from droneseg.data.dataset import find_dataset

    try:
        folder = find_dataset(truth).images
    except DatasetError:
        return lambda _stem: None

    def find(stem: str) -> "Image | None":
        for suffix in SUFFIXES:
            if (folder / f"{stem}{suffix}").is_file():
                return read_image(folder / f"{stem}{suffix}", max_pixels=max_pixels)
        return None

    return find


def _mask_folder(truth: Path) -> Path:
    """Return the folder of masks: `truth` itself if it holds PNGs, else the masks of the dataset there."""
    if not truth.is_dir() or any(truth.glob("*.png")):
        return truth
    from droneseg.data.dataset import find_dataset

    return find_dataset(truth).masks
