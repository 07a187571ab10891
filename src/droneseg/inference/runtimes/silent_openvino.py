"""OpenVINO, imported without its telemetry."""

from droneseg.core.system import no_telemetry

with no_telemetry():
    import openvino

ov = openvino
