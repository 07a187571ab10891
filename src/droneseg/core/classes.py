"""Class table (ids, names, colours) and dataset constants shared by several packages."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class SegmentationClass:
    """A segmentation class of the five-class drone dataset.

    Attributes:
        id: Pixel value of the class in a mask.
        name: Class name in reports and JSON.
        colour: RGB colour of the class in colour-coded masks, each 0-255.
    """

    id: int
    name: str
    colour: tuple[int, int, int]


CLASSES: tuple[SegmentationClass, ...] = (
    SegmentationClass(0, "background", (0, 0, 0)),
    SegmentationClass(1, "obstacles", (155, 38, 182)),
    SegmentationClass(2, "water", (14, 135, 204)),
    SegmentationClass(3, "soft-surfaces", (124, 252, 0)),
    SegmentationClass(4, "moving-objects", (255, 20, 147)),
    SegmentationClass(5, "landing-zones", (169, 169, 169)),
)
NAMES: tuple[str, ...] = tuple(c.name for c in CLASSES)
FOREGROUND: tuple[SegmentationClass, ...] = CLASSES[1:]

_BY_NAME = {c.name: c.id for c in CLASSES}
BACKGROUND_ID = _BY_NAME["background"]
IGNORE_LABEL = len(CLASSES)
"""nnU-Net's ignore label, the value of unlabelled pixels; nnU-Net requires it to be the largest label."""
LANDING_ID = _BY_NAME["landing-zones"]
LANDING_DISPLAY = (255, 214, 0)
"""RGB colour of landing zones in overlays; their grey in masks is hard to see on asphalt."""
# Landing on one of these classes can destroy the drone; soft ground is undesirable, but not dangerous.
UNSAFE_IDS: tuple[int, ...] = (_BY_NAME["obstacles"], _BY_NAME["water"], _BY_NAME["moving-objects"])

DATASET_NAME = "Dataset101_DroneSeg"
"""Name of the dataset in nnU-Net's folders."""
TARGETS_FOLDER = "targetsTr"
"""Folder of the raw dataset with the additional targets: PNG files of fine class ids (red) and weights (green)."""
NORMAL_WEIGHT = 100
"""Weight of a normal pixel in these files, in hundredths."""


class Normalisation(StrEnum):
    """Normalisation of an image before inference.

    `rgb_to_0_1` divides by 255; `zscore` gives each channel of each image mean 0 and standard deviation 1.
    """

    RGB_TO_0_1 = "rgb_to_0_1"
    ZSCORE = "zscore"


def class_id(name: str) -> int:
    """Return the id of the class called `name`.

    Raises:
        KeyError: If no class has that name.
    """
    return _BY_NAME[name]


def colours() -> NDArray[np.uint8]:
    """Return the class colours, shape (C, 3), dtype uint8; row i is the colour of class id i."""
    import numpy as np  # the command line imports this module for its options and must start quickly

    return np.array([c.colour for c in CLASSES], dtype=np.uint8)


def display_colour(class_id: int) -> tuple[int, int, int]:
    """Return the RGB colour of a class in overlays."""
    return LANDING_DISPLAY if class_id == LANDING_ID else CLASSES[class_id].colour
