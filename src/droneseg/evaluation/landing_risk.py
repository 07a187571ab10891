"""Failure rates of landing sites, with confidence bounds, and the choice of the limit of danger."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import beta

from droneseg.core.boxes import Box
from droneseg.core.classes import ClassTable, Role
from droneseg.core.masks import Mask
from droneseg.inference.landing import LandingAnswer

MUCH_UNSAFE = 0.01
"""Share of unsafe pixels above which a site counts in `much_unsafe`."""
MIN_LABELLED = 0.9
"""Smallest share of labelled pixels for a site to count as safe; with a smaller one, it is neither safe nor unsafe,
unless a labelled pixel is unsafe."""


@dataclass(frozen=True)
class SiteOutcome:
    """First site of one photograph, compared with the true mask.

    Attributes:
        stem: Stem of the photograph.
        has_site: Whether the photograph has a site.
        unsafe_share: Share of the labelled pixels in the disc of the requested radius whose true class is unsafe.
        people_inside: Number of people in the disc.
        people_near: Number of people within the clearance of people, including those in the disc.
        possible: Whether the true mask has room for a site.
        reason: Why the photograph has no site.
        labelled_share: Share of the pixels in the disc that have a label.
        labelled_near: Share of the pixels within the clearance of people that have a label.
    """

    stem: str
    has_site: bool
    unsafe_share: float
    people_inside: int
    people_near: int
    possible: bool
    reason: str | None
    labelled_share: float = 1.0
    labelled_near: float = 1.0

    @property
    def fails(self) -> bool:
        """Whether the site contains any unsafe pixel."""
        return self.unsafe_share > 0

    @property
    def is_judged(self) -> bool:
        """Whether the labels suffice to call the site safe or unsafe."""
        return self.fails or self.labelled_share >= MIN_LABELLED

    @property
    def is_judged_near(self) -> bool:
        """Whether the labels suffice to say whether people are within the clearance."""
        return self.people_near > 0 or self.labelled_near >= MIN_LABELLED


def check_site(
    stem: str, answer: LandingAnswer, truth: Mask, classes: ClassTable, boxes: Sequence[Box], *, possible: bool
) -> SiteOutcome:
    """Compare the first site of a photograph with the true mask. Pixels without a label are left out of the shares.

    Args:
        stem: Stem of the photograph.
        answer: Landing sites.
        truth: Class ids, shape (H, W), dtype uint8; pixels without a label have the ignore label.
        classes: Class table of the mask.
        boxes: Boxes around people, in pixels of the mask. Without boxes, all moving objects of the mask count as one
            person.
        possible: Whether the true mask has room for a site.
    """
    if not answer.sites:
        return SiteOutcome(
            stem=stem,
            has_site=False,
            unsafe_share=0.0,
            people_inside=0,
            people_near=0,
            possible=possible,
            reason=answer.reason,
        )
    site, policy = answer.sites[0], answer.policy
    radius, people_clearance = policy.radius_px or 0.0, policy.clearance_people_px or 0.0
    height, width = truth.shape
    distance = np.hypot(np.arange(height)[:, None] - site.y_px, np.arange(width) - site.x_px)
    nearest = distance.min()  # a disc has at least the pixel of its centre
    ids, ids_near = (truth[distance <= max(reach, nearest)] for reach in (radius, radius + people_clearance))
    labelled = ids[ids < len(classes)]
    moving = np.isin(truth, classes.ids_of(Role.MOVING))

    def people(within: float) -> int:
        near = moving & (distance <= within)
        regions = [near[round(y0) : round(y1), round(x0) : round(x1)] for x0, y0, x1, y1 in boxes]
        return sum(bool(region.any()) for region in regions) if regions else int(near.any())

    return SiteOutcome(
        stem=stem,
        has_site=True,
        unsafe_share=float(np.isin(labelled, classes.unsafe_ids).mean()) if labelled.size else 0.0,
        people_inside=people(radius),
        people_near=people(radius + people_clearance),
        possible=possible,
        reason=None,
        labelled_share=labelled.size / ids.size,
        labelled_near=float((ids_near < len(classes)).mean()),
    )


@dataclass(frozen=True)
class Risk:
    """A number of failures with its upper bound.

    Attributes:
        failures: Number of failures.
        number: Number of cases.
        bound: Upper Clopper-Pearson bound of the rate; 1 without cases.
    """

    failures: int
    number: int
    bound: float


def clopper_pearson(failures: int, number: int, alpha: float) -> float:
    """Return the one-sided upper bound of a rate with confidence 1 - alpha (Clopper and Pearson 1934)."""
    return 1.0 if failures >= number else float(beta.ppf(1 - alpha, failures + 1, number - failures))


@dataclass(frozen=True)
class LandingRisk:
    """Failure rates of landing sites over photographs and over places.

    A first site with too few labelled pixels is left out of the rates, unless one of them is unsafe.

    Attributes:
        photographs: Number of photographs.
        with_site: Number of photographs with a site.
        unsafe: First sites that contain any unsafe pixel, over photographs with a site.
        much_unsafe: First sites of which more than 1 % is unsafe.
        people_inside: First sites with a person in them.
        people_near: First sites with a person within the clearance of people.
        unsafe_places: Places with such a first site, over places with a site.
        false_abstentions: Photographs without a site, over those whose true masks have room for one.
        reasons: Number of photographs without a site by reason.
        unlabelled: Number of first sites that are left out because too few of their pixels have a label.
    """

    photographs: int
    with_site: int
    unsafe: Risk
    much_unsafe: Risk
    people_inside: Risk
    people_near: Risk
    unsafe_places: Risk | None
    false_abstentions: Risk
    reasons: dict[str, int]
    unlabelled: int = 0


def summarise(outcomes: Sequence[SiteOutcome], places: Mapping[str, Sequence[str]] | None, alpha: float) -> LandingRisk:
    """Return the failure rates of outcomes.

    Args:
        outcomes: One outcome for each photograph.
        places: Stems of the photographs of each place; None if they are not known.
        alpha: Probability that a bound is too low.
    """
    landed = [outcome for outcome in outcomes if outcome.has_site]
    judged = [outcome for outcome in landed if outcome.is_judged]

    def risk(failing: Iterable[bool]) -> Risk:
        flags = list(failing)
        return Risk(sum(flags), len(flags), clopper_pearson(sum(flags), len(flags), alpha))

    by_stem = {outcome.stem: outcome for outcome in judged}
    groups = [[by_stem[stem] for stem in stems if stem in by_stem] for stems in (places or {}).values()]
    reasons: dict[str, int] = {}
    for outcome in outcomes:
        if outcome.reason:
            reasons[outcome.reason] = reasons.get(outcome.reason, 0) + 1
    return LandingRisk(
        photographs=len(outcomes),
        with_site=len(landed),
        unsafe=risk(outcome.fails for outcome in judged),
        much_unsafe=risk(outcome.unsafe_share > MUCH_UNSAFE for outcome in judged),
        people_inside=risk(outcome.people_inside > 0 for outcome in judged),
        people_near=risk(outcome.people_near > 0 for outcome in landed if outcome.is_judged_near),
        unsafe_places=risk(any(o.fails for o in group) for group in groups if group) if places else None,
        false_abstentions=risk(not outcome.has_site for outcome in outcomes if outcome.possible),
        reasons=reasons,
        unlabelled=len(landed) - len(judged),
    )


def choose_limit(risks: Sequence[Risk], largest: float, alpha: float) -> int | None:
    """Choose a limit by fixed-sequence testing.

    The limits are tested from the strictest on, each with the confidence of its bound, until one fails. A correction
    for multiple testing is therefore not needed (Angelopoulos et al. 2021, "Learn then Test"). The strictest limits are
    skipped if they have too few cases to pass even without a failure; this depends on the number of cases only.

    Args:
        risks: Risk at each limit, strictest first.
        largest: Accepted rate of failures.
        alpha: Probability that each bound is too low.

    Returns:
        Index of the loosest limit before the first one whose bound exceeds `largest`; None if no limit passes.
    """
    chosen = None
    for index, risk in enumerate(risks):
        if chosen is None and clopper_pearson(0, risk.number, alpha) > largest:
            continue
        if risk.bound > largest:
            break
        chosen = index
    return chosen
