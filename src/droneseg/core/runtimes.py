"""The names of what can run a network; `inference.runtimes.table` starts it."""

from enum import StrEnum


class RuntimeName(StrEnum):
    """What runs the network; auto is ONNX Runtime with a GPU and OpenVINO without."""

    AUTO = "auto"
    OPENVINO = "openvino"
    ONNXRUNTIME = "onnxruntime"


RUNTIMES: tuple[RuntimeName, ...] = tuple(name for name in RuntimeName if name is not RuntimeName.AUTO)
