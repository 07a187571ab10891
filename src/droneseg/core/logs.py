"""Logging setup: text or JSON formatter, request id."""

import json
import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path

from droneseg.core.settings import LogFormat, LogLevel

ROOT = "droneseg"

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The request that is being answered, if any: it stands beside what is logged."""


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, logger, message, the `fields` it was given and a failure's traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return `record` as one line of JSON."""
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "severity": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **({"request_id": request_id.get()} if request_id.get() else {}),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["exception"] = "".join(traceback.format_exception(*record.exc_info))
        return json.dumps(entry)


class TextFormatter(logging.Formatter):
    """Time, level and message, and the request's id where something is wrong."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        """Return one line."""
        line = super().formatMessage(record)
        return (
            f"{line} (request {request_id.get()})" if request_id.get() and record.levelno >= logging.WARNING else line
        )


def formatter(log_format: LogFormat) -> logging.Formatter:
    """Return the formatter for `log_format`."""
    if log_format is LogFormat.JSON:
        return JsonFormatter()
    return TextFormatter()


def configure_logging(
    level: LogLevel = LogLevel.INFO, log_format: LogFormat = LogFormat.TEXT, *, also: tuple[str, ...] = ()
) -> None:
    """Send what droneseg logs to stderr, and what the loggers named in `also` do; a later call replaces an earlier."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(log_format))
    for name in (ROOT, *also):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level.value)
        logger.propagate = False


def logs_json() -> bool:
    """Say whether the terminal is sent JSON."""
    return any(isinstance(handler.formatter, JsonFormatter) for handler in logging.getLogger(ROOT).handlers)


@contextmanager
def log_file(path: Path, log_format: LogFormat = LogFormat.TEXT) -> Iterator[None]:
    """Send what droneseg logs to `path` as well, appended, while the block runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(formatter(log_format))
    logger = logging.getLogger(ROOT)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()
