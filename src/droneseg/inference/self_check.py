"""Self-check of a model at every load: compares a runtime's predictions for a generated image with the bundle's.

A runtime can give wrong results without an error, for example with a quantised network on an untested processor. The
bundle therefore contains a generated image and the class probabilities of each network for it. A runtime whose
probabilities differ too much is refused, and another one is used.
"""

import json
import logging
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from droneseg.core.classes import Normalisation
from droneseg.core.errors import BundleError, ModelError
from droneseg.core.images import Image, encode_png, read_image
from droneseg.core.runtimes import RuntimeName
from droneseg.inference.nnunet_logits import combine
from droneseg.inference.runtimes import Network, runtimes_to_try, start_runtime
from droneseg.inference.runtimes.base import Patches, Runtime, argmax_with_confidence
from droneseg.inference.sliding_window import normalisation_table
from droneseg.inference.views import resample
from droneseg.model.bundle import (
    INT8_NETWORK_NAME,
    NNUNET_OUTPUT,
    SELF_CHECK_EXPECTED_NAME,
    SELF_CHECK_IMAGE_NAME,
    Bundle,
    SelfCheck,
)

logger = logging.getLogger(__name__)

UNCHECKED = "not checked: the bundle has no self-check"
MAX_DIFFERENCE = 0.08
"""Accepted difference; docs/experiments.md lists the differences of correct and faulty runtimes."""
_GRID = (6, 8)

ClassProbabilities: TypeAlias = NDArray[np.float32]
"""Probability by class and cell, shape (C, 6, 8): the mean, over the pixels of a cell, of the probability of the
predicted class, counted for that class."""


def start_checked_runtime(bundle: Bundle, profile: str, name: RuntimeName, cache: Path | None) -> tuple[Runtime, str]:
    """Start a runtime for a profile, and check it if the bundle has a self-check.

    With `auto`, a runtime that fails the check is replaced by the next one.

    Args:
        bundle: Bundle of the model.
        profile: Name of the profile.
        name: Runtime to use.
        cache: Folder for compiled networks; None disables the cache.

    Returns:
        The runtime, and the result of the check in words.

    Raises:
        BundleError: If the network changes while it is loaded, or if the self-check is malformed.
        ModelError: If no runtime can run the network and passes the check.
    """
    check = bundle.manifest.self_check
    if check is None:
        return start_runtime(name, network_of(bundle, profile, cache)), UNCHECKED
    image, expected = read_self_check(bundle, profile)
    refusals: list[str] = []
    for candidate in runtimes_to_try(name):
        try:
            runtime = start_runtime(candidate, network_of(bundle, profile, cache))
            found = difference(expected, class_probabilities(runtime, image, bundle, profile))
            if found <= check.max_difference:
                passed = f"{runtime.name} passed; its difference is {found:.4f} and the limit {check.max_difference:g}"
                return runtime, "; ".join([passed, *refusals])
            refusals.append(f"{runtime.name} was refused; its difference is {found:.4f}")
        except BundleError:
            raise
        except ModelError as error:
            refusals.append(f"{candidate} was refused: {error}")
        logger.warning("self-check of profile %s: %s", profile, refusals[-1])
    remedy = "Choose another profile" + ("." if name is RuntimeName.AUTO else ", or the runtime auto.")
    raise ModelError(
        f"Profile {profile} of {bundle.folder} fails its self-check (limit {check.max_difference:g}): "
        f"{'; '.join(refusals)}. {remedy}"
    )


def network_of(bundle: Bundle, profile: str, cache: Path | None) -> Network:
    """Return the network of a profile, as `start_runtime` needs it."""
    manifest = bundle.manifest
    chosen = manifest.profiles[profile]
    return Network(
        file=bundle.network(profile),
        sha256=manifest.files[chosen.network].sha256,
        patch=manifest.patch_of(profile),
        precision=chosen.precision,
        takes_bytes=manifest.normalisation == Normalisation.RGB_TO_0_1,
        wants_logits=_wants_logits(bundle, profile),
        cache=cache,
        output=NNUNET_OUTPUT if chosen.nnunet_logits else None,
    )


def class_probabilities(runtime: Runtime, image: Image, bundle: Bundle, profile: str) -> ClassProbabilities:
    """Run the network of a profile once, and return the probability by class and cell.

    Args:
        runtime: Runtime that has loaded the network.
        image: RGB, shape (H, W, 3) of a tile, dtype uint8.
        bundle: Bundle of the model.
        profile: Name of the profile. With its output, logits or argmax, no second graph is compiled.

    Raises:
        ModelError: If a logit is not finite.
    """
    patches = _as_patches(image, bundle.manifest.normalisation)
    if _wants_logits(bundle, profile):
        logits, form = runtime.logits(patches)[0], bundle.manifest.profiles[profile].nnunet_logits
        # not nnU-Net's own choice of the class, so that the expected values hold for all profiles of the network
        ids, probabilities = argmax_with_confidence(combine(logits, form) if form else logits)
    else:
        ids, probabilities = (values[0] for values in runtime.argmax(patches))
    classes = range(len(bundle.manifest.classes))
    return np.stack([_cell_means(np.where(ids == number, probabilities, np.float32(0))) for number in classes])


def difference(expected: ClassProbabilities, found: ClassProbabilities) -> float:
    """Return the share of the probability that differs, 0 to 1: half of the sum over classes, averaged over cells."""
    return float(np.abs(expected - found).sum(axis=0).mean() / 2)


def read_self_check(bundle: Bundle, profile: str) -> tuple[Image, ClassProbabilities]:
    """Read the image of a bundle's self-check, and the expected probabilities of a profile's network.

    For a network with tiles of another size, the image is resampled to that size.

    Raises:
        BundleError: If the bundle has no self-check, or a malformed one.
    """
    check = bundle.manifest.self_check
    if check is None:
        raise BundleError(f"{bundle.folder} has no self-check. Add one with `droneseg models upgrade`.")
    image = read_image(bundle.folder / check.image)
    network = bundle.manifest.profiles[profile].network
    try:
        expected = np.array(json.loads((bundle.folder / check.expected).read_bytes())[network], np.float32)
    except (ValueError, KeyError, TypeError):
        expected = np.empty(0, np.float32)
    shapes = image.shape[:2], expected.shape
    wanted = bundle.manifest.patch_size, (len(bundle.manifest.classes), *_GRID)
    if shapes != wanted:
        raise BundleError(
            f"The self-check of {bundle.folder} has an image and probabilities of {network} of shapes {shapes}, not "
            f"{wanted}. Export the model again."
        )
    return resample(image, bundle.manifest.patch_of(profile)), expected


def build_self_check(bundle: Bundle, image: Image, folder: Path) -> tuple[SelfCheck, dict[str, Path]]:
    """Measure the predictions of a bundle's networks for an image, for the block `self_check` of its manifest.

    ONNX Runtime gives the expected probabilities. OpenVINO must agree, except on the INT8 network.

    Args:
        bundle: Bundle of the model; its own self-check, if any, is ignored.
        image: RGB, shape (H, W, 3) of a tile, dtype uint8, from `data.synthetic.generate_self_check_image`. For
            networks with tiles of another size, it is resampled.
        folder: Existing folder, to which two files are written.

    Returns:
        Block of the manifest, and the two files by the names that they must have in the bundle.

    Raises:
        ModelError: If a runtime cannot run a network, or if the runtimes disagree.
    """
    expected: dict[str, ClassProbabilities] = {}
    for profile, entry in bundle.manifest.profiles.items():
        if entry.network not in expected:
            expected[entry.network] = _measure(bundle, profile, image)
    files = {name: folder / name for name in (SELF_CHECK_IMAGE_NAME, SELF_CHECK_EXPECTED_NAME)}
    files[SELF_CHECK_IMAGE_NAME].write_bytes(encode_png(image, compress_level=9))
    rounded = {name: np.round(values.astype(float), 4).tolist() for name, values in expected.items()}
    files[SELF_CHECK_EXPECTED_NAME].write_text(json.dumps(rounded) + "\n", encoding="utf-8")
    block = SelfCheck(image=SELF_CHECK_IMAGE_NAME, expected=SELF_CHECK_EXPECTED_NAME, max_difference=MAX_DIFFERENCE)
    return block, files


def _measure(bundle: Bundle, profile: str, image: Image) -> ClassProbabilities:
    """Return the probabilities of a profile with ONNX Runtime, after a comparison with OpenVINO."""
    name = bundle.manifest.profiles[profile].network
    image = resample(image, bundle.manifest.patch_of(profile))
    expected, other = (
        class_probabilities(start_runtime(runtime, network_of(bundle, profile, None)), image, bundle, profile)
        for runtime in (RuntimeName.ONNXRUNTIME, RuntimeName.OPENVINO)
    )
    found = difference(expected, other)
    logger.info("self-check of %s: OpenVINO and ONNX Runtime differ by %.4f", name, found)
    if found > MAX_DIFFERENCE and name != INT8_NETWORK_NAME:
        raise ModelError(
            f"OpenVINO and ONNX Runtime differ by {found:.4f} on {bundle.network(profile)}; the limit is "
            f"{MAX_DIFFERENCE:g}. Repeat the command on another computer, or report this with the model."
        )
    return expected


def _wants_logits(bundle: Bundle, profile: str) -> bool:
    chosen = bundle.manifest.profiles[profile]
    return chosen.mirroring or chosen.half_sums or len(chosen.scales) > 1


def _as_patches(image: Image, normalisation: Normalisation) -> Patches:
    """Return a tile as a batch, in the format of the runtime's input."""
    if normalisation == Normalisation.RGB_TO_0_1:
        return np.array(image[None])  # a copy, because OpenVINO reads no write-protected arrays
    table = normalisation_table(image, normalisation)
    return np.stack([table[channel][image[..., channel]] for channel in range(3)])[None]


def _cell_means(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the mean of each cell of values of shape (H, W)."""
    bands = np.array_split(values, _GRID[0], axis=0)
    return np.array([[cell.mean() for cell in np.array_split(band, _GRID[1], axis=1)] for band in bands], np.float32)
