"""Scores a folder of predicted masks against a folder of true ones, paired by stem."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from droneseg.core.errors import DatasetError, DronesegError
from droneseg.core.masks import MaskKind, read_mask
from droneseg.core.metrics import Confusion, Scores, confusion, mean_iou, score

_OVERLAY_SUFFIX = "_overlay"


@dataclass(frozen=True)
class Evaluation:
    """Figures over a folder of predictions.

    Attributes:
        scores: Over all images.
        image_miou: Each image's own mean IoU by stem; None where no class 1-5 occurs.
        without_prediction: Stems of true masks that have no prediction; they do not count.
    """

    scores: Scores
    image_miou: dict[str, float | None]
    without_prediction: tuple[str, ...]


def evaluate_folder(
    predictions: Path,
    truth: Path,
    *,
    truth_kind: MaskKind = "colours",
    max_pixels: int,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Score every predicted mask against the true mask of the same stem.

    Args:
        predictions: Folder of palette PNGs as `predict` writes them, or of nnU-Net's grey ids.
        truth: Folder of true masks.
        truth_kind: Whether the true masks say their class by colour or by id.
        max_pixels: Largest mask accepted.
        progress: Called with (done, total) after each mask.

    Raises:
        DatasetError: If there is no prediction, one has no truth, or a mask cannot be used; all problems are listed.
    """
    predicted, true = _masks(predictions, "predictions"), _masks(truth, "truth")
    problems = [f"{predicted[stem]}: no true mask with that stem" for stem in sorted(predicted.keys() - true.keys())]
    if not predicted:
        problems.append(f"{predictions}: no mask (PNG) there")
    matrices: dict[str, Confusion] = {}
    stems = sorted(predicted.keys() & true.keys())
    for done, stem in enumerate(stems, start=1):
        try:
            matrices[stem] = confusion(
                read_mask(true[stem], truth_kind, max_pixels=max_pixels),
                read_mask(predicted[stem], "ids", max_pixels=max_pixels),
            )
        except DronesegError as error:
            message = str(error)
            problems.append(message if str(predictions) in message or str(truth) in message else f"{stem}: {message}")
        if progress:
            progress(done, len(stems))
    if problems:
        raise DatasetError(f"Cannot evaluate, {len(problems)} problem(s):", problems)
    images = {stem: mean_iou(matrix) for stem, matrix in matrices.items()}
    return Evaluation(
        scores=score(matrices.values()),
        image_miou={stem: None if value != value else value for stem, value in images.items()},
        without_prediction=tuple(sorted(true.keys() - predicted.keys())),
    )


def _masks(folder: Path, what: str) -> dict[str, Path]:
    if not folder.is_dir():
        raise DatasetError(f"The folder of {what}, {folder}, does not exist.")
    return {
        file.stem: file
        for file in sorted(folder.iterdir())
        if file.suffix.lower() == ".png" and not file.name.startswith(".") and not file.stem.endswith(_OVERLAY_SUFFIX)
    }
