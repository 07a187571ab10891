"""Drift test: features, reference table, Kolmogorov-Smirnov test.

Each figure is put to a two-sample Kolmogorov-Smirnov test: it needs no assumption on the shape of a distribution, and
sees its place, width and shape. With k figures a chance finding in one of them is likely, so each p value must fall
below 0.05 / k (Bonferroni): then fewer than 5 % of the reports on unchanged photographs call drift, however the
figures hang together.
"""

import csv
import io
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from statistics import median

from droneseg.core.classes import CLASSES
from droneseg.core.errors import DriftError
from droneseg.core.images import Image
from droneseg.core.prediction import Segmenter, image_statistics
from droneseg.model.bundle import Bundle
from droneseg.monitoring.prediction_log import Record


@dataclass(frozen=True)
class Feature:
    """A figure of every record.

    Attributes:
        name: As in tables and reports.
        meaning: For people.
        lower: What is said of photographs with less of it.
        higher: And of those with more.
        of_model: Whether it is the model's answer, and not the photograph's own.
        digits: Significant ones that count; None for all.
    """

    name: str
    meaning: str
    lower: str
    higher: str
    of_model: bool = False
    digits: int | None = None

    def rounded(self, value: float) -> float:
        """Return a value with the digits that count."""
        return value if self.digits is None else float(f"{value:.{self.digits}g}")


FEATURES: tuple[Feature, ...] = (
    Feature("brightness", "mean luma", "are darker", "are brighter"),
    Feature("contrast", "standard deviation of the luma", "are lower in contrast", "are higher in contrast"),
    Feature("saturation", "mean saturation", "are paler in colour", "are stronger in colour"),
    Feature("sharpness", "second difference of the luma", "are less sharp", "are sharper"),
    Feature("noise", "standard deviation of the noise", "are less noisy", "are noisier"),
    Feature("warmth", "red against blue", "are bluer", "are redder"),
    Feature("green_share", "share of green pixels", "are less green", "are greener"),
    # all of a set may have one size: a row of pixels more is no change
    Feature("megapixels", "size", "are smaller", "are larger", digits=2),
    *(
        Feature(f"share_{name}", f"share of {name}", f"show less {name}", f"show more {name}", of_model=True)
        for name in (entry.name for entry in CLASSES[1:])
    ),
    Feature(
        "confidence",
        "mean probability of the winning class",
        "are less clear to the model",
        "are clearer to the model",
        of_model=True,
    ),
)


def compute_features(
    statistics: Mapping[str, float], *, width: int, height: int, class_fractions: Mapping[str, float], confidence: float
) -> dict[str, float]:
    """Return the figures of a photograph by name.

    Args:
        statistics: As `image_statistics` returns them.
        width: In pixels.
        height: In pixels.
        class_fractions: Shares of the predicted mask, by class name.
        confidence: Mean probability of the winning class.

    Raises:
        KeyError: If a figure is missing.
    """
    found = {
        **statistics,
        "megapixels": width * height / 1e6,
        **{f"share_{entry.name}": class_fractions[entry.name] for entry in CLASSES[1:]},
        "confidence": confidence,
    }
    return {feature.name: round(float(found[feature.name]), 6) for feature in FEATURES}


def record_features(record: Record) -> dict[str, float]:
    """Return the figures of a record by name.

    Raises:
        KeyError: If one is missing.
    """
    return compute_features(
        record.statistics,
        width=record.width,
        height=record.height,
        class_fractions=record.class_fractions,
        confidence=record.confidence,
    )


NAMES = tuple(feature.name for feature in FEATURES)


@dataclass(frozen=True)
class Reference:
    """The figures of the photographs a model was validated on; never of their true masks.

    Attributes:
        source: What photographs, in words.
        table: Values by the feature's name, one per photograph.
    """

    source: str
    table: dict[str, list[float]]

    @property
    def images(self) -> int:
        """How many photographs."""
        return len(self.table[NAMES[0]])


def measure_reference(segmenter: Segmenter, images: Iterable[Image], source: str) -> Reference:
    """Predict photographs and take their figures.

    Args:
        segmenter: The model.
        images: RGB, shape (H, W, 3), dtype uint8 each.
        source: What they are, in words.
    """
    rows = []
    for image in images:
        found = segmenter.segment(image)
        height, width = found.mask.shape
        rows.append(
            compute_features(
                image_statistics(image), width=width, height=height,
                class_fractions=found.class_fractions, confidence=found.confidence,
            )
        )  # fmt: skip
    return Reference(source, {name: [row[name] for row in rows] for name in NAMES})


def write_reference(reference: Reference, path: Path) -> None:
    """Write the table as CSV, a line per photograph."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(NAMES)
    writer.writerows(zip(*(reference.table[name] for name in NAMES), strict=True))
    path.write_text(text.getvalue(), encoding="utf-8")


def read_reference(bundle: Bundle) -> Reference:
    """Read a bundle's reference.

    Raises:
        DriftError: If it has none, or one that lacks a feature this version looks at.
    """
    stated = bundle.manifest.drift_reference
    if stated is None:
        raise DriftError(
            f"Model {bundle.model_id} has no reference for drift. Add one with `droneseg models reference`, or export "
            "it again where its validation photographs are."
        )
    with (bundle.folder / stated.file).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        table = {name: [float(row[name]) for row in rows] for name in NAMES}
    except (KeyError, TypeError, ValueError) as error:
        raise DriftError(
            f"The reference of model {bundle.model_id} is of another version of droneseg ({error}): "
            "make it again with `droneseg models reference`."
        ) from error
    if not rows or not all(math.isfinite(value) for values in table.values() for value in values):
        raise DriftError(f"The reference of model {bundle.model_id} is empty or holds values that are no numbers.")
    return Reference(stated.data, table)


FALSE_ALARMS = 0.05
THRESHOLD = FALSE_ALARMS / len(FEATURES)
"""Of the p value of each figure."""
METHOD = "ks"
MIN_RECORDS = 20
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
        records: At least `MIN_RECORDS`.

    Raises:
        DriftError: If there are fewer, or the reference has fewer.
    """
    if reference.images < MIN_RECORDS:
        raise DriftError(
            f"The reference is of {reference.images} images; {MIN_RECORDS} are needed to tell a change from chance. "
            "Make another one with `droneseg models reference`."
        )
    if len(records) < MIN_RECORDS:
        raise DriftError(f"There are {len(records)} records; a verdict needs {MIN_RECORDS}.")
    rows = [(record.time.astimezone(UTC).date(), record_features(record)) for record in records]
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
