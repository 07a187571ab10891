"""Calibration of a bundle on images with ground truth: temperature, and ranges of the check for unlike images."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from droneseg.core.errors import DatasetError
from droneseg.core.images import Image
from droneseg.core.masks import Mask
from droneseg.core.prediction import image_statistics
from droneseg.flows.probabilities import ProbabilityIndex, read_index, read_map
from droneseg.inference.segmenter import BundleSegmenter
from droneseg.inference.unlike_training import features_of, fit_ranges
from droneseg.model.bundle import Bundle, Calibration, Manifest

MIN_IMAGES = 20
"""Smallest number of images for a calibration."""
_PIXEL_STEP = 16
"""Distance of the pixels, in rows and columns, that the temperature is fitted on."""
_TEMPERATURES = np.arange(1.0, 3.005, 0.01)


def fit_calibration(bundle: Bundle, samples: Iterable[tuple[Image, Mask]], *, source: str) -> Calibration:
    """Fit the calibration of a bundle's default profile.

    Args:
        bundle: Bundle with its final block `context`.
        samples: Images at the model's ground resolution, RGB, shape (H, W, 3), dtype uint8, and their true masks of
            class ids, shape (H, W), dtype uint8.
        source: Description of the images, and whether the network was trained on them.

    Returns:
        Block `calibration` of the manifest.

    Raises:
        DatasetError: If there are fewer than 20 images.
    """
    segmenter = BundleSegmenter(bundle)
    rows, logits, truths = [], [], []
    for image, truth in samples:
        of_image = segmenter.logits(image)
        disagreement = segmenter.disagreement_when_reduced(image, of_image)
        rows.append(features_of(image_statistics(image), disagreement))
        logits.append(of_image[:, ::_PIXEL_STEP, ::_PIXEL_STEP].reshape(len(of_image), -1))
        truths.append(truth[::_PIXEL_STEP, ::_PIXEL_STEP].reshape(-1))
    if len(rows) < MIN_IMAGES:
        raise DatasetError(f"{len(rows)} images are too few for a calibration; use at least {MIN_IMAGES}.")
    return Calibration(
        temperature=fit_temperature(np.concatenate(logits, axis=1), np.concatenate(truths)),
        source=source,
        unlike_training=fit_ranges(rows, source),
    )


@dataclass(frozen=True)
class MapCalibration:
    """Calibration fitted on probability maps.

    Attributes:
        calibration: Block `calibration` of the manifest, with the temperature of the default profile.
        temperatures: Temperatures of the other profiles, by name.
    """

    calibration: Calibration
    temperatures: dict[str, float]


def check_maps(manifest: Manifest, folders: Sequence[Path]) -> dict[Path, ProbabilityIndex]:
    """Check that a bundle can be calibrated on maps, and return the index of each folder.

    Args:
        manifest: Manifest with the final block `context` and the names of all profiles.
        folders: See `calibrate_from_maps`.

    Raises:
        DatasetError: See `calibrate_from_maps`.
    """
    indices, problems = dict[Path, ProbabilityIndex](), list[str]()
    for folder in folders:
        try:
            indices[folder] = read_index(folder)
        except DatasetError as error:
            problems.append(str(error))
    problems += [f"{folder}: {problem}" for folder, index in indices.items() for problem in _problems(index, manifest)]
    found = [profile for index in indices.values() for profile in profiles_of_maps(index)]
    if len(set(found)) < len(found):
        problems.append("Several folders have maps of the same profile; pass one for each profile.")
    if len(indices) == len(folders) and manifest.default_profile not in found:
        problems.append(f"No folder has maps of the default profile, {manifest.default_profile}.")
    if problems:
        raise DatasetError("The maps cannot be used for a calibration:", problems)
    return indices


def calibrate_from_maps(
    bundle: Bundle, folders: Sequence[Path], progress: Callable[[int, int], None] = lambda _done, _total: None
) -> MapCalibration:
    """Fit the calibration of a bundle on probability maps that were predicted out of fold.

    A network is more confident on photographs that it was trained on, so a temperature fitted on these is too low. If
    several views were combined, the temperature of the combination is fitted, which differs little from that of each
    view.

    Args:
        bundle: Bundle with its final block `context`.
        folders: Folders that `droneseg probabilities` wrote, at most one for each profile; one of them for the default
            profile.
        progress: Progress callback with the number of maps read and the total.

    Raises:
        DatasetError: If the maps are incomplete, calibrated, not out of fold or without true masks, if they are fewer
            than 20 or belong to an unknown profile, or if no folder has maps of the default profile; the error lists
            all problems.
    """
    indices = check_maps(bundle.manifest, folders)
    default = bundle.manifest.default_profile
    by_profile = {profile: folder for folder, index in indices.items() for profile in profiles_of_maps(index)}
    total, done = sum(len(index.photographs) for index in indices.values()), count(1)
    temperatures = {
        profile: _temperature_of_maps(folder, indices[folder], lambda: progress(next(done), total))
        for profile, folder in by_profile.items()
    }
    index = indices[by_profile[default]]
    source = describe_maps(index)
    calibration = Calibration(
        temperature=temperatures.pop(default),
        source=source,
        unlike_training=fit_ranges([record.features for record in index.photographs.values()], source),
    )
    return MapCalibration(calibration, temperatures)


def profiles_of_maps(index: ProbabilityIndex) -> set[str]:
    """Return the profiles that the maps were predicted with."""
    return {record.profile for record in index.photographs.values()}


def _problems(index: ProbabilityIndex, manifest: Manifest) -> list[str]:
    records = index.photographs.values()
    unknown = profiles_of_maps(index) - set(manifest.profiles)
    lacking = manifest.context is not None and any("disagreement" not in record.features for record in records)
    found = {
        "is incomplete; run `droneseg probabilities` again": not index.complete or bool(index.failed),
        "is not out of fold; pass --split with folds": index.kind != "out of fold",
        f"has temperature {index.temperature:g}; use maps of temperature 1": index.temperature != 1,
        "has photographs without a true mask": any(record.confusion is None for record in records),
        f"has {len(records)} photographs; use at least {MIN_IMAGES}": len(records) < MIN_IMAGES,
        f"has maps of profiles {', '.join(sorted(profiles_of_maps(index)))}; use one": len(profiles_of_maps(index)) > 1,
        f"has profile {', '.join(sorted(unknown))}, which the bundle lacks": bool(unknown),
        "comes from bundles without a ground resolution, which combine no views": lacking,
    }
    return [problem for problem, is_true in found.items() if is_true]


def _temperature_of_maps(folder: Path, index: ProbabilityIndex, on_map: Callable[[], None]) -> float:
    logits, truths = [], []
    for record in index.photographs.values():
        stored = read_map(folder / record.file)
        if stored.truth is None:
            raise DatasetError(f"{folder / record.file} has no true mask. Run `droneseg probabilities` again.")
        logits.append(stored.log_probabilities.reshape(len(stored.log_probabilities), -1).astype(np.float32))
        truths.append(stored.truth.reshape(-1))
        on_map()
    return fit_temperature(np.concatenate(logits, axis=1), np.concatenate(truths))


def describe_maps(index: ProbabilityIndex) -> str:
    """Return a description of the photographs of the maps."""
    left_out = f", {len(index.never_validated)} in none" if index.never_validated else ""
    return (
        f"{len(index.photographs)} photographs of {index.data}, each predicted by the model of the fold that was not "
        f"trained on it ({len(index.models)} folds of {index.split}{left_out})"
    )


def fit_temperature(logits: NDArray[np.float32], truth: Mask) -> float:
    """Return the temperature from 1 to 3 with the smallest negative log-likelihood of the true classes.

    A temperature below 1 would make the model more confident. A fit on training images may prefer one, but it is not
    valid for new images, so 1 is the lower limit.

    Args:
        logits: Logits of N pixels, shape (C, N), dtype float32.
        truth: True classes, shape (N,), dtype uint8; pixels without a label are left out.

    Raises:
        DatasetError: If no pixel has a label.
    """
    labelled = truth < len(logits)
    if not labelled.any():
        raise DatasetError("No pixel of these images has a label, so the temperature cannot be fitted.")
    logits, truth = logits[:, labelled], truth[labelled]
    losses = [_negative_log_likelihood(logits / np.float32(value), truth) for value in _TEMPERATURES]
    return round(float(_TEMPERATURES[int(np.argmin(losses))]), 2)


def _negative_log_likelihood(logits: NDArray[np.float32], truth: Mask) -> float:
    shifted = logits - logits.max(axis=0)
    chosen = np.take_along_axis(shifted, truth[None].astype(np.intp), axis=0)[0]
    return float((np.log(np.exp(shifted).sum(axis=0)) - chosen).mean(dtype=np.float64))
