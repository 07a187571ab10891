"""The `Runtime` protocol, and the class and softmax probability of each pixel from logits."""

from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from droneseg.core.errors import ModelError
from droneseg.core.masks import Mask

Logits: TypeAlias = NDArray[np.float32]
"""Logits, shape (C, H, W), dtype float32."""
Probabilities: TypeAlias = NDArray[np.float32]
"""Softmax probability of the predicted class, shape (H, W), dtype float32."""

Patches: TypeAlias = NDArray[np.uint8] | NDArray[np.float32]
"""Tiles: uint8 RGB (N, H, W, 3) if the runtime divides by 255 itself, else normalised float32 (N, 3, H, W)."""

# rows processed at once; few enough to fit in the processor's cache
_ROWS = 32


def argmax_with_confidence(
    logits: NDArray[np.float32] | NDArray[np.float16], temperature: float = 1.0
) -> tuple[Mask, Probabilities]:
    """Return the class with the largest logit of each pixel, and its softmax probability.

    The lowest class id wins ties.

    Args:
        logits: Logits, shape (C, H, W), dtype float32 or float16.
        temperature: Number that logits are divided by before the softmax, which does not change the classes.

    Returns:
        Class ids, shape (H, W), dtype uint8, and probabilities, shape (H, W), dtype float32.

    Raises:
        ModelError: If a logit is not finite.
    """
    height, width = logits.shape[1:]
    ids, winning = np.empty((height, width), np.uint8), np.empty((height, width), np.float32)
    for top in range(0, height, _ROWS):
        rows = slice(top, top + _ROWS)
        part = logits[:, rows].astype(np.float32, copy=False)
        ids[rows], best = argmax_and_max(part)
        winning[rows] = 1 / np.exp((part - best) / np.float32(temperature)).sum(axis=0)
    require_finite(winning)
    return ids, winning


def softmax(logits: NDArray[np.float32], temperature: float = 1.0) -> NDArray[np.float32]:
    """Return the class probabilities of logits, shape (C, H, W), divided by a temperature."""
    scaled = logits / np.float32(temperature)
    scaled -= scaled.max(axis=0)
    np.exp(scaled, out=scaled)
    scaled /= scaled.sum(axis=0)
    return scaled


def argmax_and_max(scores: NDArray[np.float32]) -> tuple[Mask, NDArray[np.float32]]:
    """Return the class with the largest score of each pixel, shape (H, W), dtype uint8, and that score.

    The lowest class id wins ties. Faster than NumPy's argmax along the first axis.

    Args:
        scores: Scores of the classes, shape (C, H, W), dtype float32.
    """
    best: NDArray[np.float32] = scores.max(axis=0)
    ids = np.zeros(best.shape, np.uint8)
    for class_id in reversed(range(len(scores))):
        np.copyto(ids, np.uint8(class_id), where=scores[class_id] == best)
    return ids, best


def require_finite(winning: Probabilities) -> None:
    """Raise `ModelError` if a probability is not finite."""
    if not np.isfinite(winning).all():
        raise ModelError("The network returned non-finite logits; this image cannot be segmented.")


class Runtime(Protocol):
    """Runs a network on tiles of one size. Safe to call from several threads."""

    @property
    def name(self) -> str:
        """Display name of runtime and precision."""
        ...

    @property
    def batch(self) -> int:
        """Maximum number of tiles per call."""
        ...

    def logits(self, patches: Patches) -> NDArray[np.float32]:
        """Return the logits of N tiles, a new array of shape (N, C, H, W), dtype float32."""
        ...

    def argmax(self, patches: Patches, temperature: float = 1.0) -> tuple[Mask, Probabilities]:
        """Return the predicted classes of N tiles and their probabilities.

        Args:
            patches: Tiles.
            temperature: Number that logits are divided by before the softmax.

        Returns:
            Class ids, shape (N, H, W), dtype uint8, and probabilities, same shape, dtype float32.

        Raises:
            ModelError: If a logit is not finite.
        """
        ...

    def argmax_and_softmax(
        self, patches: Patches, temperature: float = 1.0
    ) -> tuple[Mask, Probabilities, NDArray[np.float32]]:
        """Return the results of `argmax`, and the probabilities of all classes, shape (N, C, H, W), dtype float32."""
        ...


def batch_for(patch: tuple[int, int]) -> int:
    """Return the batch size for tiles of this size: about half a million pixels, which keeps two cores busy."""
    return max(1, min(8, 524_288 // (patch[0] * patch[1])))
