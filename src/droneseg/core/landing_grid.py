"""Class probabilities for landing sites, pooled to a grid of limited size, and the limits that apply to them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from droneseg.core.classes import ClassTable, Role

MAX_CELLS = 500_000
"""Largest number of cells of a grid; it limits the time and memory that distance transforms take."""

Layer: TypeAlias = NDArray[np.float32]
"""One value for each cell, shape (h, w), dtype float32."""
_Reduction: TypeAlias = Callable[..., NDArray[Any]]


LENGTHS = ("radius", "clearance", "clearance_people")
"""Lengths of a site; each has an option in metres, with the suffix `_m`, and one in pixels, with `_px`."""
OPTION_CONFLICT = "option_conflict"
"""Type of the validation errors whose messages name the options themselves."""
_Length = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]


class SiteLengths(BaseModel):
    """Radius of a landing site, and its clearances from the rim of the disc. Lengths left out have their defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    radius_m: Annotated[float, Field(gt=0, le=1e4)] | None = Field(None, description="Radius of the disc in metres.")
    radius_px: Annotated[float, Field(gt=0, le=1e6)] | None = Field(None, description="Radius of the disc in pixels.")
    clearance_m: _Length | None = Field(None, description="Distance to everything that is not safe, in metres.")
    clearance_px: _Length | None = Field(None, description="Distance to everything that is not safe, in pixels.")
    clearance_people_m: _Length | None = Field(None, description="Distance to people and vehicles, in metres.")
    clearance_people_px: _Length | None = Field(None, description="Distance to people and vehicles, in pixels.")

    @model_validator(mode="after")
    def _check_units(self) -> Self:
        for name in LENGTHS:
            if getattr(self, f"{name}_m") is not None and getattr(self, f"{name}_px") is not None:
                raise PydanticCustomError(OPTION_CONFLICT, f"{name}_m and {name}_px are both given. Pass one of them.")
        return self

    @property
    def needs_scale(self) -> bool:
        """Whether a length is given in metres."""
        return any(getattr(self, f"{name}_m") is not None for name in LENGTHS)


class LandingLimits(BaseModel):
    """Limits of the probabilities at which a drone may land, and how they were calibrated.

    Danger is the probability of all classes together that are neither landing zone nor soft surface: obstacles, water,
    moving objects and background.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    danger_limit: float = Field(0.05, gt=0, le=1, description="Every pixel of a site has a danger below this limit.")
    moving_limit: float = Field(
        0.1, gt=0, le=1, description="Probability of moving objects from which a pixel may show people or vehicles."
    )
    threshold: float | None = Field(
        None, ge=0, le=1, description="Smallest probability of the allowed classes together; null for no limit."
    )
    alpha: float | None = Field(
        None, gt=0, lt=1, description="Probability that the bound is too low; null if the limits are not calibrated."
    )
    bound: float | None = Field(
        None, ge=0, le=1, description="Upper bound on the share of first sites that contain anything unsafe."
    )
    calibrated_on: str | None = Field(None, description="Photographs that the limits and the bound are based on.")


class LandingPolicy(LandingLimits):
    """Limits of a profile of a bundle."""

    lengths: SiteLengths | None = Field(None, description="Lengths that the bound is valid for; null without a bound.")


@dataclass
class LandingGrid:
    """Probabilities of an image, pooled to cells; `add` takes them in bands of rows.

    A cell covers `step` x `step` pixels of the image as it was resampled for the model, fewer at the right and lower
    border. It has the least favourable value of its pixels, so a cell is safe only if all its pixels are.

    Attributes:
        classes: Class table of the probabilities.
        pixels: Height and width of the resampled image.
        box: Rows and columns of the photograph that the resampled image shows; the black border outside is unsafe.
        step: Side of a cell, in pixels of the resampled image.
        danger: Largest danger, see `LandingLimits`.
        moving: Largest probability of moving objects.
        worst: Largest probability of any single class that adds up to the danger.
        landing: Smallest probability of landing zone.
        soft: Smallest probability of soft surface.
        both: Smallest probability of landing zone and soft surface together.
        most_landing: Largest probability of one of the classes of landing zones.
        most_soft: Largest probability of one of the classes of soft surfaces.
        likeliest: Bit i is set if class i is the most likely class of one of the pixels; shape (h, w), unsigned.
    """

    classes: ClassTable
    pixels: tuple[int, int]
    box: tuple[slice, slice]
    step: int
    danger: Layer
    moving: Layer
    worst: Layer
    landing: Layer
    soft: Layer
    both: Layer
    most_landing: Layer
    most_soft: Layer
    likeliest: NDArray[Any]

    @classmethod
    def empty(
        cls,
        classes: ClassTable,
        pixels: tuple[int, int],
        box: tuple[slice, slice] | None = None,
        *,
        max_cells: int = MAX_CELLS,
    ) -> "LandingGrid":
        """Return a grid to be filled by `add`.

        Args:
            classes: Class table of the probabilities.
            pixels: Height and width of the resampled image.
            box: Rows and columns of the photograph that it shows; None if it was not resampled or cropped.
            max_cells: Largest number of cells.
        """
        height, width = pixels
        step = max(1, math.ceil(math.sqrt(height * width / max_cells)))
        shape = -(-height // step), -(-width // step)

        def layer(value: float) -> Layer:
            return np.full(shape, value, np.float32)

        return cls(
            classes=classes,
            pixels=pixels,
            box=box or (slice(0, height), slice(0, width)),
            step=step,
            danger=layer(0),
            moving=layer(0),
            worst=layer(0),
            landing=layer(1),
            soft=layer(1),
            both=layer(1),
            most_landing=layer(0),
            most_soft=layer(0),
            likeliest=np.zeros(shape, np.min_scalar_type((1 << len(classes)) - 1)),
        )

    @property
    def cell(self) -> tuple[float, float]:
        """Height and width of a cell in pixels of the photograph."""
        (rows, columns), (height, width) = self.box, self.pixels
        return self.step * (rows.stop - rows.start) / height, self.step * (columns.stop - columns.start) / width

    @property
    def slack(self) -> float:
        """Largest distance of a pixel from the centre of its cell, in pixels of the photograph.

        It counts the pixels of the photograph or of the resampled image, whichever are smaller.
        """
        y, x = self.cell
        return math.hypot(y - min(y / self.step, 1), x - min(x / self.step, 1)) / 2

    @property
    def whole(self) -> NDArray[np.bool_]:
        """Cells that do not extend beyond the image, shape (h, w)."""
        (height, width), whole = self.pixels, np.ones(self.danger.shape, bool)
        whole[height // self.step :] = False
        whole[:, width // self.step :] = False
        return whole

    def add(self, probabilities: NDArray[np.float32], first: int) -> None:
        """Pool the class probabilities of a band of rows.

        Args:
            probabilities: Class probabilities, shape (C, rows, W), dtype float32.
            first: Index of the first row in the resampled image.
        """
        by_role = {role: self.classes.ids_of(role) for role in Role}
        allowed = (*by_role[Role.LANDING], *by_role[Role.SOFT])
        others = [i for i in range(len(self.classes)) if i not in allowed]
        landing, most_landing = _sum_and_largest(probabilities, by_role[Role.LANDING])
        soft, most_soft = _sum_and_largest(probabilities, by_role[Role.SOFT])
        danger, worst = _sum_and_largest(probabilities, others)
        moving, _ = _sum_and_largest(probabilities, by_role[Role.MOVING])
        best = np.maximum.reduce([worst, most_landing, most_soft])
        likeliest = np.zeros(best.shape, self.likeliest.dtype)
        for number, channel in enumerate(probabilities):
            likeliest |= (channel == best).astype(likeliest.dtype) << likeliest.dtype.type(number)
        self._pool(self.danger, danger, first, np.maximum)
        self._pool(self.moving, moving, first, np.maximum)
        self._pool(self.worst, worst, first, np.maximum)
        self._pool(self.landing, landing, first, np.minimum)
        self._pool(self.soft, soft, first, np.minimum)
        self._pool(self.both, np.minimum(landing + soft, 1), first, np.minimum)
        self._pool(self.most_landing, most_landing, first, np.maximum)
        self._pool(self.most_soft, most_soft, first, np.maximum)
        self._pool(self.likeliest, likeliest, first, np.bitwise_or)

    def _pool(self, layer: NDArray[Any], values: NDArray[Any], first: int, reduce: _Reduction) -> None:
        columns = values[:, :: self.step].copy() if self.step > 1 else values
        for offset in range(1, self.step):
            part = values[:, offset :: self.step]
            target = columns[:, : part.shape[1]]
            reduce(target, part, out=target)
        for offset in range(self.step):
            rows = columns[(offset - first) % self.step :: self.step]
            top = (first + (offset - first) % self.step) // self.step
            target = layer[top : top + len(rows)]
            reduce(target, rows, out=target)


def _sum_and_largest(probabilities: NDArray[np.float32], ids: Sequence[int]) -> tuple[Layer, Layer]:
    """Return the sum and the largest of the probabilities of some classes; zeros without classes.

    Rounding never makes the sum larger than 1.
    """
    if not ids:
        zeros = np.zeros(probabilities.shape[1:], np.float32)
        return zeros, zeros
    channels = [probabilities[i] for i in ids]
    return np.minimum(np.add.reduce(channels), 1), np.maximum.reduce(channels)
