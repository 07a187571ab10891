"""What drift is looked for in: figures of a photograph, and of what the model says of it."""

from collections.abc import Mapping
from dataclasses import dataclass

from droneseg.core.classes import CLASSES


@dataclass(frozen=True)
class Feature:
    """A figure of every record.

    Attributes:
        name: As in tables and reports.
        meaning: For people.
        lower: How photographs with less of it are called.
        higher: How those with more of it are.
        of_model: Whether it is the model's answer, and not the photograph's own.
    """

    name: str
    meaning: str
    lower: str
    higher: str
    of_model: bool = False


FEATURES: tuple[Feature, ...] = (
    Feature("brightness", "mean luma", "darker", "brighter"),
    Feature("contrast", "standard deviation of the luma", "lower in contrast", "higher in contrast"),
    Feature("saturation", "mean saturation", "paler in colour", "stronger in colour"),
    Feature("sharpness", "second difference of the luma", "less sharp", "sharper"),
    Feature("noise", "standard deviation of the noise", "less noisy", "noisier"),
    Feature("warmth", "red against blue", "bluer", "redder"),
    Feature("green_share", "share of green pixels", "less green", "greener"),
    Feature("megapixels", "size", "smaller", "larger"),
    *(
        Feature(f"share_{name}", f"share of {name}", f"with less {name}", f"with more {name}", of_model=True)
        for name in (entry.name for entry in CLASSES[1:])
    ),
    Feature(
        "confidence",
        "mean probability of the winning class",
        "less clear to the model",
        "clearer to the model",
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
