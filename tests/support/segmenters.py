"""Segmenters without a network."""

import math
import threading
from dataclasses import replace

import numpy as np

from droneseg.core.camera import UNKNOWN_GROUND, Ground
from droneseg.core.classes import DEFAULT_CLASSES
from droneseg.core.landing_grid import LandingGrid, LandingPolicy
from droneseg.core.prediction import ModelInfo, Prediction, class_fractions, image_statistics
from support.waiting import HANG_S


class BrightIsLanding:
    """Segmenter that labels bright pixels as landing zones and dark ones as water; waits while `gate` is cleared."""

    profile = "exact"
    classes = DEFAULT_CLASSES
    landing_policy = LandingPolicy()

    def __init__(self, model_id: str = "aaa", patch: tuple[int, int] = (16, 24)) -> None:
        self.model_id = model_id
        self.calls = 0
        self.plain: list[bool] = []
        self.gate = threading.Event()
        self.gate.set()
        self.info = ModelInfo(
            name="fake",
            version="0",
            description="bright is landing",
            input_shape=(*patch, 3),
            framework="numpy",
            license="Apache-2.0",
            quality=None,
        )

    def count_tiles(self, size: tuple[int, int], ground: Ground = UNKNOWN_GROUND, *, plain: bool = False) -> int:
        """Return the number of tiles side by side."""
        del ground, plain
        return math.prod(-(-side // patch) for side, patch in zip(size, self.info.input_shape, strict=False))

    def segment(
        self, image: np.ndarray, ground: Ground = UNKNOWN_GROUND, *, plain: bool = False, landing: bool = False
    ) -> Prediction:
        """Segment by brightness."""
        self.plain.append(plain)
        self.calls += 1
        if not self.gate.wait(HANG_S):
            raise TimeoutError("nobody opened the gate")
        mask = np.where(image.mean(axis=2) > 127, 5, 2).astype(np.uint8)
        statistics = image_statistics(image)
        fractions = class_fractions(mask, self.classes)
        timings = {"network": 0.1}
        prediction = Prediction(mask, self.classes, fractions, 0.9, timings, self.model_id, ground, statistics)
        return replace(prediction, landing_grid=_certain(mask)) if landing else prediction


def _certain(mask: np.ndarray) -> LandingGrid:
    """Return the grid of a mask whose classes are certain."""
    grid = LandingGrid.empty(DEFAULT_CLASSES, mask.shape)
    grid.add((np.arange(len(DEFAULT_CLASSES))[:, None, None] == mask).astype(np.float32), 0)
    return grid
