"""Evaluate a folder of masks; baselines, boundary distance, calibration."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from droneseg.core.class_files import MaskColours
from droneseg.core.classes import ClassTable
from droneseg.core.errors import DatasetError, DronesegError, ShapeMismatchError, optional_import
from droneseg.core.files import file_sha256
from droneseg.core.image_files import CASE_SUFFIXES
from droneseg.core.images import Image
from droneseg.core.masks import Mask, MaskKind, read_mask
from droneseg.core.metrics import Confusion, SegmentationMetrics, compute_metrics, confusion, mean_iou
from droneseg.inference.batch import OVERLAY_SUFFIX, read_log

_FIRST_CHANNEL = "_0000"
_BINS = 10  # of confidence, for the calibration error
_FIT_PIXELS = 100_000
_BITS = 5  # per colour channel


@dataclass(frozen=True)
class EvaluatedImage:
    """Evaluation of one image.

    Attributes:
        stem: File name of the true mask without suffix.
        matrix: Pixel counts, shape (C, C); rows are true classes, columns predicted ones.
        truth: File of the true mask.
        prediction: File of the predicted mask.
        confidence: Mean probability of the predicted class; None if `predict` did not log it for this mask.
    """

    stem: str
    matrix: Confusion
    truth: Path
    prediction: Path
    confidence: float | None

    @property
    def miou(self) -> float | None:
        """Mean IoU of this image; None if it contains no foreground class."""
        value = float(mean_iou(self.matrix))
        return None if np.isnan(value) else value


@dataclass(frozen=True)
class Evaluation:
    """Evaluation of a folder of predicted masks.

    Attributes:
        classes: Class table of the masks.
        images: Evaluated images, sorted by stem.
        without_prediction: Stems of true masks without a prediction; they are not evaluated.
        colours: Meaning of the colours of true masks; None for the colours of the classes alone.
    """

    classes: ClassTable
    images: tuple[EvaluatedImage, ...]
    without_prediction: tuple[str, ...]
    colours: MaskColours | None = None

    @property
    def scores(self) -> SegmentationMetrics:
        """Metrics over all images."""
        return compute_metrics((image.matrix for image in self.images), self.classes)

    def read_truth(self, image: EvaluatedImage, kind: MaskKind, *, max_pixels: int) -> Mask:
        """Return the true mask of an image, shape (H, W), dtype uint8; pixels without a label have the ignore label."""
        return (self.colours or MaskColours(self.classes)).read(image.truth, kind, max_pixels=max_pixels)

    def read_prediction(self, image: EvaluatedImage, *, max_pixels: int) -> Mask:
        """Return the predicted mask of an image, shape (H, W), dtype uint8."""
        return read_mask(image.prediction, "ids", self.classes, max_pixels=max_pixels)


def evaluate_folder(
    predictions: Path,
    truth: Path,
    classes: ClassTable,
    *,
    truth_kind: MaskKind = "colours",
    colours: MaskColours | None = None,
    max_pixels: int,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Compare each predicted mask with the true mask of the same stem, or of the same case in nnU-Net's format.

    True pixels without a label are left out of all metrics.

    Args:
        predictions: Folder of masks as `predict` writes them, or of nnU-Net's grey ids.
        truth: Folder of true masks.
        classes: Class table of the masks.
        truth_kind: Encoding of the true masks: class colours, class ids, or nnU-Net's labels.
        colours: Meaning of the colours of true masks, with the same classes; None for the colours of the classes alone.
        max_pixels: Maximum number of pixels of a mask.
        progress: Progress callback with (done, total), called after each mask.

    Raises:
        DatasetError: If there are no predictions, a prediction has no true mask, two of them have the same one, a mask
            is invalid, or no pixel has a label; the error lists all problems.
    """
    predicted, true = _masks(predictions, "predicted"), _masks(truth, "ground truth")
    predicted, problems = _match_stems(predicted, true)
    if not predicted and not problems:
        problems.append(f"{predictions}: contains no masks ({', '.join(CASE_SUFFIXES)})")
    confidences = _confidences(predictions)
    images = []
    stems = sorted(predicted.keys() & true.keys())
    for done, stem in enumerate(stems, start=1):
        try:
            matrix = confusion(
                (colours or MaskColours(classes)).read(true[stem], truth_kind, max_pixels=max_pixels),
                read_mask(predicted[stem], "ids", classes, max_pixels=max_pixels),
                len(classes),
            )
            confidence = confidences.get(predicted[stem].stem)
            images.append(EvaluatedImage(stem, matrix, true[stem], predicted[stem], confidence))
        except DronesegError as error:
            message = str(error)
            problems.append(message if str(predictions) in message or str(truth) in message else f"{stem}: {message}")
        if progress:
            progress(done, len(stems))
    if problems:
        raise DatasetError(f"The masks cannot be evaluated: {len(problems)} problem(s):", problems)
    if not any(image.matrix.any() for image in images):
        raise DatasetError(f"No pixel of the masks in {truth} has a label, so nothing can be evaluated.")
    return Evaluation(classes, tuple(images), tuple(sorted(true.keys() - predicted.keys())), colours)


def _masks(folder: Path, content: str) -> dict[str, Path]:
    """Return the masks of a folder by stem, without overlays.

    Raises:
        DatasetError: If the folder does not exist, or contains several masks with the same stem.
    """
    if not folder.is_dir():
        raise DatasetError(f"The folder of {content} masks does not exist: {folder}. Check the path.")
    masks: dict[str, Path] = {}
    repeated = []
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() not in CASE_SUFFIXES or file.name.startswith("."):
            continue
        if file.stem.endswith(Path(OVERLAY_SUFFIX).stem):
            continue
        if masks.setdefault(file.stem, file) != file:
            repeated.append(f"{masks[file.stem].name} and {file.name}")
    if repeated:
        raise DatasetError(f"{folder} contains several masks of the same image. Keep one of them:", repeated)
    return masks


def _match_stems(predicted: Mapping[str, Path], true: Mapping[str, Path]) -> tuple[dict[str, Path], list[str]]:
    """Return the predicted masks by the stem of their true masks, and a problem for each other mask.

    In nnU-Net's format, the image `NAME_0000.png` has the mask `NAME.png`.
    """
    matched: dict[str, Path] = {}
    problems = []
    for stem, file in predicted.items():
        names = (stem, stem.removesuffix(_FIRST_CHANNEL), f"{stem}{_FIRST_CHANNEL}")
        name = next((name for name in names if name in true), None)
        if name is None:
            problems.append(f"{file}: no ground truth mask with this stem")
        elif matched.setdefault(name, file) != file:
            problems.append(f"{file}: {matched[name].name} is a mask of the same image; keep one of them")
    return matched, problems


def _confidences(predictions: Path) -> dict[str, float]:
    """Return the confidence of each mask by stem, from the log that `predict` writes beside the masks."""
    confidences = {}
    for entry in read_log(predictions):
        mask = predictions / entry.mask_name
        # the logged confidence is not valid for a mask that was deleted or changed later
        if entry.prediction and mask.is_file() and file_sha256(mask) == entry.mask_sha256:
            confidences[entry.stem] = entry.prediction.confidence
    return {stem: confidence for stem, confidence in confidences.items() if confidence is not None}


def borders(mask: Mask, labelled: NDArray[np.bool_] | None = None) -> NDArray[np.bool_]:
    """Return a mask of the pixels whose right or lower neighbour has another class, shape (H, W), dtype bool.

    Args:
        mask: Class ids, shape (H, W), dtype uint8.
        labelled: Whether pixels have a label, shape (H, W), dtype bool; a border is between two such pixels. None if
            all have one.
    """
    known = np.ones(mask.shape, dtype=bool) if labelled is None else labelled
    result = np.zeros(mask.shape, dtype=bool)
    result[:, :-1] |= (mask[:, 1:] != mask[:, :-1]) & known[:, 1:] & known[:, :-1]
    result[:-1] |= (mask[1:] != mask[:-1]) & known[1:] & known[:-1]
    return result


def boundary_error(truth: Mask, prediction: Mask, classes: ClassTable) -> float:
    """Return the mean distance between predicted and true borders (average symmetric surface distance).

    For each border pixel of either mask, the distance to the nearest border pixel of the other mask is averaged. If
    only one mask has borders, the distance of each of its border pixels is the diagonal of the image. Borders in
    unlabelled areas, and at their edges, are left out of both masks.

    Args:
        truth: Class ids, shape (H, W), dtype uint8.
        prediction: Class ids, same shape and dtype.
        classes: Class table of the masks.

    Returns:
        Distance in pixels; 0 if neither mask has a border.

    Raises:
        ShapeMismatchError: If the masks differ in shape.
        MissingDependencyError: If OpenCV is not installed.
    """
    if truth.shape != prediction.shape:
        raise ShapeMismatchError(
            f"Ground truth mask has shape {truth.shape}, predicted mask {prediction.shape}. Compare masks of one image."
        )
    labelled = truth < len(classes)
    predicted, true = borders(prediction, labelled), borders(truth, labelled)
    if not predicted.any() and not true.any():
        return 0.0
    if not predicted.any() or not true.any():
        return float(np.hypot(*truth.shape))
    total = _distance_to(true)[predicted].sum() + _distance_to(predicted)[true].sum()
    return float(total / (predicted.sum() + true.sum()))


def _distance_to(pixels: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the distance of each pixel to the nearest True pixel, shape (H, W)."""
    with optional_import("opencv-python-headless", "train"):
        import cv2
    # OpenCV measures the distance to the nearest zero
    distance = cv2.distanceTransform((~pixels).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.asarray(distance, dtype=np.float32)


@dataclass(frozen=True)
class Calibration:
    """Confidence compared with accuracy, over images.

    Attributes:
        images: Number of images with a known confidence.
        mean_confidence: Mean confidence over images.
        mean_accuracy: Mean pixel accuracy over the same images.
        overconfidence: Mean of confidence minus accuracy; above 0 the model is over-confident.
        expected_calibration_error: Mean absolute difference of confidence and accuracy over ten bins of confidence,
            weighted by the number of images (Guo et al. 2017, with images instead of single predictions).
    """

    images: int
    mean_confidence: float
    mean_accuracy: float
    overconfidence: float
    expected_calibration_error: float


def calibrate(confidence: NDArray[np.float64], accuracy: NDArray[np.float64]) -> Calibration | None:
    """Compare confidence with accuracy.

    Args:
        confidence: Confidence per image, shape (N,), 0 to 1.
        accuracy: Pixel accuracy per image, shape (N,), 0 to 1.

    Returns:
        The comparison; None if N is 0.
    """
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


def constant_miou(truths: Sequence[Mask], classes: ClassTable) -> float:
    """Return the best mIoU of a prediction that assigns the same class to every pixel of these masks."""
    number = len(classes)
    counts = np.sum([np.bincount(truth.ravel(), minlength=number)[:number] for truth in truths], axis=0)
    return max(_mean_iou_of_constant(counts, entry.id) for entry in classes.foreground)


def _mean_iou_of_constant(counts: NDArray[np.int64], class_id: int) -> float:
    matrix = np.zeros((len(counts), len(counts)), dtype=np.int64)
    matrix[:, class_id] = counts
    return float(mean_iou(matrix))


def colour_classifier_miou(
    fitted: Sequence[tuple[Image, Mask]], held_out: Sequence[tuple[Image, Mask]], classes: ClassTable
) -> float:
    """Return the mIoU of a classifier that uses only the colour of each pixel.

    Gradient-boosted trees on red, green and blue are fitted with and without balanced class weights. The better mIoU
    is returned, because it shows how well colour alone can separate the classes.

    Args:
        fitted: Images, (H, W, 3) uint8, and masks, (H, W) uint8, to fit on.
        held_out: Images and masks to evaluate on.
        classes: Class table of the masks.

    Raises:
        MissingDependencyError: If scikit-learn is not installed.
    """
    pixels = np.concatenate([_quantised(image).reshape(-1, 3) for image, _ in fitted])
    ids = np.concatenate([mask.ravel() for _, mask in fitted])
    labelled = np.flatnonzero(ids < len(classes))
    chosen = np.random.default_rng(0).choice(labelled, min(_FIT_PIXELS, len(labelled)), replace=False)
    best = 0.0
    for balanced in (False, True):
        table = _fit_colour_table(pixels[chosen], ids[chosen], balanced=balanced)
        matrices = [
            confusion(mask, table[tuple(np.moveaxis(_quantised(image), 2, 0))], len(classes))
            for image, mask in held_out
        ]
        best = max(best, float(mean_iou(np.sum(matrices, axis=0))))
    return best


def _fit_colour_table(pixels: NDArray[np.uint8], ids: Mask, *, balanced: bool) -> NDArray[np.uint8]:
    """Fit the classifier; return the class id of each colour, shape (32, 32, 32).

    With 5 bits per channel, there are only 32,768 colours, so the classifier predicts each colour once.
    """
    with optional_import("scikit-learn", "train"):
        from sklearn.ensemble import HistGradientBoostingClassifier
    weights = "balanced" if balanced else None
    model = HistGradientBoostingClassifier(class_weight=weights, max_iter=40, early_stopping=False, random_state=0)
    model.fit(pixels, ids)
    levels = np.arange(1 << _BITS)
    colours = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    table: NDArray[np.uint8] = model.predict(colours).astype(np.uint8).reshape((1 << _BITS,) * 3)
    return table


def _quantised(image: Image) -> NDArray[np.uint8]:
    return image >> np.uint8(8 - _BITS)
