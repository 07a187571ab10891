"""Request and response models shared by both backends."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, RootModel, model_validator
from pydantic_core import PydanticCustomError

from droneseg.core.camera import GIVEN_HEIGHT_RANGE_M, GSD_RANGE_M, Ground, PredictionWarning
from droneseg.core.classes import ClassTable, Role
from droneseg.core.landing_grid import LENGTHS, OPTION_CONFLICT
from droneseg.core.overlay import HATCHING, Hatching
from droneseg.core.prediction import Prediction, Segmenter
from droneseg.inference.landing import CLEARANCE_PEOPLE_M, RADIUS_M, LandingAnswer, LandingOptions

Share = Annotated[float, Field(ge=0, le=1)]
# lengths instead of tuple[int, int]: OpenAPI 3.1 only has `prefixItems`, which many client generators do not support
Two = Field(min_length=2, max_length=2)
Three = Field(min_length=3, max_length=3)


class _Response(BaseModel):
    model_config = ConfigDict(frozen=True, protected_namespaces=())


class _PredictionFields(_Response):
    prediction_shape: Annotated[tuple[int, ...], Two] = Field(
        description="Height and width of the mask; the same as those of the image."
    )
    classes_found: tuple[int, ...] = Field(description="Class ids that occur in the mask.")
    segmentation_mask: str | None = Field(
        None,
        description="Base64-encoded palette PNG: pixel values are class ids, the palette holds the class colours. "
        "Absent with `mask=none`.",
    )
    class_fractions: dict[str, Share] = Field(description="Share of the pixels per class, for all classes.")
    confidence: Share = Field(description="Mean probability of the predicted class over all pixels.")
    model_id: str = Field(description="Id of the model that made the prediction.")
    timings_s: dict[str, float] = Field(description="Duration of each processing stage in seconds.")
    ground: Ground = Field(description="Ground resolution of the image, and how it was resampled for the model.")
    warnings: tuple[PredictionWarning, ...] = Field(
        description="Warnings about the result, with code and message; empty if there are none."
    )


class PredictionResponse(_PredictionFields):
    """Segmentation of one image that was sent in a form."""

    filename: str | None = Field(description="File name as sent.")


class BentoPredictionResponse(_PredictionFields):
    """Segmentation of one image that was sent without a file name."""

    model_loaded: bool = Field(description="Always true; without a model the response is an error.")


class ErrorDetail(_Response):
    """Code and message of an error."""

    code: str = Field(description="Stable, machine-readable error code.")
    message: str = Field(description="Human-readable description of the problem and its remedy.")


class ErrorResponse(_Response):
    """Body of every failed request."""

    error: ErrorDetail


class BatchItemError(_Response):
    """File of a batch that could not be segmented."""

    filename: str | None = Field(description="File name as sent.")
    error: ErrorDetail


class BatchResponse(RootModel[list[PredictionResponse | BatchItemError]]):
    """Results of a batch request, one item per file, in the order of the request."""


class ClassInfo(_Response):
    """Segmentation class."""

    id: int
    name: str
    colour: Annotated[tuple[int, ...], Three] = Field(description="RGB colour in the palette of the masks.")
    role: Role | None = Field(description="What the class means for landing; null if nothing.")
    display: Annotated[tuple[int, ...], Three] = Field(description="RGB colour in overlays.")


class PageSettings(_Response):
    """Constants of the web page."""

    classes: tuple[ClassInfo, ...]
    hatching: Hatching = HATCHING
    radius_m: float = RADIUS_M
    clearance_people_m: float = CLEARANCE_PEOPLE_M


class ModelResponse(_Response):
    """Description of the active model."""

    name: str
    version: str
    description: str
    model_id: str
    profile: str
    input_shape: Annotated[tuple[int, ...], Three] = Field(
        description="Input size of the network: height, width, channels. Images may have any size."
    )
    output_shape: Annotated[tuple[str, ...], Two] = Field(
        description="Height and width of the mask; the same as those of the image."
    )
    framework: str
    self_check: str = Field(description="Result of the check of the runtime at load; names refused runtimes.")
    license: str
    classes: tuple[ClassInfo, ...]
    quality: dict[str, Any] | None = Field(description="Metrics on held-out images and a description of these images.")


class StatusResponse(_Response):
    """State of the service and links to its pages."""

    service: str
    version: str
    ready: bool
    model_id: str | None
    links: dict[str, str]


class HealthResponse(_Response):
    """Result of a health check."""

    status: str


class DriftResponse(_Response):
    """Result of a drift report."""

    url: str = Field(description="URL of the HTML report; its metrics are in `drift.json` in the same folder.")
    message: str = Field(description="Result and the features that changed, in one sentence.")
    drifted: bool = Field(description="Whether recent images differ from the validation images.")


class ReloadResponse(_Response):
    """Result of a model reload."""

    model_id: str = Field(description="Id of the active model.")
    changed: bool = Field(description="Whether the active model changed.")


MISNAMED_OPTIONS = {"gsd": "gsd_m", "height": "height_m"}
"""Names of command-line options, which would otherwise be ignored, and the names to use instead."""
MISNAMED_LENGTHS = {name: f"{name}_m or {name}_px" for name in LENGTHS}
"""The same for the lengths of landing sites."""


class PredictionOptions(BaseModel):
    """Options of one image: its scale, if the client gives it, and how to segment it."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow")

    gsd_m: float | None = Field(
        None,
        ge=GSD_RANGE_M[0],
        le=GSD_RANGE_M[1],
        description="Metres per pixel of the image; replaces the scale in the metadata.",
    )
    height_m: float | None = Field(
        None,
        ge=GIVEN_HEIGHT_RANGE_M[0],
        le=GIVEN_HEIGHT_RANGE_M[1],
        description="Height of the camera above ground in metres; replaces the height in the metadata.",
    )
    plain: bool = Field(
        False, description="Apply the network to the pixels as they are: no resampling, context or exposure correction."
    )

    @model_validator(mode="after")
    def _check_names(self) -> PredictionOptions:
        for wrong in MISNAMED_OPTIONS.keys() & (self.model_extra or {}).keys():
            message = f"{wrong} is not an option. Send {MISNAMED_OPTIONS[wrong]}, in metres."
            raise PydanticCustomError(OPTION_CONFLICT, "{message}", {"message": message})
        return self

    @model_validator(mode="after")
    def _check_scale(self) -> PredictionOptions:
        if self.gsd_m is not None and self.height_m is not None:
            raise PydanticCustomError(OPTION_CONFLICT, "gsd_m and height_m are both given. Send one of them.")
        return self


class LandingRequestOptions(PredictionOptions, LandingOptions):
    """Options of one image whose landing sites are requested."""

    model_config = ConfigDict(frozen=True, strict=False, extra="allow")

    @model_validator(mode="after")
    def _check_lengths(self) -> LandingRequestOptions:
        for wrong in MISNAMED_LENGTHS.keys() & (self.model_extra or {}).keys():
            message = f"{wrong} is not an option. Send {MISNAMED_LENGTHS[wrong]}."
            raise PydanticCustomError(OPTION_CONFLICT, "{message}", {"message": message})
        return self

    @property
    def landing(self) -> LandingOptions:
        """Requirements for the landing sites."""
        return LandingOptions(**{name: getattr(self, name) for name in LandingOptions.model_fields})


DEFAULT_OPTIONS = PredictionOptions()
"""Options of an image if the client gives none."""


@dataclass(frozen=True)
class Upload:
    """Image file and options as sent by the client."""

    filename: str | None
    data: bytes
    options: PredictionOptions = DEFAULT_OPTIONS

    @property
    def landing(self) -> LandingOptions | None:
        """Requirements for the landing sites; None if no landing sites are requested."""
        return self.options.landing if isinstance(self.options, LandingRequestOptions) else None


@dataclass(frozen=True)
class PredictionResult:
    """Prediction for one upload, without the pixel arrays, which would fill the memory while responses are sent.

    Attributes:
        filename: File name as sent.
        shape: Height and width of the mask.
        classes: Class table of the mask.
        class_fractions: Share of the pixels per class, for all classes.
        confidence: Mean probability of the predicted class over all pixels.
        model_id: Id of the model.
        timings_s: Duration of each processing stage in seconds.
        ground: Ground resolution, resampling and warning codes.
        warnings: Warnings in words.
        mask_png: Encoded mask, byte for byte the file that `droneseg predict` writes.
        landing: Landing sites, if they were requested.
    """

    filename: str | None
    shape: tuple[int, int]
    classes: ClassTable
    class_fractions: dict[str, float]
    confidence: float
    model_id: str
    timings_s: dict[str, float]
    ground: Ground
    warnings: tuple[PredictionWarning, ...]
    mask_png: bytes
    landing: LandingAnswer | None = None

    @classmethod
    def of(
        cls, filename: str | None, prediction: Prediction, mask_png: bytes, landing: LandingAnswer | None = None
    ) -> PredictionResult:
        """Return the result of a prediction and its encoded mask."""
        height, width = prediction.mask.shape
        return cls(
            filename,
            (height, width),
            prediction.classes,
            prediction.class_fractions,
            prediction.confidence,
            prediction.model_id,
            prediction.timings_s,
            prediction.ground,
            prediction.warnings,
            mask_png,
            landing,
        )

    def to_response(self, *, with_mask: bool = True) -> PredictionResponse:
        """Return the response of the FastAPI backend."""
        return PredictionResponse(filename=self.filename, **self._fields(with_mask=with_mask))

    def to_bento_response(self) -> BentoPredictionResponse:
        """Return the response of the BentoML backend."""
        return BentoPredictionResponse(model_loaded=True, **self._fields())

    def _fields(self, *, with_mask: bool = True) -> dict[str, Any]:
        return {
            "prediction_shape": self.shape,
            "classes_found": tuple(entry.id for entry in self.classes if self.class_fractions[entry.name] > 0),
            "segmentation_mask": base64.b64encode(self.mask_png).decode() if with_mask else None,
            "class_fractions": self.class_fractions,
            "confidence": min(1.0, self.confidence),
            "model_id": self.model_id,
            "timings_s": self.timings_s,
            "ground": self.ground,
            "warnings": self.warnings,
        }


def class_infos(classes: ClassTable) -> tuple[ClassInfo, ...]:
    """Return all classes with their ids, colours and roles."""
    return tuple(
        ClassInfo(
            id=entry.id,
            name=entry.name,
            colour=entry.colour,
            role=entry.role,
            display=classes.display_colour(entry.id),
        )
        for entry in classes
    )


def model_response(segmenter: Segmenter) -> ModelResponse:
    """Return the description of a model."""
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
        self_check=info.self_check,
        license=info.license,
        classes=class_infos(segmenter.classes),
        quality=info.quality,
    )
