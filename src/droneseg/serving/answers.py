"""What a service takes and gives, before it is bytes of any protocol."""

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np

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
    """What a service knows of one photograph.

    Attributes:
        filename: As it was sent.
        prediction: With the seconds of every stage.
        mask_png: The mask file, byte for byte what `droneseg predict` writes.
    """

    filename: str | None
    prediction: Prediction
    mask_png: bytes

    def to_schema(self, *, with_mask: bool = True) -> PredictionAnswer:
        """Return it as an answer to a form, which names its files."""
        return PredictionAnswer(filename=self.filename, **self._fields(with_mask=with_mask))

    def to_loaded_schema(self) -> LoadedPredictionAnswer:
        """Return it as an answer that also says that there is a model."""
        return LoadedPredictionAnswer(model_loaded=True, **self._fields())

    def _fields(self, *, with_mask: bool = True) -> dict[str, Any]:
        prediction = self.prediction
        height, width = prediction.mask.shape
        return dict(
            prediction_shape=(height, width),
            classes_found=tuple(int(found) for found in np.flatnonzero(np.bincount(prediction.mask.ravel()))),
            segmentation_mask=base64.b64encode(self.mask_png).decode() if with_mask else None,
            class_fractions=prediction.class_fractions,
            confidence=min(1.0, prediction.confidence),
            model_id=prediction.model_id,
            timings_s=prediction.timings_s,
        )


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
