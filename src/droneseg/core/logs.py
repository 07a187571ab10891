"""Logging set-up: text and JSON formatters, with the request id."""

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
"""Id of the request being processed, or empty; the formatters add it to log records."""


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, severity, logger, message, the record's `fields` and its traceback, if any."""

    def format(self, record: logging.LogRecord) -> str:
        """Format `record` as one line of JSON."""
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
    """One line of text: time, level and message, plus the request id for warnings and errors."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # named by logging
        """Format `record` as one line of text."""
        line = super().formatMessage(record)
        return (
            f"{line} (request {request_id.get()})" if request_id.get() and record.levelno >= logging.WARNING else line
        )


def formatter(log_format: LogFormat) -> logging.Formatter:
    """Return a formatter for `log_format`."""
    if log_format is LogFormat.JSON:
        return JsonFormatter()
    return TextFormatter()


def configure_logging(
    level: LogLevel = LogLevel.INFO, log_format: LogFormat = LogFormat.TEXT, *, also: tuple[str, ...] = ()
) -> None:
    """Send the log of droneseg, and of the loggers named in `also`, to stderr.

    A later call replaces the handlers of an earlier one.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(log_format))
    for name in (ROOT, *also):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level.value)
        logger.propagate = False


def logs_json() -> bool:
    """Return whether the log is written as JSON."""
    return any(isinstance(handler.formatter, JsonFormatter) for handler in logging.getLogger(ROOT).handlers)


@contextmanager
def log_file(path: Path, log_format: LogFormat = LogFormat.TEXT) -> Iterator[None]:
    """Also append droneseg's log to the file `path` while the block runs."""
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
