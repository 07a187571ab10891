"""OpenVINO, imported without its telemetry."""

from droneseg.core.telemetry import no_telemetry

with no_telemetry():
    import openvino

ov = openvino
