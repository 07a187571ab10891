"""Additional targets of a training case: the fine class and the weight of every pixel."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from droneseg.core.boxes import Boxes
from droneseg.core.classes import NORMAL_WEIGHT, ClassTable, Role
from droneseg.core.errors import ConfigurationError, DatasetError, DronesegError
from droneseg.core.images import DEFAULT_MAX_PIXELS, encode_png, load, open_image
from droneseg.core.masks import Mask
from droneseg.data.fine_classes import FINE_CLASSES_NAME, FINE_MASKS_FOLDER, FineClass, read_fine_classes

WEIGHTS_FOLDER = "weights"
MAX_WEIGHT = 2.55
"""Largest weight of a pixel; weights are stored in hundredths in 8 bits."""


@dataclass(frozen=True)
class BoxWeights:
    """Boxes around moving objects, and the factor for the weights of the moving-object pixels in them.

    Attributes:
        boxes: Boxes by stem.
        weight: Factor.
    """

    boxes: Boxes = field(default_factory=dict)
    weight: float = 1.0


@dataclass(frozen=True)
class Targets:
    """Additional targets of a case.

    Attributes:
        png: 8-bit RGB PNG of the label's size: red is the id of the fine class or 0, green the weight in hundredths.
        has_fine: Whether the dataset has a fine mask of the case.
        conflicting: Number of pixels whose fine class belongs to another class than the mask's; it is stored as 0.
    """

    png: bytes
    has_fine: bool
    conflicting: int


@dataclass(frozen=True)
class Sidecars:
    """Fine masks and weights of a dataset, in folders beside the images.

    Attributes:
        root: Folder of the dataset.
        classes: Class table of the dataset.
        fine_classes: Fine classes in the order of their ids; empty without fine masks.
        has_weights: Whether there is a folder of weights.
    """

    root: Path
    classes: ClassTable
    fine_classes: tuple[FineClass, ...] = ()
    has_weights: bool = False

    def targets(self, stem: str, mask: Mask, boxes: BoxWeights | None) -> Targets:
        """Return the additional targets of a pair.

        Args:
            stem: Stem of the pair.
            mask: Class ids, shape (H, W), dtype uint8.
            boxes: Boxes of the dataset, if any.

        Raises:
            DatasetError: If a fine mask or weights are not 8-bit grey images of the mask's size, a fine id is not in
                the table, or a box is outside the mask.
        """
        fine = self._read(FINE_MASKS_FOLDER, stem, mask) if self.fine_classes else None
        weights = self._read(WEIGHTS_FOLDER, stem, mask) if self.has_weights else None
        values = np.zeros((*mask.shape, 3), np.uint8)
        values[..., 1] = NORMAL_WEIGHT if weights is None else weights
        conflicting = 0
        if fine is not None:
            values[..., 0], conflicting = self._fine_ids(stem, fine, mask)
        if boxes and stem in boxes.boxes:
            values[..., 1] = _weigh_boxes(stem, values[..., 1], mask, self.classes.ids_of(Role.MOVING), boxes)
        return Targets(encode_png(values), fine is not None, conflicting)

    def _read(self, folder: str, stem: str, mask: Mask) -> NDArray[np.uint8] | None:
        """Return the fine mask or the weights of a pair, shape (H, W), dtype uint8; None if there are none."""
        file = self.root / folder / f"{stem}.png"
        if not file.is_file():
            return None
        try:
            opened = open_image(file.read_bytes(), max_pixels=max(mask.size, DEFAULT_MAX_PIXELS))
            load(opened)
        except (DronesegError, OSError) as error:
            raise DatasetError(f"{folder}/{file.name}: {error}") from error
        height, width = mask.shape
        if opened.mode != "L" or opened.size != (width, height):
            raise DatasetError(
                f"{folder}/{file.name}: is {opened.mode} and {opened.size[0]}x{opened.size[1]}; it must be an 8-bit "
                f"grey image (L) of the mask's size, {width}x{height}"
            )
        return np.asarray(opened)

    def _fine_ids(self, stem: str, fine: NDArray[np.uint8], mask: Mask) -> tuple[NDArray[np.uint8], int]:
        """Return the fine ids, 0 where they contradict the mask, and the number of such pixels."""
        if (highest := int(fine.max())) > len(self.fine_classes):
            raise DatasetError(f"{FINE_MASKS_FOLDER}/{stem}.png: the id {highest} is not in {FINE_CLASSES_NAME}")
        class_of = np.array([0, *(self.classes.id_of(entry.class_name) for entry in self.fine_classes)], np.uint8)
        conflicting = (fine > 0) & (class_of[fine] != mask)
        return np.where(conflicting, np.uint8(0), fine), int(np.count_nonzero(conflicting))


def find_sidecars(root: Path, classes: ClassTable) -> tuple[Sidecars, list[str]]:
    """Find the fine masks and weights of a dataset.

    Args:
        root: Folder of the dataset.
        classes: Class table of the dataset.

    Returns:
        The fine masks and weights; problems, one line each.
    """
    has_weights = (root / WEIGHTS_FOLDER).is_dir()
    if not (root / FINE_MASKS_FOLDER).is_dir():
        return Sidecars(root, classes, (), has_weights), []
    try:
        return Sidecars(root, classes, read_fine_classes(root / FINE_CLASSES_NAME, classes.names), has_weights), []
    except ConfigurationError as error:
        return Sidecars(root, classes, (), has_weights), [str(error)]


def _weigh_boxes(
    stem: str, weights: NDArray[np.uint8], mask: Mask, moving: Sequence[int], boxes: BoxWeights
) -> NDArray[np.uint8]:
    """Return the weights, with those of moving objects inside the boxes multiplied by the factor."""
    height, width = mask.shape
    inside = np.zeros(mask.shape, bool)
    for box in boxes.boxes[stem]:
        x0, y0, x1, y1 = (round(edge) for edge in box)
        if x1 > width or y1 > height:
            raise DatasetError(
                f"{stem}: the box {list(box)} is outside the mask, which is {width}x{height}; boxes must be in "
                "pixels of the mask"
            )
        inside[y0:y1, x0:x1] = True
    inside &= np.isin(mask, moving)
    raised = np.minimum(np.round(weights * boxes.weight), round(100 * MAX_WEIGHT)).astype(np.uint8)
    return np.where(inside, raised, weights)
