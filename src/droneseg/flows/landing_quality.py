"""Landing sites of photographs with true masks: evaluation, and calibration of the limits."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from droneseg.core.boxes import Box, Boxes
from droneseg.core.camera import given_ground
from droneseg.core.classes import BACKGROUND_ID, ClassTable
from droneseg.core.errors import DatasetError, ShapeMismatchError
from droneseg.core.files import write_text
from droneseg.core.images import decode_image
from droneseg.core.landing_grid import LENGTHS, LandingGrid, LandingPolicy, SiteLengths
from droneseg.core.masks import Mask
from droneseg.core.prediction import Prediction, Segmenter, class_fractions
from droneseg.core.settings import Settings
from droneseg.data.dataset import Pair, read_true_mask
from droneseg.data.image_matching import find_matches
from droneseg.evaluation.landing_risk import LandingRisk, Risk, SiteOutcome, check_site, choose_limit, summarise
from droneseg.evaluation.plots import plot_risk
from droneseg.flows.calibrate import check_maps, describe_maps, profiles_of_maps
from droneseg.flows.export import choose_pairs
from droneseg.flows.probabilities import INDEX_NAME, StoredMap, group_places, read_index, read_map
from droneseg.inference.batch import ViewOptions
from droneseg.inference.landing import (
    CLEARANCE_M,
    CLEARANCE_PEOPLE_M,
    RADIUS_M,
    LandingOptions,
    find_sites,
    resolve_lengths,
)
from droneseg.inference.segmenter import load_segmenter
from droneseg.model.bundle import Bundle, read_bundle, table_of, write_bundle

LIMITS = (0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3)
"""Limits of danger, strictest first. Smaller ones are within the rounding of stored maps."""
REPORT_NAME = "landing.json"
_ALPHA = 0.05  # of the bounds in evaluations
_CERTAIN = LandingPolicy(danger_limit=0.5, moving_limit=0.5)
"""Limits for true masks, whose probabilities are 0 or 1."""


@dataclass(frozen=True)
class LandingCase:
    """A photograph whose landing sites can be checked.

    Attributes:
        stem: Stem of the photograph.
        prediction: Prediction with its pooled probabilities.
        truth: True class ids, shape (H, W), dtype uint8; pixels without a label have the ignore label.
        boxes: Boxes around people, in pixels of the mask.
    """

    stem: str
    prediction: Prediction
    truth: Mask
    boxes: tuple[Box, ...] = ()

    def __post_init__(self) -> None:
        """Raise `ShapeMismatchError` if the true mask does not have the size of the photograph."""
        if self.truth.shape != self.prediction.mask.shape:
            (height, width), (true_height, true_width) = self.prediction.mask.shape, self.truth.shape
            raise ShapeMismatchError(
                f"{self.stem}: the photograph is {width}x{height}, but its mask is {true_width}x{true_height}."
            )


def predict_cases(
    segmenter: Segmenter, pairs: Iterable[Pair], boxes: Boxes, view: ViewOptions, max_pixels: int
) -> Iterator[LandingCase]:
    """Predict photographs with true colour masks.

    Raises:
        ImageError: If a photograph cannot be read.
        MaskError: If a mask has colours of no class.
    """
    for pair in pairs:
        data = pair.files.read(max_pixels=max_pixels)
        image = decode_image(data, max_pixels=max_pixels)
        prediction = segmenter.segment(image, view.read_ground(data), plain=view.plain, landing=True)
        truth = read_true_mask(pair, max_pixels=max_pixels)
        yield LandingCase(pair.stem, prediction, truth, boxes.get(pair.stem, ()))


def read_cases(folder: Path, temperature: float, boxes: Boxes) -> Iterator[LandingCase]:
    """Read stored probability maps with their true masks.

    Args:
        folder: Folder that `droneseg probabilities` wrote, with maps of temperature 1.
        temperature: Number that logits are divided by.
        boxes: Boxes around people by stem.

    Raises:
        DatasetError: If a map cannot be read or has no true mask.
    """
    index = read_index(folder)
    classes = table_of(index.classes)
    for stem, record in index.photographs.items():
        stored = read_map(folder / record.file)
        if stored.mask is None:
            raise DatasetError(f"{folder / record.file} has no true mask. Run `droneseg probabilities --force` again.")
        yield LandingCase(stem, _prediction_of(stored, classes, temperature), stored.mask, boxes.get(stem, ()))


def _prediction_of(stored: StoredMap, classes: ClassTable, temperature: float) -> Prediction:
    """Return the prediction that a map was stored from, with only the parts that landing sites depend on."""
    probabilities = np.power(stored.probabilities.astype(np.float32) / 255, 1 / temperature, dtype=np.float32)
    probabilities /= np.maximum(probabilities.sum(axis=0), np.finfo(np.float32).tiny)
    mask = probabilities.argmax(axis=0).astype(np.uint8)
    grid = LandingGrid.empty(classes, (mask.shape[0], mask.shape[1]))
    grid.add(probabilities, 0)
    record = stored.record
    return Prediction(
        mask,
        classes,
        class_fractions(mask, classes),
        record.confidence,
        {},
        record.model_id,
        given_ground(record.gsd_m),
        landing_grid=grid,
    )


def find_outcomes(
    cases: Iterable[LandingCase],
    policies: Sequence[LandingPolicy],
    options: LandingOptions,
    progress: Callable[[int], None] = lambda _done: None,
) -> list[list[SiteOutcome]]:
    """Return the outcomes of all photographs for each policy.

    Args:
        cases: Photographs.
        policies: Limits to compare.
        options: Requirements for the sites.
        progress: Callback with the number of finished photographs.
    """
    outcomes: list[list[SiteOutcome]] = [[] for _ in policies]
    for done, case in enumerate(cases, start=1):
        possible = bool(find_sites(_certain(case), _CERTAIN, options).sites)
        for policy, found in zip(policies, outcomes, strict=True):
            answer = find_sites(case.prediction, policy, options)
            found.append(
                check_site(case.stem, answer, case.truth, case.prediction.classes, case.boxes, possible=possible)
            )
        progress(done)
    return outcomes


def _certain(case: LandingCase) -> Prediction:
    """Return the prediction with the true mask as its classes, each with probability 1.

    Pixels without a label are background, so that only labelled ground has room for a site.
    """
    classes, (height, width) = case.prediction.classes, case.truth.shape
    truth = np.where(case.truth < len(classes), case.truth, np.uint8(BACKGROUND_ID))
    grid = LandingGrid.empty(classes, (height, width))
    grid.add((np.arange(len(classes))[:, None, None] == truth).astype(np.float32), 0)
    ground = case.prediction.ground.model_copy(update={"warnings": ()})
    return replace(case.prediction, mask=truth, landing_grid=grid, ground=ground)


@dataclass(frozen=True)
class CalibratedBundle:
    """A bundle with limits for landing sites.

    Attributes:
        bundle: The new bundle.
        by_profile: Result by profile.
    """

    bundle: Bundle
    by_profile: dict[str, "LandingCalibration"]


def calibrate_bundle(
    bundle: Bundle,
    folders: Sequence[Path],
    out: Path,
    options: LandingOptions,
    *,
    alpha: float,
    largest_risk: float,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> CalibratedBundle:
    """Write a copy of a bundle with limits for landing sites; see `calibrate`.

    Args:
        bundle: Bundle.
        folders: Folders of out-of-fold maps of temperature 1, one for each profile.
        out: Folder of the copy; an earlier bundle is replaced.
        options: Requirements for the sites.
        alpha: Probability that a bound is too low.
        largest_risk: Accepted share of first sites that contain anything unsafe.
        progress: Callback with the number of finished photographs and their total.

    Raises:
        DatasetError: If the maps cannot be used, or no limit has a small enough risk; the error lists all problems.
    """
    indices = check_maps(bundle.manifest, folders)
    total = sum(len(index.photographs) for index in indices.values())
    found: dict[str, LandingCalibration] = {}
    done = 0
    for folder, index in indices.items():
        (profile,) = profiles_of_maps(index)
        temperature = bundle.manifest.temperature_of(profile)
        found[profile] = calibrate(
            read_cases(folder, temperature, {}),
            _explicit(options, known_scale=all(record.gsd_m for record in index.photographs.values())),
            alpha=alpha,
            largest_risk=largest_risk,
            places=index.places or None,
            source=describe_maps(index),
            progress=partial(_advance, progress, done, total),
        )
        done += len(index.photographs)
    if failed := {profile: result.curve for profile, result in found.items() if result.policy is None}:
        raise DatasetError(
            f"No limit of danger keeps the bound within {largest_risk:g}. Use more photographs or a larger --risk. "
            "First sites that contain anything unsafe:",
            [
                f"{profile}, danger below {limit:g}: {_describe(risk.unsafe)}"
                for profile, curve in failed.items()
                for limit, risk in curve.items()
            ],
        )
    landing = {**bundle.manifest.landing, **{name: result.policy for name, result in found.items() if result.policy}}
    files = {name: bundle.folder / name for name in bundle.manifest.files}
    copy = write_bundle(
        out, lambda records: bundle.manifest.model_copy(update={"landing": landing, "files": records}), files
    )
    return CalibratedBundle(copy, found)


def _advance(progress: Callable[[int, int], None], before: int, total: int, number: int) -> None:
    progress(before + number, total)


@dataclass(frozen=True)
class LandingCalibration:
    """Limits that were chosen, and the failure rates at all tested limits of danger.

    Attributes:
        policy: The chosen limits; None if no limit has a small enough risk.
        curve: Failure rates by limit of danger, strictest first.
    """

    policy: LandingPolicy | None
    curve: dict[float, LandingRisk]


def calibrate(
    cases: Iterable[LandingCase],
    options: LandingOptions,
    *,
    alpha: float,
    largest_risk: float,
    places: Mapping[str, Sequence[str]] | None,
    source: str,
    progress: Callable[[int], None] = lambda _done: None,
) -> LandingCalibration:
    """Choose the loosest limit of danger at which few first sites contain anything unsafe.

    The limits are tested strictest first, each with the upper Clopper-Pearson bound of the share of such sites
    (fixed-sequence testing, see `landing_risk.choose_limit`). The bound of the policy is `largest_risk`, the rate that
    was tested: the bound at the chosen limit alone would not be valid, because the limit is chosen by these bounds.

    Args:
        cases: Photographs that the model was not trained on.
        options: Requirements for the sites, with all lengths.
        alpha: Probability that the bound is too low.
        largest_risk: Accepted share of first sites that contain anything unsafe.
        places: Stems of the photographs of each place, for the bound over places; None if they are not known.
        source: Description of the photographs.
        progress: Callback with the number of finished photographs.
    """
    policies = [LandingPolicy(danger_limit=limit) for limit in LIMITS]
    outcomes = find_outcomes(cases, policies, options, progress)
    curve = {limit: summarise(found, places, alpha) for limit, found in zip(LIMITS, outcomes, strict=True)}
    chosen = choose_limit([risk.unsafe for risk in curve.values()], largest_risk, alpha)
    if chosen is None:
        return LandingCalibration(None, curve)
    risk = curve[LIMITS[chosen]]
    failures = [f"{_describe(risk.unsafe)} of the first sites contain anything unsafe"]
    if risk.unsafe_places:
        failures.append(f"those of {_describe(risk.unsafe_places)} places do")
    policy = LandingPolicy(
        danger_limit=LIMITS[chosen],
        alpha=alpha,
        bound=largest_risk,
        calibrated_on="; ".join([source, *failures]),
        lengths=SiteLengths(**{name: getattr(options, name) for name in SiteLengths.model_fields}),
    )
    return LandingCalibration(policy, curve)


def _describe(risk: Risk) -> str:
    return f"{risk.failures} of {risk.number} (bound {risk.bound:.1%})"


def _explicit(options: LandingOptions, *, known_scale: bool) -> LandingOptions:
    """Return the options with all lengths, so that it is known which lengths a bound is valid for.

    Raises:
        DatasetError: If the ground resolution of some photographs is not known, and the radius is not in pixels.
    """
    if known_scale:
        return options.model_copy(
            update={
                f"{name}_m": length
                for name, length in zip(LENGTHS, (RADIUS_M, CLEARANCE_M, CLEARANCE_PEOPLE_M), strict=True)
                if getattr(options, f"{name}_m") is None and getattr(options, f"{name}_px") is None
            }
        )
    lengths = resolve_lengths(options, (0, 0), None)
    if options.radius_px is None or lengths is None:
        raise DatasetError(
            "The ground resolution of some photographs is not known. Pass --gsd to `droneseg probabilities`, or "
            "--radius-px."
        )
    return options.model_copy(
        update={"clearance_px": lengths.clearance, "clearance_people_px": lengths.clearance_people}
    )


@dataclass(frozen=True)
class SiteEvaluation:
    """Landing sites of photographs, compared with their true masks.

    Attributes:
        policy: Limits of the model.
        risk: Failure rates with these limits.
        outcomes: First site of each photograph, compared with its true mask.
        curve: Failure rates by limit of danger, strictest first.
    """

    policy: LandingPolicy
    risk: LandingRisk
    outcomes: list[SiteOutcome]
    curve: dict[float, LandingRisk]


def evaluate_sites(
    data: Path,
    split: Path | None,
    part: str,
    options: LandingOptions,
    *,
    model: Path,
    settings: Settings,
    view: ViewOptions,
    boxes: Boxes,
    by_place: bool,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> SiteEvaluation:
    """Evaluate the landing sites of a dataset, or of stored probability maps.

    Args:
        data: Dataset folder, or folder that `droneseg probabilities` wrote.
        split: Split file; None for all photographs.
        part: Part of the split.
        options: Requirements for the sites.
        model: Bundle with the limits and, for a dataset, the network to use.
        settings: Application settings.
        view: How the photographs are presented to the model.
        boxes: Boxes around people by stem.
        by_place: Whether to match the photographs to group them by place; stored maps already have their places.
        progress: Callback with the number of finished photographs and their total.

    Raises:
        ConfigurationError: If the dataset has other classes than the model.
        DatasetError: If the photographs, masks or maps cannot be used.
    """
    max_pixels = settings.max_pixels
    if (data / INDEX_NAME).is_file():
        index = read_index(data)
        (profile,) = profiles_of_maps(index)
        manifest = read_bundle(model).manifest
        policy = manifest.landing.get(profile, LandingPolicy())
        cases = read_cases(data, manifest.temperature_of(profile), boxes)
        total, places = len(index.photographs), index.places or None
    else:
        segmenter = load_segmenter(settings, model=model)
        pairs = choose_pairs(data, split, part, classes=segmenter.classes)
        policy = segmenter.landing_policy
        cases = predict_cases(segmenter, pairs, boxes, view, max_pixels)
        total, places = len(pairs), _places_of(pairs, settings) if by_place else None
    limits = [policy.model_copy(update={"danger_limit": limit}) for limit in LIMITS]
    first, *others = find_outcomes(cases, [policy, *limits], options, lambda done: progress(done, total))
    curve = {limit: summarise(found, places, _ALPHA) for limit, found in zip(LIMITS, others, strict=True)}
    return SiteEvaluation(policy, summarise(first, places, _ALPHA), first, curve)


def _places_of(pairs: Sequence[Pair], settings: Settings) -> dict[str, list[str]]:
    matches = find_matches(
        {pair.stem: pair.files for pair in pairs},
        cache=settings.cache_dir.expanduser() / "scenes",
        max_pixels=settings.max_pixels,
        progress=lambda _stage, _done, _total: None,
    )
    return group_places([pair.stem for pair in pairs], matches)


def as_json(result: LandingCalibration | SiteEvaluation) -> dict[str, Any]:
    """Return a result as it is written to JSON."""
    policy = result.policy.model_dump(mode="json") if result.policy else None
    return {**asdict(result), "policy": policy}


def write_report(evaluation: SiteEvaluation, folder: Path) -> None:
    """Write `landing.json`, and `landing.png`, a plot of risk against coverage.

    Raises:
        MissingDependencyError: If the extra `train` is missing, which contains matplotlib.
    """
    write_text(folder / REPORT_NAME, json.dumps(as_json(evaluation), indent=1) + "\n")
    plot_risk(evaluation.curve, evaluation.policy.danger_limit, folder / "landing.png")
