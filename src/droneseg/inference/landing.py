"""Landing sites: from the class probabilities of an image to discs on which a drone can land."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from math import inf, isclose, pi, sqrt
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from scipy import ndimage

from droneseg.core.camera import Ground, WarningCode
from droneseg.core.classes import UNSAFE_ROLES, ClassTable, Role
from droneseg.core.errors import LandingClassError, LandingRoleError
from droneseg.core.landing_grid import LandingGrid, LandingLimits, LandingPolicy, Layer, SiteLengths
from droneseg.core.prediction import Prediction

RADIUS_M, CLEARANCE_M, CLEARANCE_PEOPLE_M = 1.5, 1.0, 5.0
"""Defaults for an image with a known ground resolution."""
MAX_SITES = 20
"""Largest number of sites that can be requested."""
RADIUS_SHARE = 0.05
"""Default radius as a share of the shorter side, without a ground resolution."""


class NoSiteReason(StrEnum):
    """Why an image has no landing site."""

    TOO_SMALL = "too_small"
    PEOPLE_NEAR = "people_near"
    LOW_CONFIDENCE = "low_confidence"
    UNKNOWN_SCALE = "unknown_scale"
    OBLIQUE = "oblique"
    UNLIKE_TRAINING = "unlike_training"


REASON_MESSAGES: dict[NoSiteReason, str] = {
    NoSiteReason.TOO_SMALL: "No allowed ground is large enough for the radius and the clearance.",
    NoSiteReason.PEOPLE_NEAR: "There is enough safe ground, but people or vehicles may be too close to all of it.",
    NoSiteReason.LOW_CONFIDENCE: "There may be enough ground, but the model is not confident enough that it is safe.",
    NoSiteReason.UNKNOWN_SCALE: "The ground resolution of the image is not known, so lengths in metres cannot be used. "
    "Pass the metres per pixel, the height above ground, or the radius in pixels.",
    NoSiteReason.OBLIQUE: "The camera does not look straight down, so distances on the ground are not known.",
    NoSiteReason.UNLIKE_TRAINING: "The image is unlike the images the model was trained on.",
}


_PEOPLE_UNKNOWN = "No class has the role moving, so there is no further clearance from people and vehicles."


class LandingOptions(SiteLengths):
    """Requirements for landing sites. Clearances are measured from the rim of the disc.

    Each length is given in metres, in pixels of the image, or not at all. If the ground resolution is known, the
    defaults of radius, clearance and clearance from people are 1.5 m, 1 m and 5 m. Otherwise, the default radius is 5 %
    of the shorter side, the clearance a third of the radius, and the clearance from people one radius.
    """

    max_sites: int = Field(5, ge=1, le=MAX_SITES, description="Largest number of sites.")
    allow: tuple[str, ...] = Field(
        (),
        description="Classes to land on, by name or by role (landing, soft); by default those with the role landing.",
    )

    @field_validator("allow", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """Split names that are separated by commas, as in forms."""
        return tuple(filter(None, map(str.strip, value.split(",")))) if isinstance(value, str) else value

    @field_validator("allow")
    @classmethod
    def _drop_repeated(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(value))


def describe_problems(error: ValidationError) -> str:
    """Return the problems of invalid `LandingOptions` in one line."""
    problems = []
    for item in error.errors(include_url=False):
        name = str(item["loc"][0]) if item["loc"] else ""
        problems.append(f"{name} is {item['input']!r}: {item['msg']}" if name else item["msg"])
    return "; ".join(problems)


@dataclass(frozen=True)
class Lengths:
    """Radius and clearances in pixels of the image."""

    radius: float
    clearance: float
    clearance_people: float


class _Answer(BaseModel):
    # BentoML serialises answers itself, without `by_alias`
    model_config = ConfigDict(frozen=True, protected_namespaces=(), populate_by_name=True, serialize_by_alias=True)


class LandingSite(_Answer):
    """A disc on which a drone can land. Values in metres are null without a ground resolution."""

    rank: int = Field(description="1 for the best site.")
    x_px: float = Field(description="Column of the centre, in pixels of the image.")
    y_px: float = Field(description="Row of the centre, in pixels of the image.")
    lon: float | None = Field(None, description="Longitude of the centre in degrees, of a georeferenced image.")
    lat: float | None = Field(None, description="Latitude of the centre in degrees, of a georeferenced image.")
    radius_px: float = Field(description="Radius of the largest disc around the centre that keeps the clearances.")
    radius_m: float | None = Field(
        description="The same in metres, with the smallest metres per pixel within the error."
    )
    area_m2: float | None = Field(description="Area of the connected admissible ground that contains the centre.")
    clearance_px: dict[str, float | None] = Field(
        description="Distance from the centre to the nearest pixel of each dangerous class; null if there is none."
    )
    clearance_m: dict[str, float | None] = Field(description="The same in metres.")
    class_name: str = Field(alias="class", description="Class of the ground.")
    min_probability: float = Field(
        ge=0, le=1, description="Smallest probability of the allowed classes in the disc of the requested radius."
    )
    mean_probability: float = Field(ge=0, le=1, description="Mean probability there.")
    score: float = Field(
        ge=0, le=1, description="Weighted mean of free space, probability, closeness to the image centre and area."
    )


class AppliedPolicy(LandingLimits):
    """Limits, lengths and classes that an answer is based on. Clearances are measured from the rim of the disc."""

    radius_m: float | None = Field(description="Radius of the disc.")
    clearance_m: float | None = Field(description="Distance to everything that is not safe.")
    clearance_people_m: float | None = Field(
        description="Distance to people and vehicles; null if no class has the role moving."
    )
    radius_px: float | None = Field(description="Radius in pixels of the image; null if it is not known.")
    clearance_px: float | None = Field(description="Distance to everything that is not safe, in pixels.")
    clearance_people_px: float | None = Field(description="Distance to people and vehicles, in pixels.")
    allow: tuple[str, ...] = Field(description="Classes to land on.")


class LandingAnswer(_Answer):
    """Landing sites of an image, or the reason why there is none."""

    decision: Literal["site", "no_safe_site"]
    reason: NoSiteReason | None = Field(description="Why there is no site; null if there is one.")
    message: str = Field(description="The decision in words.")
    sites: tuple[LandingSite, ...] = Field(description="Sites, best first.")
    policy: AppliedPolicy
    ground: Ground
    model_id: str


def resolve_lengths(options: SiteLengths, size: tuple[int, int], gsd_m: float | None) -> Lengths | None:
    """Return the radius and the clearances in pixels; None if one is given in metres and the scale is unknown.

    Args:
        options: Lengths in metres or pixels.
        size: Height and width of the image.
        gsd_m: Smallest metres per pixel within the error of the ground resolution; None if it is not known.
    """
    if options.needs_scale and gsd_m is None:
        return None

    def pixels(in_pixels: float | None, in_metres: float | None, metres: float, otherwise: float) -> float:
        if in_pixels is not None:
            return in_pixels
        if in_metres is not None and gsd_m is not None:
            return in_metres / gsd_m
        return otherwise if gsd_m is None else metres / gsd_m

    radius = pixels(options.radius_px, options.radius_m, RADIUS_M, RADIUS_SHARE * min(size))
    return Lengths(
        radius,
        pixels(options.clearance_px, options.clearance_m, CLEARANCE_M, radius / 3),
        pixels(options.clearance_people_px, options.clearance_people_m, CLEARANCE_PEOPLE_M, radius),
    )


def allowed_roles(allow: Sequence[str], classes: ClassTable) -> tuple[Role, ...]:
    """Return the roles of the classes to land on: `Role.LANDING`, `Role.SOFT`, or both.

    Args:
        allow: Names of classes, or roles; empty for the classes with the role landing.
        classes: Class table of the model.

    Raises:
        LandingRoleError: If the model has no class to land on, or none that may be landed on by default.
        LandingClassError: If a name is not one of them, or stands for one of several classes with the same role.
    """
    roles = {str(role): role for role in (Role.LANDING, Role.SOFT) if classes.has(role)}
    # a class may have the name of a role, which then still means the role
    known = roles | {classes[i].name: role for role in roles.values() for i in classes.ids_of(role)} | roles
    wanted = tuple(allow) or (str(Role.LANDING),)
    if not known or not (allow or classes.has(Role.LANDING)):
        raise LandingRoleError(_explain_no_landing(classes, known))
    problems = [f"{name!r} is not one of {', '.join(known)}" for name in wanted if name not in known]
    for name in wanted:
        role = known.get(name)
        if role and name != role and len(classes.ids_of(role)) > 1:
            problems.append(f"{name!r} is one of several classes with the role {role}; allow {role} for all of them")
    if problems:
        raise LandingClassError(f"allow: {'; '.join(problems)}.")
    return tuple(role for role in (Role.LANDING, Role.SOFT) if role in {known[name] for name in wanted})


def _explain_no_landing(classes: ClassTable, known: Collection[str]) -> str:
    if known:
        return f"There is no landing role in this model. To land on soft ground, allow one of {', '.join(known)}."
    names = ", ".join(entry.name for entry in classes.foreground)
    return (
        f"There is no landing role in this model, so nothing can be said about landing; its classes are {names}. "
        "`droneseg export --classes FILE` gives classes a role."
    )


def admissible(grid: LandingGrid, policy: LandingPolicy, allow: Sequence[Role]) -> NDArray[np.bool_]:
    """Return the cells on which a drone may land, apart from clearances, shape (h, w).

    The allowed classes together must have the largest probability, and danger must be below its limit. Cells that got
    no probabilities are not safe.
    """
    safe = _is_likeliest(grid, allow) & (grid.danger < policy.danger_limit) & (grid.likeliest > 0)
    return safe if policy.threshold is None else safe & (_allowed_probability(grid, allow) >= policy.threshold)


def _allowed_probability(grid: LandingGrid, allow: Sequence[Role]) -> Layer:
    """Return the probability of the allowed classes together."""
    if len(allow) > 1:
        return grid.both
    return grid.landing if Role.LANDING in allow else grid.soft


def _is_likeliest(grid: LandingGrid, allow: Sequence[Role]) -> NDArray[np.bool_]:
    """Return where the allowed classes together have the largest probability."""
    others = grid.worst
    if len(allow) == 1:
        others = np.maximum(others, grid.most_soft if Role.LANDING in allow else grid.most_landing)
    return _allowed_probability(grid, allow) > others


def find_sites(prediction: Prediction, policy: LandingPolicy, options: LandingOptions) -> LandingAnswer:
    """Find the discs on which a drone can land.

    A disc and the clearance around it contain only admissible cells, and lie within the image. People and vehicles,
    including unlikely ones, are farther away than their own clearance. Lengths in metres are converted to pixels with
    the smallest metres per pixel within the error of the ground resolution, the strictest case. Sites do not overlap
    (non-maximum suppression).

    Args:
        prediction: Prediction with its pooled probabilities.
        policy: Limits of the probabilities.
        options: Requirements for the sites.

    Raises:
        LandingRoleError: If the model has no such class to land on.
        ValueError: If the prediction has no pooled probabilities.
    """
    grid, ground = prediction.landing_grid, prediction.ground
    if grid is None:
        raise ValueError("The prediction has no landing_grid. Predict with landing=True.")
    allow = allowed_roles(options.allow, grid.classes)
    gsd_m = None if ground.gsd_m is None else ground.gsd_m * (1 - (ground.gsd_error or 0.0))
    lengths = resolve_lengths(options, prediction.mask.shape, gsd_m)
    sites: tuple[LandingSite, ...] = ()
    reason = _refusal(ground, lengths)
    if reason is None and lengths is not None:
        search = _Search(grid, policy, allow, options.max_sites, lengths, gsd_m)
        sites = search.sites()
        reason = None if sites else search.reason()
    return LandingAnswer(
        decision="site" if sites else "no_safe_site",
        reason=reason,
        message=REASON_MESSAGES[reason] if reason else _describe_sites(sites, grid.classes),
        sites=sites,
        policy=_applied(
            policy if _is_calibrated(policy, allow, lengths, prediction.mask.shape, gsd_m) else _without_bound(policy),
            options,
            _names(grid.classes, allow),
            lengths,
            gsd_m,
            knows_people=grid.classes.has(Role.MOVING),
        ),
        ground=ground,
        model_id=prediction.model_id,
    )


def _refusal(ground: Ground, lengths: Lengths | None) -> NoSiteReason | None:
    """Return why an image cannot be searched for sites; None if it can."""
    if WarningCode.UNLIKE_TRAINING in ground.warnings:
        return NoSiteReason.UNLIKE_TRAINING
    if WarningCode.OBLIQUE in ground.warnings:
        return NoSiteReason.OBLIQUE
    return NoSiteReason.UNKNOWN_SCALE if lengths is None else None


def _describe_sites(sites: Sequence[LandingSite], classes: ClassTable) -> str:
    best = sites[0]
    size = f"{best.radius_px:.0f} pixels" if best.radius_m is None else f"{best.radius_m:.1f} m"
    words = f"{len(sites)} {'site' if len(sites) == 1 else 'sites'}; the best has room for a radius of {size}."
    return words if classes.has(Role.MOVING) else f"{words} {_PEOPLE_UNKNOWN}"


def _names(classes: ClassTable, roles: Sequence[Role]) -> tuple[str, ...]:
    """Return the names of the classes with one of these roles, in the order of the roles."""
    return tuple(classes[i].name for role in roles for i in classes.ids_of(role))


def _is_calibrated(
    policy: LandingPolicy, allow: Sequence[Role], lengths: Lengths | None, size: tuple[int, int], gsd_m: float | None
) -> bool:
    """Return whether the bound of the policy applies: to landing zones, the same radius and no smaller clearances."""
    if policy.lengths is None or set(allow) != {Role.LANDING}:
        return False
    calibrated = resolve_lengths(policy.lengths, size, gsd_m)
    if calibrated is None or lengths is None:
        return False
    return (
        isclose(lengths.radius, calibrated.radius)
        and lengths.clearance >= calibrated.clearance * _SAME
        and lengths.clearance_people >= calibrated.clearance_people * _SAME
    )


def _without_bound(policy: LandingPolicy) -> LandingPolicy:
    return policy.model_copy(update={"alpha": None, "bound": None, "calibrated_on": None})


def _applied(
    policy: LandingPolicy,
    options: LandingOptions,
    allow: tuple[str, ...],
    lengths: Lengths | None,
    gsd_m: float | None,
    *,
    knows_people: bool,
) -> AppliedPolicy:
    def metres(requested: float | None, pixels: float | None) -> float | None:
        if requested is not None:
            return requested
        return None if gsd_m is None or pixels is None else pixels * gsd_m

    radius, clearance, people = (
        (lengths.radius, lengths.clearance, lengths.clearance_people) if lengths else (None, None, None)
    )
    return AppliedPolicy(
        **policy.model_dump(exclude={"lengths"}),
        radius_m=metres(options.radius_m, radius),
        clearance_m=metres(options.clearance_m, clearance),
        clearance_people_m=metres(options.clearance_people_m, people) if knows_people else None,
        radius_px=radius,
        clearance_px=clearance,
        clearance_people_px=people if knows_people else None,
        allow=allow,
    )


_SAME = 1 - 1e-9  # lengths that are converted between units differ by rounding
_WEIGHTS = {"clearance": 0.3, "probability": 0.3, "centre": 0.3, "area": 0.1}
"""Weights of the parts of a score; the parts are from 0 to 1.

The closeness to the centre varies smoothly over the image. Without a large weight for it, small changes of the
probabilities, such as those of JPEG compression, would choose between distant sites that are nearly as good.
"""


@dataclass(frozen=True)
class _Layers:
    """Layers of a grid, turned or mirrored alike, each of shape (h, w).

    Attributes:
        safe: Admissible cells that do not extend beyond the image.
        allowed: Cells inside the image where the allowed classes together have the largest probability.
        moving: Cells that may show people or vehicles.
        probability: Probability of the allowed classes together.
        likeliest: Bits of the most likely classes of the pixels, see `LandingGrid`.
        index: Index of the cell in the grid.
        cell: Height and width of a cell in pixels of the photograph.
    """

    safe: NDArray[np.bool_]
    allowed: NDArray[np.bool_]
    moving: NDArray[np.bool_]
    probability: Layer
    likeliest: NDArray[Any]
    index: NDArray[np.int64]
    cell: tuple[float, float]

    def oriented(self, number: int) -> "_Layers":
        """Return the layers in one of the eight orientations."""
        return _Layers(
            safe=_turned(self.safe, number),
            allowed=_turned(self.allowed, number),
            moving=_turned(self.moving, number),
            probability=_turned(self.probability, number),
            likeliest=_turned(self.likeliest, number),
            index=_turned(self.index, number),
            cell=self.cell if number % 2 == 0 else self.cell[::-1],
        )

    def canonical(self) -> "_Layers":
        """Return the layers in the orientation whose content comes first, the same for all copies of an image."""
        numbers = list(range(8))
        # one layer nearly always decides, so the others are rarely turned
        for layer in (self.safe, self.allowed, self.moving, self.likeliest, self.probability):
            turned = {number: _turned(layer, number) for number in numbers}
            contents = {number: (copy.shape, copy.tobytes()) for number, copy in turned.items()}
            first = min(contents.values())
            numbers = [number for number, content in contents.items() if content == first]
            if len(numbers) == 1:
                break
        return self.oriented(numbers[0])


def _turned(layer: NDArray[Any], number: int) -> NDArray[Any]:
    """Return a layer in one of the eight orientations: `number` % 4 quarter turns, then mirrored from 4 on."""
    turned = np.rot90(layer, number % 4)
    return np.ascontiguousarray(turned[:, ::-1] if number >= 4 else turned)


@dataclass(frozen=True)
class _Candidate:
    """A cell around which the required disc fits, with its score; lengths are in pixels of the photograph."""

    score: float
    row: int
    column: int
    radius_px: float
    area_px: float
    min_probability: float
    mean_probability: float
    class_name: str


class _Search:
    """Search for the sites of one image.

    The layers are first brought into one of eight orientations, which their content determines. Rotated or mirrored
    copies of the layers therefore have the same sites, even if several are equally good.
    """

    def __init__(
        self,
        grid: LandingGrid,
        policy: LandingPolicy,
        allow: Sequence[Role],
        max_sites: int,
        lengths: Lengths,
        gsd_m: float | None,
    ) -> None:
        self._grid, self._allow, self._max_sites, self._lengths, self._gsd_m = grid, allow, max_sites, lengths, gsd_m
        self._layers = _Layers(
            safe=admissible(grid, policy, allow) & grid.whole,
            allowed=_is_likeliest(grid, allow) & grid.whole,
            moving=grid.moving >= policy.moving_limit,
            probability=_allowed_probability(grid, allow),
            likeliest=grid.likeliest,
            index=np.arange(grid.danger.size).reshape(grid.danger.shape),
            cell=grid.cell,
        ).canonical()
        height, width = self._layers.safe.shape
        self._y = (np.arange(height) - (height - 1) / 2) * self._layers.cell[0]
        self._x = (np.arange(width) - (width - 1) / 2) * self._layers.cell[1]

    def sites(self) -> tuple[LandingSite, ...]:
        """Return the sites, best first."""
        space = np.minimum(self._safe_space, self._space_to_people())
        if space.max() < 0:
            return ()
        regions, _ = ndimage.label(self._layers.safe)
        areas = np.bincount(regions.ravel())[regions] * (self._layers.cell[0] * self._layers.cell[1])
        score = self._score(space, areas)
        found = [
            self._rate(float(score[cell]), float(space[cell]), float(areas[cell]), *cell)
            for cell in self._candidates(score, space)
        ]
        return tuple(self._describe(rank, site) for rank, site in enumerate(found, start=1))

    def reason(self) -> NoSiteReason:
        """Return why there is no site."""
        if self._safe_space.max() >= 0:
            return NoSiteReason.PEOPLE_NEAR
        if self._space(self._layers.allowed).max() >= 0:
            return NoSiteReason.LOW_CONFIDENCE
        return NoSiteReason.TOO_SMALL

    @cached_property
    def _safe_space(self) -> NDArray[np.float64]:
        return self._space(self._layers.safe)

    def _space(self, ground: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return by how many pixels the largest disc around each cell exceeds the required radius; -inf elsewhere.

        The disc and its clearance stay within this ground and within the image.
        """
        distance = self._distance(np.pad(ground, 1))[1:-1, 1:-1]
        distance -= self._lengths.radius + self._lengths.clearance + self._grid.slack
        distance[~ground] = -inf
        return distance

    def _space_to_people(self) -> NDArray[np.float64]:
        if not self._layers.moving.any():
            return np.full(self._layers.moving.shape, inf)
        distance = self._distance(~self._layers.moving)
        distance -= self._lengths.radius + self._lengths.clearance_people + self._grid.slack
        return distance

    def _distance(self, cells: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return the distance of each cell from the nearest other cell, in pixels of the photograph."""
        distance: NDArray[np.float64] = ndimage.distance_transform_edt(cells, sampling=self._layers.cell)
        return distance

    def _score(self, space: NDArray[np.float64], areas: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the score of each cell as the centre of a site; -inf where the required disc does not fit.

        Args:
            space: By how many pixels the largest disc around each cell exceeds the required radius, shape (h, w).
            areas: Area of the connected admissible ground that contains the cell, in pixels, shape (h, w).
        """
        radius = self._lengths.radius
        sides = [max(round(sqrt(pi) * radius / side), 1) for side in self._layers.cell]  # a square of the disc's area
        fits = space >= 0
        free = np.where(fits, space, 0.0)
        farthest = np.hypot(self._y[0] - self._layers.cell[0] / 2, self._x[0] - self._layers.cell[1] / 2)
        parts = {
            "clearance": free / (free + radius + self._lengths.clearance),
            "probability": ndimage.uniform_filter(self._layers.probability, sides),
            "centre": 1 - np.hypot(self._y[:, None], self._x) / farthest,
            "area": areas / (areas + 4 * pi * radius**2),
        }
        return np.where(fits, sum(weight * parts[name] for name, weight in _WEIGHTS.items()), -inf)

    def _candidates(self, score: NDArray[np.float64], space: NDArray[np.float64]) -> Iterator[tuple[int, int]]:
        """Yield the cells with the largest score whose discs do not overlap."""
        score = score.copy()
        for _ in range(self._max_sites):
            row, column = np.unravel_index(int(score.argmax()), score.shape)
            if score[row, column] == -inf:
                return
            yield int(row), int(column)
            taken = self._lengths.radius + max(self._lengths.radius, float(space[row, column]))
            window, distance = self._window(int(row), int(column), taken)
            score[window][distance <= taken] = -inf

    def _window(self, row: int, column: int, radius: float) -> tuple[tuple[slice, slice], NDArray[np.float64]]:
        """Return the cells around one of them, and their distances from it in pixels of the photograph."""
        y, x = (int(radius / side) + 1 for side in self._layers.cell)
        rows, columns = slice(max(row - y, 0), row + y + 1), slice(max(column - x, 0), column + x + 1)
        return (rows, columns), np.hypot((self._y[rows] - self._y[row])[:, None], self._x[columns] - self._x[column])

    def _rate(self, score: float, space: float, area: float, row: int, column: int) -> _Candidate:
        """Return a candidate with the probabilities and the class of its disc."""
        radius = self._lengths.radius
        window, distance = self._window(row, column, radius + self._grid.slack)
        disc = distance <= radius + self._grid.slack
        probabilities = self._layers.probability[window][disc]
        return _Candidate(
            score=score,
            row=row,
            column=column,
            radius_px=radius + space,
            area_px=area,
            min_probability=float(probabilities.min()),
            mean_probability=float(probabilities.mean()),
            class_name=self._ground_class(self._layers.likeliest[window][disc]),
        )

    def _describe(self, rank: int, site: _Candidate) -> LandingSite:
        squared_distance = ((self._y - self._y[site.row]) ** 2)[:, None] + (self._x - self._x[site.column]) ** 2
        reported = _names(self._grid.classes, UNSAFE_ROLES)
        clearances = {name: self._clearance(name, squared_distance) for name in reported}
        y, x = self._position(int(self._layers.index[site.row, site.column]))
        gsd_m = self._gsd_m
        return LandingSite(
            rank=rank,
            x_px=x,
            y_px=y,
            radius_px=site.radius_px,
            radius_m=None if gsd_m is None else site.radius_px * gsd_m,
            area_m2=None if gsd_m is None else site.area_px * gsd_m**2,
            clearance_px=clearances,
            clearance_m={name: None if px is None or gsd_m is None else px * gsd_m for name, px in clearances.items()},
            class_name=site.class_name,
            min_probability=site.min_probability,
            mean_probability=site.mean_probability,
            score=site.score,
        )

    def _clearance(self, name: str, squared_distance: NDArray[np.float64]) -> float | None:
        """Return the distance to the nearest pixel of a class; None if there is none."""
        layers, classes = self._layers, self._grid.classes
        number = classes.id_of(name)
        present = layers.moving if classes[number].role == Role.MOVING else layers.likeliest & (1 << number) > 0
        if not present.any():
            return None
        return max(float(np.sqrt(squared_distance[present].min())) - self._grid.slack, 0.0)

    def _ground_class(self, likeliest: NDArray[Any]) -> str:
        classes = self._grid.classes
        names = _names(classes, self._allow)
        return max(names, key=lambda name: np.count_nonzero(likeliest & (1 << classes.id_of(name))))

    def _position(self, index: int) -> tuple[float, float]:
        """Return row and column of the centre of a cell, in pixels of the photograph."""
        row, column = divmod(index, self._grid.danger.shape[1])
        (rows, columns), (y, x) = self._grid.box, self._grid.cell
        return rows.start + (row + 0.5) * y - 0.5, columns.start + (column + 0.5) * x - 0.5
