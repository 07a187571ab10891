"""Segmenter for model bundles."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from droneseg.core.camera import UNKNOWN_GROUND, Ground, WarningCode
from droneseg.core.classes import BACKGROUND_ID, Normalisation
from droneseg.core.errors import ConfigurationError
from droneseg.core.images import Image, require_rgb
from droneseg.core.masks import Mask
from droneseg.core.prediction import ModelInfo, Prediction, class_fractions, image_statistics
from droneseg.core.runtimes import RuntimeName
from droneseg.core.settings import Settings
from droneseg.inference import sliding_window, unlike_training, views
from droneseg.inference.self_check import start_checked_runtime
from droneseg.model.bundle import Bundle, Context, read_bundle


class BundleSegmenter:
    """Segments images with a model bundle. Safe to use from several threads.

    Args:
        bundle: Model bundle.
        profile: Profile of the bundle; None for its default profile.
        runtime: Inference runtime; `auto` uses one that passes the self-check of the bundle.
        cache: Folder for compiled networks; None disables the cache.

    Raises:
        ConfigurationError: If the bundle has no profile of that name.
        ModelError: If the runtime cannot run the network, or fails the self-check of the bundle.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        profile: str | None = None,
        runtime: RuntimeName = RuntimeName.AUTO,
        cache: Path | None = None,
    ) -> None:
        manifest = bundle.manifest
        self._profile = profile or manifest.default_profile
        if self._profile not in manifest.profiles:
            raise ConfigurationError(
                f"{bundle.folder} has no profile {self._profile!r}; it has {', '.join(sorted(manifest.profiles))}."
            )
        chosen = manifest.profiles[self._profile]
        self._bundle = bundle
        self._takes_bytes = manifest.normalisation == Normalisation.RGB_TO_0_1
        self._window = sliding_window.SlidingWindowConfig(
            patch=manifest.patch_size,
            step=manifest.tile_step,
            mirror_axes=manifest.mirror_axes if chosen.mirroring else (),
            accumulate_float16=chosen.half_sums,
            temperature=manifest.calibration.temperature if manifest.calibration else 1.0,
        )
        self._ranges = manifest.calibration.unlike_training if manifest.calibration else None
        self._runtime, self._self_check = start_checked_runtime(bundle, self._profile, runtime, cache)

    @property
    def model_id(self) -> str:
        """Short hash of the bundle's manifest."""
        return self._bundle.model_id

    @property
    def profile(self) -> str:
        """Name of the active profile."""
        return self._profile

    @property
    def runtime(self) -> str:
        """Display name of the runtime."""
        return self._runtime.name

    @property
    def info(self) -> ModelInfo:
        """Description of the model, from the bundle's manifest."""
        manifest = self._bundle.manifest
        return ModelInfo(
            name=manifest.name,
            version=manifest.version,
            description=manifest.description,
            input_shape=(*manifest.patch_size, 3),
            framework=self.runtime,
            self_check=self._self_check,
            license=manifest.license,
            quality=manifest.quality,
        )

    def segment(self, image: Image, ground: Ground = UNKNOWN_GROUND, *, plain: bool = False) -> Prediction:
        """Predict the class of every pixel.

        The image is resampled to the model's ground resolution. If it is larger than a tile, the predictions of smaller
        views are combined with those of the tiles. The mask has the size of the image. The profile `exact`, bundles
        without a ground resolution and `plain` use the pixels as they are.

        Args:
            image: RGB, shape (H, W, 3), dtype uint8.
            ground: Ground resolution of the image.
            plain: Whether to use the pixels as they are.

        Raises:
            TypeError: If the image is not an array of dtype uint8.
            ValueError: If the image has another shape than (H, W, 3), or no pixels.
            ModelError: If the network returns logits that are not finite.
        """
        begin = time.perf_counter()
        image = require_rgb(image)
        box = sliding_window.nonzero_box(image)
        cropped = image[box]
        height, width = cropped.shape[:2]
        plan = self._plan((height, width), ground, plain=plain)
        seen = views.resample(cropped, plan.size)
        statistics = image_statistics(seen)
        prepared = time.perf_counter()
        result, disagreement = self._run(seen, plan, None if self._is_plain(plain) else self._bundle.manifest.context)
        unlike = unlike_training.describe(unlike_training.features_of(statistics, disagreement), self._ranges)
        mask = _uncrop(views.resample_mask(result.mask, (height, width)), box, image.shape[:2])
        # the black border that was cropped is background with probability 1, as in nnU-Net
        outside = 1 - cropped.size / image.size
        fractions = class_fractions(mask)
        network_s = result.network_s
        return Prediction(
            mask=mask,
            class_fractions=fractions,
            confidence=result.probability_sum / result.mask.size * (1 - outside) + outside,
            timings_s={
                "preprocess": round(prepared - begin, 5),
                "network": round(network_s, 5),
                "postprocess": round(time.perf_counter() - prepared - network_s, 5),
            },
            model_id=self.model_id,
            ground=self._describe(ground, plan, unlike),
            statistics=statistics,
            seen_size=plan.size,
            disagreement=disagreement,
            unlike_training=unlike,
        )

    def logits(self, image: Image) -> NDArray[np.float32]:
        """Return the logits of every pixel, shape (C, H, W), dtype float32, of an image that is not resampled.

        Args:
            image: RGB, shape (H, W, 3), dtype uint8.
        """
        tables = self._tables(image, self._bundle.manifest.context)
        return sliding_window.logit_map(self._runtime, image, tables, self._window)[0]

    def count_tiles(self, size: tuple[int, int], ground: Ground = UNKNOWN_GROUND, *, plain: bool = False) -> int:
        """Return the number of tiles of all views of an image; see `Segmenter`."""
        plan = self._plan(size, ground, plain=plain)
        sizes = (plan.size, *(view.size for view in plan.views))
        return sum(sliding_window.count_tiles(size, self._window) for size in sizes)

    def _is_plain(self, plain: bool) -> bool:
        manifest = self._bundle.manifest
        return plain or manifest.ground is None or manifest.profiles[self._profile].half_sums

    def _plan(self, size: tuple[int, int], ground: Ground, *, plain: bool) -> views.ViewPlan:
        manifest = self._bundle.manifest
        return views.plan_views(
            size,
            manifest.patch_size,
            ground,
            manifest.ground,
            manifest.context,
            plain=self._is_plain(plain),
        )

    def _run(
        self, image: Image, plan: views.ViewPlan, context: Context | None
    ) -> tuple[sliding_window.SlidingWindowResult, float | None]:
        """Return the segmentation of a resampled image, and the disagreement of its views."""
        if context is not None and not image.any():
            # nothing can be seen in a black image
            return sliding_window.SlidingWindowResult(np.full(plan.size, BACKGROUND_ID, np.uint8), image.size / 3), None
        tables = self._tables(image, context)
        if context is None or not plan.views:
            return sliding_window.sliding_window_inference(self._runtime, image, tables, self._window), None
        window = replace(self._window, border="mirror")
        coarse, network_s = [], 0.0
        for view in plan.views:
            smaller = views.resample(image, view.size)
            logits, seconds = sliding_window.logit_map(self._runtime, smaller, tables, window)
            coarse.append((view, logits))
            network_s += seconds
        combiner = views.ViewCombiner(coarse, plan.size, context, self._window.temperature)
        result = sliding_window.sliding_window_inference(self._runtime, image, tables, window, combiner.classify)
        result.network_s += network_s
        return result, combiner.disagreement

    def _tables(self, image: Image, context: Context | None) -> Sequence[sliding_window.Table]:
        """Return the look-up tables of the exposure corrections and the normalisation."""
        exposures = views.exposure_tables(image, context.exposure if context else None)
        if self._takes_bytes:
            return exposures
        normalisation = self._bundle.manifest.normalisation
        corrected = (image if table is None else table[image] for table in exposures)
        normalised = [sliding_window.normalisation_table(pixels, normalisation) for pixels in corrected]
        return [
            table if exposure is None else table[:, exposure]
            for table, exposure in zip(normalised, exposures, strict=True)
        ]

    def _describe(self, ground: Ground, plan: views.ViewPlan, unlike: tuple[str, ...]) -> Ground:
        training = self._bundle.manifest.ground
        warnings = (*plan.warnings, *ground.warnings, *([WarningCode.UNLIKE_TRAINING] if unlike else []))
        return ground.model_copy(
            update={
                "model_gsd_m": training.gsd_m if training else None,
                "scale": float(f"{plan.scale:.5g}"),
                "warnings": tuple(dict.fromkeys(warnings)),
            }
        )


def _uncrop(mask: Mask, box: tuple[slice, slice], size: tuple[int, int]) -> Mask:
    """Return a mask of this size that is background outside `box`."""
    if mask.shape == size:
        return mask
    whole = np.full(size, BACKGROUND_ID, np.uint8)
    whole[box] = mask
    return whole


def load_segmenter(
    settings: Settings, *, model: Path | None = None, profile: str | None = None, runtime: RuntimeName | None = None
) -> BundleSegmenter:
    """Load the model bundle named in the settings.

    Args:
        settings: Application settings.
        model: Bundle folder; overrides the settings.
        profile: Profile name; overrides the settings.
        runtime: Inference runtime; overrides the settings.

    Raises:
        BundleError: If the bundle cannot be verified.
        ConfigurationError: If the bundle has no profile of that name.
        ModelError: If the runtime cannot run the network, or fails the self-check of the bundle.
    """
    return BundleSegmenter(
        read_bundle(model or settings.model),
        profile=profile or settings.profile,
        runtime=runtime or settings.runtime,
        cache=settings.cache_dir.expanduser() / "openvino",
    )
