"""OpenVINO and NNCF report to Google Analytics when they are imported or used, and keep an identity in ~/intel."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

_PACKAGE = "openvino_telemetry"


@contextmanager
def no_telemetry() -> Iterator[None]:
    """Let what is imported in the block find no telemetry: both have a stand-in for when its package is missing."""
    before = sys.modules.get(_PACKAGE)
    sys.modules[_PACKAGE] = None  # type: ignore[assignment]  # makes importing it fail
    try:
        yield
    finally:
        del sys.modules[_PACKAGE]
        if before:
            sys.modules[_PACKAGE] = before
