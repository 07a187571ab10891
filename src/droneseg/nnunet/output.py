"""nnU-Net prints; here its lines become log records, so that one place decides what a person sees."""

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout


class _LogStream(io.TextIOBase):
    """A stream whose complete lines are logged."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._rest = ""

    def write(self, text: str, /) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in filter(None, map(str.strip, lines)):
            self._logger.debug(line)
        return len(text)


@contextmanager
def prints_as_logs() -> Iterator[None]:
    """Turn what is printed into debug records while the block runs."""
    with redirect_stdout(_LogStream(logging.getLogger("droneseg.nnunet"))):
        yield
