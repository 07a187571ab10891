"""Landing sites are compared with the true mask, and bounds are those of Clopper and Pearson."""

import numpy as np
import pytest
from scipy.stats import binom

from droneseg.core.camera import UNKNOWN_GROUND
from droneseg.core.classes import DEFAULT_CLASSES
from droneseg.core.errors import ShapeMismatchError
from droneseg.core.landing_grid import LandingGrid, LandingPolicy
from droneseg.core.prediction import Prediction, class_fractions
from droneseg.evaluation.landing_risk import Risk, SiteOutcome, check_site, choose_limit, clopper_pearson, summarise
from droneseg.flows.landing_quality import LandingCase
from droneseg.inference.landing import LandingAnswer, LandingOptions, find_sites

WATER_ID, MOVING_ID, LANDING_ID = (DEFAULT_CLASSES.id_of(name) for name in ("water", "moving-objects", "landing-zones"))


def landed(size: tuple[int, int] = (41, 41), radius: float = 5) -> LandingAnswer:
    """Return the answer for a field of landing zone; its site is in the middle."""
    mask = np.full(size, LANDING_ID, np.uint8)
    grid = LandingGrid.empty(DEFAULT_CLASSES, size)
    grid.add((np.arange(len(DEFAULT_CLASSES))[:, None, None] == mask).astype(np.float32), 0)
    fractions = class_fractions(mask, DEFAULT_CLASSES)
    prediction = Prediction(mask, DEFAULT_CLASSES, fractions, 1, {}, "aaa", UNKNOWN_GROUND, landing_grid=grid)
    options = LandingOptions(radius_px=radius, clearance_px=0, clearance_people_px=4)
    return find_sites(prediction, LandingPolicy(), options)


def test_one_unsafe_pixel_in_the_disc_fails() -> None:
    truth = np.full((41, 41), LANDING_ID, np.uint8)
    assert not check_site("a", landed(), truth, DEFAULT_CLASSES, (), possible=True).fails
    truth[20, 26] = WATER_ID
    assert not check_site("a", landed(), truth, DEFAULT_CLASSES, (), possible=True).fails
    truth[20, 25] = WATER_ID
    outcome = check_site("a", landed(), truth, DEFAULT_CLASSES, (), possible=True)
    assert outcome.fails
    assert 0.01 < outcome.unsafe_share < 0.02


def test_a_site_over_unlabelled_ground_is_neither_safe_nor_unsafe() -> None:
    unlabelled = len(DEFAULT_CLASSES)
    truth = np.full((41, 41), LANDING_ID, np.uint8)
    truth[15:21, 15:26] = unlabelled  # half of the disc
    outcome = check_site("a", landed(), truth, DEFAULT_CLASSES, (), possible=True)
    assert 0.3 < outcome.labelled_share < 0.5
    assert (outcome.fails, outcome.is_judged) == (False, False)
    truth[24, 20] = WATER_ID
    known = check_site("b", landed(), truth, DEFAULT_CLASSES, (), possible=True)
    assert (known.fails, known.is_judged) == (True, True)
    assert known.unsafe_share == pytest.approx(1 / (known.labelled_share * 81))  # of the labelled pixels of the disc
    nothing = check_site("c", landed(), np.full_like(truth, unlabelled), DEFAULT_CLASSES, (), possible=True)
    assert (nothing.labelled_share, nothing.unsafe_share, nothing.is_judged) == (0, 0, False)
    safe = check_site("d", landed(), np.full_like(truth, LANDING_ID), DEFAULT_CLASSES, (), possible=True)
    risk = summarise([outcome, known, nothing, safe], {"lake": ["a", "c"], "field": ["b", "d"]}, 0.05)
    assert (risk.with_site, risk.unlabelled) == (4, 2)
    assert (risk.unsafe.failures, risk.unsafe.number) == (1, 2)
    assert risk.unsafe_places is not None
    assert (risk.unsafe_places.failures, risk.unsafe_places.number) == (1, 1)


def test_people_are_not_known_to_be_far_where_pixels_have_no_label() -> None:
    truth = np.full((41, 41), LANDING_ID, np.uint8)
    truth[:14] = len(DEFAULT_CLASSES)  # beyond the disc, partly within the clearance of people
    truth[27:] = len(DEFAULT_CLASSES)
    outcome = check_site("a", landed(), truth, DEFAULT_CLASSES, (), possible=True)
    assert (outcome.is_judged, outcome.is_judged_near) == (True, False)
    risk = summarise([outcome], None, 0.05)
    assert (risk.people_inside.number, risk.people_near.number) == (1, 0)


def test_a_disc_smaller_than_a_pixel_is_the_pixel_of_its_centre() -> None:
    truth = np.full((40, 40), LANDING_ID, np.uint8)
    small = landed((40, 40), 0.1)
    assert not check_site("a", small, truth, DEFAULT_CLASSES, (), possible=True).fails
    assert check_site("a", small, np.full_like(truth, WATER_ID), DEFAULT_CLASSES, (), possible=True).unsafe_share == 1


def test_a_mask_of_another_size_is_refused() -> None:
    mask = np.full((10, 20), LANDING_ID, np.uint8)
    prediction = Prediction(mask, DEFAULT_CLASSES, {}, 1, {}, "aaa", UNKNOWN_GROUND)
    with pytest.raises(ShapeMismatchError, match="a: the photograph is 20x10, but its mask is 10x20"):
        LandingCase("a", prediction, mask.T)


def test_people_are_counted_by_their_boxes() -> None:
    truth = np.full((41, 41), LANDING_ID, np.uint8)
    truth[20, 27] = truth[12, 20] = MOVING_ID
    boxes = [(26.0, 19.0, 29.0, 22.0), (19.0, 11.0, 22.0, 14.0), (0.0, 0.0, 5.0, 5.0)]
    outcome = check_site("a", landed(), truth, DEFAULT_CLASSES, boxes, possible=True)
    assert (outcome.people_inside, outcome.people_near) == (0, 2)
    assert check_site("a", landed(), truth, DEFAULT_CLASSES, (), possible=True).people_near == 1


@pytest.mark.parametrize(("failures", "number"), [(0, 45), (1, 96), (3, 212)])
def test_the_bound_is_the_rate_at_which_so_few_failures_are_rare(failures: int, number: int) -> None:
    bound = clopper_pearson(failures, number, 0.05)
    assert binom.cdf(failures, number, bound) == pytest.approx(0.05)


def test_bounds_of_the_literature() -> None:
    assert clopper_pearson(0, 45, 0.05) == pytest.approx(0.064, abs=5e-4)
    assert clopper_pearson(0, 299, 0.05) < 0.01
    assert clopper_pearson(0, 0, 0.05) == 1
    assert clopper_pearson(5, 5, 0.05) == 1


def outcome(stem: str, unsafe_share: float | None, *, possible: bool = True) -> SiteOutcome:
    site = unsafe_share is not None
    return SiteOutcome(stem, site, unsafe_share or 0.0, 0, 0, possible, None if site else "too_small")


def test_figures_over_photographs_and_places() -> None:
    outcomes = [
        outcome("a", 0.0),
        outcome("b", 0.005),
        outcome("c", 0.02),
        outcome("d", None),
        outcome("e", None, possible=False),
    ]
    risk = summarise(outcomes, {"one": ["a", "b"], "two": ["c"], "three": ["d", "e"]}, 0.05)
    assert (risk.photographs, risk.with_site) == (5, 3)
    assert (risk.unsafe.failures, risk.unsafe.number) == (2, 3)
    assert (risk.much_unsafe.failures, risk.much_unsafe.number) == (1, 3)
    assert risk.unsafe_places is not None
    assert (risk.unsafe_places.failures, risk.unsafe_places.number) == (2, 2)
    assert (risk.false_abstentions.failures, risk.false_abstentions.number) == (1, 4)
    assert risk.reasons == {"too_small": 2}


def test_the_sequence_of_limits_ends_at_the_first_that_fails() -> None:
    risks = [Risk(0, 999, bound) for bound in (0.02, 0.03, 0.06, 0.04)]
    assert choose_limit(risks, 0.05, 0.05) == 1
    assert choose_limit(risks, 0.01, 0.05) is None
    assert choose_limit(risks, 0.06, 0.05) == 3


def test_limits_with_too_few_sites_are_skipped() -> None:
    cases = [(0, 0), (0, 58), (0, 59), (1, 99), (9, 120)]
    risks = [Risk(failures, number, clopper_pearson(failures, number, 0.05)) for failures, number in cases]
    assert choose_limit(risks, 0.05, 0.05) == 3
    assert choose_limit(risks[:2], 0.05, 0.05) is None
    # a failure at a limit with enough sites is not skipped
    assert choose_limit([Risk(5, 80, clopper_pearson(5, 80, 0.05)), *risks[3:]], 0.05, 0.05) is None
