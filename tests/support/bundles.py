"""Bundles whose network is one 1x1 convolution, for tests that need no trained network."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from droneseg.core.classes import DEFAULT_CLASSES, ClassTable
from droneseg.core.landing_grid import LandingPolicy
from droneseg.inference.views import default_context
from droneseg.model.bundle import (
    FORMAT_VERSION,
    NETWORK_NAME,
    Bundle,
    Calibration,
    Context,
    FileRecord,
    Manifest,
    Profile,
    Provenance,
    TrainingGround,
    class_entries,
    write_bundle,
)

# rows: classes 0-5, columns: red, green, blue of 0..1; obstacles are dark, water is blue, soft ground green,
# moving objects red, landing zones bright
WEIGHTS = ((0, 0, 0), (-3, -3, -3), (-2, -2, 4), (-2, 4, -2), (4, -2, -2), (2, 2, 2))
BIASES = (-9, 2, 0, 0, 0, -1.5)


def write_network(path: Path, weights: object = WEIGHTS, biases: object = BIASES, *, padding: int = 0) -> None:
    """Write an ONNX network that classifies each pixel by its colour, with `padding` unused bytes."""
    kernel = numpy_helper.from_array(np.array(weights, np.float32)[..., None, None], "kernel")
    bias = numpy_helper.from_array(np.array(biases, np.float32), "bias")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["patch", "kernel", "bias"], ["logits"])],
        "colours",
        [helper.make_tensor_value_info("patch", TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", len(np.array(biases)), "h", "w"])],
        [kernel, bias],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, {"padding": "x" * padding})
    onnx.save(model, path)


TRAINED_AT = TrainingGround(gsd_m=0.025, gsd_range_m=(0.015, 0.037), source="test")
CONTEXT = default_context(DEFAULT_CLASSES)
assert CONTEXT is not None
VIEWS = CONTEXT.model_copy(update={"exposure": None})


def make_bundle(
    folder: Path,
    *,
    patch: tuple[int, int] = (16, 24),
    network: Path | None = None,
    ground: TrainingGround | None = None,
    context: Context | None = None,
    calibration: Calibration | None = None,
    classes: ClassTable = DEFAULT_CLASSES,
    landing: Mapping[str, LandingPolicy] | None = None,
    format_version: int = FORMAT_VERSION,
) -> Bundle:
    """Write a bundle with the profiles exact and fast, and read it."""
    if network is None:
        network = folder.parent / "network.onnx"
        write_network(network)

    def manifest(files: dict[str, FileRecord]) -> Manifest:
        return Manifest(
            format_version=format_version,
            version="0",
            description="looks at colours",
            license="Apache-2.0",
            classes=class_entries(classes),
            normalisation="rgb_to_0_1",
            patch_size=patch,
            divisor=(1, 1),
            mirror_axes=(0, 1),
            profiles={
                "exact": Profile(network=NETWORK_NAME, mirroring=True, precision="f32", half_sums=True),
                "fast": Profile(network=NETWORK_NAME, mirroring=False, precision="fastest"),
            },
            default_profile="fast",
            provenance=Provenance(
                trainer="none", plans="none", configuration="none", folds=(0,), epochs=(0,),
                checkpoint_sha256=("0" * 64,), packages={}, agreement_with_torch={},
                exported=datetime.now(UTC).isoformat(),
            ),
            files=files, ground=ground, context=context, calibration=calibration, landing=landing or {},
        )  # fmt: skip

    return write_bundle(folder, manifest, {NETWORK_NAME: network})
