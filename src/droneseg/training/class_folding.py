"""Fold classes of a network inside its ONNX graph."""

from collections.abc import MutableSequence, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from droneseg.model.bundle import NNUNET_OUTPUT

_LOGITS = "logits"
_FOLD_AXIS = "fold_axis"


def fold_outputs(network: Path, class_ids: Sequence[int], *, keep_classes: bool) -> None:
    """Fold classes of a network inside its graph: the probability of a folded class is the sum of those of its classes.

    The graph computes the logarithm of the sum of the exponentials of the logits of each folded class. The softmax over
    these logits is exactly the sum of the softmax over the classes before. The class with the largest sum is not always
    the one that the largest single logit belongs to: 0.3 and 0.3 folded exceed 0.4. nnU-Net's own choice, which the
    profile `exact` gives, is therefore made from the output `nnunet_logits`.

    Args:
        network: ONNX file with the output `logits`, shape (N, K, h, w); the file is changed, and `logits` gets the
            shape (N, C, h, w).
        class_ids: Id of the folded class of each of the K classes; C different ids from 0.
        keep_classes: Whether the output `nnunet_logits` gives the logits before, unless the network has it already.
    """
    model = onnx.load(str(network))
    graph = model.graph
    (logits,) = (output for output in graph.output if output.name == _LOGITS)
    kept = keep_classes and all(output.name != NNUNET_OUTPUT for output in graph.output)
    before = NNUNET_OUTPUT if kept else f"{_LOGITS}_of_classes"
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [before if name == _LOGITS else name for name in names]
    if kept:
        graph.output.append(onnx.ValueInfoProto(name=before, type=logits.type))
    graph.node.extend(_folding_nodes(before, class_ids, graph.initializer))
    # the list holds a copy, so the kept output still has the number of classes before
    logits.type.tensor_type.shape.dim[1].dim_value = max(class_ids) + 1
    onnx.checker.check_model(model)
    onnx.save(model, str(network))


def _folding_nodes(
    logits: str, class_ids: Sequence[int], initializers: MutableSequence[onnx.TensorProto]
) -> list[onnx.NodeProto]:
    """Return the nodes from logits to folded logits; the constants they need are added to the initializers."""
    nodes: list[onnx.NodeProto] = []
    folded = []
    for number in range(max(class_ids) + 1):
        members = np.flatnonzero(np.array(class_ids) == number)
        name = f"fold_{number}"
        initializers.append(numpy_helper.from_array(members, f"{name}_ids"))
        nodes.append(helper.make_node("Gather", [logits, f"{name}_ids"], [name], axis=1))
        if len(members) > 1:
            nodes += _log_of_sum(name)
        folded.append(nodes[-1].output[0])
    initializers.append(numpy_helper.from_array(np.array([1], np.int64), _FOLD_AXIS))
    return [*nodes, helper.make_node("Concat", folded, [_LOGITS], axis=1)]


def _log_of_sum(name: str) -> list[onnx.NodeProto]:
    """Return the nodes of the logarithm of the sum of exponentials over the classes of a tensor.

    The largest logit is subtracted first, so that no exponential overflows; `ReduceLogSumExp` does not promise that.
    """
    largest, below, exps, total, log = (f"{name}_{step}" for step in ("max", "below", "exp", "total", "log"))
    return [
        helper.make_node("ReduceMax", [name], [largest], axes=[1], keepdims=1),
        helper.make_node("Sub", [name, largest], [below]),
        helper.make_node("Exp", [below], [exps]),
        helper.make_node("ReduceSum", [exps, _FOLD_AXIS], [total], keepdims=1),
        helper.make_node("Log", [total], [log]),
        helper.make_node("Add", [largest, log], [f"{name}_sum"]),
    ]
