"""Evaluation on photographs without masks: polygons with obvious contents, and limits for the class shares in them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image as pillow
from PIL import ImageDraw

from droneseg.core.classes import ClassTable, Role
from droneseg.core.errors import DatasetError
from droneseg.core.files import read_json
from droneseg.core.masks import Mask

LIMITS: dict[str, dict[Role, tuple[float, float]]] = {
    "water": {Role.LANDING: (0, 0.02), Role.WATER: (0.8, 1)},
    "vegetation": {Role.LANDING: (0, 0.02), Role.WATER: (0, 0.02)},
    "lawn": {Role.SOFT: (0.85, 1), Role.WATER: (0, 0.02)},
    "road": {Role.LANDING: (0.7, 1), Role.WATER: (0, 0.02)},
    "dry": {Role.WATER: (0, 0.02)},
    "solid": {Role.LANDING: (0, 0.1)},
    "shade": {Role.LANDING: (0, 0.1), Role.WATER: (0, 0.02)},
    "sky": {Role.LANDING: (0, 0.01)},
}
"""Smallest and largest accepted share of the pixels, by kind of region and role of the class."""


@dataclass(frozen=True)
class Region:
    """A region of a photograph.

    Attributes:
        photo: Stem of the photograph.
        truth: Kind of the region, a key of `LIMITS`.
        polygon: Corners (x, y) as fractions of width and height.
    """

    photo: str
    truth: str
    polygon: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class EvaluatedRegion:
    """A region with its prediction.

    Attributes:
        region: The region.
        shares: Share of its pixels by class name.
        right: Whether every share is within its limits.
    """

    region: Region
    shares: dict[str, float]
    right: bool


def read_regions(file: Path) -> list[Region]:
    """Read regions from a JSON list of objects with `photo`, `truth` and `polygon`.

    Raises:
        DatasetError: If the file cannot be read, or an entry is malformed; the error lists all of them.
    """
    content = read_json(file, expected="Expected a list of objects with photo, truth and polygon.")
    regions, problems = [], []
    for number, entry in enumerate(content if isinstance(content, list) else [content]):
        try:
            polygon = tuple((float(x), float(y)) for x, y in entry["polygon"])
            region = Region(str(entry["photo"]), entry["truth"], polygon)
            if region.truth not in LIMITS or len(polygon) < 3:
                raise ValueError
            regions.append(region)
        except (KeyError, TypeError, ValueError):
            problems.append(f"entry {number}: needs photo, truth ({', '.join(LIMITS)}) and polygon (3 or more corners)")
    if problems:
        raise DatasetError(f"{file} has malformed regions:", problems)
    return regions


def evaluate_region(region: Region, mask: Mask, classes: ClassTable) -> EvaluatedRegion:
    """Compare the class shares in a region with the limits of its kind.

    Args:
        region: The region.
        mask: Predicted class ids of the photograph, shape (H, W), dtype uint8.
        classes: Class table of the mask.
    """
    height, width = mask.shape
    picture = pillow.new("1", (width, height))
    ImageDraw.Draw(picture).polygon([(x * width, y * height) for x, y in region.polygon], fill=1)
    inside = mask[np.asarray(picture)]
    counts = np.bincount(inside, minlength=len(classes)) / max(inside.size, 1)
    shares = dict(zip(classes.names, counts.tolist(), strict=True))
    right = inside.size > 0 and all(
        low <= counts[list(classes.ids_of(role))].sum() <= high for role, (low, high) in LIMITS[region.truth].items()
    )
    return EvaluatedRegion(region, shares, right)
