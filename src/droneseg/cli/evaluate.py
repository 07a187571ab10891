"""`droneseg evaluate`: how good are predicted masks."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from droneseg.cli import environment, output


class TruthKind(StrEnum):
    """How true masks say their class."""

    COLOURS = "colours"
    IDS = "ids"


def evaluate(
    predictions: Annotated[Path, typer.Argument(help="Folder of predicted masks.", show_default=False)],
    truth: Annotated[
        Path, typer.Argument(help="Folder of true masks, or a dataset in the Kaggle layout.", show_default=False)
    ],
    truth_kind: Annotated[
        TruthKind, typer.Option("--truth", help="Whether true masks say their class by colour or by id.")
    ] = TruthKind.COLOURS,
    json: Annotated[bool, typer.Option("--json", help="Write JSON to stdout.")] = False,
) -> None:
    """Score predicted masks against true ones of the same stem."""
    from droneseg.evaluation.folder import evaluate_folder

    with output.progress("masks") as progress:
        found = evaluate_folder(
            predictions,
            _mask_folder(truth),
            truth_kind=truth_kind.value,
            max_pixels=environment.settings().max_pixels,
            progress=progress,
        )
    if json:
        output.show_json(found)
        return
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
    if found.without_prediction:
        output.err().print(f"note: {len(found.without_prediction)} true masks have no prediction and do not count")


def _mask_folder(truth: Path) -> Path:
    """Return the folder of masks: `truth` itself if it holds PNGs, else the masks of the dataset there."""
    if not truth.is_dir() or any(truth.glob("*.png")):
        return truth
    from droneseg.data.pairs import MASKS_FOLDER, find_root

    return find_root(truth)[0] / MASKS_FOLDER
