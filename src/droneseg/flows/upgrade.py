"""Blocks of bundle format 2 (ground resolution, context, self-check, calibration), and the upgrade of older bundles."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from droneseg.core.errors import DatasetError, MissingDependencyError
from droneseg.core.images import DEFAULT_MAX_PIXELS, Image
from droneseg.core.masks import Mask
from droneseg.data.dataset import Pair, read_pair_image, read_true_mask
from droneseg.data.synthetic import generate_self_check_image
from droneseg.flows.calibrate import MIN_IMAGES, calibrate_from_maps, check_maps, fit_calibration
from droneseg.flows.profiles import NO_PROFILES, ProfileOptions, add_profiles, check_twin, names_with
from droneseg.inference.self_check import build_self_check
from droneseg.inference.views import default_context
from droneseg.model import bundle as bundle_format


@dataclass(frozen=True)
class CalibrationImages:
    """Images with true masks that a calibration is fitted on.

    Attributes:
        source: Description of the images, and whether the network was trained on them.
        pairs: Images and masks.
        max_pixels: Maximum number of pixels of an image.
    """

    source: str
    pairs: Sequence[Pair]
    max_pixels: int = DEFAULT_MAX_PIXELS

    def read(self, progress: Callable[[int, int], None]) -> Iterator[tuple[Image, Mask]]:
        """Yield each image, RGB, with its mask of class ids."""
        for done, pair in enumerate(self.pairs, start=1):
            image = read_pair_image(pair, max_pixels=self.max_pixels)
            yield image, read_true_mask(pair, max_pixels=self.max_pixels)
            progress(done, len(self.pairs))


def add_blocks(
    bundle: bundle_format.Bundle,
    out: Path,
    *,
    ground: bundle_format.TrainingGround | None = None,
    images: CalibrationImages | None = None,
    maps: Sequence[Path] = (),
    profiles: ProfileOptions = NO_PROFILES,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> bundle_format.Bundle:
    """Write a copy of a bundle in the current format with all blocks.

    An INT8 network with signed activations, which OpenVINO computes incorrectly, is stored with unsigned ones.

    Args:
        bundle: Bundle of any format.
        out: Folder of the copy; an earlier bundle is replaced.
        ground: Ground resolution of the training images; None keeps that of the bundle. If there is none, images are
            not resampled and have no smaller views.
        images: Images for the block `calibration`. Without them, the calibration of the bundle is kept if images are
            still presented to the network in the same way.
        maps: Folders of out-of-fold probability maps for the block `calibration`, instead of `images`; at most one for
            each profile.
        profiles: Profiles to add or replace.
        progress: Progress callback with the number of images or maps used for the calibration and the total.

    Raises:
        ConfigurationError: If the twin is not compatible with the bundle.
        DatasetError: If there are fewer than 20 images for the calibration, or the maps cannot be used for it.
        MissingDependencyError: If the bundle has an INT8 network or gets a twin, but the extra `train` is missing.
        ModelError: If a runtime cannot run a network, or if the runtimes disagree.
    """
    old = bundle.manifest
    ground = ground or old.ground
    context = default_context(old.class_table) if ground else None
    unchanged = (ground, context) == (old.ground, old.context)
    final = old.model_copy(update={"ground": ground, "context": context})
    _check_inputs(final, images, maps, profiles)
    with TemporaryDirectory() as temporary:
        bundle = _with_unsigned_int8(bundle, Path(temporary))
        bundle = add_profiles(bundle, profiles, ground, Path(temporary))
        height, width = old.patch_size
        self_check, new = build_self_check(bundle, generate_self_check_image(width, height), Path(temporary))
        files = {name: bundle.folder / name for name in bundle.manifest.files} | new
        blocks: dict[str, object] = {
            "format_version": bundle_format.FORMAT_VERSION,
            "ground": ground,
            "context": context,
            "self_check": self_check,
            "calibration": old.calibration if unchanged and not images and not maps else None,
            # a new temperature changes the probabilities that the limits are for
            "landing": old.landing if unchanged and not images and not maps else {},
        }
        if maps:
            draft = bundle_format.Bundle(bundle.folder, bundle.manifest.model_copy(update=blocks), bundle.model_id)
            fitted = calibrate_from_maps(draft, maps, progress)
            blocks["calibration"] = fitted.calibration
            blocks["profiles"] = _with_temperatures(bundle.manifest.profiles, fitted.temperatures)
        if images:
            draft = _write(bundle, Path(temporary, "draft"), blocks, files)
            blocks["calibration"] = fit_calibration(draft, images.read(progress), source=images.source)
        return _write(bundle, out, blocks, files)


def _check_inputs(
    final: bundle_format.Manifest, images: CalibrationImages | None, maps: Sequence[Path], profiles: ProfileOptions
) -> None:
    """Check the twin and the images or maps of the calibration, before anything is computed.

    Args:
        final: Manifest with its final ground resolution and context.
        images: Images for the calibration.
        maps: Folders of maps for the calibration.
        profiles: Profiles to add.

    Raises:
        ConfigurationError: If the twin is not compatible with the bundle.
        DatasetError: If there are too few images, or the maps cannot be used.
    """
    if profiles.twin:
        check_twin(final, profiles.twin)
    if images and len(images.pairs) < MIN_IMAGES:
        raise DatasetError(f"{len(images.pairs)} images are too few for a calibration; use at least {MIN_IMAGES}.")
    if maps:
        names = dict.fromkeys(names_with(final.profiles, profiles), final.profiles[final.default_profile])
        check_maps(final.model_copy(update={"profiles": names}), maps)


def _with_temperatures(
    profiles: Mapping[str, bundle_format.Profile], temperatures: Mapping[str, float]
) -> dict[str, bundle_format.Profile]:
    """Return the profiles with new temperatures; the others keep theirs."""
    return {
        name: profile.model_copy(update={"temperature": temperatures.get(name, profile.temperature)})
        for name, profile in profiles.items()
    }


def _with_unsigned_int8(bundle: bundle_format.Bundle, folder: Path) -> bundle_format.Bundle:
    """Return the bundle; if its INT8 network has signed activations, a copy in `folder` with unsigned ones."""
    name = bundle_format.INT8_NETWORK_NAME
    if name not in bundle.manifest.files:
        return bundle
    try:
        from droneseg.training.onnx import make_network_unsigned
    except ModuleNotFoundError as error:
        raise MissingDependencyError(error.name or "onnx", "train") from error
    if not make_network_unsigned(bundle.folder / name, folder / name):
        return bundle
    files = {other: bundle.folder / other for other in bundle.manifest.files} | {name: folder / name}
    return _write(bundle, folder / "unsigned", {}, files)


def _write(
    bundle: bundle_format.Bundle, out: Path, blocks: dict[str, object], files: dict[str, Path]
) -> bundle_format.Bundle:
    return bundle_format.write_bundle(
        out, lambda records: bundle.manifest.model_copy(update=blocks | {"files": records}), files
    )
