"""OpenAPI examples and response documentation."""

from typing import Any

from droneseg.core import errors
from droneseg.core.classes import CLASSES, NAMES
from droneseg.serving.error_responses import ERROR_SPECS, INTERNAL, ErrorSpec
from droneseg.serving.request_body import FIELD
from droneseg.serving.schemas import ErrorResponse

DESCRIPTION = """Photographs from a drone in, masks out: obstacles, water, soft surfaces, moving objects, landing zones.

A mask is a palette PNG: its indices are class ids, its palette their colours. An answer is always the model's;
when there is none, the status says so.
"""
LINKS = {"page": "/ui", "documentation": "/docs", "model": "/model_info", "metrics": "/metrics", "ready": "/readyz"}

_EXAMPLE = {
    "filename": "flight-0001.png",
    "prediction_shape": [736, 960],
    "classes_found": [1, 3, 5],
    "segmentation_mask": "iVBORw0KGgoAAAANSUhEUg...",
    "class_fractions": dict.fromkeys(NAMES, 0.0) | {"obstacles": 0.08, "soft-surfaces": 0.31, "landing-zones": 0.61},
    "confidence": 0.93,
    "model_id": "0123456789ab",
    "timings_s": {"queue": 0.0, "decode": 0.03, "preprocess": 0.0, "network": 0.05, "postprocess": 0.0, "encode": 0.01},
}


def _file_body(schema: dict[str, Any]) -> dict[str, Any]:
    content = {"schema": {"type": "object", "required": [FIELD], "properties": {FIELD: schema}}}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": content}}}


_FILE = {"type": "string", "format": "binary", "description": "JPEG, PNG, WebP, TIFF or BMP."}
ONE_FILE = _file_body(_FILE)
MANY_FILES = _file_body({"type": "array", "items": _FILE, "minItems": 1})


def _failures(*kinds: type[Exception]) -> dict[int | str, dict[str, Any]]:
    """Return the documentation of these errors, with an example of each, by status."""
    found: dict[int | str, dict[str, Any]] = {}
    for failure in (*(ERROR_SPECS[kind] for kind in kinds), INTERNAL):
        entry = found.setdefault(failure.status, {"model": ErrorResponse, "description": ""})
        entry["description"] = f"{entry['description']} {failure.meaning}".strip()
        examples = entry.setdefault("content", {}).setdefault("application/json", {}).setdefault("examples", {})
        examples[failure.code] = {"value": _error(failure)}
    return found


def _error(failure: ErrorSpec) -> dict[str, Any]:
    return {"error": {"code": failure.code, "message": failure.meaning}}


_BODY = (
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
_IMAGE = (
    errors.BrokenImageError,
    errors.ImageTooLargeError,
    errors.UnsupportedImageError,
    errors.TooLateError,
    errors.ModelError,
)


def _answer(example: object, *kinds: type[Exception], media_type: str = "application/json") -> dict[int | str, Any]:
    return {200: {"content": {media_type: {"example": example}}}, **(_failures(*kinds) if kinds else {})}


LIVE = _answer({"status": "alive"})
READY = _answer({"status": "ready"}, errors.NotReadyError)
STATUS = _answer({"service": "droneseg", "version": "0.1.0", "ready": True, "model_id": "0123456789ab", "links": LINKS})
MODEL = _answer(
    {
        "name": "droneseg",
        "version": "0.1.0",
        "description": "Segmentation of photographs from drones",
        "model_id": "0123456789ab",
        "profile": "fast",
        "input_shape": [768, 960, 3],
        "output_shape": ["H", "W"],
        "framework": "OpenVINO bf16",
        "license": "see MODEL_LICENSE.md",
        "classes": [{"id": entry.id, "name": entry.name, "colour": entry.colour} for entry in CLASSES],
        "quality": {"miou": {"value": 0.75, "low": 0.72, "high": 0.77}},
    },
    errors.UnauthorizedError,
    errors.NotReadyError,
)
DRIFT = _answer(
    {
        "url": "gs://bucket/reports/2026/11/23/drift-120000-3f2a1c/drift.html",
        "message": "Drift: the last 200 photographs are not like those the model was validated on (1 of 14 figures "
        "differ). They are darker: brightness 0.21 instead of 0.45, since 2026-11-21.",
        "drifted": True,
    },
    errors.UnauthorizedError,
    errors.DriftError,
    errors.MissingInputError,
    errors.MissingDependencyError,
    errors.NotReadyError,
    errors.RecordsError,
    errors.TooLateError,
    errors.ModelError,
)
RELOAD = _answer(
    {"model_id": "0123456789ab", "changed": True},
    errors.UnauthorizedError,
    errors.ModelRefusedError,
    errors.NotReadyError,
)
METRICS = _answer(
    'droneseg_requests_total{endpoint="/predict",status="200"} 42.0', errors.UnauthorizedError, media_type="text/plain"
)
PREDICT: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "What is where.",
        "content": {
            "application/json": {"example": _EXAMPLE},
            "image/png": {"schema": {"type": "string", "format": "binary"}},
        },
    },
    **_failures(*_BODY, *_IMAGE),
}
_FAILED_ITEM = {"filename": "notes.txt", **_error(ERROR_SPECS[errors.UnsupportedImageError])}
BATCH: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "One item per file, in order.",
        "content": {"application/json": {"example": [_EXAMPLE, _FAILED_ITEM]}},
    },
    **_failures(*_BODY),
}
