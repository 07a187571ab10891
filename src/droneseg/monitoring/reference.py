"""What photographs looked like, and what the model said of them, when it was validated: what drift is told against."""

import csv
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from droneseg.core.errors import DriftError
from droneseg.core.images import Image
from droneseg.core.prediction import Segmenter, image_statistics
from droneseg.model.bundle import Bundle
from droneseg.monitoring.features import FEATURES, features_of

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
            features_of(
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
