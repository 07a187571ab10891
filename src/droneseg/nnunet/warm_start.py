"""Initial weights from the network of a bundle.

The export folds batch normalisation into the convolutions, so a bundle has one weight and one bias per convolution. For
further training, each convolution gets its batch normalisation back, with the statistics of the new training images.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from droneseg.core.errors import TrainingError, optional_import
from droneseg.core.images import Image
from droneseg.nnunet.networks import ENCODER_STAGES, PretrainedUNet


def exported_weights(file: Path, network: PretrainedUNet, images: Iterable[Image]) -> dict[str, Tensor]:
    """Return the weights of an exported network by name, with batch normalisation restored.

    Args:
        file: ONNX file, for example `model.onnx` of a bundle.
        network: Network of the same architecture; it may distinguish fine classes. It is not changed.
        images: RGB images from which the normalisation takes its statistics, each of shape (H, W, 3), dtype uint8.

    Raises:
        TrainingError: If the file cannot be read, or has a network of another architecture.
    """
    plain = network.without_fine_classes()
    load_folded(plain, read_folded_convolutions(file))
    unit = plain.downscale * 2**ENCODER_STAGES
    restore_normalisation(plain, (_patch(image, unit) for image in images))
    return plain.state_dict()


def _patch(image: Image, unit: int) -> Tensor:
    """Return an image as a batch of one patch, cut to multiples of `unit` pixels."""
    height, width = (max(unit, side // unit * unit) for side in image.shape[:2])
    patch = torch.zeros(1, 3, height, width)
    cut = torch.from_numpy(image[:height, :width].copy()).permute(2, 0, 1) / 255
    patch[0, :, : cut.shape[1], : cut.shape[2]] = cut
    return patch


@dataclass(frozen=True)
class FoldedConvolution:
    """Weight, shape (outputs, inputs, height, width), and bias, shape (outputs,), of an exported convolution."""

    weight: Tensor
    bias: Tensor


def read_folded_convolutions(network: Path) -> list[FoldedConvolution]:
    """Read the convolutions of an exported network in the order of execution.

    Args:
        network: ONNX file, for example `model.onnx` of a bundle.

    Raises:
        TrainingError: If the file cannot be read, or a convolution has no constant weight and bias.
    """
    with optional_import("onnx", "train"):
        import onnx
        from onnx import numpy_helper
    try:
        graph = onnx.load(network).graph
    except Exception as error:  # onnx and protobuf raise errors of their own without a common base
        raise TrainingError(f"{network} cannot be read as an ONNX network: {error}. Choose another bundle.") from error
    constants = {item.name: item for item in graph.initializer}
    convolutions = []
    for node in graph.node:
        if node.op_type != "Conv":
            continue
        if not (len(node.input) == 3 and constants.keys() >= set(node.input[1:])):
            raise TrainingError(
                f"{network}: {node.name} has no constant weight and bias, so a training cannot start from it. Choose "
                "the network model.onnx of a bundle."
            )
        weight, bias = (torch.tensor(numpy_helper.to_array(constants[name])).float() for name in node.input[1:])
        convolutions.append(FoldedConvolution(weight, bias))
    return convolutions


def load_folded(network: PretrainedUNet, convolutions: Sequence[FoldedConvolution]) -> None:
    """Load exported convolutions; batch normalisation then only adds their bias.

    Args:
        network: Network of the same architecture, without deep supervision.
        convolutions: Convolutions in the order of execution.

    Raises:
        TrainingError: If the number or the shapes of the convolutions differ.
    """
    layers = list(_layers(network))
    ours = [tuple(convolution.weight.shape) for convolution, _ in layers]
    theirs = [tuple(convolution.weight.shape) for convolution in convolutions]
    if ours != theirs:
        raise TrainingError(
            "The bundle has a network of another architecture: number or shapes of the convolutions differ "
            f"({len(theirs)} in the bundle, {len(ours)} here). Train with the network and plan of the bundle."
        )
    with torch.no_grad():
        for (convolution, norm), folded in zip(layers, convolutions, strict=True):
            convolution.weight.copy_(folded.weight)
            target = convolution.bias if norm is None else norm.bias
            assert target is not None  # noqa: S101  # only convolutions with normalisation have no bias
            target.copy_(folded.bias)
            if norm is not None:
                _set_statistics(norm, torch.zeros_like(norm.bias), torch.full_like(norm.bias, 1 - norm.eps))


def restore_normalisation(network: PretrainedUNet, patches: Iterable[Tensor]) -> None:
    """Set the statistics of batch normalisation to those of patches, without changing the outputs of the network.

    Call it after `load_folded`. Scale and shift are set such that they undo the normalisation.

    Args:
        network: Network with loaded convolutions.
        patches: Batches of RGB patches, each of shape (N, 3, H, W).
    """
    norms = [norm for _, norm in _layers(network) if norm is not None]
    with _moments(norms) as moments, _evaluating(network), torch.no_grad():
        for batch in patches:
            network(batch)
    with torch.no_grad():
        for norm, (count, total, squares) in zip(norms, moments, strict=True):
            mean = total / count
            variance = (squares / count - mean**2).clamp(min=0)
            # the shift that `load_folded` set is the bias of the convolution
            norm.bias.add_(mean)
            _set_statistics(norm, mean, variance)
            norm.weight.copy_((variance + norm.eps).sqrt())


def _layers(network: PretrainedUNet) -> Iterator[tuple[nn.Conv2d, nn.BatchNorm2d | None]]:
    """Yield the convolutions in the order of execution, each with the batch normalisation that follows it."""
    body = [*network.encoder.modules(), *network.decoder.joins.modules()]
    leaves = [module for module in body if isinstance(module, nn.Conv2d | nn.BatchNorm2d)]
    for convolution, norm in zip(leaves[::2], leaves[1::2], strict=True):
        assert isinstance(convolution, nn.Conv2d)  # noqa: S101
        assert isinstance(norm, nn.BatchNorm2d)  # noqa: S101  # each convolution is followed by its normalisation
        yield convolution, norm
    head = network.decoder.heads[len(network.decoder.joins) - 1]
    assert isinstance(head, nn.Conv2d)  # noqa: S101
    yield head, None


def _set_statistics(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor) -> None:
    assert norm.running_mean is not None  # noqa: S101
    assert norm.running_var is not None  # noqa: S101  # the networks track running statistics
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
    nn.init.ones_(norm.weight)


@contextmanager
def _moments(norms: Sequence[nn.BatchNorm2d]) -> Iterator[list[list[Tensor]]]:
    """Collect the number, sum and sum of squares of the inputs of each normalisation, by channel, in float64."""
    moments = [[torch.zeros((), dtype=torch.float64) for _ in range(3)] for _ in norms]

    def collect(collected: list[Tensor], features: Tensor) -> None:
        values = features.detach().double().transpose(0, 1).flatten(1).cpu()
        for index, value in enumerate((torch.tensor(values.shape[1]), values.sum(1), (values**2).sum(1))):
            collected[index] = collected[index] + value

    hooks = [
        norm.register_forward_pre_hook(lambda _module, inputs, collected=collected: collect(collected, inputs[0]))
        for norm, collected in zip(norms, moments, strict=True)
    ]
    try:
        yield moments
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)
