"""Error codes, HTTP status table and error responses."""

import math
from dataclasses import dataclass
from http import HTTPStatus

from starlette.responses import Response

from droneseg.core import errors
from droneseg.core.errors import QueueFullError
from droneseg.serving.schemas import ErrorDetail, ErrorResponse


@dataclass(frozen=True)
class ErrorSpec:
    """How an error is answered.

    Attributes:
        status: HTTP status.
        code: Stable word for programs.
        meaning: One sentence for the documentation.
    """

    status: int
    code: str
    meaning: str


# A subclass stands before its base.
ERROR_SPECS: dict[type[Exception], ErrorSpec] = {
    errors.MalformedRequestError: ErrorSpec(400, "malformed_request", "The body is not what its headers say."),
    errors.BrokenImageError: ErrorSpec(400, "broken_image", "The image is truncated or corrupt."),
    errors.UnauthorizedError: ErrorSpec(401, "unauthorized", "The API key is missing or wrong."),
    errors.SlowRequestError: ErrorSpec(408, "slow_request", "The body did not arrive in time."),
    errors.ModelRefusedError: ErrorSpec(409, "model_refused", "The new model does not verify; the old one goes on."),
    errors.DriftError: ErrorSpec(409, "no_verdict", "There is too little to tell drift by."),
    errors.RequestTooLargeError: ErrorSpec(413, "request_too_large", "The body is larger than the limit."),
    errors.TooManyFilesError: ErrorSpec(413, "too_many_files", "There are more files than the limit."),
    errors.ImageTooLargeError: ErrorSpec(413, "image_too_large", "The image has more pixels than the limit."),
    errors.WrongContentTypeError: ErrorSpec(415, "wrong_content_type", "The endpoint takes another kind of body."),
    errors.UnsupportedImageError: ErrorSpec(415, "unsupported_image", "The file is no image of an accepted kind."),
    errors.MissingInputError: ErrorSpec(422, "invalid_request", "A field is missing, or a value is not allowed."),
    errors.QueueFullError: ErrorSpec(429, "queue_full", "More work waits than can be done in time; see Retry-After."),
    errors.MissingDependencyError: ErrorSpec(501, "not_installed", "An optional part of droneseg is not installed."),
    errors.RecordsError: ErrorSpec(503, "records_unavailable", "Records cannot be read, or a report not be written."),
    errors.NotReadyError: ErrorSpec(503, "not_ready", "There is no verified model."),
    errors.TooLateError: ErrorSpec(504, "too_late", "The answer would not have been there in time."),
    errors.ModelError: ErrorSpec(500, "model_failed", "The model gave no usable answer."),
}
INTERNAL = ErrorSpec(500, "internal_error", "A fault of the service; its log says more under the request's id.")
_OTHER_CODES = {404: "not_found", 405: "method_not_allowed"}


def error_spec(error: Exception) -> ErrorSpec:
    """Return how an error is answered; one that nobody expected is the service's own fault."""
    return next((failure for kind, failure in ERROR_SPECS.items() if isinstance(error, kind)), INTERNAL)


def message_of(error: Exception) -> str:
    """Return what a client is told: an expected error's own words, and nothing of the inside of any other."""
    return str(error) if error_spec(error) is not INTERNAL else INTERNAL.meaning


def code_of_status(status: int) -> str:
    """Return the code of a failure that the framework found, such as a path that is not there."""
    return _OTHER_CODES.get(status) or HTTPStatus(status).phrase.lower().replace(" ", "_")


def error_response(error: Exception, detail: ErrorDetail) -> Response:
    """Return the answer to a request that failed.

    Args:
        error: Why; decides status and headers.
        detail: What the client is told, see `PredictionService.failed`.
    """
    status, headers = error_spec(error).status, {}
    if isinstance(error, QueueFullError):
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return _response(status, detail, headers)


def http_error_response(status: int, what: str, headers: dict[str, str] | None = None) -> Response:
    """Return the answer to a request that a framework refused, such as for a path that is not there."""
    return _response(status, ErrorDetail(code=code_of_status(status), message=what), headers or {})


def not_found_response(status: HTTPStatus, path: str, headers: dict[str, str] | None = None) -> Response:
    """Return the answer to a request for a path that is not there, or not in this way."""
    return http_error_response(status, f"{status.phrase}: {path}", headers)


def _response(status: int, detail: ErrorDetail, headers: dict[str, str]) -> Response:
    return Response(ErrorResponse(error=detail).model_dump_json(), status, headers, media_type="application/json")
