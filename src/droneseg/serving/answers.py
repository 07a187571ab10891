"""What a service takes and gives, before it is bytes of any protocol."""

import base64
from dataclasses import dataclass
from typing import Any

from droneseg.core.classes import CLASSES
from droneseg.core.prediction import Prediction, Segmenter
from droneseg.serving.schemas import ClassAnswer, LoadedPredictionAnswer, ModelAnswer, PredictionAnswer


@dataclass(frozen=True)
class Upload:
    """A file as it was sent."""

    filename: str | None
    data: bytes


@dataclass(frozen=True)
class Answer:
    """What a service knows of one photograph; without its pixels, of which many may wait to be sent.

    Attributes:
        filename: As it was sent.
        shape: Height and width.
        class_fractions: Share of the pixels, all classes.
        confidence: Mean winning probability.
        model_id: What answered.
        timings_s: Of every stage.
        mask_png: The mask file, byte for byte what `droneseg predict` writes.
    """

    filename: str | None
    shape: tuple[int, int]
    class_fractions: dict[str, float]
    confidence: float
    model_id: str
    timings_s: dict[str, float]
    mask_png: bytes

    @classmethod
    def of(cls, filename: str | None, prediction: Prediction, mask_png: bytes) -> "Answer":
        """Return what is sent of a prediction."""
        height, width = prediction.mask.shape
        return cls(
            filename,
            (height, width),
            prediction.class_fractions,
            prediction.confidence,
            prediction.model_id,
            prediction.timings_s,
            mask_png,
        )

    def to_schema(self, *, with_mask: bool = True) -> PredictionAnswer:
        """Return it as an answer to a form, which names its files."""
        return PredictionAnswer(filename=self.filename, **self._fields(with_mask=with_mask))

    def to_loaded_schema(self) -> LoadedPredictionAnswer:
        """Return it as an answer that also says that there is a model."""
        return LoadedPredictionAnswer(model_loaded=True, **self._fields())

    def _fields(self, *, with_mask: bool = True) -> dict[str, Any]:
        return {
            "prediction_shape": self.shape,
            "classes_found": tuple(entry.id for entry in CLASSES if self.class_fractions[entry.name] > 0),
            "segmentation_mask": base64.b64encode(self.mask_png).decode() if with_mask else None,
            "class_fractions": self.class_fractions,
            "confidence": min(1.0, self.confidence),
            "model_id": self.model_id,
            "timings_s": self.timings_s,
        }


def describe(segmenter: Segmenter) -> ModelAnswer:
    """Describe a model."""
    about = segmenter.about
    return ModelAnswer(
        name=about.name,
        version=about.version,
        description=about.description,
        model_id=segmenter.model_id,
        profile=segmenter.profile,
        input_shape=about.input_shape,
        output_shape=("H", "W"),
        framework=about.framework,
        license=about.license,
        classes=tuple(ClassAnswer(id=entry.id, name=entry.name, colour=entry.colour) for entry in CLASSES),
        quality=about.quality,
    )
