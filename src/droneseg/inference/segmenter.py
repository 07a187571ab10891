"""Segmenter for model bundles."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as pillow

from droneseg.core.camera import UNKNOWN_GROUND, Ground, WarningCode
from droneseg.core.classes import BACKGROUND_ID, ClassTable, Normalisation, Role
from droneseg.core.errors import ConfigurationError
from droneseg.core.images import Image, require_rgb
from droneseg.core.landing_grid import LandingGrid, LandingPolicy
from droneseg.core.masks import Mask
from droneseg.core.prediction import ModelInfo, Prediction, class_fractions, image_statistics
from droneseg.core.runtimes import RuntimeName
from droneseg.core.settings import Settings
from droneseg.inference import sliding_window, unlike_training, views
from droneseg.inference.probability_map import ProbabilityMap, ProbabilityObserver, QuantisedProbabilities
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
            patch=manifest.patch_of(self._profile),
            step=manifest.tile_step,
            mirror_axes=manifest.mirror_axes if chosen.mirroring else (),
            accumulate_float16=chosen.half_sums,
            temperature=manifest.temperature_of(self._profile),
            nnunet_logits=chosen.nnunet_logits,
        )
        self._scales = chosen.scales
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
            input_shape=(*self._window.patch, 3),
            framework=self.runtime,
            self_check=self._self_check,
            license=manifest.license,
            quality=manifest.quality,
        )

    @property
    def classes(self) -> ClassTable:
        """Classes that the model predicts."""
        return self._bundle.manifest.class_table

    @property
    def landing_policy(self) -> LandingPolicy:
        """Limits of the active profile; the default limits, without a bound, if the bundle has none."""
        return self._bundle.manifest.landing.get(self._profile, LandingPolicy())

    def segment(
        self, image: Image, ground: Ground = UNKNOWN_GROUND, *, plain: bool = False, landing: bool = False
    ) -> Prediction:
        """Predict the class of every pixel.

        The image is resampled to the model's ground resolution. If it is larger than a tile, the predictions of smaller
        views are combined with those of the tiles. The mask has the size of the image. The profile `exact`, bundles
        without a ground resolution and `plain` use the pixels as they are.

        Args:
            image: RGB, shape (H, W, 3), dtype uint8.
            ground: Ground resolution of the image.
            plain: Whether to use the pixels as they are.
            landing: Whether to also pool the probabilities for landing sites. Black areas are background there.

        Raises:
            TypeError: If the image is not an array of dtype uint8.
            ValueError: If the image has another shape than (H, W, 3), or no pixels.
            ModelError: If the network returns logits that are not finite.
        """
        if not landing:
            return self._segment(image, ground, plain=plain)
        grids: list[LandingGrid] = []

        def start(seen: Image) -> ProbabilityObserver:
            size, box = (seen.shape[0], seen.shape[1]), sliding_window.nonzero_box(image)
            grids.append(LandingGrid.empty(self.classes, size, box))
            return _without_black_areas(grids[0].add, seen, len(self.classes))

        prediction = self._segment(image, ground, plain=plain, start=start)
        return replace(prediction, landing_grid=grids[0])

    def probabilities(
        self, image: Image, ground: Ground = UNKNOWN_GROUND, *, plain: bool = False, temperature: float | None = None
    ) -> tuple[Prediction, QuantisedProbabilities, ProbabilityMap]:
        """Predict the class probabilities of every pixel.

        The memory is a byte for each class and pixel of the image, and as much for the resampled image.

        Args:
            image: RGB, shape (H, W, 3), dtype uint8.
            ground: Ground resolution of the image.
            plain: Whether to use the pixels as they are.
            temperature: Number that logits are divided by before the softmax; None for that of the bundle.

        Returns:
            The prediction; the probabilities interpolated to the size of the image; and those at the size of the
            resampled image.

        Raises:
            TypeError: If the image is not an array of dtype uint8.
            ValueError: If the image has another shape than (H, W, 3), or no pixels.
            ModelError: If the network returns logits that are not finite.
        """
        maps: list[ProbabilityMap] = []

        def start(seen: Image) -> ProbabilityObserver:
            maps.append(ProbabilityMap.empty(len(self.classes), (seen.shape[0], seen.shape[1])))
            return maps[0].add

        prediction = self._segment(image, ground, plain=plain, temperature=temperature, start=start)
        return prediction, maps[0].at_size(image.shape[:2], sliding_window.nonzero_box(image)), maps[0]

    def landing_probability(
        self, image: Image, ground: Ground = UNKNOWN_GROUND, *, plain: bool = False
    ) -> tuple[Prediction, NDArray[np.float32]]:
        """Predict the class of every pixel, and its probability of being a landing zone.

        For arguments and errors see `segment`.

        Returns:
            The prediction, and the probabilities, shape (H, W), dtype float32.
        """
        landing: list[NDArray[np.float32]] = []
        ids = list(self.classes.ids_of(Role.LANDING))
        prediction = self._segment(
            image, ground, plain=plain, start=lambda _seen: lambda band, _first: landing.append(band[ids].sum(axis=0))
        )
        box = sliding_window.nonzero_box(image)
        whole = np.zeros(image.shape[:2], np.float32)
        size = whole[box].shape[::-1]
        whole[box] = np.asarray(pillow.fromarray(np.concatenate(landing)).resize(size, pillow.Resampling.BILINEAR))
        return prediction, whole

    def _segment(
        self,
        image: Image,
        ground: Ground,
        *,
        plain: bool,
        temperature: float | None = None,
        start: Callable[[Image], ProbabilityObserver] | None = None,
    ) -> Prediction:
        """Segment an image; see `segment`.

        Args:
            image: RGB, shape (H, W, 3), dtype uint8.
            ground: Ground resolution of the image.
            plain: Whether to use the pixels as they are.
            temperature: Number that logits are divided by; None for that of the bundle.
            start: Function that takes the resampled image and returns an observer of its class probabilities; None if
                they are not needed.
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
        window = self._window if temperature is None else replace(self._window, temperature=temperature)
        context = None if self._is_plain(plain) else self._bundle.manifest.context
        scaled = [views.resample(cropped, size) for size in self._scaled_sizes(plan, plain=plain)]
        result, disagreement = self._run(seen, scaled, plan, context, window, start(seen) if start else None)
        unlike = unlike_training.describe(unlike_training.features_of(statistics, disagreement), self._ranges)
        mask = _uncrop(views.resample_mask(result.mask, (height, width)), box, image.shape[:2])
        # the black border that was cropped is background with probability 1, as in nnU-Net
        outside = 1 - cropped.size / image.size
        fractions = class_fractions(mask, self.classes)
        network_s = result.network_s
        return Prediction(
            mask=mask,
            classes=self.classes,
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

    def disagreement_when_reduced(self, image: Image, scores: NDArray[np.float32]) -> float | None:
        """Return the disagreement of an image with its smallest view; None for a bundle that combines no views.

        Small views disagree most, so a range fitted on this feature is also valid for larger views.

        Args:
            image: RGB, shape (H, W, 3), dtype uint8, at the model's ground resolution.
            scores: Logits or probabilities of every pixel, shape (C, H, W), dtype float32.
        """
        context = self._bundle.manifest.context
        if context is None:
            return None
        height, width = image.shape[:2]
        size = max(round(height / views.MAX_REDUCTION), 1), max(round(width / views.MAX_REDUCTION), 1)
        view = views.View(size, weight=0.5, only_regions=True)
        smallest = self.logits(views.resample(image, size))
        combiner = views.ViewCombiner([(view, smallest)], (height, width), self._region_ids(context), temperature=1.0)
        combiner.classify(scores, 0)
        return combiner.disagreement

    def count_tiles(self, size: tuple[int, int], ground: Ground = UNKNOWN_GROUND, *, plain: bool = False) -> int:
        """Return the number of tiles of all views of an image; see `Segmenter`."""
        plan = self._plan(size, ground, plain=plain)
        sizes = (plan.size, *(view.size for view in plan.views), *self._scaled_sizes(plan, plain=plain))
        return sum(sliding_window.count_tiles(size, self._window) for size in sizes)

    def _is_plain(self, plain: bool) -> bool:
        manifest = self._bundle.manifest
        return plain or manifest.ground is None or manifest.profiles[self._profile].half_sums

    def _plan(self, size: tuple[int, int], ground: Ground, *, plain: bool) -> views.ViewPlan:
        manifest = self._bundle.manifest
        return views.plan_views(
            size,
            self._window.patch,
            ground,
            manifest.ground,
            manifest.context,
            plain=self._is_plain(plain),
        )

    def _scaled_sizes(self, plan: views.ViewPlan, *, plain: bool) -> tuple[tuple[int, int], ...]:
        return () if plain else views.scaled_sizes(plan, self._scales)

    def _run(
        self,
        image: Image,
        scaled: Sequence[Image],
        plan: views.ViewPlan,
        context: Context | None,
        window: sliding_window.SlidingWindowConfig,
        observe: ProbabilityObserver | None,
    ) -> tuple[sliding_window.SlidingWindowResult, float | None]:
        """Return the segmentation of a resampled image, and the disagreement of its views.

        Args:
            image: The resampled image.
            scaled: The same image at the further scales of the profile.
            plan: Smaller views.
            context: How to combine views; None for the pixels as they are.
            window: Parameters of the sliding window.
            observe: Observer of the class probabilities; None if they are not needed.
        """
        if context is not None and not image.any():
            # nothing can be seen in a black image
            if observe:
                observe(_background_probabilities(len(self.classes), plan.size), 0)
            return sliding_window.SlidingWindowResult(np.full(plan.size, BACKGROUND_ID, np.uint8), image.size / 3), None
        tables = self._tables(image, context)
        if not plan.views and not scaled:
            return sliding_window.sliding_window_inference(self._runtime, image, tables, window, observe=observe), None
        window = replace(window, border="mirror")
        network_s = 0.0

        def predict(view: Image) -> NDArray[np.float32]:
            nonlocal network_s
            logits, seconds = sliding_window.logit_map(self._runtime, view, tables, window)
            network_s += seconds
            return logits

        coarse = [(view, predict(views.resample(image, view.size))) for view in plan.views]
        combiner = views.ViewCombiner(
            coarse, plan.size, self._region_ids(context), window.temperature, [predict(other) for other in scaled]
        )
        classify = partial(combiner.classify, observe=observe)
        result = sliding_window.sliding_window_inference(self._runtime, image, tables, window, classify)
        result.network_s += network_s
        return result, combiner.disagreement if plan.views else None

    def _region_ids(self, context: Context | None) -> tuple[int, ...]:
        """Return the ids of the classes that coarse views may exchange."""
        return tuple(map(self.classes.id_of, context.region_classes)) if context else ()

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


def _background_probabilities(classes: int, size: tuple[int, int]) -> NDArray[np.float32]:
    """Return the class probabilities of an image in which nothing can be seen, shape (C, *size), dtype float32."""
    probabilities = np.zeros((classes, *size), np.float32)
    probabilities[BACKGROUND_ID] = 1
    return probabilities


def _without_black_areas(observe: ProbabilityObserver, image: Image, classes: int) -> ProbabilityObserver:
    """Return an observer for which the black areas of an image are background: nothing can be seen in them.

    Rotated orthophotos have such areas, in which networks see landing zones. Single black pixels and thin lines do not
    count, because they can be shadows.
    """
    black = (image[..., 0] | image[..., 1] | image[..., 2]) == 0  # much faster than `any`
    areas = black if black.all() else _opened(black)
    if not areas.any():
        return observe
    background = _background_probabilities(classes, (1, 1))

    def observe_without(probabilities: NDArray[np.float32], first: int) -> None:
        observe(np.where(areas[first : first + probabilities.shape[1]], background, probabilities), first)

    return observe_without


def _opened(pixels: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the union of the squares of 3 x 3 pixels that lie in a set of pixels, shape (H, W)."""
    opened = np.zeros_like(pixels)
    if not pixels.any():
        return opened
    columns = pixels[:-2] & pixels[1:-1] & pixels[2:]
    inner = columns[:, :-2] & columns[:, 1:-1] & columns[:, 2:]
    height, width = inner.shape
    for top in range(3):
        for left in range(3):
            opened[top : top + height, left : left + width] |= inner
    return opened


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
