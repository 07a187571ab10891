"""Runtime protocol; argmax and softmax of logits."""

from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from droneseg.core.errors import ModelError
from droneseg.core.masks import Mask

Logits: TypeAlias = NDArray[np.float32]
"""Logits, shape (C, H, W), dtype float32."""
Probabilities: TypeAlias = NDArray[np.float32]
"""Probability of the winning class, shape (H, W), dtype float32."""

# rows decided at once: few enough to stay in the processor's cache
_ROWS = 32


def argmax_with_confidence(logits: NDArray[np.float32] | NDArray[np.float16]) -> tuple[Mask, Probabilities]:
    """Return the winning class of each pixel, the first of equals, and its softmax probability.

    Args:
        logits: Logits, shape (C, H, W), dtype float32 or float16.

    Raises:
        ModelError: If a score is not finite: then there is no answer, and none is made up.
    """
    height, width = logits.shape[1:]
    ids, winning = np.empty((height, width), np.uint8), np.empty((height, width), np.float32)
    for top in range(0, height, _ROWS):
        rows = slice(top, top + _ROWS)
        part = logits[:, rows].astype(np.float32, copy=False)
        best = part.max(axis=0)
        ids[rows] = part.argmax(axis=0)
        winning[rows] = 1 / np.exp(part - best).sum(axis=0)
    require_finite(winning)
    return ids, winning


def require_finite(winning: Probabilities) -> None:
    """Raise `ModelError` unless every pixel has a probability."""
    if not np.isfinite(winning).all():
        raise ModelError("The network gave scores that are not finite numbers; there is no answer for this image.")


class LogitAccumulator:
    """Sums of the tiles that cover the rows still open: memory for one row of tiles, not for the image.

    Tiles come row by row. Sums are float32, or float16 as in nnU-Net's predictor, whose rounding decides ties.

    Args:
        classes: Number of classes C.
        width: Of the padded image.
        weights: Of the pixels of a tile, shape (h, w), dtype float16.
        half: Whether to sum in float16.
    """

    def __init__(self, classes: int, width: int, weights: NDArray[np.float16], *, half: bool) -> None:
        dtype = np.float16 if half else np.float32
        self._weights = weights
        self._factor = weights.astype(np.float32)
        self._scores = np.zeros((classes, weights.shape[0], width), dtype)
        self._total = np.zeros((weights.shape[0], width), dtype)

    def add(self, left: int, logits: Logits) -> None:
        """Add the scores of a tile, shape (C, h, w), that begins at column `left` of the open rows."""
        columns = slice(left, left + self._weights.shape[1])
        target, total = self._scores[:, :, columns], self._total[:, columns]
        # float16 sums are computed in float32 and rounded at each step, like torch's
        np.add(target, logits * self._factor, out=target, casting="same_kind")
        np.add(total, self._factor, out=total, casting="same_kind")

    def close(self, rows: int) -> tuple[Mask, Probabilities]:
        """Decide the first `rows` open rows and open as many below."""
        logits, total = self._scores[:, :rows], self._total[:rows]
        np.divide(logits, total, out=logits)
        decided = argmax_with_confidence(logits)
        kept = self._scores.shape[1] - rows
        for buffer in (self._scores, self._total):
            # on the same buffer: rows move up, in order
            buffer[..., :kept, :] = buffer[..., rows:, :].copy() if kept else 0
            buffer[..., kept:, :] = 0
        return decided


Patches: TypeAlias = NDArray[np.uint8] | NDArray[np.float32]
"""Tiles: bytes (N, H, W, 3) for a runtime that divides by 255 itself, else normalised values (N, 3, H, W)."""


class Runtime(Protocol):
    """Runs a network on tiles of one size; safe to call from many threads."""

    @property
    def name(self) -> str:
        """Name of runtime and precision, for people."""
        ...

    @property
    def batch(self) -> int:
        """How many tiles to give at once, at most."""
        ...

    def logits(self, patches: Patches) -> NDArray[np.float32]:
        """Return the logits of N tiles, a new array of shape (N, C, H, W), dtype float32."""
        ...

    def argmax(self, patches: Patches) -> tuple[Mask, Probabilities]:
        """Return class ids, shape (N, H, W), uint8, and the probability of each, float32.

        Raises:
            ModelError: If a score is not finite.
        """
        ...


def batch_for(patch: tuple[int, int]) -> int:
    """Return how many tiles of this size keep two cores busy without much memory: half a million pixels' worth."""
    return max(1, min(8, 524_288 // (patch[0] * patch[1])))
