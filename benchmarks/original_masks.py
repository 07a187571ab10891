"""Masks with the 24 original classes of the Semantic Drone Dataset, read as class ids; imported by other benchmarks."""

from pathlib import Path

import numpy as np
from PIL import Image as pillow

from droneseg.core.classes import DEFAULT_CLASSES
from droneseg.core.masks import Mask

ORIGINAL_IDS = {
    "obstacles": (0, 6, 10, 11, 12, 13, 14, 21, 22, 23),
    "water": (5, 7),
    "soft-surfaces": (2, 3, 8, 19, 20),
    "moving-objects": (15, 16, 17, 18),
    "landing-zones": (1, 4, 9),
}
"""Ids of the original classes by class name; 0 is unlabelled."""


def read_original_mask(folder: Path, stem: str) -> Mask:
    """Return the class ids of a photograph from the original ids in `masks_24`, shape (H, W), dtype uint8."""
    table = np.zeros(256, np.uint8)
    for name, originals in ORIGINAL_IDS.items():
        table[list(originals)] = DEFAULT_CLASSES.id_of(name)
    mask: Mask = table[np.asarray(pillow.open(folder / "masks_24" / f"{stem}.png"))]
    return mask
