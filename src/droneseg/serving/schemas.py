"""Request and response models; Upload and PredictionResult."""

import base64
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from droneseg.core.classes import CLASSES
from droneseg.core.prediction import Prediction, Segmenter

Share = Annotated[float, Field(ge=0, le=1)]
# of a length, rather than one type for each place: the latter is new in OpenAPI 3.1, and many generators fail on it
Two = Field(min_length=2, max_length=2)
Three = Field(min_length=3, max_length=3)


class _Response(BaseModel):
    model_config = ConfigDict(frozen=True, protected_namespaces=())


class _PlainPredictionAnswer(_Response):
    prediction_shape: Annotated[tuple[int, ...], Two] = Field(
        description="Height and width of the mask, those of the photograph."
    )
    classes_found: tuple[int, ...] = Field(description="Ids that occur in the mask.")
    segmentation_mask: str | None = Field(
        None, description="Palette PNG in base64: indices are class ids, the palette their colours; not with mask=none."
    )
    class_fractions: dict[str, Share] = Field(description="Share of the pixels, all classes.")
    confidence: Share = Field(description="Mean over the pixels of the winning class's probability.")
    model_id: str
    timings_s: dict[str, float] = Field(description="Seconds of each stage.")


class PredictionResponse(_PlainPredictionAnswer):
    """What is where in one photograph of a form, which names its files."""

    filename: str | None = Field(description="As it was sent.")


class BentoPredictionResponse(_PlainPredictionAnswer):
    """What is where in one photograph that came without a name."""

    model_loaded: bool = Field(description="True: without a model there is no answer.")


class ErrorDetail(_Response):
    """What went wrong."""

    code: str = Field(description="Stable word for programs.")
    message: str = Field(description="For people: what is wrong, and what to do.")


class ErrorResponse(_Response):
    """The body of every failed request."""

    error: ErrorDetail


class BatchItemError(_Response):
    """A file of a batch that could not be predicted."""

    filename: str | None
    error: ErrorDetail


class ClassInfo(_Response):
    """A class of the masks."""

    id: int
    name: str
    colour: Annotated[tuple[int, ...], Three] = Field(description="RGB in the masks' palette.")


class ModelResponse(_Response):
    """The model that answers."""

    name: str
    version: str
    description: str
    model_id: str
    profile: str
    input_shape: Annotated[tuple[int, ...], Three] = Field(
        description="What the network takes at a time; photographs may have any."
    )
    output_shape: Annotated[tuple[str, ...], Two] = Field(description="That of the photograph.")
    framework: str
    license: str
    classes: tuple[ClassInfo, ...]
    quality: dict[str, Any] | None = Field(description="Figures on held-out photographs, with what photographs.")


class StatusResponse(_Response):
    """A service and where to go on."""

    service: str
    version: str
    ready: bool
    model_id: str | None
    links: dict[str, str]


class HealthResponse(_Response):
    """Whether the process lives, or is ready."""

    status: str


class DriftResponse(_Response):
    """Whether photographs are still like those the model was validated on."""

    url: str = Field(description="Of the report, a page; its figures lie beside it, `drift.json`.")
    message: str = Field(description="The verdict and what changed, in words.")
    drifted: bool


class ReloadResponse(_Response):
    """What became of a reload."""

    model_id: str
    changed: bool


@dataclass(frozen=True)
class Upload:
    """A file as it was sent."""

    filename: str | None
    data: bytes


@dataclass(frozen=True)
class PredictionResult:
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
    def of(cls, filename: str | None, prediction: Prediction, mask_png: bytes) -> "PredictionResult":
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

    def to_schema(self, *, with_mask: bool = True) -> PredictionResponse:
        """Return it as an answer to a form, which names its files."""
        return PredictionResponse(filename=self.filename, **self._fields(with_mask=with_mask))

    def to_loaded_schema(self) -> BentoPredictionResponse:
        """Return it as an answer that also says that there is a model."""
        return BentoPredictionResponse(model_loaded=True, **self._fields())

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


def describe(segmenter: Segmenter) -> ModelResponse:
    """Describe a model."""
    info = segmenter.info
    return ModelResponse(
        name=info.name,
        version=info.version,
        description=info.description,
        model_id=segmenter.model_id,
        profile=segmenter.profile,
        input_shape=info.input_shape,
        output_shape=("H", "W"),
        framework=info.framework,
        license=info.license,
        classes=tuple(ClassInfo(id=entry.id, name=entry.name, colour=entry.colour) for entry in CLASSES),
        quality=info.quality,
    )
