"""Names of the inference runtimes; `inference.runtimes` starts them."""

from enum import StrEnum


class RuntimeName(StrEnum):
    """Runtime of the network; `auto` is ONNX Runtime on a GPU, otherwise OpenVINO."""

    AUTO = "auto"
    OPENVINO = "openvino"
    ONNXRUNTIME = "onnxruntime"


RUNTIMES: tuple[RuntimeName, ...] = tuple(name for name in RuntimeName if name is not RuntimeName.AUTO)
