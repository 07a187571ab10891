"""What drift is looked for in: figures of a photograph, and of what the model says of it."""

from collections.abc import Mapping
from dataclasses import dataclass

from droneseg.core.classes import CLASSES
from droneseg.monitoring.records import Record


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


def features_of(
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


def figures_of(record: Record) -> dict[str, float]:
    """Return the figures of a record by name.

    Raises:
        KeyError: If one is missing.
    """
    return features_of(
        record.statistics,
        width=record.width,
        height=record.height,
        class_fractions=record.class_fractions,
        confidence=record.confidence,
    )
