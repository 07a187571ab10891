"""The seam between the sliding window and whatever runs the network."""

from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from droneseg.core.masks import Mask
from droneseg.inference.scores import Probabilities

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

    def scores(self, patches: Patches) -> NDArray[np.float32]:
        """Return the logits of N tiles, a new array of shape (N, C, H, W), dtype float32."""
        ...

    def winners(self, patches: Patches) -> tuple[Mask, Probabilities]:
        """Return class ids, shape (N, H, W), uint8, and the probability of each, float32.

        Raises:
            ModelError: If a score is not finite.
        """
        ...


def batch_for(patch: tuple[int, int]) -> int:
    """Return how many tiles of this size keep two cores busy without much memory: half a million pixels' worth."""
    return max(1, min(8, 524_288 // (patch[0] * patch[1])))
