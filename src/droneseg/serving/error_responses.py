"""Error codes, HTTP statuses and error responses, shared by both backends."""

import math
from dataclasses import dataclass
from http import HTTPStatus

from starlette.responses import Response

from droneseg.core import errors
from droneseg.serving.schemas import ErrorDetail, ErrorResponse


@dataclass(frozen=True)
class ErrorSpec:
    """HTTP representation of an exception class.

    Attributes:
        status: HTTP status.
        code: Stable, machine-readable error code.
        meaning: One sentence for the API documentation.
    """

    status: int
    code: str
    meaning: str


_INVALID_REQUEST = ErrorSpec(422, "invalid_request", "A field is missing or a value is not allowed.")
# a subclass precedes its base class
ERROR_SPECS: dict[type[Exception], ErrorSpec] = {
    errors.MalformedRequestError: ErrorSpec(400, "malformed_request", "The body does not match its headers."),
    errors.BrokenImageError: ErrorSpec(400, "broken_image", "The image is truncated or corrupt."),
    errors.UnauthorizedError: ErrorSpec(401, "unauthorized", "The API key is missing or wrong."),
    errors.SlowRequestError: ErrorSpec(408, "slow_request", "The body did not arrive in time."),
    errors.ModelRefusedError: ErrorSpec(
        409, "model_refused", "The new model failed verification. The current model stays active."
    ),
    errors.DriftError: ErrorSpec(409, "no_verdict", "A drift test is not possible, for example with too few records."),
    errors.RequestTooLargeError: ErrorSpec(413, "request_too_large", "The body is larger than the limit."),
    errors.TooManyFilesError: ErrorSpec(413, "too_many_files", "The request has more files than the limit."),
    errors.ImageTooLargeError: ErrorSpec(413, "image_too_large", "The image has more pixels than the limit."),
    errors.WrongContentTypeError: ErrorSpec(
        415, "wrong_content_type", "The endpoint does not accept this content type."
    ),
    errors.UnsupportedImageError: ErrorSpec(
        415, "unsupported_image", "The file is not an image in a supported format."
    ),
    errors.MissingInputError: _INVALID_REQUEST,
    errors.LandingClassError: _INVALID_REQUEST,
    errors.LandingRoleError: ErrorSpec(422, "no_landing_role", "The model has no class to land on."),
    errors.QueueFullError: ErrorSpec(429, "queue_full", "The queue is full; see the `Retry-After` header."),
    errors.MissingDependencyError: ErrorSpec(501, "not_installed", "An optional dependency is not installed."),
    errors.RecordsError: ErrorSpec(
        503, "records_unavailable", "The records cannot be read or the report cannot be written."
    ),
    errors.NotReadyError: ErrorSpec(503, "not_ready", "No verified model is loaded."),
    errors.TooLateError: ErrorSpec(504, "too_late", "The request could not be finished in time."),
    errors.ModelError: ErrorSpec(500, "model_failed", "The model failed to make a prediction."),
}
INTERNAL_ERROR = ErrorSpec(500, "internal_error", "Internal server error. Search the log for the request id.")
_PATH_ERROR_CODES = {404: "not_found", 405: "method_not_allowed"}


def error_spec(error: Exception) -> ErrorSpec:
    """Return the HTTP representation of an error; an unexpected error is an internal error."""
    return next((spec for kind, spec in ERROR_SPECS.items() if isinstance(error, kind)), INTERNAL_ERROR)


def client_message(error: Exception) -> str:
    """Return the message of an expected error, or a generic one that reveals nothing about an unexpected error."""
    return str(error) if error_spec(error) is not INTERNAL_ERROR else INTERNAL_ERROR.meaning


def status_code_name(status: int) -> str:
    """Return the error code for an HTTP status that the framework or the server set."""
    return _PATH_ERROR_CODES.get(status) or HTTPStatus(status).phrase.lower().replace(" ", "_")


def error_response(error: Exception, detail: ErrorDetail) -> Response:
    """Return the response to a failed request.

    Args:
        error: Error that determines status and headers.
        detail: Error code and message, see `PredictionService.error_detail`.
    """
    status, headers = error_spec(error).status, {}
    if isinstance(error, errors.QueueFullError):
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return _json_error(status, detail, headers)


def http_error_response(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    """Return the response to a request that the framework rejected."""
    return _json_error(status, ErrorDetail(code=status_code_name(status), message=message), headers or {})


def path_error_response(status: HTTPStatus, path: str, headers: dict[str, str] | None = None) -> Response:
    """Return the response for a path that does not exist or does not allow the method."""
    return http_error_response(status, f"{status.phrase}: {path}", headers)


def _json_error(status: int, detail: ErrorDetail, headers: dict[str, str]) -> Response:
    return Response(ErrorResponse(error=detail).model_dump_json(), status, headers, media_type="application/json")
