"""OpenAPI examples and response documentation."""

from typing import Any

from droneseg.core import errors
from droneseg.core.camera import GIVEN_HEIGHT_RANGE_M, GSD_RANGE_M, WarningCode, explain
from droneseg.core.classes import DEFAULT_CLASSES, UNSAFE_ROLES, ClassTable, Role
from droneseg.core.landing_grid import LandingLimits, LandingPolicy
from droneseg.inference.landing import REASON_MESSAGES, LandingOptions, NoSiteReason
from droneseg.monitoring.drift import features_of
from droneseg.serving.error_responses import ERROR_SPECS, INTERNAL_ERROR, ErrorSpec
from droneseg.serving.request_body import FILE_FIELD
from droneseg.serving.schemas import ErrorResponse, PredictionOptions, class_infos

_Responses = dict[int | str, dict[str, Any]]

DESCRIPTION = """Semantic segmentation of drone images for safe landing.

A mask is a palette PNG: pixel values are class ids, and the palette holds the class colours. Every prediction comes
from a verified model; without one, the service responds with 503.
"""
LINKS = {"page": "/ui", "documentation": "/docs", "model": "/model_info", "metrics": "/metrics", "ready": "/readyz"}

_GROUND = {
    "gsd_m": 0.0172,
    "gsd_error": 0.25,
    "source": "height",
    "height_m": 40.0,
    "pitch_deg": -90.0,
    "model_gsd_m": 0.025,
    "scale": 0.688,
    "warnings": [WarningCode.HEIGHT_ABOVE_TAKEOFF],
}


def _prediction(classes: ClassTable) -> dict[str, Any]:
    """Return an example of a prediction."""
    shares = dict.fromkeys(classes.names, 0.0)
    for number, share in ((1, 0.08), (len(classes) // 2, 0.31), (len(classes) - 1, 0.61)):
        shares[classes[number].name] = round(shares[classes[number].name] + share, 2)
    return {
        "filename": "flight-0001.png",
        "prediction_shape": [736, 960],
        "classes_found": [entry.id for entry in classes if shares[entry.name]],
        "segmentation_mask": "iVBORw0KGgoAAAANSUhEUg...",
        "class_fractions": shares,
        "confidence": 0.93,
        "model_id": "0123456789ab",
        "timings_s": {
            "queue": 0.0,
            "decode": 0.03,
            "preprocess": 0.0,
            "network": 0.05,
            "postprocess": 0.0,
            "encode": 0.01,
        },
        "ground": _GROUND,
        "warnings": [warning.model_dump() for warning in explain((WarningCode.HEIGHT_ABOVE_TAKEOFF,))],
    }


def _form_body(files: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    schema = {"type": "object", "required": [FILE_FIELD], "properties": {FILE_FIELD: files, **options}}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def _option(name: str, kind: dict[str, Any]) -> dict[str, Any]:
    return {**kind, "description": PredictionOptions.model_fields[name].description}


def _per_file(name: str, kind: dict[str, Any]) -> dict[str, Any]:
    option = _option(name, {"type": "array", "items": kind})
    return {**option, "description": f"{option['description']} One value for all files, or one per file."}


_FILE = {"type": "string", "format": "binary", "description": "JPEG, PNG, WebP, TIFF or BMP image."}
_OPTIONS: dict[str, dict[str, Any]] = {
    "gsd_m": {"type": "number", "minimum": GSD_RANGE_M[0], "maximum": GSD_RANGE_M[1]},
    "height_m": {"type": "number", "minimum": GIVEN_HEIGHT_RANGE_M[0], "maximum": GIVEN_HEIGHT_RANGE_M[1]},
    "plain": {"type": "boolean"},
}
ONE_FILE = _form_body(_FILE, {name: _option(name, kind) for name, kind in _OPTIONS.items()})
_LANDING_OPTIONS: dict[str, dict[str, Any]] = LandingOptions.model_json_schema()["properties"]
_LENGTHS: dict[str, dict[str, Any]] = {
    # the first of two types; the other one is null, which forms do not have
    name: {**schema["anyOf"][0], "description": schema["description"]}
    for name, schema in _LANDING_OPTIONS.items()
    if "anyOf" in schema
}
ONE_LANDING_FILE = _form_body(
    _FILE,
    {
        **{name: _option(name, kind) for name, kind in _OPTIONS.items()},
        **_LENGTHS,
        "max_sites": _LANDING_OPTIONS["max_sites"],
        "allow": {
            "type": "string",
            "description": f"{_LANDING_OPTIONS['allow']['description']} Separated by commas.",
        },
    },
)
MANY_FILES = _form_body(
    {"type": "array", "items": _FILE, "minItems": 1}, {name: _per_file(name, kind) for name, kind in _OPTIONS.items()}
)


def _error_responses(*kinds: type[Exception]) -> _Responses:
    """Return the documentation of these errors by status, with one example per error code."""
    responses: _Responses = {}
    for spec in (*(ERROR_SPECS[kind] for kind in kinds), INTERNAL_ERROR):
        response = responses.setdefault(spec.status, {"model": ErrorResponse, "description": ""})
        response["description"] = f"{response['description']} {spec.meaning}".strip()
        examples = response.setdefault("content", {}).setdefault("application/json", {}).setdefault("examples", {})
        examples[spec.code] = {"value": _error_body(spec)}
    return responses


def _error_body(spec: ErrorSpec) -> dict[str, Any]:
    return {"error": {"code": spec.code, "message": spec.meaning}}


_BODY_ERRORS = (
    errors.MalformedRequestError,
    errors.UnauthorizedError,
    errors.SlowRequestError,
    errors.RequestTooLargeError,
    errors.TooManyFilesError,
    errors.WrongContentTypeError,
    errors.MissingInputError,
    errors.QueueFullError,
    errors.NotReadyError,
)
_IMAGE_ERRORS = (
    errors.BrokenImageError,
    errors.ImageTooLargeError,
    errors.UnsupportedImageError,
    errors.TooLateError,
    errors.ModelError,
)


def _responses(example: object, *kinds: type[Exception], media_type: str = "application/json") -> _Responses:
    """Return the documentation of a successful response and of these errors."""
    return {200: {"content": {media_type: {"example": example}}}, **(_error_responses(*kinds) if kinds else {})}


LIVE = _responses({"status": "alive"})
READY = _responses({"status": "ready"}, errors.NotReadyError)
STATUS = _responses(
    {"service": "droneseg", "version": "0.1.0", "ready": True, "model_id": "0123456789ab", "links": LINKS}
)


def _model(classes: ClassTable) -> dict[str, Any]:
    """Return an example of the description of a model."""
    return {
        "name": "droneseg",
        "version": "0.1.0",
        "description": "Segmentation of drone images",
        "model_id": "0123456789ab",
        "profile": "fast",
        "input_shape": [768, 960, 3],
        "output_shape": ["H", "W"],
        "framework": "OpenVINO bf16",
        "self_check": "OpenVINO bf16 passed; its difference is 0.0077 and the limit 0.08",
        "license": "see MODEL_LICENSE.md",
        "classes": [entry.model_dump(mode="json") for entry in class_infos(classes)],
        "quality": {"miou": {"value": 0.75, "low": 0.72, "high": 0.77}},
    }


def _drift(classes: ClassTable) -> dict[str, Any]:
    """Return an example of the answer about drift."""
    return {
        "url": "gs://bucket/reports/2026/11/23/drift-120000-3f2a1c/drift.html",
        "message": "Drift: the last 200 images differ from the validation images in 1 of "
        f"{len(features_of(classes))} features. The images are darker: brightness 0.21 instead of 0.45, since "
        "2026-11-21.",
        "drifted": True,
    }


MODEL = _responses(_model(DEFAULT_CLASSES), errors.UnauthorizedError, errors.NotReadyError)
DRIFT = _responses(
    _drift(DEFAULT_CLASSES),
    errors.UnauthorizedError,
    errors.DriftError,
    errors.MissingInputError,
    errors.MissingDependencyError,
    errors.NotReadyError,
    errors.RecordsError,
    errors.TooLateError,
    errors.ModelError,
)
RELOAD = _responses(
    {"model_id": "0123456789ab", "changed": True},
    errors.UnauthorizedError,
    errors.ModelRefusedError,
    errors.NotReadyError,
)
METRICS = _responses(
    'droneseg_requests_total{endpoint="/predict",status="200"} 42.0', errors.UnauthorizedError, media_type="text/plain"
)
PREDICT: _Responses = {
    200: {
        "description": "Segmentation of the image.",
        "content": {
            "application/json": {"example": _prediction(DEFAULT_CLASSES)},
            "image/png": {"schema": {"type": "string", "format": "binary"}},
        },
        "headers": {
            "X-Warnings": {
                "description": "Codes of the warnings, separated by commas; only with `image/png`, absent without any.",
                "schema": {"type": "string"},
                "example": "unknown_scale",
            }
        },
    },
    **_error_responses(*_BODY_ERRORS, *_IMAGE_ERRORS),
}


def _landing(classes: ClassTable, policy: LandingLimits) -> dict[str, Any]:
    """Return examples of answers about landing sites; none for a model without a landing role."""
    landing = [classes[i].name for i in classes.ids_of(Role.LANDING)]
    if not landing:
        return {}
    knows_people = classes.has(Role.MOVING)
    clearances = {classes[i].name: 240.0 + 160 * index for index, i in enumerate(classes.ids_of(*UNSAFE_ROLES))}
    site = {
        "rank": 1,
        "x_px": 512.5,
        "y_px": 300.5,
        "lon": None,
        "lat": None,
        "radius_px": 155.0,
        "radius_m": 2.0,
        "area_m2": 41.0,
        "clearance_px": clearances,
        "clearance_m": {name: round(pixels * 0.0129, 2) for name, pixels in clearances.items()},
        "class": landing[0],
        "min_probability": 0.962,
        "mean_probability": 0.988,
        "score": 0.71,
    }
    answer = {
        "decision": "site",
        "reason": None,
        "message": "1 site; the best has room for a radius of 2.0 m.",
        "sites": [site],
        "policy": {
            **policy.model_dump(mode="json", include=set(LandingLimits.model_fields)),
            "radius_m": 1.5,
            "clearance_m": 1.0,
            "clearance_people_m": 5.0 if knows_people else None,
            "radius_px": 116.3,
            "clearance_px": 77.5,
            "clearance_people_px": 387.6 if knows_people else None,
            "allow": landing,
        },
        "ground": _GROUND,
        "model_id": "0123456789ab",
    }
    reason = NoSiteReason.PEOPLE_NEAR if knows_people else NoSiteReason.TOO_SMALL
    none = {
        **answer,
        "decision": "no_safe_site",
        "reason": reason,
        "message": REASON_MESSAGES[reason],
        "sites": [],
    }
    return {"site": {"value": answer}, "no_safe_site": {"value": none}}


EXAMPLE_POLICY = LandingPolicy(alpha=0.05, bound=0.064, calibrated_on="212 photographs of 19 places")
LANDING: _Responses = {
    200: {
        "description": "Landing sites, or the reason why there is none.",
        "content": {"application/json": {"examples": _landing(DEFAULT_CLASSES, EXAMPLE_POLICY)}},
    },
    **_error_responses(*_BODY_ERRORS, *_IMAGE_ERRORS, errors.LandingRoleError),
}
_BATCH_ITEM_ERROR = {"filename": "notes.txt", **_error_body(ERROR_SPECS[errors.UnsupportedImageError])}
BATCH: _Responses = {
    200: {
        "description": "One item per file, in the order of the request.",
        "content": {"application/json": {"example": [_prediction(DEFAULT_CLASSES), _BATCH_ITEM_ERROR]}},
    },
    **_error_responses(*_BODY_ERRORS),
}


def describe_model(schema: dict[str, Any], classes: ClassTable, policy: LandingPolicy) -> None:
    """Replace the examples in an OpenAPI schema by those of a model.

    Args:
        schema: OpenAPI schema, which is changed.
        classes: Classes of the model.
        policy: Limits of the model for landing sites.
    """
    prediction = _prediction(classes)
    examples: dict[tuple[str, str], dict[str, Any]] = {
        ("/predict", "post"): {"example": prediction},
        ("/batch_predict", "post"): {"example": [prediction, _BATCH_ITEM_ERROR]},
        ("/landing_sites", "post"): {"examples": _landing(classes, policy)},
        ("/model_info", "get"): {"example": _model(classes)},
        ("/drift", "get"): {"example": _drift(classes)},
    }
    for (path, method), content in examples.items():
        schema["paths"][path][method]["responses"]["200"]["content"]["application/json"].update(content)
