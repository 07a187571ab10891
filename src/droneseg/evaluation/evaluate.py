"""Evaluate a folder of masks; baselines, boundary distance, calibration."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from droneseg.core.classes import CLASSES, FOREGROUND
from droneseg.core.errors import DatasetError, DronesegError, MissingDependencyError, ShapeMismatchError
from droneseg.core.images import Image
from droneseg.core.masks import Mask, MaskKind, read_mask
from droneseg.core.metrics import Confusion, SegmentationMetrics, compute_metrics, confusion, mean_iou


def borders(mask: Mask) -> NDArray[np.bool_]:
    """Return the pixels whose right or lower neighbour has another class, shape (H, W)."""
    found = np.zeros(mask.shape, dtype=bool)
    found[:, :-1] |= mask[:, 1:] != mask[:, :-1]
    found[:-1] |= mask[1:] != mask[:-1]
    return found


def boundary_error(truth: Mask, prediction: Mask) -> float:
    """Return the mean distance in pixels between predicted and true borders, both ways (average symmetric distance).

    Over all border pixels of both masks: the distance to the nearest border pixel of the other. If only one mask has
    borders, every one of its border pixels counts with the image's diagonal.

    Args:
        truth: Class ids, shape (H, W), dtype uint8.
        prediction: Class ids, same shape.

    Returns:
        Pixels; 0 if neither mask has a border.

    Raises:
        ShapeMismatchError: If the masks differ in shape.
        MissingDependencyError: If OpenCV is not installed.
    """
    if truth.shape != prediction.shape:
        raise ShapeMismatchError(f"Truth is {truth.shape}, prediction {prediction.shape}.")
    ours, theirs = borders(prediction), borders(truth)
    if not ours.any() and not theirs.any():
        return 0.0
    if not ours.any() or not theirs.any():
        return float(np.hypot(*truth.shape))
    total = _distance_to(theirs)[ours].sum() + _distance_to(ours)[theirs].sum()
    return float(total / (ours.sum() + theirs.sum()))


def _distance_to(places: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return each pixel's distance to the nearest of some places, shape (H, W)."""
    try:
        import cv2
    except ImportError as error:
        raise MissingDependencyError("opencv-python-headless", "train") from error
    # OpenCV measures the distance to the nearest zero
    distance = cv2.distanceTransform((~places).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.asarray(distance, dtype=np.float32)


_BINS = 10


@dataclass(frozen=True)
class Calibration:
    """Confidence against accuracy, over images.

    Attributes:
        images: Number of images whose confidence is known.
        mean_confidence: Mean over images.
        mean_accuracy: Mean share of right pixels over the same images.
        overconfidence: Mean of confidence minus accuracy; above 0 the model promises too much.
        expected_calibration_error: Mean gap of confidence and accuracy over ten bins of confidence, weighted by the
            images in each (Guo et al. 2017, with images in place of single answers).
    """

    images: int
    mean_confidence: float
    mean_accuracy: float
    overconfidence: float
    expected_calibration_error: float


def calibrate(confidence: NDArray[np.float64], accuracy: NDArray[np.float64]) -> Calibration | None:
    """Compare confidence with accuracy, one of each per image, both shape (N,) and 0 to 1; None for no image."""
    if not len(confidence):
        return None
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    gaps = [
        (bins == index).sum() * abs(confidence[bins == index].mean() - accuracy[bins == index].mean())
        for index in np.unique(bins)
    ]
    return Calibration(
        images=len(confidence),
        mean_confidence=float(confidence.mean()),
        mean_accuracy=float(accuracy.mean()),
        overconfidence=float((confidence - accuracy).mean()),
        expected_calibration_error=float(np.sum(gaps) / len(confidence)),
    )


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
    def scores(self) -> SegmentationMetrics:
        """Figures over all images."""
        return compute_metrics(image.matrix for image in self.images)


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


_FIT_PIXELS = 100_000
_BITS = 5


def constant_miou(truths: Sequence[Mask]) -> float:
    """Return the best mIoU that one class for every pixel reaches on these masks."""
    counts = np.sum([np.bincount(truth.ravel(), minlength=len(CLASSES)) for truth in truths], axis=0)
    return max(_mean_iou_of_constant(counts, entry.id) for entry in FOREGROUND)


def _mean_iou_of_constant(counts: NDArray[np.int64], answer: int) -> float:
    matrix = np.zeros((len(CLASSES), len(CLASSES)), dtype=np.int64)
    matrix[:, answer] = counts
    return float(mean_iou(matrix))


def colour_classifier_miou(fitted: Sequence[tuple[Image, Mask]], held_out: Sequence[tuple[Image, Mask]]) -> float:
    """Return the mIoU of a classifier that sees one pixel's colour only.

    Gradient-boosted trees on red, green and blue, fitted twice, with and without weights that make the classes
    equally important; the better answer counts, so that the figure is the most that colour gives away.

    Args:
        fitted: Photographs, (H, W, 3) uint8, and masks, (H, W) uint8, to fit on.
        held_out: Photographs and masks to measure on.

    Raises:
        MissingDependencyError: If scikit-learn is not installed.
    """
    try:
        from sklearn.ensemble import HistGradientBoostingClassifier
    except ImportError as error:
        raise MissingDependencyError("scikit-learn", "train") from error
    pixels = np.concatenate([_quantised(image).reshape(-1, 3) for image, _ in fitted])
    ids = np.concatenate([mask.ravel() for _, mask in fitted])
    chosen = np.random.default_rng(0).choice(len(ids), min(_FIT_PIXELS, len(ids)), replace=False)
    best = 0.0
    for weights in (None, "balanced"):
        model = HistGradientBoostingClassifier(class_weight=weights, max_iter=40, early_stopping=False, random_state=0)
        model.fit(pixels[chosen], ids[chosen])
        # 5 bits a channel leave 32,768 colours: one prediction for each serves every pixel
        levels = np.arange(1 << _BITS)
        answers = model.predict(np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3))
        table = answers.astype(np.uint8).reshape((1 << _BITS,) * 3)
        total = np.sum(
            [confusion(mask, table[tuple(np.moveaxis(_quantised(image), 2, 0))]) for image, mask in held_out], axis=0
        )
        best = max(best, float(mean_iou(total)))
    return best


def _quantised(image: Image) -> NDArray[np.uint8]:
    return image >> np.uint8(8 - _BITS)
