"""Landing sites keep their clearances for all probabilities, and rotate with the image."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from droneseg.core.camera import UNKNOWN_GROUND, Ground, WarningCode
from droneseg.core.classes import BACKGROUND_ID, DEFAULT_CLASSES, ClassTable, Role, SegmentationClass
from droneseg.core.errors import LandingRoleError
from droneseg.core.landing_grid import LandingGrid, LandingPolicy, SiteLengths
from droneseg.core.prediction import Prediction, class_fractions
from droneseg.inference.landing import (
    LandingAnswer,
    LandingOptions,
    NoSiteReason,
    admissible,
    allowed_roles,
    find_sites,
    resolve_lengths,
)

SOFT_ID, MOVING_ID, LANDING_ID = (
    DEFAULT_CLASSES.id_of(name) for name in ("soft-surfaces", "moving-objects", "landing-zones")
)
POLICY = LandingPolicy()
SMALL = LandingOptions(radius_px=2, clearance_px=1, clearance_people_px=2)


def maps(seed: int, size: tuple[int, int], sharpness: float) -> NDArray[np.float32]:
    """Return random class probabilities of blocks of pixels, shape (6, *size)."""
    random = np.random.default_rng(seed)
    height, width = size
    logits = random.normal(size=(len(DEFAULT_CLASSES), -(-height // 6), -(-width // 6))) * sharpness
    logits[LANDING_ID] += sharpness
    logits = logits.repeat(6, axis=1).repeat(6, axis=2)[:, :height, :width]
    scaled = np.exp(logits - logits.max(axis=0))
    probabilities: NDArray[np.float32] = (scaled / scaled.sum(axis=0)).astype(np.float32)
    return probabilities


def certain(ids: NDArray[Any]) -> NDArray[np.float32]:
    return (np.arange(len(DEFAULT_CLASSES))[:, None, None] == ids).astype(np.float32)


def answer(
    probabilities: NDArray[np.float32],
    options: LandingOptions = SMALL,
    policy: LandingPolicy = POLICY,
    ground: Ground = UNKNOWN_GROUND,
    max_cells: int = 10**6,
) -> LandingAnswer:
    size = probabilities.shape[1:]
    grid = LandingGrid.empty(DEFAULT_CLASSES, size, max_cells=max_cells)
    for first in range(0, size[0], 7):
        grid.add(probabilities[:, first : first + 7], first)
    mask = probabilities.argmax(axis=0).astype(np.uint8)
    prediction = Prediction(
        mask, DEFAULT_CLASSES, class_fractions(mask, DEFAULT_CLASSES), 1.0, {}, "aaa", ground, landing_grid=grid
    )
    return find_sites(prediction, policy, options)


scenes = st.builds(
    maps,
    st.integers(0, 10_000),
    st.tuples(st.integers(1, 70), st.integers(1, 70)),
    st.sampled_from([1.0, 4.0, 12.0]),
)
lengths = st.floats(0, 8)
policies = st.builds(
    LandingPolicy,
    danger_limit=st.sampled_from([0.001, 0.05, 0.5, 1.0]),
    moving_limit=st.sampled_from([0.01, 0.1, 0.5]),
    threshold=st.sampled_from([None, 0.9]),
)
options_ = st.builds(
    LandingOptions,
    radius_px=st.floats(0.5, 8),
    clearance_px=lengths,
    clearance_people_px=lengths,
    allow=st.sampled_from([("landing-zones",), ("soft-surfaces",), ("landing-zones", "soft-surfaces")]),
)


@settings(max_examples=60, deadline=None)
@given(scenes, policies, options_, st.sampled_from([10**6, 400]))
def test_no_site_overlaps_danger_within_its_clearance(
    probabilities: NDArray[np.float32], policy: LandingPolicy, options: LandingOptions, max_cells: int
) -> None:
    found = answer(probabilities, options, policy, max_cells=max_cells)
    height, width = probabilities.shape[1:]
    y, x = np.mgrid[:height, :width]
    danger = sum(probabilities[i] for i in (BACKGROUND_ID, *DEFAULT_CLASSES.unsafe_ids))
    for site in found.sites:
        distance = np.hypot(y - site.y_px, x - site.x_px)
        near = distance < site.radius_px + options.clearance_px - 1e-6
        assert not (near & (danger >= policy.danger_limit)).any()
        people = distance < site.radius_px + options.clearance_people_px - 1e-6
        assert not (people & (probabilities[MOVING_ID] >= policy.moving_limit)).any()
        reach = site.radius_px + options.clearance_px - 1e-6
        assert min(site.x_px, site.y_px, width - 1 - site.x_px, height - 1 - site.y_px) + 1 >= reach
        assert site.radius_px >= options.radius_px - 1e-9


@pytest.mark.parametrize("max_cells", [10**6, 300])
@pytest.mark.parametrize("class_name", ["obstacles", "moving-objects"])
def test_clearances_hold_in_a_reduced_and_cropped_photograph(class_name: str, max_cells: int) -> None:
    ids = np.full((30, 40), LANDING_ID)
    ids[12:14, 9:11] = DEFAULT_CLASSES.id_of(class_name)
    box = slice(50, 50 + 30 * 3), slice(20, 20 + 40 * 5)
    grid = LandingGrid.empty(DEFAULT_CLASSES, ids.shape, box, max_cells=max_cells)
    grid.add(certain(ids), 0)
    mask = np.full((200, 300), BACKGROUND_ID, np.uint8)
    mask[box] = ids.repeat(3, axis=0).repeat(5, axis=1)
    options = LandingOptions(radius_px=6, clearance_px=4, clearance_people_px=9, max_sites=20)
    found = find_sites(Prediction(mask, DEFAULT_CLASSES, {}, 1.0, {}, "aaa", landing_grid=grid), POLICY, options)
    y, x = np.mgrid[:200, :300]
    assert len(found.sites) > 3
    for site in found.sites:
        distance = np.hypot(y - site.y_px, x - site.x_px)
        assert (mask[distance < site.radius_px + 4 - 1e-6] == LANDING_ID).all()
        moving = distance < site.radius_px + 9 - 1e-6
        assert (mask[moving] != MOVING_ID).all()
        reach = site.radius_px + 4 - 1e-6
        assert box[1].start + reach <= site.x_px + 1 <= box[1].stop + 1 - reach
        assert box[0].start + reach <= site.y_px + 1 <= box[0].stop + 1 - reach
        nearest = distance[mask == DEFAULT_CLASSES.id_of(class_name)].min()
        assert site.clearance_px[class_name] == pytest.approx(nearest, abs=2 * grid.slack + 1e-6)
        assert site.clearance_px[class_name] <= nearest + 1e-6  # type: ignore[operator]


@settings(max_examples=40, deadline=None)
@given(scenes, policies, options_, st.integers(1, 7))
def test_turning_and_mirroring_changes_nothing(
    probabilities: NDArray[np.float32], policy: LandingPolicy, options: LandingOptions, number: int
) -> None:
    turned = np.rot90(probabilities, number % 4, axes=(1, 2))
    turned = np.ascontiguousarray(turned[..., ::-1] if number >= 4 else turned)
    first, second = answer(probabilities, options, policy), answer(turned, options, policy)
    assert [site.score for site in first.sites] == [site.score for site in second.sites]
    assert [site.clearance_px for site in first.sites] == [site.clearance_px for site in second.sites]
    assert first.reason == second.reason


@settings(max_examples=40, deadline=None)
@given(scenes, policies, options_)
def test_the_admissible_set_turns_with_the_image(
    probabilities: NDArray[np.float32], policy: LandingPolicy, options: LandingOptions
) -> None:
    def of(values: NDArray[np.float32]) -> NDArray[np.bool_]:
        grid = LandingGrid.empty(DEFAULT_CLASSES, values.shape[1:], max_cells=10**6)
        grid.add(values, 0)
        return admissible(grid, policy, allowed_roles(options.allow, DEFAULT_CLASSES))

    assert np.array_equal(np.rot90(of(probabilities)), of(np.rot90(probabilities, axes=(1, 2))))
    assert np.array_equal(of(probabilities)[:, ::-1], of(probabilities[..., ::-1]))


@settings(max_examples=40, deadline=None)
@given(scenes, policies, options_, st.floats(0, 5))
def test_stricter_requirements_never_allow_more(
    probabilities: NDArray[np.float32], policy: LandingPolicy, options: LandingOptions, more: float
) -> None:
    strict_policy = policy.model_copy(update={"danger_limit": policy.danger_limit / 2})
    for name in ("clearance_px", "clearance_people_px", "radius_px"):
        wider = options.model_copy(update={name: getattr(options, name) + more})
        if answer(probabilities, wider, policy).sites:
            assert answer(probabilities, options, policy).sites
    if answer(probabilities, options, strict_policy).sites:
        assert answer(probabilities, options, policy).sites
    grid = LandingGrid.empty(DEFAULT_CLASSES, probabilities.shape[1:], max_cells=10**6)
    grid.add(probabilities, 0)
    strict, loose = (
        admissible(grid, one, allowed_roles(options.allow, DEFAULT_CLASSES)) for one in (strict_policy, policy)
    )
    assert not (strict & ~loose).any()


def test_cells_without_probabilities_are_not_safe() -> None:
    grid = LandingGrid.empty(DEFAULT_CLASSES, (40, 40))
    assert not admissible(grid, POLICY, (Role.LANDING,)).any()
    grid.add(certain(np.full((10, 40), LANDING_ID)), 0)
    assert admissible(grid, POLICY, (Role.LANDING,)).sum() == 10 * 40


@pytest.mark.parametrize("class_name", ["background", "obstacles", "water", "moving-objects", "soft-surfaces"])
def test_a_photograph_of_one_other_class_has_no_site(class_name: str) -> None:
    found = answer(certain(np.full((40, 40), DEFAULT_CLASSES.id_of(class_name))))
    assert found.decision == "no_safe_site"
    assert found.reason == NoSiteReason.TOO_SMALL
    assert found.sites == ()


def test_an_empty_field_has_its_site_in_the_middle() -> None:
    best = answer(certain(np.full((41, 61), LANDING_ID))).sites[0]
    assert (best.x_px, best.y_px, best.class_name) == (30, 20, "landing-zones")
    assert best.radius_px == 20
    assert best.clearance_px == {"obstacles": None, "water": None, "moving-objects": None}


def test_the_class_of_a_site_has_the_same_name_in_all_serialisations() -> None:
    found = answer(certain(np.full((40, 40), LANDING_ID)))
    for content in (found.model_dump(), json.loads(found.model_dump_json()), found.model_dump(by_alias=True)):
        assert content["sites"][0]["class"] == "landing-zones"
        assert "class_name" not in content["sites"][0]


def test_soft_surfaces_are_allowed_on_request() -> None:
    ids = np.full((40, 40), SOFT_ID)
    allowed = SMALL.model_copy(update={"allow": ("landing-zones", "soft-surfaces")})
    assert answer(certain(ids)).decision == "no_safe_site"
    assert answer(certain(ids), allowed).sites[0].class_name == "soft-surfaces"


@pytest.mark.parametrize(
    ("given_", "allowed"),
    [
        ("soft-surfaces", ("soft-surfaces",)),
        ("landing-zones, soft-surfaces", ("landing-zones", "soft-surfaces")),
        (("soft-surfaces", "soft-surfaces"), ("soft-surfaces",)),
    ],
)
def test_allowed_classes_are_separated_and_not_repeated(given_: object, allowed: tuple[str, ...]) -> None:
    assert LandingOptions.model_validate({"allow": given_}).allow == allowed


def test_unlikely_people_keep_their_clearance() -> None:
    probabilities = certain(np.full((60, 60), LANDING_ID))
    probabilities[:, 30, 30] = 0
    probabilities[MOVING_ID, 30, 30], probabilities[LANDING_ID, 30, 30] = 0.12, 0.88
    options = LandingOptions(radius_px=5, clearance_px=0, clearance_people_px=15)
    for site in answer(probabilities, options, LandingPolicy(danger_limit=1)).sites:
        assert np.hypot(site.x_px - 30, site.y_px - 30) >= 20
    far = options.model_copy(update={"clearance_people_px": 60.0})
    assert answer(probabilities, far).reason == NoSiteReason.PEOPLE_NEAR


def test_uncertain_ground_is_low_confidence() -> None:
    probabilities = np.zeros((len(DEFAULT_CLASSES), 40, 40), np.float32)
    probabilities[LANDING_ID], probabilities[BACKGROUND_ID] = 0.8, 0.2
    assert answer(probabilities).reason == NoSiteReason.LOW_CONFIDENCE


@pytest.mark.parametrize(
    ("change", "claimed"),
    [
        ({}, True),
        ({"clearance_px": 4}, True),
        ({"clearance_px": 1}, False),
        ({"clearance_people_px": 0}, False),
        ({"radius_px": 4}, False),
        ({"radius_px": 6}, False),
        ({"allow": ("landing-zones", "soft-surfaces")}, False),
        ({"allow": ("soft-surfaces",)}, False),
    ],
)
def test_a_bound_is_claimed_only_for_what_was_calibrated(change: dict[str, object], claimed: bool) -> None:
    lengths = SiteLengths(radius_px=5, clearance_px=2, clearance_people_px=3)
    policy = LandingPolicy(alpha=0.05, bound=0.03, calibrated_on="99 photographs", lengths=lengths)
    options = LandingOptions(**{**lengths.model_dump(), **change})
    found = answer(certain(np.full((40, 40), LANDING_ID)), options, policy).policy
    expected = (0.05, 0.03, "99 photographs") if claimed else (None, None, None)
    assert (found.alpha, found.bound, found.calibrated_on) == expected


def test_a_bound_in_metres_needs_the_scale() -> None:
    lengths = SiteLengths(radius_m=1, clearance_m=1, clearance_people_m=2)
    policy = LandingPolicy(alpha=0.05, bound=0.03, calibrated_on="99 photographs", lengths=lengths)
    field = certain(np.full((60, 60), LANDING_ID))
    known = Ground(gsd_m=0.1, gsd_error=0.2, source="height")
    assert answer(field, LandingOptions(**lengths.model_dump()), policy, ground=known).policy.bound == 0.03
    assert answer(field, LandingOptions(radius_m=1), policy, ground=known).policy.bound == 0.03  # larger clearances
    assert answer(field, LandingOptions(radius_px=10), policy).policy.bound is None


def test_limits_of_a_pixel() -> None:
    names = ("danger at its limit", "equally likely", "threshold", "other ground is likelier", "safe")
    probabilities = np.zeros((len(DEFAULT_CLASSES), 1, len(names)), np.float32)
    probabilities[LANDING_ID, 0] = (0.875, 0.5, 0.6, 0.45, 0.9)
    probabilities[BACKGROUND_ID, 0, 0] = 0.125
    probabilities[SOFT_ID, 0] = (0, 0.5, 0.4, 0.55, 0.1)
    grid = LandingGrid.empty(DEFAULT_CLASSES, (1, len(names)))
    grid.add(probabilities, 0)
    policy = LandingPolicy(danger_limit=0.125, threshold=0.75)
    assert admissible(grid, policy, (Role.LANDING,)).tolist() == [[False, False, False, False, True]]
    assert admissible(grid, policy, (Role.LANDING, Role.SOFT)).tolist() == [[False, True, True, True, True]]
    unlimited = policy.model_copy(update={"threshold": None})
    assert admissible(grid, unlimited, (Role.LANDING,)).tolist() == [[False, False, True, False, True]]
    assert admissible(grid, unlimited, (Role.SOFT,)).tolist() == [[False, False, False, True, False]]


def test_values_of_a_site_in_metres_and_its_probabilities() -> None:
    probabilities = certain(np.full((40, 60), LANDING_ID))
    probabilities[:, :, :2] = certain(np.full((40, 2), DEFAULT_CLASSES.id_of("water")))
    probabilities[:, 20, 30], probabilities[LANDING_ID, 20, 30] = 0, 0.75
    probabilities[SOFT_ID, 20, 30] = 0.25
    options = LandingOptions(radius_px=10, clearance_px=2, max_sites=1)
    known = Ground(gsd_m=0.5, gsd_error=0.2, source="height")
    (site,) = answer(probabilities, options, ground=known).sites
    assert site.area_m2 == pytest.approx(40 * 58 * 0.4**2)
    assert site.clearance_px["water"] == pytest.approx(site.x_px - 1)
    assert site.clearance_m["water"] == pytest.approx((site.x_px - 1) * 0.4)
    assert np.hypot(site.x_px - 30, site.y_px - 20) <= 10
    assert site.min_probability == pytest.approx(0.75)
    assert 0.99 < site.mean_probability < 1


def test_metres_use_the_smallest_ground_resolution_within_its_error() -> None:
    field = certain(np.full((200, 200), LANDING_ID))
    known = Ground(gsd_m=0.1, gsd_error=0.2, source="height")
    options = LandingOptions(radius_m=4, clearance_m=2, clearance_people_m=0)
    found = answer(field, options, ground=known)
    assert (found.policy.radius_px, found.policy.clearance_px) == (pytest.approx(50), pytest.approx(25))
    assert found.sites[0].radius_m == pytest.approx(found.sites[0].radius_px * 0.08)
    assert answer(field, options).reason == NoSiteReason.UNKNOWN_SCALE


@pytest.mark.parametrize(
    ("given_", "gsd_m", "expected"),
    [
        ({}, None, (10, 10 / 3, 10)),
        ({"radius_px": 24}, None, (24, 8, 24)),
        ({}, 0.1, (15, 10, 50)),
        ({"radius_px": 24}, 0.1, (24, 10, 50)),
        ({"clearance_people_px": 3}, 0.1, (15, 10, 3)),
    ],
)
def test_lengths_left_out_are_metres_if_the_scale_is_known(
    given_: dict[str, float], gsd_m: float | None, expected: tuple[float, ...]
) -> None:
    lengths = resolve_lengths(LandingOptions(**given_), (200, 300), gsd_m)  # type: ignore[arg-type]
    assert lengths is not None
    assert (lengths.radius, lengths.clearance, lengths.clearance_people) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (WarningCode.OBLIQUE, NoSiteReason.OBLIQUE),
        (WarningCode.UNLIKE_TRAINING, NoSiteReason.UNLIKE_TRAINING),
    ],
)
def test_photographs_that_cannot_be_judged_are_refused(code: WarningCode, reason: NoSiteReason) -> None:
    ground = Ground(warnings=(code,))
    found = answer(certain(np.full((60, 60), LANDING_ID)), ground=ground)
    assert (found.decision, found.reason) == ("no_safe_site", reason)


def test_sites_do_not_overlap_and_are_ranked() -> None:
    ids = np.full((80, 160), LANDING_ID)
    ids[:, 78:82] = DEFAULT_CLASSES.id_of("obstacles")
    sites = answer(certain(ids), SMALL.model_copy(update={"max_sites": 8})).sites
    assert [site.rank for site in sites] == list(range(1, len(sites) + 1))
    assert [site.score for site in sites] == sorted((site.score for site in sites), reverse=True)
    for site in sites:
        for other in sites[: site.rank - 1]:
            assert np.hypot(site.x_px - other.x_px, site.y_px - other.y_px) > 2 * 2


@pytest.mark.parametrize("seed", range(4))
def test_the_number_of_sites_does_not_change_which_are_best(seed: int) -> None:
    ids = np.full((200, 200), LANDING_ID)
    ids[np.random.default_rng(seed).random(ids.shape) < 0.002] = DEFAULT_CLASSES.id_of("obstacles")
    probabilities = certain(ids)
    every = answer(probabilities, SMALL.model_copy(update={"max_sites": 20})).sites
    for number in (1, 2, 5):
        assert answer(probabilities, SMALL.model_copy(update={"max_sites": number})).sites == every[:number]


@pytest.mark.parametrize(
    "wrong",
    [
        {"radius_m": 1, "radius_px": 1},
        {"radius_px": 0},
        {"clearance_m": -1},
        {"clearance_px": float("nan")},
        {"radius_m": float("inf")},
        {"max_sites": 0},
        {"max_sites": 21},
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LandingOptions(**wrong)


OWN = ClassTable(
    (
        SegmentationClass(0, "other", (0, 0, 0)),
        SegmentationClass(1, "gravel", (90, 90, 90), Role.LANDING),
        SegmentationClass(2, "asphalt", (60, 60, 60), Role.LANDING),
        SegmentationClass(3, "grass", (0, 255, 0), Role.SOFT),
    )
)
NO_LANDING = ClassTable((*OWN.entries[:1], SegmentationClass(1, "grass", (0, 255, 0), Role.SOFT)))
NO_ROLES = ClassTable((*OWN.entries[:1], SegmentationClass(1, "grass", (0, 255, 0))))


@pytest.mark.parametrize(
    ("allow", "classes", "roles"),
    [
        ((), DEFAULT_CLASSES, (Role.LANDING,)),
        (("landing-zones",), DEFAULT_CLASSES, (Role.LANDING,)),
        (("soft-surfaces", "landing"), DEFAULT_CLASSES, (Role.LANDING, Role.SOFT)),
        (("landing", "grass"), OWN, (Role.LANDING, Role.SOFT)),
        (("soft",), NO_LANDING, (Role.SOFT,)),
    ],
)
def test_ground_is_allowed_by_class_or_role(
    allow: tuple[str, ...], classes: ClassTable, roles: tuple[Role, ...]
) -> None:
    assert allowed_roles(allow, classes) == roles


@pytest.mark.parametrize(
    ("allow", "classes", "message"),
    [
        (("water",), DEFAULT_CLASSES, "'water' is not one of landing, soft, landing-zones, soft-surfaces"),
        (("gravel",), OWN, "'gravel' is one of several classes with the role landing; allow landing for all of them"),
        ((), NO_LANDING, "no landing role in this model. To land on soft ground, allow one of soft, grass."),
        (("landing",), NO_LANDING, "'landing' is not one of soft, grass"),
        ((), NO_ROLES, "no landing role in this model, so nothing can be said about landing; its classes are grass."),
        (("soft",), NO_ROLES, "no landing role in this model, so nothing can be said about landing"),
    ],
)
def test_other_ground_is_refused(allow: tuple[str, ...], classes: ClassTable, message: str) -> None:
    with pytest.raises(LandingRoleError, match=message):
        allowed_roles(allow, classes)


def test_a_class_with_the_name_of_a_role_does_not_replace_it() -> None:
    entries = (SegmentationClass(1, "landing", (1, 0, 0), Role.SOFT), SegmentationClass(2, "soft", (2, 0, 0)))
    table = ClassTable((*OWN.entries[:1], *entries, SegmentationClass(3, "asphalt", (3, 0, 0), Role.LANDING)))
    assert allowed_roles((), table) == allowed_roles(("landing",), table) == (Role.LANDING,)


def test_without_the_role_moving_no_clearance_from_people_is_claimed() -> None:
    grid = LandingGrid.empty(OWN, (20, 20))
    grid.add((np.arange(len(OWN))[:, None, None] == np.ones((20, 20))).astype(np.float32), 0)
    prediction = Prediction(np.ones((20, 20), np.uint8), OWN, {}, 1.0, {}, "aaa", landing_grid=grid)
    found = find_sites(prediction, LandingPolicy(), LandingOptions(radius_px=2, clearance_px=1))
    assert found.sites
    assert (found.policy.clearance_people_px, found.policy.clearance_people_m) == (None, None)
    assert found.message.endswith(
        "No class has the role moving, so there is no further clearance from people and vehicles."
    )


def test_classes_with_the_same_role_count_together() -> None:
    probabilities = np.empty((4, 20, 20), np.float32)
    probabilities[:] = np.array((0.02, 0.5, 0.48, 0), np.float32)[:, None, None]
    grid = LandingGrid.empty(OWN, (20, 20))
    grid.add(probabilities, 0)
    prediction = Prediction(np.ones((20, 20), np.uint8), OWN, {}, 1.0, {}, "aaa", landing_grid=grid)
    site = find_sites(prediction, LandingPolicy(danger_limit=0.03), LandingOptions(radius_px=2, clearance_px=1)).sites[
        0
    ]
    assert (site.class_name, site.clearance_px) == ("gravel", {})
    assert site.min_probability == pytest.approx(0.98)


def test_rounding_never_makes_a_probability_larger_than_1() -> None:
    above = np.array((0, 0.7, 0.3000001, 0), np.float32)
    grid = LandingGrid.empty(OWN, (20, 20))
    grid.add(np.broadcast_to(above[:, None, None], (4, 20, 20)), 0)
    assert (grid.landing.max(), grid.both.max()) == (1, 1)
