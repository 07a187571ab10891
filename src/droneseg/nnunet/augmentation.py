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


def cheap_augmentation(
    kind: Literal["flight", "light"],
    patch_size: Sequence[int],
    mirror_axes: tuple[int, ...] | None,
    last: BasicTransform,
) -> BasicTransform:
    """Return what differs from flight to flight.

    Args:
        kind: flight for direction, height and light, each colour's brightness by itself; light for mirroring and
            light only: turning and scaling cost most.
        patch_size: Height and width.
        mirror_axes: Axes along which a patch may be mirrored.
        last: What the network's validation needs, too (targets per resolution).
    """
    mirrored = MirrorTransform(allowed_axes=mirror_axes)
    if kind == "light":
        return ComposeTransforms([mirrored, *_colours(0.3, synchronised=True), last])
    turned = SpatialTransform(
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
    exposed = RandomTransform(
        GammaTransform((0.6, 1.6), p_invert_image=0, synchronize_channels=True, p_per_channel=1, p_retain_stats=0), 0.3
    )
    return ComposeTransforms([turned, mirrored, *_colours(0.5, synchronised=False), exposed, last])


def _colours(share: float, *, synchronised: bool) -> list[BasicTransform]:
    """Return brightness and contrast, each on a share of the patches, of all channels together or each by itself."""
    strength = BGContrast((0.75, 1.25))
    channels: dict[str, Any] = {"synchronize_channels": synchronised, "p_per_channel": 1}
    return [
        RandomTransform(MultiplicativeBrightnessTransform(strength, **channels), share),
        RandomTransform(ContrastTransform(strength, preserve_range=True, **channels), share),
    ]


_MOST_REPEATS = 4


def repeat_rare(classes: Mapping[str, Set[int]]) -> list[str]:
    """Repeat the photographs that have a class few others have.

    A photograph stands in the result as often as its rarest class is missing elsewhere: once if every photograph has
    that class, three times if every third has it, at most four times.

    Args:
        classes: Ids of the classes that occur, by photograph.

    Returns:
        Names of photographs, to be drawn from evenly.
    """
    occurs = Counter(found for ids in classes.values() for found in ids)
    repeats = {
        name: min(_MOST_REPEATS, max((round(len(classes) / occurs[found]) for found in ids), default=1))
        for name, ids in classes.items()
    }
    return [name for name, count in repeats.items() for _ in range(count)]
