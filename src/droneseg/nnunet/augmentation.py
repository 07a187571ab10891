"""Augmentation cheaper than nnU-Net's own, for trainings of minutes."""

from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform


def light_augmentation(mirror_axes: tuple[int, ...] | None, last: BasicTransform) -> BasicTransform:
    """Return mirroring, brightness and contrast: neither rotation nor scaling, which cost most.

    Args:
        mirror_axes: Axes along which a patch may be mirrored.
        last: What the network's validation needs, too (targets per resolution).
    """
    colour = {"synchronize_channels": True, "p_per_channel": 1}
    return ComposeTransforms(
        [
            MirrorTransform(allowed_axes=mirror_axes),
            RandomTransform(MultiplicativeBrightnessTransform(BGContrast((0.75, 1.25)), **colour), 0.3),
            RandomTransform(ContrastTransform(BGContrast((0.75, 1.25)), preserve_range=True, **colour), 0.3),
            last,
        ]
    )
