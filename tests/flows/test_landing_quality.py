"""Calibration chooses the loosest limit of danger whose risk is proven, and says what its bound is based on."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from droneseg.core.camera import UNKNOWN_GROUND
from droneseg.core.classes import DEFAULT_CLASSES
from droneseg.core.landing_grid import LandingGrid, LandingPolicy, SiteLengths
from droneseg.core.prediction import Prediction
from droneseg.evaluation.landing_risk import clopper_pearson
from droneseg.flows.landing_quality import LIMITS, LandingCase, calibrate, find_outcomes
from droneseg.inference.landing import LandingOptions

WATER_ID, LANDING_ID = DEFAULT_CLASSES.id_of("water"), DEFAULT_CLASSES.id_of("landing-zones")
OPTIONS = LandingOptions(radius_px=5, clearance_px=1)


def cases(number: int, *, wrong: int, danger: float) -> Iterator[LandingCase]:
    """Yield fields of landing zone with this danger; the first `wrong` ones are water."""
    probabilities = np.zeros((len(DEFAULT_CLASSES), 20, 20), np.float32)
    probabilities[LANDING_ID], probabilities[WATER_ID] = 1 - danger, danger
    mask = np.full((20, 20), LANDING_ID, np.uint8)
    for index in range(number):
        grid = LandingGrid.empty(DEFAULT_CLASSES, (20, 20))
        grid.add(probabilities, 0)
        truth = np.full((20, 20), WATER_ID if index < wrong else LANDING_ID, np.uint8)
        prediction = Prediction(mask, DEFAULT_CLASSES, {}, 1, {}, "aaa", UNKNOWN_GROUND, landing_grid=grid)
        yield LandingCase(f"{index:03d}", prediction, truth)


def test_the_loosest_proven_limit_is_chosen_with_its_bound() -> None:
    places = {"lake": ["000", "001"], "field": [f"{index:03d}" for index in range(2, 100)]}
    found = calibrate(
        cases(100, wrong=1, danger=0.005), OPTIONS, alpha=0.1, largest_risk=0.05, places=places, source="100 fields"
    )
    assert found.policy is not None
    assert (found.policy.danger_limit, found.policy.alpha) == (LIMITS[-1], 0.1)
    assert found.policy.bound == 0.05  # the rate that was tested
    assert found.policy.lengths == SiteLengths(radius_px=5, clearance_px=1)
    bounds = clopper_pearson(1, 100, 0.1), clopper_pearson(1, 2, 0.1)
    assert found.policy.calibrated_on == (
        f"100 fields; 1 of 100 (bound {bounds[0]:.1%}) of the first sites contain anything unsafe; "
        f"those of 1 of 2 (bound {bounds[1]:.1%}) places do"
    )


def test_limits_after_one_that_fails_are_not_chosen() -> None:
    found = calibrate(
        cases(100, wrong=100, danger=0.06), OPTIONS, alpha=0.05, largest_risk=0.05, places=None, source=""
    )
    assert found.policy is None  # no site at stricter limits, so nothing is proven there
    assert found.curve[0.05].unsafe.number == 0
    assert found.curve[0.07].unsafe.failures == 100


def test_no_limit_is_chosen_without_enough_photographs() -> None:
    few = calibrate(cases(20, wrong=0, danger=0.005), OPTIONS, alpha=0.05, largest_risk=0.05, places=None, source="")
    assert few.policy is None
    assert few.curve[0.05].unsafe.bound == clopper_pearson(0, 20, 0.05)


def test_unlabelled_ground_has_no_room_for_a_site() -> None:
    (labelled,) = cases(1, wrong=0, danger=0.4)
    unlabelled = replace(labelled, truth=np.full_like(labelled.truth, len(DEFAULT_CLASSES)))
    ((known, unknown),) = find_outcomes([labelled, unlabelled], [LandingPolicy()], OPTIONS)
    assert (known.has_site, unknown.has_site) == (False, False)
    assert (known.possible, unknown.possible) == (True, False)
