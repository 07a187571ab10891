"""Class tables (ids, names, colours, roles), and dataset constants shared by several packages."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray


class Role(StrEnum):
    """What a class means for landing. A class without a role is neither safe nor counted as unsafe."""

    LANDING = "landing"
    SOFT = "soft"
    OBSTACLE = "obstacle"
    WATER = "water"
    MOVING = "moving"


# Landing on such a class can destroy the drone; soft ground is undesirable, but not dangerous.
UNSAFE_ROLES = (Role.OBSTACLE, Role.WATER, Role.MOVING)
BACKGROUND_ID = 0
"""Class id of pixels that belong to no other class, in every table."""
MAX_CLASSES = 64
"""Largest number of classes of a table."""
MAX_NAME_LENGTH = 64
"""Largest number of characters of a class name, which has to fit into tables and legends."""
BACKGROUND_NAME, IGNORE = "background", "ignore"
"""nnU-Net's names of class 0 and of the ignore label; no other class can have them."""
_LANDING_DISPLAY = (255, 214, 0)
"""RGB colour of grey landing zones in drawings; on asphalt, grey cannot be seen."""
_GREY_SPREAD = 32


@dataclass(frozen=True)
class SegmentationClass:
    """A segmentation class.

    Attributes:
        id: Pixel value of the class in a mask.
        name: Class name in reports and JSON.
        colour: RGB colour of the class in colour-coded masks, each 0-255.
        role: What the class means for landing; None if nothing.
    """

    id: int
    name: str
    colour: tuple[int, int, int]
    role: Role | None = None


@dataclass(frozen=True)
class ClassTable:
    """The classes of a dataset or a model, in the order of their ids from 0. Class 0 is the background.

    Raises:
        ValueError: If the ids are not consecutive, a name or a colour occurs twice, a name cannot be used, class 0 has
            a role to land on, or there are too few or too many classes; the message lists all problems.
    """

    entries: tuple[SegmentationClass, ...]

    def __post_init__(self) -> None:
        if problems := table_problems(self.entries):
            raise ValueError("; ".join(problems))

    def __iter__(self) -> Iterator[SegmentationClass]:
        """Iterate over the classes."""
        return iter(self.entries)

    def __len__(self) -> int:
        """Return the number of classes."""
        return len(self.entries)

    def __getitem__(self, class_id: int) -> SegmentationClass:
        """Return the class with this id."""
        return self.entries[class_id]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all classes, in the order of their ids."""
        return tuple(entry.name for entry in self.entries)

    @property
    def foreground(self) -> tuple[SegmentationClass, ...]:
        """All classes but the background."""
        return self.entries[1:]

    @property
    def ignore_label(self) -> int:
        """nnU-Net's ignore label, the value of unlabelled pixels; nnU-Net requires it to be the largest label."""
        return len(self.entries)

    def id_of(self, name: str) -> int:
        """Return the id of the class called `name`.

        Raises:
            KeyError: If no class has that name.
        """
        for entry in self.entries:
            if entry.name == name:
                return entry.id
        raise KeyError(name)

    def ids_of(self, *roles: Role) -> tuple[int, ...]:
        """Return the ids of the classes with one of these roles."""
        return tuple(entry.id for entry in self.entries if entry.role in roles)

    def has(self, role: Role) -> bool:
        """Return whether a class has this role."""
        return bool(self.ids_of(role))

    @property
    def landing_note(self) -> str:
        """Why landing figures are missing, as a sentence; empty if none is."""
        if not self.has(Role.LANDING):
            return "There is no landing role in this model, so it has no landing figures."
        if not self.unsafe_ids:
            return "No class has the role obstacle, water or moving, so the unsafe landing rate is not known."
        return ""

    @property
    def unsafe_ids(self) -> tuple[int, ...]:
        """Ids of the classes on which landing can destroy the drone."""
        return self.ids_of(*UNSAFE_ROLES)

    def colours(self) -> NDArray[np.uint8]:
        """Return the class colours, shape (C, 3), dtype uint8; row i is the colour of class id i."""
        import numpy as np  # the command line imports this module for its options and must start quickly

        return np.array([entry.colour for entry in self.entries], dtype=np.uint8)

    def display_colours(self) -> NDArray[np.uint8]:
        """Return the colours of the classes in drawings, shape (C, 3), dtype uint8."""
        import numpy as np

        return np.array([self.display_colour(entry.id) for entry in self.entries], dtype=np.uint8)

    def display_colour(self, class_id: int) -> tuple[int, int, int]:
        """Return the RGB colour of a class in drawings; that of a grey landing zone is yellow."""
        entry = self.entries[class_id]
        grey = max(entry.colour) - min(entry.colour) < _GREY_SPREAD
        return _LANDING_DISPLAY if entry.role == Role.LANDING and grey else entry.colour


def table_problems(entries: Sequence[SegmentationClass]) -> list[str]:
    """Return the reasons why classes are not a `ClassTable`; none if they are."""
    problems = _id_problems([entry.id for entry in entries])
    if not 2 <= len(entries) <= MAX_CLASSES:
        problems.append(f"the number of classes is {len(entries)}; it must be 2 to {MAX_CLASSES}")
    for what, values in (("name", [e.name for e in entries]), ("colour", [str(e.colour) for e in entries])):
        if twice := sorted({value for value in values if values.count(value) > 1}):
            problems.append(f"the {what} {', '.join(twice)} occurs more than once")
    for entry in entries:
        problems += _name_problems(entry)
        if entry.id == BACKGROUND_ID and entry.role in (Role.LANDING, Role.SOFT):
            problems.append(
                f"{entry.name} has the role {entry.role}, but class 0 is also what cannot be seen, such as black "
                "borders; give the ground to land on another id"
            )
    return problems


def _id_problems(ids: list[int]) -> list[str]:
    twice = sorted({class_id for class_id in ids if ids.count(class_id) > 1})
    missing = sorted(set(range(max(ids, default=0))) - set(ids))
    problems = [f"the id {class_id} occurs more than once" for class_id in twice]
    if missing:
        numbers = ", ".join(map(str, missing))
        problems.append(f"no class has the id {numbers}; ids are the numbers from 0, the background")
    if not twice and not missing and ids != sorted(ids):
        problems.append("the classes are not in the order of their ids")
    return problems


def _name_problems(entry: SegmentationClass) -> list[str]:
    name, problems = entry.name, []
    if not name or name != name.strip() or not name.isprintable():
        problems.append(f"the name {name!r} is empty, or has spaces at its ends or characters that cannot be printed")
    if len(name) > MAX_NAME_LENGTH:
        problems.append(f"the name {name[:20]}... has {len(name)} characters; at most {MAX_NAME_LENGTH} are possible")
    if name == IGNORE:
        problems.append(f"{IGNORE} is not a class; a colour of unlabelled pixels has the role {IGNORE} and no name")
    if name == BACKGROUND_NAME and entry.id != BACKGROUND_ID:
        problems.append(f"{BACKGROUND_NAME} has the id {entry.id}; in nnU-Net it is 0. Choose another name")
    return problems


DEFAULT_CLASSES = ClassTable(
    (
        SegmentationClass(0, "background", (0, 0, 0)),
        SegmentationClass(1, "obstacles", (155, 38, 182), Role.OBSTACLE),
        SegmentationClass(2, "water", (14, 135, 204), Role.WATER),
        SegmentationClass(3, "soft-surfaces", (124, 252, 0), Role.SOFT),
        SegmentationClass(4, "moving-objects", (255, 20, 147), Role.MOVING),
        SegmentationClass(5, "landing-zones", (169, 169, 169), Role.LANDING),
    )
)
"""Classes of the Kaggle dataset and of generated scenes."""

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
