"""Segmenter for model bundles."""

import time
from pathlib import Path

import numpy as np

from droneseg.core.classes import BACKGROUND_ID, Normalisation
from droneseg.core.errors import ConfigurationError
from droneseg.core.images import Image
from droneseg.core.prediction import ModelInfo, Prediction, class_fractions
from droneseg.core.runtimes import RuntimeName
from droneseg.core.settings import Settings
from droneseg.inference import sliding_window
from droneseg.inference.runtimes import Network, start_runtime
from droneseg.inference.runtimes.base import Runtime
from droneseg.model.bundle import Bundle, read_bundle


class BundleSegmenter:
    """Segments images with a model bundle. Safe to use from several threads.

    Args:
        bundle: Model bundle.
        profile: Profile of the bundle; None for its default profile.
        runtime: Inference runtime.
        cache: Folder for compiled networks; None disables the cache.

    Raises:
        ConfigurationError: If the bundle has no profile of that name.
        ModelError: If the runtime cannot run the network.
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
        )
        self._runtime = _start(bundle, self._profile, runtime, cache)

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
            license=manifest.license,
            quality=manifest.quality,
        )

    def segment(self, image: Image) -> Prediction:
        """Predict the class of every pixel of an RGB image, shape (H, W, 3), dtype uint8.

        Raises:
            ModelError: If the network returns logits that are not finite.
        """
        begin = time.perf_counter()
        box = sliding_window.nonzero_box(image)
        cropped = image[box]
        table = (
            None
            if self._takes_bytes
            else sliding_window.normalisation_table(cropped, self._bundle.manifest.normalisation)
        )
        prepared = time.perf_counter()
        result = sliding_window.sliding_window_inference(self._runtime, cropped, table, self._window)
        mask, outside = result.mask, 0
        if cropped.shape != image.shape:
            # the black border that was cropped is background with probability 1, as in nnU-Net
            mask = np.full(image.shape[:2], BACKGROUND_ID, np.uint8)
            mask[box] = result.mask
            outside = mask.size - result.mask.size
        fractions = class_fractions(mask)
        network_s = result.network_s
        return Prediction(
            mask=mask,
            class_fractions=fractions,
            confidence=(result.probability_sum + outside) / mask.size,
            timings_s={
                "preprocess": round(prepared - begin, 5),
                "network": round(network_s, 5),
                "postprocess": round(time.perf_counter() - prepared - network_s, 5),
            },
            model_id=self.model_id,
        )


def _start(bundle: Bundle, profile: str, runtime: RuntimeName, cache: Path | None) -> Runtime:
    manifest = bundle.manifest
    chosen = manifest.profiles[profile]
    network = Network(
        file=bundle.network(profile),
        sha256=manifest.files[chosen.network].sha256,
        patch=manifest.patch_size,
        precision=chosen.precision,
        takes_bytes=manifest.normalisation == Normalisation.RGB_TO_0_1,
        wants_logits=bool(chosen.mirroring or chosen.half_sums),
        cache=cache,
    )
    return start_runtime(runtime, network)


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
        ModelError: If the runtime cannot run the network.
    """
    return BundleSegmenter(
        read_bundle(model or settings.model),
        profile=profile or settings.profile,
        runtime=runtime or settings.runtime,
        cache=settings.cache_dir.expanduser() / "openvino",
    )
