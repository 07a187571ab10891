"""Failed requests as HTTP responses: the one body, and the headers that belong to some of them."""

import math
from http import HTTPStatus

from starlette.responses import Response

from droneseg.core.errors import QueueFullError
from droneseg.serving.errors import code_of_status, failure_of
from droneseg.serving.schemas import ErrorAnswer, ErrorDetail


def refusal(error: Exception, detail: ErrorDetail) -> Response:
    """Return the answer to a request that failed.

    Args:
        error: Why; decides status and headers.
        detail: What the client is told, see `PredictionService.failed`.
    """
    status, headers = failure_of(error).status, {}
    if isinstance(error, QueueFullError):
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return _response(status, detail, headers)


def framework_refusal(status: int, what: str, headers: dict[str, str] | None = None) -> Response:
    """Return the answer to a request that a framework refused, such as for a path that is not there."""
    return _response(status, ErrorDetail(code=code_of_status(status), message=what), headers or {})


def path_refusal(status: HTTPStatus, path: str, headers: dict[str, str] | None = None) -> Response:
    """Return the answer to a request for a path that is not there, or not in this way."""
    return framework_refusal(status, f"{status.phrase}: {path}", headers)


def _response(status: int, detail: ErrorDetail, headers: dict[str, str]) -> Response:
    return Response(ErrorAnswer(error=detail).model_dump_json(), status, headers, media_type="application/json")
