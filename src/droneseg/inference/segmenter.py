"""The `Segmenter` of a bundle: what nnU-Net does to a photograph, without nnU-Net and without torch."""

import time
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from droneseg.core.classes import BACKGROUND_ID
from droneseg.core.errors import ConfigurationError
from droneseg.core.images import Image
from droneseg.core.prediction import ModelDescription, Prediction, class_fractions
from droneseg.inference.preprocessing import nonzero_box, normalisation_table
from droneseg.inference.runtimes.protocol import Runtime
from droneseg.inference.tiling import Window, slide
from droneseg.model.bundle import Bundle


class RuntimeChoice(StrEnum):
    """What runs the network; auto is ONNX Runtime with a GPU and OpenVINO without."""

    AUTO = "auto"
    OPENVINO = "openvino"
    ONNXRUNTIME = "onnxruntime"


class BundleSegmenter:
    """Predicts with a bundle; one serves many threads.

    Args:
        bundle: The model.
        profile: One of the bundle's profiles; None for its default.
        runtime: What runs the network.
        cache: Folder for compiled networks; None for none.

    Raises:
        ConfigurationError: If the bundle has no such profile.
        ModelError: If the runtime cannot run the network.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        profile: str | None = None,
        runtime: RuntimeChoice = RuntimeChoice.AUTO,
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
        self._takes_bytes = manifest.normalisation == "rgb_to_0_1"
        self._window = Window(
            patch=manifest.patch_size,
            step=manifest.tile_step,
            mirror_axes=manifest.mirror_axes if chosen.mirroring else (),
            half_sums=chosen.half_sums,
        )
        self._runtime = _start_runtime(bundle, self._profile, runtime, cache, takes_bytes=self._takes_bytes)

    @property
    def model_id(self) -> str:
        """Short hash of the bundle."""
        return self._bundle.model_id

    @property
    def profile(self) -> str:
        """Name of the profile it runs with."""
        return self._profile

    @property
    def runtime(self) -> str:
        """Name of what runs the network."""
        return self._runtime.name

    @property
    def about(self) -> ModelDescription:
        """What the bundle says of itself."""
        manifest = self._bundle.manifest
        return ModelDescription(
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
            ModelError: If the network gives no finite scores.
        """
        begin = time.perf_counter()
        box = nonzero_box(image)
        cropped = image[box]
        table = None if self._takes_bytes else normalisation_table(cropped, self._bundle.manifest.normalisation)
        prepared = time.perf_counter()
        answer = slide(self._runtime, cropped, table, self._window)
        mask, outside = answer.mask, 0
        if cropped.shape != image.shape:
            # what was cropped away is background for certain, as in nnU-Net
            mask = np.full(image.shape[:2], BACKGROUND_ID, np.uint8)
            mask[box] = answer.mask
            outside = mask.size - answer.mask.size
        fractions = class_fractions(mask)
        network_s = answer.network_s
        return Prediction(
            mask=mask,
            class_fractions=fractions,
            confidence=(answer.probability_sum + outside) / mask.size,
            timings_s={
                "preprocess": round(prepared - begin, 5),
                "network": round(network_s, 5),
                "postprocess": round(time.perf_counter() - prepared - network_s, 5),
            },
            model_id=self.model_id,
        )


def _start_runtime(
    bundle: Bundle, profile: str, choice: RuntimeChoice, cache: Path | None, *, takes_bytes: bool
) -> Runtime:
    manifest = bundle.manifest
    network, patch, chosen = bundle.network(profile), manifest.patch_size, manifest.profiles[profile]
    if choice is RuntimeChoice.ONNXRUNTIME or (choice is RuntimeChoice.AUTO and _may_have_cuda()):
        from droneseg.inference.runtimes.onnxruntime import OnnxRuntime, has_cuda

        if choice is RuntimeChoice.ONNXRUNTIME or has_cuda():
            return OnnxRuntime(network, patch, takes_bytes=takes_bytes)
    from droneseg.inference.runtimes.openvino import OpenVinoRuntime

    return OpenVinoRuntime(
        network,
        patch,
        precision=chosen.precision,
        takes_bytes=takes_bytes,
        first="scores" if chosen.mirroring or chosen.half_sums else "winners",
        cache=cache,
        network_sha256=manifest.files[chosen.network].sha256,
    )


def _may_have_cuda() -> bool:
    """Say whether the GPU build of ONNX Runtime is installed, without importing it: that takes a while."""
    found = find_spec("onnxruntime")
    folders = found.submodule_search_locations if found else None
    return any(any(Path(folder, "capi").glob("*onnxruntime_providers_cuda*")) for folder in folders or ())
