"""Answers that need no network: a model that does not beat them has learnt nothing."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from droneseg.core.classes import CLASSES, FOREGROUND
from droneseg.core.errors import MissingDependencyError
from droneseg.core.images import Image
from droneseg.core.masks import Mask
from droneseg.core.metrics import confusion, mean_iou

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
