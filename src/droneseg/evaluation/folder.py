"""Holds a folder of predicted masks against a folder of true ones, paired by stem."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from droneseg.core.errors import DatasetError, DronesegError
from droneseg.core.masks import MaskKind, read_mask
from droneseg.core.metrics import Confusion, Scores, confusion, mean_iou, score

_OVERLAY_SUFFIX = "_overlay"
_LOG_NAME = "predictions.jsonl"


@dataclass(frozen=True)
class Compared:
    """One image: truth against prediction.

    Attributes:
        stem: Of both files.
        matrix: Pixel counts, shape (C, C); rows are true classes.
        truth: File of the true mask.
        prediction: File of the predicted one.
        confidence: Mean winning probability, if `predict` wrote it down beside this very mask.
    """

    stem: str
    matrix: Confusion
    truth: Path
    prediction: Path
    confidence: float | None

    @property
    def miou(self) -> float | None:
        """Mean IoU of this image alone; None where no class 1-5 occurs."""
        value = float(mean_iou(self.matrix))
        return None if np.isnan(value) else value


@dataclass(frozen=True)
class Evaluation:
    """Figures over a folder of predictions.

    Attributes:
        images: One entry per image, by stem.
        without_prediction: Stems of true masks that have no prediction; they do not count.
    """

    images: tuple[Compared, ...]
    without_prediction: tuple[str, ...]

    @property
    def scores(self) -> Scores:
        """Figures over all images."""
        return score(image.matrix for image in self.images)


def evaluate_folder(
    predictions: Path,
    truth: Path,
    *,
    truth_kind: MaskKind = "colours",
    max_pixels: int,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Hold every predicted mask against the true mask of the same stem.

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
    confidences = _confidences(predictions)
    images = []
    stems = sorted(predicted.keys() & true.keys())
    for done, stem in enumerate(stems, start=1):
        try:
            matrix = confusion(
                read_mask(true[stem], truth_kind, max_pixels=max_pixels),
                read_mask(predicted[stem], "ids", max_pixels=max_pixels),
            )
            images.append(Compared(stem, matrix, true[stem], predicted[stem], confidences.get(stem)))
        except DronesegError as error:
            message = str(error)
            problems.append(message if str(predictions) in message or str(truth) in message else f"{stem}: {message}")
        if progress:
            progress(done, len(stems))
    if problems:
        raise DatasetError(f"Cannot evaluate, {len(problems)} problem(s):", problems)
    return Evaluation(tuple(images), tuple(sorted(true.keys() - predicted.keys())))


def _confidences(predictions: Path) -> dict[str, float]:
    """Return the confidence of each mask by stem, from the log that `predict` writes beside them."""
    log = predictions / _LOG_NAME
    found = {}
    for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else []:
        try:
            entry = json.loads(line)
            stem, written = str(entry["stem"]), str(entry["mask_sha256"])
            # a mask that was changed since is not what the model was so sure of
            if hashlib.sha256((predictions / f"{stem}.png").read_bytes()).hexdigest() == written:
                found[stem] = float(entry["prediction"]["confidence"])
        except (ValueError, KeyError, TypeError, OSError):
            continue  # a line cut short by a crash, or a mask that is gone
    return found


def _masks(folder: Path, what: str) -> dict[str, Path]:
    if not folder.is_dir():
        raise DatasetError(f"The folder of {what}, {folder}, does not exist.")
    return {
        file.stem: file
        for file in sorted(folder.iterdir())
        if file.suffix.lower() == ".png" and not file.name.startswith(".") and not file.stem.endswith(_OVERLAY_SUFFIX)
    }
