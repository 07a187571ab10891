"""Initial weights from a checkpoint, from a model that nnU-Net exported, or from the network of a bundle.

The export to a bundle folds batch normalisation into the convolutions, so a bundle has one weight and one bias per
convolution. For further training, each convolution gets its batch normalisation back, with the statistics of the new
training images.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from torch import Tensor, nn

from droneseg.core.classes import IGNORE
from droneseg.core.errors import ModelError, TrainingError, UntrustedCheckpointError, optional_import
from droneseg.core.images import Image
from droneseg.nnunet.checkpoint import read_checkpoint
from droneseg.nnunet.networks import ENCODER_STAGES, OUTPUT_LAYERS, PretrainedUNet
from droneseg.nnunet.paths import FINAL_CHECKPOINT
from droneseg.nnunet.plans import Plans, merge_configuration

_ENCODER = "encoder."
_SHOWN_NAMES = 5


@dataclass(frozen=True)
class FittedWeights:
    """Initial weights that fit a network.

    Attributes:
        weights: Weights by name.
        heads: Names of the network's output layers that keep their own weights, since the classes differ.
        others: Names of the other weights of the network that the file does not have in this shape.
        notes: Further differences between the two trainings.
    """

    weights: dict[str, Tensor]
    heads: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def describe(self) -> str:
        """Return which weights are used and which are not, in one line."""
        parts = [f"{len(self.weights)} of {len(self.weights) + len(self.heads) + len(self.others)}"]
        if self.heads:
            parts.append(f"not the output layers, whose classes differ ({_shown(self.heads)})")
        if self.others:
            parts.append(f"{len(self.others)} do not fit ({_shown(self.others)})")
        return "; ".join((*parts, *self.notes))


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN_NAMES]) + (", ..." if len(names) > _SHOWN_NAMES else "")


def read_weights(file: Path) -> dict[str, Any]:
    """Read the checkpoint from which a training starts.

    Args:
        file: Checkpoint (.pth), or model that nnU-Net exported with one checkpoint (.zip).

    Raises:
        ModelError: If the file is damaged, is not a checkpoint, or contains several.
        UntrustedCheckpointError: If loading the checkpoint could execute code.
    """
    try:
        if file.suffix != ".zip":
            return read_checkpoint(file)
        with ZipFile(file) as archive, TemporaryDirectory() as folder:
            return read_checkpoint(Path(archive.extract(_only_checkpoint(archive, file), folder)))
    except BadZipFile as error:
        raise ModelError(f"{file} is not a zip file. Choose a model of nnUNetv2_export_model_to_zip.") from error
    except UntrustedCheckpointError as error:
        raise UntrustedCheckpointError(
            f"{file} contains pickled objects other than numbers and text; loading it can execute arbitrary code. If "
            "you trust its source, load it with torch and save its network_weights alone."
        ) from error


def _only_checkpoint(archive: ZipFile, file: Path) -> str:
    """Return the name of the only checkpoint in an archive; that of the end of a training precedes others."""
    checkpoints = [name for name in archive.namelist() if Path(name).match("fold_*/checkpoint_*.pth")]
    final = [name for name in checkpoints if Path(name).name == FINAL_CHECKPOINT]
    if len(final or checkpoints) == 1:
        return (final or checkpoints)[0]
    found = f"has {len(final or checkpoints)} checkpoints" if checkpoints else "has no checkpoint"
    listed = "".join(f"\n  - {name}" for name in final or checkpoints)
    raise ModelError(f"{file} {found}. Unpack it and choose a checkpoint_*.pth file.{listed}")


def fit_weights(
    network: nn.Module, checkpoint: Mapping[str, Any], plans: Mapping[str, Any], dataset: Mapping[str, Any]
) -> FittedWeights:
    """Return the weights of a checkpoint that fit a network, as nnU-Net's `-pretrained_weights` does.

    All weights of the encoder must fit. Output layers are left out if their shapes or the classes differ, and so are
    weights of a different decoder.

    Args:
        network: Network of the training; its weights are not needed, only their names and shapes.
        checkpoint: Checkpoint of nnU-Net.
        plans: Configuration of nnU-Net's plans for the network, merged with those it inherits from.
        dataset: nnU-Net's dataset.json of the training.

    Raises:
        ModelError: If a weight of the encoder has no counterpart of the same shape.
    """
    weights = {name.removeprefix("module."): value for name, value in checkpoint["network_weights"].items()}
    former = checkpoint.get("init_args", {})
    same_classes = _labels(former.get("dataset_json", dataset)) == _labels(dataset)
    if isinstance(network, PretrainedUNet) and same_classes:
        weights = network.split_heads(weights)
    own = network.state_dict()
    taken = {name: weights[name] for name in own if name in weights and weights[name].shape == own[name].shape}
    if not same_classes:
        taken = {name: value for name, value in taken.items() if not name.startswith(OUTPUT_LAYERS)}
    missing = [name for name in own if name not in taken]
    _require_encoder(own, weights, missing)
    return FittedWeights(
        taken,
        heads=tuple(name for name in missing if name.startswith(OUTPUT_LAYERS)),
        others=tuple(name for name in missing if not name.startswith(OUTPUT_LAYERS)),
        notes=tuple(_differences(former, plans, dataset)),
    )


def fine_classes_of(file: Path, dataset: Mapping[str, Any]) -> list[int]:
    """Return the class id of each fine class of the network that initial weights belong to.

    Args:
        file: Checkpoint (.pth) or model that nnU-Net exported (.zip).
        dataset: nnU-Net's dataset.json of the training.

    Returns:
        Class ids in the order of the fine class ids; none if the network has no fine classes, or other classes than
        the dataset.

    Raises:
        ModelError: If the file cannot be read.
        UntrustedCheckpointError: If loading the checkpoint could execute code.
    """
    former = read_weights(file).get("init_args", {})
    plans, configuration = former.get("plans", {}), str(former.get("configuration"))
    if configuration not in plans.get("configurations", {}):
        return []
    if _labels(former.get("dataset_json", {})) != _labels(dataset):
        return []
    return list(merge_configuration(plans, configuration)["architecture"]["arch_kwargs"].get("fine_classes", ()))


def check_weights(file: Path, plans: Plans, configuration: str, dataset: Mapping[str, Any]) -> None:
    """Check before a training that initial weights fit its network; takes no memory for the network.

    Args:
        file: File with initial weights.
        plans: nnU-Net's plans.
        configuration: Name of the configuration in the plans.
        dataset: nnU-Net's dataset.json of the training.

    Raises:
        ModelError: If the file cannot be read, or the weights of a checkpoint do not fit.
        TrainingError: If the network of a bundle has another architecture.
    """
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(plans)
    planned = manager.get_configuration(configuration)
    channels = determine_num_input_channels(manager, planned, dataset)
    outputs = manager.get_label_manager(dataset).num_segmentation_heads
    with torch.device("meta"):
        network = nnUNetTrainer.build_network_architecture(
            manager, planned, channels, outputs, enable_deep_supervision=False
        )
    if file.suffix == ".onnx":
        load_folded(require_pretrained(network, file).without_fine_classes(), read_folded_convolutions(file))
    else:
        fit_weights(network, read_weights(file), merge_configuration(plans, configuration), dataset)


def require_pretrained(network: nn.Module, file: Path) -> PretrainedUNet:
    """Return the network if the network of a bundle can initialise it.

    Raises:
        TrainingError: If it has no pretrained encoder.
    """
    if not isinstance(network, PretrainedUNet):
        raise TrainingError(f"{file} can only initialise a pretrained network. Set network=efficientnet-lite0.")
    return network


def _labels(dataset: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in dataset.get("labels", {}).items() if name != IGNORE}


def _require_encoder(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], missing: Sequence[str]) -> None:
    """Raise ModelError if a weight of the encoder is missing, or of any part but the head without an encoder."""
    parts = [name for name in own if name.startswith(_ENCODER)] or [
        name for name in own if not name.startswith(OUTPUT_LAYERS)
    ]
    if not (wrong := sorted(set(parts) & set(missing), key=parts.index)):
        return
    first = wrong[0]
    shapes = [list(table[first].shape) if first in table else "missing" for table in (weights, own)]
    raise ModelError(
        f"The weights do not fit the network: {len(wrong)} of {len(parts)} differ; {first} is {shapes[0]} in the file "
        f"and {shapes[1]} in the network. Train with the network and the features of that model."
    )


def _differences(former: Mapping[str, Any], plans: Mapping[str, Any], dataset: Mapping[str, Any]) -> Iterator[str]:
    """Yield differences between the inputs of two networks, with which the weights can still be used."""
    configuration, description = str(former.get("configuration")), former.get("dataset_json", {})
    if configuration in former.get("plans", {}).get("configurations", {}):
        theirs = merge_configuration(former["plans"], configuration)
        yield from _difference("normalisation", theirs.get("normalization_schemes"), plans["normalization_schemes"])
    before, now = (list(each.get("channel_names", {}).values()) for each in (description, dataset))
    yield from _difference("channels", before, now)


def _difference(name: str, before: Sequence[str] | None, now: Sequence[str]) -> Iterator[str]:
    if before and before != now:
        yield f"trained with the {name} {', '.join(before)}, but here with {', '.join(now)}"


def exported_weights(file: Path, network: PretrainedUNet, images: Iterable[Image]) -> dict[str, Tensor]:
    """Return the weights of an exported network by name, with batch normalisation restored.

    The output layer is left out if the number of classes differs.

    Args:
        file: ONNX file, for example `model.onnx` of a bundle.
        network: Network of the same architecture; it may distinguish fine classes. It is not changed.
        images: RGB images from which the normalisation takes its statistics, each of shape (H, W, 3), dtype uint8.

    Raises:
        TrainingError: If the file cannot be read, or has a network of another architecture.
    """
    plain = network.without_fine_classes()
    head = load_folded(plain, read_folded_convolutions(file))
    unit = plain.downscale * 2**ENCODER_STAGES
    restore_normalisation(plain, (_patch(image, unit) for image in images))
    weights = plain.state_dict()
    if head:
        return weights
    last = f"{OUTPUT_LAYERS}{len(plain.decoder.joins) - 1}."
    return {name: value for name, value in weights.items() if not name.startswith(last)}


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


def load_folded(network: PretrainedUNet, convolutions: Sequence[FoldedConvolution]) -> bool:
    """Load exported convolutions; batch normalisation then only adds their bias.

    The output layer is left out if the number of classes differs.

    Args:
        network: Network of the same architecture, without deep supervision.
        convolutions: Convolutions in the order of execution.

    Returns:
        Whether the output layer is loaded, too.

    Raises:
        TrainingError: If the number or the shapes of the convolutions differ.
    """
    layers = list(_layers(network))
    ours = [tuple(convolution.weight.shape) for convolution, _ in layers]
    theirs = [tuple(convolution.weight.shape) for convolution in convolutions]
    same_head = ours[-1] == theirs[-1] if theirs else False
    if len(ours) != len(theirs) or ours[:-1] != theirs[:-1] or ours[-1][1:] != theirs[-1][1:]:
        raise TrainingError(
            "The bundle has a network of another architecture: number or shapes of the convolutions differ "
            f"({len(theirs)} in the bundle, {len(ours)} here). Train with the network and plan of the bundle."
        )
    with torch.no_grad():
        loaded = zip(layers, convolutions, strict=True)
        for (convolution, norm), folded in loaded if same_head else list(loaded)[:-1]:
            convolution.weight.copy_(folded.weight)
            target = convolution.bias if norm is None else norm.bias
            assert target is not None  # noqa: S101  # only convolutions with normalisation have no bias
            target.copy_(folded.bias)
            if norm is not None:
                _set_statistics(norm, torch.zeros_like(norm.bias), torch.full_like(norm.bias, 1 - norm.eps))
    return same_head


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
    head = network.decoder.seg_layers[len(network.decoder.joins) - 1]
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
