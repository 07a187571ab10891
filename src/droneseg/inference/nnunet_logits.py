"""nnU-Net's own prediction from the logits of its folds and its classes, for the profile `exact`.

nnU-Net sums the tiles of each fold in float16, averages the folds after that, and takes the class with the largest
mean. A graph that averages the folds, or sums the probabilities of several classes, does so before the tiles are
summed, so pixels with almost equal logits can get another class. The profile `exact` therefore reads the logits of
every fold and class, and combines them here, after the tiles.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from droneseg.core.masks import Mask
from droneseg.inference.runtimes.base import Probabilities, argmax_and_max, require_finite
from droneseg.model.bundle import NnunetLogits


def mean_of_folds(logits: NDArray[np.float32] | NDArray[np.float16], folds: int) -> NDArray[np.float32]:
    """Return the mean of the logits of several folds, shape (K, H, W), in nnU-Net's order and rounding.

    Args:
        logits: Logits of the folds one after the other, shape (folds * K, H, W), dtype float32 or float16.
        folds: Number of folds.

    Returns:
        The mean, dtype float32; of float16 logits, each step is rounded to float16.
    """
    by_fold = logits.reshape(folds, -1, *logits.shape[1:])
    total = by_fold[0]
    for other in by_fold[1:]:
        total = total + other
    mean: NDArray[np.float32] = (total / logits.dtype.type(folds) if folds > 1 else total).astype(np.float32)
    return mean


def sum_classes(logits: NDArray[np.float32], class_ids: Sequence[int]) -> NDArray[np.float32]:
    """Return the logits of folded classes, whose softmax is the sum of the probabilities of the classes folded.

    The logit of a folded class is the logarithm of the sum of the exponentials of the logits.

    Args:
        logits: Logits, shape (K, H, W), dtype float32.
        class_ids: Id of the folded class of each of the K classes; C different ids from 0.

    Returns:
        Logits, shape (C, H, W), dtype float32.
    """
    if list(class_ids) == list(range(len(logits))):
        return logits
    ids = np.array(class_ids)
    return np.stack([_log_of_sum(logits[ids == number]) for number in range(ids.max() + 1)])


def _log_of_sum(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    largest: NDArray[np.float32] = logits.max(axis=0)
    # the largest logit is subtracted so that no exponential overflows
    total: NDArray[np.float32] = largest + np.log(np.exp(logits - largest).sum(axis=0))
    return total


def combine(logits: NDArray[np.float32] | NDArray[np.float16], form: NnunetLogits) -> NDArray[np.float32]:
    """Return the logits of the bundle's classes, shape (C, H, W), dtype float32, from those of all folds and classes.

    Args:
        logits: Logits of the folds one after the other, shape (folds * K, H, W), dtype float32 or float16.
        form: Number of folds, and the bundle's class of each of nnU-Net's classes.
    """
    return sum_classes(mean_of_folds(logits, form.folds), form.class_ids)


def classify(
    logits: NDArray[np.float32] | NDArray[np.float16], form: NnunetLogits, temperature: float = 1.0
) -> tuple[Mask, Probabilities]:
    """Return nnU-Net's class of each pixel as a class of the bundle, and the probability of that class.

    Where classes are folded, it is not always the class with the largest summed probability.

    Args:
        logits: Logits of the folds one after the other, shape (folds * K, H, W), dtype float32 or float16.
        form: Number of folds, and the bundle's class of each of nnU-Net's classes.
        temperature: Number that logits are divided by before the softmax.

    Returns:
        Class ids, shape (H, W), dtype uint8, and probabilities, shape (H, W), dtype float32.

    Raises:
        ModelError: If a logit is not finite.
    """
    mean = mean_of_folds(logits, form.folds)
    of_nnunet, _ = argmax_and_max(mean)
    ids = np.array(form.class_ids, np.uint8)[of_nnunet]
    folded = sum_classes(mean, form.class_ids)
    chosen = np.take_along_axis(folded, ids[None].astype(np.intp), axis=0)
    probabilities = 1 / np.exp((folded - chosen) / np.float32(temperature)).sum(axis=0)
    require_finite(probabilities)
    return ids, probabilities
