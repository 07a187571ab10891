"""Recognition of people, measured in boxes around them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from droneseg.core.boxes import Box, Boxes
from droneseg.core.classes import ClassTable, Role
from droneseg.core.masks import Mask, MaskKind
from droneseg.evaluation.evaluate import Evaluation

MUCH_LANDING = 0.5
"""Share of a person predicted as landing zone, from which the person counts in `much_landing`."""
LITTLE_MOVING = 0.1
"""Share of a person predicted as moving object, below which the person counts in `little_moving`."""


@dataclass(frozen=True)
class PersonShares:
    """Prediction in the box of a person, over the pixels whose true class is moving objects.

    Attributes:
        landing: Share predicted as landing zone.
        moving: Share predicted as moving object.
    """

    landing: float
    moving: float


@dataclass(frozen=True)
class PeopleFigures:
    """Figures over all people.

    Attributes:
        people: Number of people.
        much_landing: Share of the people of whom at least half is predicted as landing zone; None without people, or
            without a landing role.
        little_moving: Share of the people of whom less than a tenth is predicted as moving object; None without people.
        without_truth: Number of boxes without a pixel whose true class is moving objects; they do not count as people.
    """

    people: int
    much_landing: float | None
    little_moving: float | None
    without_truth: int


def person_shares(
    truth: Mask, prediction: Mask, boxes: Iterable[Box], classes: ClassTable
) -> list[PersonShares | None]:
    """Return the shares of each person; None for a box without a pixel whose true class is moving objects.

    The true mask separates the person from the other pixels of the box, which are not counted.

    Args:
        truth: Class ids, shape (H, W), dtype uint8.
        prediction: Class ids, same shape and dtype.
        boxes: Boxes in pixels of the masks.
        classes: Class table of the masks. Moving objects are the classes with the role moving.
    """
    moving, landing = classes.ids_of(Role.MOVING), classes.ids_of(Role.LANDING)
    height, width = truth.shape
    found: list[PersonShares | None] = []
    for x0, y0, x1, y1 in boxes:
        rows = slice(max(round(y0), 0), min(round(y1), height))
        columns = slice(max(round(x0), 0), min(round(x1), width))
        ids = prediction[rows, columns][np.isin(truth[rows, columns], moving)]
        if not ids.size:
            found.append(None)
            continue
        found.append(PersonShares(float(np.isin(ids, landing).mean()), float(np.isin(ids, moving).mean())))
    return found


def scale_boxes(boxes: Iterable[Box], source: tuple[int, int], target: tuple[int, int]) -> list[Box]:
    """Return boxes of an image resampled from height and width `source` to `target`."""
    y, x = target[0] / source[0], target[1] / source[1]
    return [(x0 * x, y0 * y, x1 * x, y1 * y) for x0, y0, x1, y1 in boxes]


def evaluate_people(evaluation: Evaluation, boxes: Boxes, *, truth_kind: MaskKind, max_pixels: int) -> PeopleFigures:
    """Return the figures over the people of evaluated images.

    Args:
        evaluation: Evaluation; images without boxes are ignored.
        boxes: Boxes by stem, in pixels of the masks.
        truth_kind: Encoding of the true masks: class colours, class ids, or nnU-Net's labels.
        max_pixels: Maximum number of pixels of a mask.

    Raises:
        ImageError: If a mask cannot be decoded.
        MaskError: If a mask has another encoding.
    """
    shares: list[PersonShares | None] = []
    classes = evaluation.classes
    for image in evaluation.images:
        if boxes.get(image.stem):
            truth = evaluation.read_truth(image, truth_kind, max_pixels=max_pixels)
            prediction = evaluation.read_prediction(image, max_pixels=max_pixels)
            shares += person_shares(truth, prediction, boxes[image.stem], classes)
    figures = summarise_people(shares)
    return figures if classes.has(Role.LANDING) else replace(figures, much_landing=None)


def summarise_people(shares: Sequence[PersonShares | None]) -> PeopleFigures:
    """Return the figures over all people; None stands for a box that does not count."""
    known = [entry for entry in shares if entry]
    if not known:
        return PeopleFigures(0, None, None, len(shares))
    return PeopleFigures(
        people=len(known),
        much_landing=float(np.mean([entry.landing >= MUCH_LANDING for entry in known])),
        little_moving=float(np.mean([entry.moving < LITTLE_MOVING for entry in known])),
        without_truth=len(shares) - len(known),
    )
