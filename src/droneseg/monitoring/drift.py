"""Whether the photographs of today are those the model was validated on: a test per figure, and one verdict.

Each figure is put to a two-sample Kolmogorov-Smirnov test: it needs no assumption on the shape of a distribution, and
sees its place, width and shape. With k figures a chance finding in one of them is likely, so each p value must fall
below 0.05 / k (Bonferroni): then fewer than 5 % of the reports on unchanged photographs call drift, however the
figures hang together.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from statistics import median

from droneseg.core.errors import DriftError
from droneseg.monitoring.features import FEATURES, Feature, figures_of
from droneseg.monitoring.records import Record
from droneseg.monitoring.reference import Reference

FALSE_ALARMS = 0.05
THRESHOLD = FALSE_ALARMS / len(FEATURES)
"""Of the p value of each figure."""
METHOD = "ks"
FEWEST = 20
"""Records a verdict needs."""
_FEWEST_OF_DAY = 5


@dataclass(frozen=True)
class FeatureDrift:
    """What became of one figure.

    Attributes:
        feature: Which.
        p: Probability of a difference like this if nothing changed.
        reference: Median at validation.
        now: Median of the records; of those since `since`, if there is such a day.
        since: The first of the days since when each day by itself differs; None if none does.
    """

    feature: Feature
    p: float
    reference: float
    now: float
    since: date | None

    @property
    def drifted(self) -> bool:
        """Whether it differs."""
        return self.p < THRESHOLD


@dataclass(frozen=True)
class Drift:
    """What was found.

    Attributes:
        records: How many were looked at.
        first: Time of the oldest.
        last: Time of the newest.
        days: How many there are of each day, in UTC, the oldest first.
        features: All figures, those that differ most first.
    """

    records: int
    first: datetime
    last: datetime
    days: dict[date, int]
    features: tuple[FeatureDrift, ...]

    @property
    def drifted(self) -> bool:
        """The verdict: whether any figure differs."""
        return bool(self.changed)

    @property
    def changed(self) -> tuple[FeatureDrift, ...]:
        """The figures that differ."""
        return tuple(each for each in self.features if each.drifted)

    @property
    def share(self) -> float:
        """Share of the figures that differ."""
        return len(self.changed) / len(self.features)

    @property
    def since(self) -> date | None:
        """The first day from which on some figure differs."""
        return min((each.since for each in self.changed if each.since), default=None)


def find_drift(reference: Reference, records: Sequence[Record]) -> Drift:
    """Hold records against the reference.

    Args:
        reference: Of the model that made them.
        records: At least `FEWEST`.

    Raises:
        DriftError: If there are fewer, or the reference has fewer.
    """
    if reference.images < FEWEST:
        raise DriftError(
            f"The reference is of {reference.images} photographs; {FEWEST} are needed to tell a change from chance. "
            "Make another one with `droneseg models reference`."
        )
    if len(records) < FEWEST:
        raise DriftError(f"There are {len(records)} records; a verdict needs {FEWEST}.")
    rows = [(record.time.astimezone(UTC).date(), figures_of(record)) for record in records]
    days = defaultdict(list)
    for day, figures in sorted(rows, key=lambda row: row[0]):
        days[day].append(figures)
    found = [_compare(feature, reference.table[feature.name], days) for feature in FEATURES]
    times = [record.time for record in records]
    return Drift(
        len(rows),
        min(times),
        max(times),
        {day: len(of_day) for day, of_day in days.items()},
        tuple(sorted(found, key=lambda each: each.p)),
    )


def p_value(reference: Sequence[float], now: Sequence[float]) -> float:
    """Return the p value of the two-sample Kolmogorov-Smirnov test, two-sided."""
    from scipy.stats import ks_2samp

    return float(ks_2samp(reference, now).pvalue)


def _compare(feature: Feature, reference: list[float], days: dict[date, list[dict[str, float]]]) -> FeatureDrift:
    reference = [feature.rounded(value) for value in reference]
    by_day = {day: [feature.rounded(row[feature.name]) for row in of_day] for day, of_day in days.items()}
    now = [value for values in by_day.values() for value in values]
    since = None
    for day, values in reversed(by_day.items()):
        if len(values) >= _FEWEST_OF_DAY:
            if p_value(reference, values) >= THRESHOLD:
                break
            since = day
    lately = [value for day, values in by_day.items() if since and day >= since for value in values]
    return FeatureDrift(feature, p_value(reference, now), median(reference), median(lately or now), since)
