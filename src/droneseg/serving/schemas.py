"""What the services answer, field by field: the same for both backends."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
# of a length, rather than one type for each place: the latter is new in OpenAPI 3.1, and many generators fail on it
Two = Field(min_length=2, max_length=2)
Three = Field(min_length=3, max_length=3)


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, protected_namespaces=())


class _PlainPredictionAnswer(_Answer):
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


class PredictionAnswer(_PlainPredictionAnswer):
    """What is where in one photograph of a form, which names its files."""

    filename: str | None = Field(description="As it was sent.")


class LoadedPredictionAnswer(_PlainPredictionAnswer):
    """What is where in one photograph that came without a name."""

    model_loaded: bool = Field(description="True: without a model there is no answer.")


class ErrorDetail(_Answer):
    """What went wrong."""

    code: str = Field(description="Stable word for programs.")
    message: str = Field(description="For people: what is wrong, and what to do.")


class ErrorAnswer(_Answer):
    """The body of every failed request."""

    error: ErrorDetail


class FailedItem(_Answer):
    """A file of a batch that could not be predicted."""

    filename: str | None
    error: ErrorDetail


class ClassAnswer(_Answer):
    """A class of the masks."""

    id: int
    name: str
    colour: Annotated[tuple[int, ...], Three] = Field(description="RGB in the masks' palette.")


class ModelAnswer(_Answer):
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
    classes: tuple[ClassAnswer, ...]
    quality: dict[str, Any] | None = Field(description="Figures on held-out photographs, with what photographs.")


class StatusAnswer(_Answer):
    """A service and where to go on."""

    service: str
    version: str
    ready: bool
    model_id: str | None
    links: dict[str, str]


class HealthAnswer(_Answer):
    """Whether the process lives, or is ready."""

    status: str


class DriftAnswer(_Answer):
    """Whether photographs are still like those the model was validated on."""

    url: str = Field(description="Of the report, a page; its figures lie beside it, `drift.json`.")
    message: str = Field(description="The verdict and what changed, in words.")
    drifted: bool


class ReloadAnswer(_Answer):
    """What became of a reload."""

    model_id: str
    changed: bool
