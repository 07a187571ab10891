"""Augmentation and oversampling of rare classes."""

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from typing import Any, Literal

import numpy as np
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform

_MAX_REPEATS = 4


def cheap_augmentation(
    kind: Literal["flight", "light"],
    patch_size: Sequence[int],
    mirror_axes: tuple[int, ...] | None,
    last: BasicTransform,
) -> BasicTransform:
    """Return augmentation that covers the differences between flights and is cheaper than nnU-Net's.

    Args:
        kind: flight: rotation, scaling, mirroring, and brightness and contrast of each channel; light: mirroring, and
            brightness and contrast of all channels together. Rotation and scaling are the most expensive.
        patch_size: Height and width of a patch.
        mirror_axes: Axes along which patches may be mirrored.
        last: Final transform, which also runs at validation: targets for each resolution.
    """
    mirror = MirrorTransform(allowed_axes=mirror_axes)
    if kind == "light":
        return ComposeTransforms([mirror, *_colours(0.3, synchronised=True), last])
    rotate_and_scale = SpatialTransform(
        tuple(patch_size),
        patch_center_dist_from_border=[side // 2 for side in patch_size],
        random_crop=True,
        p_rotation=0.5,
        rotation=(-np.pi, np.pi),
        p_scaling=0.5,
        scaling=(0.6, 1.5),
        p_synchronize_scaling_across_axes=1,
        mode_seg="nearest",
        border_mode_seg="reflection",
        padding_mode_image="reflection",
    )
    gamma = RandomTransform(
        GammaTransform((0.6, 1.6), p_invert_image=0, synchronize_channels=True, p_per_channel=1, p_retain_stats=0), 0.3
    )
    return ComposeTransforms([rotate_and_scale, mirror, *_colours(0.5, synchronised=False), gamma, last])


def _colours(share: float, *, synchronised: bool) -> list[BasicTransform]:
    """Return brightness and contrast transforms.

    Args:
        share: Fraction of the patches that each transform changes.
        synchronised: Whether all channels change together.
    """
    strength = BGContrast((0.75, 1.25))
    channels: dict[str, Any] = {"synchronize_channels": synchronised, "p_per_channel": 1}
    return [
        RandomTransform(MultiplicativeBrightnessTransform(strength, **channels), share),
        RandomTransform(ContrastTransform(strength, preserve_range=True, **channels), share),
    ]


def repeat_rare(classes: Mapping[str, Set[int]]) -> list[str]:
    """Return image names for uniform sampling, in which the names of images with rare classes are repeated.

    An image whose rarest class occurs in one of n images is repeated n times, rounded, but at most four times.

    Args:
        classes: Ids of the classes in each image, by image name.
    """
    occurrences = Counter(class_id for ids in classes.values() for class_id in ids)
    repeats = {
        name: min(_MAX_REPEATS, max((round(len(classes) / occurrences[class_id]) for class_id in ids), default=1))
        for name, ids in classes.items()
    }
    return [name for name, count in repeats.items() for _ in range(count)]
