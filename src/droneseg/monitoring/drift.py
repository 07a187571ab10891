"""Drift test: features, reference table, Kolmogorov-Smirnov test.

Each feature is compared by a two-sample Kolmogorov-Smirnov test. It assumes nothing about the shape of a distribution
and detects changes of its location, width and shape. With k features, a chance difference in one of them is likely, so
each p-value must be below 0.05 / k (Bonferroni correction). Then fewer than 5 % of the reports on unchanged images
report drift, regardless of correlations between the features.
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

from droneseg.core.camera import UNKNOWN_GROUND, Ground
from droneseg.core.classes import ClassTable
from droneseg.core.errors import DriftError
from droneseg.core.images import Image
from droneseg.core.prediction import STATISTIC_WORDS, Segmenter
from droneseg.model.bundle import Bundle
from droneseg.monitoring.prediction_log import Record


@dataclass(frozen=True)
class Feature:
    """A number computed for every record and compared by the drift test.

    Attributes:
        name: Name in tables and reports.
        meaning: Short description.
        lower: Predicate for images with a lower value, such as "are darker".
        higher: Predicate for images with a higher value, such as "are brighter".
        of_model: Whether the feature is computed from the model's output instead of the image.
        digits: Number of significant digits to compare; None for all.
    """

    name: str
    meaning: str
    lower: str
    higher: str
    of_model: bool = False
    digits: int | None = None

    def rounded(self, value: float) -> float:
        """Return a value rounded to `digits` significant digits."""
        return value if self.digits is None else float(f"{value:.{self.digits}g}")


def _of_image(name: str, meaning: str) -> Feature:
    lower, higher = STATISTIC_WORDS[name]
    return Feature(name, meaning, f"are {lower}", f"are {higher}")


IMAGE_FEATURES: tuple[Feature, ...] = (
    _of_image("brightness", "mean luma"),
    _of_image("contrast", "standard deviation of the luma"),
    _of_image("saturation", "mean saturation"),
    _of_image("sharpness", "second difference of the luma"),
    _of_image("noise", "standard deviation of the noise"),
    _of_image("warmth", "red relative to red and blue"),
    _of_image("green_share", "share of green pixels"),
    # all validation images may have the same size, so an additional row of pixels must not count as a change
    Feature("megapixels", "image size at the model's resolution", "are smaller", "are larger", digits=2),
)
_CONFIDENCE = Feature(
    "confidence",
    "mean probability of the predicted class",
    "are predicted with less confidence",
    "are predicted with more confidence",
    of_model=True,
)


def features_of(classes: ClassTable) -> tuple[Feature, ...]:
    """Return the features of the predictions of a model with these classes."""
    shares = (
        Feature(
            f"share_{entry.name}",
            f"share of {entry.name}",
            f"show a smaller share of {entry.name}",
            f"show a larger share of {entry.name}",
            of_model=True,
        )
        for entry in classes.foreground
    )
    return (*IMAGE_FEATURES, *shares, _CONFIDENCE)


FALSE_ALARMS = 0.05
"""Largest share of the reports on unchanged images that may report drift."""
METHOD = "ks"
MIN_RECORDS = 20
"""Minimum number of records, and of reference images, for the test."""
_MIN_RECORDS_PER_DAY = 5  # to test a single day for a difference


def compute_features(
    features: Sequence[Feature],
    statistics: Mapping[str, float],
    *,
    width: int,
    height: int,
    class_fractions: Mapping[str, float],
    confidence: float,
) -> dict[str, float]:
    """Return the values of features of an image by name.

    Args:
        features: Features to compute.
        statistics: Statistics of the image as resampled for the model, see `image_statistics`.
        width: Width of the resampled image in pixels.
        height: Height of the resampled image in pixels.
        class_fractions: Share of the predicted pixels by class name.
        confidence: Mean probability of the predicted class.

    Raises:
        KeyError: If a value is missing.
    """
    values = {
        **statistics,
        "megapixels": width * height / 1e6,
        **{f"share_{name}": share for name, share in class_fractions.items()},
        "confidence": confidence,
    }
    return {feature.name: round(float(values[feature.name]), 6) for feature in features}


def record_features(record: Record, features: Sequence[Feature]) -> dict[str, float]:
    """Return the values of features of a record by name.

    Raises:
        KeyError: If a value is missing.
    """
    return compute_features(
        features,
        record.statistics,
        width=record.width if record.seen_width is None else record.seen_width,
        height=record.height if record.seen_height is None else record.seen_height,
        class_fractions=record.class_fractions,
        confidence=record.confidence,
    )


@dataclass(frozen=True)
class Reference:
    """Features of the validation images of a model, computed from its predictions, not from true masks.

    Attributes:
        source: Description of the images.
        features: Features in the table.
        table: Values by feature name, one per image.
    """

    source: str
    features: tuple[Feature, ...]
    table: dict[str, list[float]]

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.table[self.features[0].name])

    @property
    def threshold(self) -> float:
        """p-value below which a feature differs."""
        return FALSE_ALARMS / len(self.features)


def measure_reference(segmenter: Segmenter, images: Iterable[tuple[Image, Ground]], source: str) -> Reference:
    """Predict images and compute their features.

    Args:
        segmenter: Model to predict with.
        images: RGB images, shape (H, W, 3), dtype uint8, with their ground resolutions.
        source: Description of the images.
    """
    features = features_of(segmenter.classes)
    rows = [image_features(segmenter, image, ground) for image, ground in images]
    return Reference(source, features, {feature.name: [row[feature.name] for row in rows] for feature in features})


def image_features(segmenter: Segmenter, image: Image, ground: Ground = UNKNOWN_GROUND) -> dict[str, float]:
    """Predict an image and return its features by name.

    Args:
        segmenter: Model to predict with.
        image: RGB, shape (H, W, 3), dtype uint8.
        ground: Ground resolution of the image.
    """
    prediction = segmenter.segment(image, ground)
    height, width = prediction.seen_size or prediction.mask.shape
    return compute_features(
        features_of(segmenter.classes),
        prediction.statistics,
        width=width,
        height=height,
        class_fractions=prediction.class_fractions,
        confidence=prediction.confidence,
    )


def write_reference(reference: Reference, path: Path) -> None:
    """Write the table as CSV, one line per image."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(feature.name for feature in reference.features)
    writer.writerows(zip(*(reference.table[feature.name] for feature in reference.features), strict=True))
    path.write_text(text.getvalue(), encoding="utf-8")


def read_reference(bundle: Bundle) -> Reference:
    """Read the drift reference of a bundle.

    Raises:
        DriftError: If the bundle has no reference, or its reference lacks a feature of this version.
    """
    entry, features = bundle.manifest.drift_reference, features_of(bundle.manifest.class_table)
    if entry is None:
        raise DriftError(
            f"Model {bundle.model_id} has no drift reference. Add one with `droneseg models reference`, or export "
            "it again on a machine that has its validation images."
        )
    with (bundle.folder / entry.file).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        table = {feature.name: [float(row[feature.name]) for row in rows] for feature in features}
    except (KeyError, TypeError, ValueError) as error:
        raise DriftError(
            f"The drift reference of model {bundle.model_id} was made by another version of droneseg ({error}). "
            "Create a new one with `droneseg models reference`."
        ) from error
    if not rows or not all(math.isfinite(value) for values in table.values() for value in values):
        raise DriftError(
            f"The drift reference of model {bundle.model_id} is empty or contains non-finite values. "
            "Create a new one with `droneseg models reference`."
        )
    return Reference(entry.data, features, table)


@dataclass(frozen=True)
class FeatureDrift:
    """Result of the drift test for one feature.

    Attributes:
        feature: Feature that was tested.
        threshold: p-value below which the feature differs.
        p_value: Probability of a difference at least as large if nothing has changed.
        reference_median: Median at validation.
        median: Median of the records from `since` on; of all records if `since` is None.
        since: Day since which the feature has differed every day; None if there is no such day.
    """

    feature: Feature
    threshold: float
    p_value: float
    reference_median: float
    median: float
    since: date | None

    @property
    def drifted(self) -> bool:
        """Whether the distribution of the feature differs from the reference."""
        return self.p_value < self.threshold


@dataclass(frozen=True)
class Drift:
    """Result of the drift test.

    Attributes:
        records: Number of records tested.
        first: Time of the oldest record.
        last: Time of the newest record.
        days: Number of records by day (UTC), oldest day first.
        features: Result of each feature, smallest p-value first.
    """

    records: int
    first: datetime
    last: datetime
    days: dict[date, int]
    features: tuple[FeatureDrift, ...]

    @property
    def drifted(self) -> bool:
        """Whether any feature differs."""
        return bool(self.changed)

    @property
    def changed(self) -> tuple[FeatureDrift, ...]:
        """Features that differ."""
        return tuple(item for item in self.features if item.drifted)

    @property
    def share(self) -> float:
        """Share of the features that differ, 0 to 1."""
        return len(self.changed) / len(self.features)

    @property
    def since(self) -> date | None:
        """Earliest day since which a feature has differed every day; None if there is no such day."""
        return min((item.since for item in self.changed if item.since), default=None)


def find_drift(reference: Reference, records: Sequence[Record]) -> Drift:
    """Compare records with the reference of the model that predicted them.

    Args:
        reference: Features of the model's validation images.
        records: Records to compare, at least `MIN_RECORDS`.

    Raises:
        DriftError: If there are fewer than `MIN_RECORDS` records or reference images.
    """
    if reference.images < MIN_RECORDS:
        raise DriftError(
            f"The drift reference was made from {reference.images} images; at least {MIN_RECORDS} are needed. "
            "Create a new one with `droneseg models reference`."
        )
    if len(records) < MIN_RECORDS:
        raise DriftError(f"There are {len(records)} records; the drift test needs at least {MIN_RECORDS}.")
    days = defaultdict(list)
    for record in sorted(records, key=lambda record: record.time):
        days[record.time.astimezone(UTC).date()].append(record_features(record, reference.features))
    results = [_compare(feature, reference, days) for feature in reference.features]
    times = [record.time for record in records]
    return Drift(
        records=len(records),
        first=min(times),
        last=max(times),
        days={day: len(rows) for day, rows in days.items()},
        features=tuple(sorted(results, key=lambda item: item.p_value)),
    )


def p_value(reference: Sequence[float], values: Sequence[float]) -> float:
    """Return the p-value of the two-sided two-sample Kolmogorov-Smirnov test."""
    from scipy.stats import ks_2samp

    return float(ks_2samp(reference, values).pvalue)


def _compare(feature: Feature, reference: Reference, days: Mapping[date, list[dict[str, float]]]) -> FeatureDrift:
    expected = [feature.rounded(value) for value in reference.table[feature.name]]
    by_day = {day: [feature.rounded(row[feature.name]) for row in rows] for day, rows in days.items()}
    values = [value for of_day in by_day.values() for value in of_day]
    since = _first_different_day(expected, by_day, reference.threshold)
    recent = [value for day, of_day in by_day.items() if since and day >= since for value in of_day]
    return FeatureDrift(
        feature,
        threshold=reference.threshold,
        p_value=p_value(expected, values),
        reference_median=median(expected),
        median=median(recent or values),
        since=since,
    )


def _first_different_day(reference: list[float], by_day: Mapping[date, list[float]], threshold: float) -> date | None:
    """Return the day since which every day with enough records has differed from the reference; None if none has."""
    first = None
    for day, values in sorted(by_day.items(), reverse=True):
        if len(values) >= _MIN_RECORDS_PER_DAY:
            if p_value(reference, values) >= threshold:
                break
            first = day
    return first
