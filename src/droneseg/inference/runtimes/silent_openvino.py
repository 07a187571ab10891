"""OpenVINO without its telemetry: importing it would report to Google Analytics, and keep an identity in ~/intel."""

import sys

_TELEMETRY = "openvino_telemetry"

_before = sys.modules.get(_TELEMETRY)
# OpenVINO has a stand-in for when this package is missing; None makes importing it fail
sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
try:
    import openvino
finally:
    del sys.modules[_TELEMETRY]
    if _before:
        sys.modules[_TELEMETRY] = _before

ov = openvino
