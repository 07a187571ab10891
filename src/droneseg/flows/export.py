"""Export of a trained model to a bundle, with measured profiles and a drift reference."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from droneseg.core.camera import Ground
from droneseg.core.errors import DatasetError, DriftError
from droneseg.core.files import check_writable
from droneseg.core.images import DEFAULT_MAX_PIXELS, Image, decode_image, read_image
from droneseg.core.masks import Mask, read_mask
from droneseg.core.metrics import Confusion, compute_metrics, confusion
from droneseg.data.dataset import Pair, Progress, list_pairs
from droneseg.data.splits import read_split
from droneseg.data.synthetic import generate_scene
from droneseg.evaluation.bootstrap import bootstrap_intervals
from droneseg.flows.calibrate import MIN_IMAGES
from droneseg.flows.profiles import NO_PROFILES, ProfileOptions, choose_profiles
from droneseg.flows.upgrade import CalibrationImages, add_blocks
from droneseg.inference.batch import DEFAULT_VIEW, ViewOptions
from droneseg.inference.segmenter import BundleSegmenter
from droneseg.inference.sliding_window import central_tile, normalisation_table
from droneseg.model import bundle as bundle_format
from droneseg.monitoring.drift import MIN_RECORDS, measure_reference, write_reference
from droneseg.nnunet.checkpoint import TrainedModel, load_trained_model
from droneseg.nnunet.paths import PLANS, NnunetPaths
from droneseg.training.onnx import TorchAgreement, export_onnx, quantise
from droneseg.training.run import git_revision, package_versions

_GENERATED_SEED = 1_000_000
_GENERATED_SIZE = (480, 368)
_CHECKED_PATCHES = 4
_MOST_IMAGES = 500
"""Maximum number of images of a calibration and a drift reference."""

StepCallback = Callable[[str], None]
"""Callback with the name of each step when it begins."""


def _no_progress(_done: int, _total: int) -> None:
    """Ignore the progress."""


@dataclass(frozen=True)
class Samples:
    """Images for measuring an exported network.

    Attributes:
        source: Description of the images, such as "generated scenes".
        images: RGB images, each of shape (H, W, 3), dtype uint8.
        grounds: Ground resolution of each image.
        truths: Ground truth masks, each of shape (H, W), dtype uint8.
        calibration: Other RGB images, for INT8 calibration.
    """

    source: str
    images: tuple[Image, ...]
    grounds: tuple[Ground, ...]
    truths: tuple[Mask, ...]
    calibration: tuple[Image, ...]


def take_samples(paths: NnunetPaths, fold: int, count: int, view: ViewOptions = DEFAULT_VIEW) -> Samples:
    """Read images of the validation part of a fold, or generate scenes if there is no raw dataset.

    Args:
        paths: nnU-Net's folders.
        fold: Number of the fold.
        count: Maximum number of images.
        view: Ground resolution of the images, by default read from their files.
    """
    validation, training = (_pairs_of_fold(paths, fold, part, count) for part in ("val", "train"))
    if not validation:
        return _generate(count, view)
    files = [pair.image.read_bytes() for pair in validation]
    return Samples(
        f"validation part of fold {fold}",
        tuple(map(decode_image, files)),
        tuple(map(view.read_ground, files)),
        tuple(read_mask(pair.mask, "labels") for pair in validation),
        tuple(read_image(pair.image) for pair in training),
    )


def _pairs_of_fold(paths: NnunetPaths, fold: int, part: str, count: int) -> list[Pair]:
    """Return at most `count` cases of one part of a fold; none without the raw dataset."""
    folds = _read_folds(paths)
    if not folds:
        return []
    raw = paths.raw_dataset
    return [
        Pair(case, raw / "imagesTr" / f"{case}_0000.png", raw / "labelsTr" / f"{case}.png")
        for case in _select_evenly(folds[fold if fold < len(folds) else 0][part], count)
    ]


def choose_pairs(data: Path, split_file: Path | None, part: str) -> list[Pair]:
    """Return the pairs of a dataset, or only those in one part of a split.

    Args:
        data: Dataset folder.
        split_file: Split file that selects one part of the dataset; None selects all pairs.
        part: Name of the part.

    Raises:
        DatasetError: If the dataset has problems, or the part contains no pair.
        SplitError: If the split does not match the dataset.
    """
    listing = list_pairs(data)
    if listing.problems:
        raise DatasetError(f"{listing.root} has {len(listing.problems)} problem(s):", listing.problems)
    pairs = list(listing.pairs)
    if split_file:
        chosen = set(getattr(read_split(split_file, [pair.stem for pair in pairs]), part))
        pairs = [pair for pair in pairs if pair.stem in chosen]
    if not pairs:
        raise DatasetError(f"{listing.root} has no images of part {part!r}. Choose another part with --part.")
    return pairs


def _read_folds(paths: NnunetPaths) -> list[dict[str, list[str]]]:
    """Return the cases of each fold, as nnU-Net stores them; none without the raw dataset."""
    if not (paths.raw_dataset / "labelsTr").is_dir():
        return []
    for folder in (paths.preprocessed_dataset, paths.raw_dataset):
        file = folder / "splits_final.json"
        if file.is_file():
            folds: list[dict[str, list[str]]] = json.loads(file.read_text(encoding="utf-8"))
            return folds
    return []


def _generate(count: int, view: ViewOptions) -> Samples:
    scenes = [generate_scene(_GENERATED_SEED + index, *_GENERATED_SIZE) for index in range(2 * count)]
    return Samples(
        "generated scenes",
        tuple(image for image, _ in scenes[:count]),
        (view.read_ground(b""),) * count,
        tuple(mask for _, mask in scenes[:count]),
        tuple(image for image, _ in scenes[count:]),
    )


def _select_evenly(cases: list[str], count: int) -> list[str]:
    """Return at most `count` cases, evenly spaced in the sorted list."""
    step = max(1, len(cases) // count)
    return list(islice(sorted(cases)[::step], count))


def take_reference(
    bundle: bundle_format.Bundle, images: Iterable[tuple[Image, Ground]], source: str, file: Path
) -> bundle_format.DriftReference:
    """Predict images with the bundle's default profile, and write the table of their drift features.

    Args:
        bundle: Bundle of the model.
        images: RGB images, each of shape (H, W, 3), dtype uint8, with their ground resolutions.
        source: Description of the images.
        file: CSV file to write.

    Returns:
        Manifest entry of the table.
    """
    reference = measure_reference(BundleSegmenter(bundle), images, source)
    write_reference(reference, file)
    return bundle_format.DriftReference(file=file.name, data=source, images=reference.images)


def add_reference(
    model: Path,
    data: Path,
    out: Path,
    *,
    split_file: Path | None,
    part: str,
    view: ViewOptions = DEFAULT_VIEW,
    quality: bool = False,
    max_pixels: int,
    replace: bool = False,
    progress: Progress = _no_progress,
) -> bundle_format.Bundle:
    """Write a copy of a bundle with a new drift reference.

    Args:
        model: Folder of the bundle.
        data: Dataset with images that were not used for training.
        out: Folder of the copy.
        split_file: Split file that selects one part of the dataset; None selects all images.
        part: Name of the part.
        view: Ground resolution of the images, by default read from their files.
        quality: Whether to also measure all profiles on these images, for the manifest's metrics.
        max_pixels: Maximum number of pixels of an image.
        replace: Whether an earlier bundle in `out` may be replaced.
        progress: Progress callback with the number of processed images and the total.

    Raises:
        BundleError: If the verification of the bundle fails.
        DatasetError: If the dataset has problems.
        SplitError: If the split does not match the dataset.
        DriftError: If there are too few images.
        OutputExistsError: If `out` exists and may not be replaced.
    """
    bundle = bundle_format.read_bundle(model)
    check_writable(out, marker=bundle_format.MANIFEST_NAME, replace=replace)
    pairs = choose_pairs(data, split_file, part)
    if len(pairs) < MIN_RECORDS:
        raise DriftError(f"{len(pairs)} images are too few for a drift reference; at least {MIN_RECORDS} are needed.")
    images = _read_photographs(pairs, view, max_pixels=max_pixels, progress=progress)
    source = f"{part} part of {split_file.name}" if split_file else f"photographs of {data.name}"
    with TemporaryDirectory() as temporary:
        table = Path(temporary, bundle_format.REFERENCE_NAME)
        blocks: dict[str, object] = {
            "format_version": bundle_format.FORMAT_VERSION,
            "drift_reference": take_reference(bundle, images, source, table),
        }
        if quality:
            samples = _read_samples(pairs, source, view, max_pixels=max_pixels)
            blocks["profiles"], blocks["quality"] = _measure(
                bundle, samples, lambda _step: None, _no_progress, plain=view.plain
            )
        files = {name: bundle.folder / name for name in bundle.manifest.files} | {bundle_format.REFERENCE_NAME: table}
        return bundle_format.write_bundle(
            out, lambda records: bundle.manifest.model_copy(update=blocks | {"files": records}), files
        )


def _read_samples(pairs: Sequence[Pair], source: str, view: ViewOptions, *, max_pixels: int) -> Samples:
    """Read the images and true masks of a dataset."""
    images, grounds = zip(*_read_photographs(pairs, view, max_pixels=max_pixels), strict=True)
    truths = tuple(read_mask(pair.mask, "colours", max_pixels=max_pixels) for pair in pairs)
    return Samples(source, images, grounds, truths, ())


def _read_photographs(
    pairs: Sequence[Pair],
    view: ViewOptions = DEFAULT_VIEW,
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    progress: Progress = _no_progress,
) -> Iterator[tuple[Image, Ground]]:
    """Yield the image of each pair with its ground resolution."""
    for done, pair in enumerate(pairs, start=1):
        yield read_image(pair.image, max_pixels=max_pixels), view.read_ground(pair.image.read_bytes())
        progress(done, len(pairs))


def export_model(
    folder: Path,
    paths: NnunetPaths,
    out: Path,
    *,
    checkpoint: str,
    folds: tuple[int, ...] | None = None,
    trust: bool = False,
    int8: bool = False,
    default_profile: str = "fast",
    licence: str,
    ground: bundle_format.TrainingGround | None = None,
    further: ProfileOptions = NO_PROFILES,
    view: ViewOptions = DEFAULT_VIEW,
    images: int = 8,
    on_step: StepCallback,
    progress: Progress = _no_progress,
) -> bundle_format.Bundle:
    """Export a trained model to a bundle.

    The bundle is written only if the exported network agrees with the trained one. Its profiles are measured on the
    validation part of the raw dataset, or on generated scenes if there is none. With at least 20 validation images, it
    is also calibrated on them.

    Args:
        folder: nnU-Net's model folder.
        paths: nnU-Net's folders.
        out: Folder of the bundle; an earlier bundle is replaced.
        checkpoint: File name of the checkpoint in each fold.
        folds: Numbers of the folds; None exports all.
        trust: Whether to load checkpoints with pickled objects other than numbers and text. Loading them can execute
            arbitrary code.
        int8: Whether to add an INT8 network.
        default_profile: Name of the default profile.
        licence: Licence of the weights.
        ground: Ground resolution of the training images; without it, images are not resampled.
        further: Further profiles.
        view: How the validation images are presented to the model.
        images: Maximum number of images to measure the profiles on.
        on_step: Callback, called when a step begins.
        progress: Progress callback with the number of images that the current step has processed, and the total.

    Raises:
        ModelError: If the model cannot be loaded or exported.
        ConfigurationError: If the plan cannot be exported, the default profile does not exist, or the twin is not
            compatible with the model.
    """
    profiles = choose_profiles(default_profile, int8=int8)
    on_step("loading the checkpoint")
    model = load_trained_model(folder, paths, checkpoint=checkpoint, folds=folds, trust=trust)
    fold = model.folds[0].number
    samples = take_samples(paths, fold, images, view)
    with TemporaryDirectory() as temporary:
        staging_dir = Path(temporary)
        networks, agreement = _export_networks(model, samples, staging_dir, int8=int8, on_step=on_step)
        description = _Description(model, profiles, default_profile, licence, agreement)
        draft = bundle_format.write_bundle(staging_dir / "networks", description.manifest, networks)
        validation = _pairs_of_fold(paths, fold, "val", _MOST_IMAGES)
        images_to_fit = _calibration_images(validation, samples.source, on_step)
        draft = add_blocks(
            draft, staging_dir / "draft", ground=ground, images=images_to_fit, profiles=further, progress=progress
        )
        measured, quality = _measure(draft, samples, on_step, progress, plain=view.plain)
        changes: dict[str, object] = {"profiles": measured, "quality": quality}
        files = {name: draft.folder / name for name in draft.manifest.files}
        if validation:
            on_step(f"computing the drift reference from {len(validation)} images")
            files[bundle_format.REFERENCE_NAME] = staging_dir / bundle_format.REFERENCE_NAME
            changes["drift_reference"] = take_reference(
                draft,
                _read_photographs(validation, view, progress=progress),
                samples.source,
                files[bundle_format.REFERENCE_NAME],
            )
        return bundle_format.write_bundle(
            out, lambda records: draft.manifest.model_copy(update=changes | {"files": records}), files
        )


def _calibration_images(validation: Sequence[Pair], source: str, on_step: StepCallback) -> CalibrationImages | None:
    """Return the images to calibrate on, or None if they are too few, and begin the step that uses them."""
    if len(validation) < MIN_IMAGES:
        on_step("computing the self-check")
        return None
    on_step(f"computing the self-check, and the calibration from {len(validation)} images")
    return CalibrationImages(f"{len(validation)} images, {source}", validation, "labels")


def _export_networks(
    model: TrainedModel, samples: Samples, folder: Path, *, int8: bool, on_step: StepCallback
) -> tuple[dict[str, Path], TorchAgreement]:
    """Export the network to ONNX, and quantise it if `int8` is set.

    Returns:
        The network files by name, and the agreement of the exported network with the trained one.
    """
    on_step("exporting the network and comparing it with torch")
    files = {bundle_format.NETWORK_NAME: folder / bundle_format.NETWORK_NAME}
    agreement = export_onnx(model, files[bundle_format.NETWORK_NAME], _tiles(model, samples.images[:_CHECKED_PATCHES]))
    if int8:
        on_step("quantising the network to INT8")
        files[bundle_format.INT8_NETWORK_NAME] = folder / bundle_format.INT8_NETWORK_NAME
        quantise(
            files[bundle_format.NETWORK_NAME],
            files[bundle_format.INT8_NETWORK_NAME],
            _tiles(model, samples.calibration),
        )
    return files, agreement


def _tiles(model: TrainedModel, images: Sequence[Image]) -> NDArray[np.float32]:
    patch, normalisation = model.plan.patch_size, model.normalisation
    return np.stack([central_tile(image, normalisation_table(image, normalisation), patch) for image in images])


@dataclass(frozen=True)
class _Description:
    """Contents of the manifest, except for files and measurements."""

    model: TrainedModel
    profiles: dict[str, bundle_format.Profile]
    default_profile: str
    licence: str
    agreement: TorchAgreement

    def manifest(
        self,
        files: dict[str, bundle_format.FileRecord],
    ) -> bundle_format.Manifest:
        """Return the manifest of a bundle with these files."""
        model = self.model
        folds = ", ".join(str(fold.number) for fold in model.folds)
        return bundle_format.Manifest(
            version=version("droneseg"),
            description=f"{model.trainer}, {model.configuration}, fold {folds}",
            license=self.licence,
            classes=bundle_format.own_classes(),
            normalisation=model.normalisation,
            patch_size=model.plan.patch_size,
            divisor=model.plan.divisor,
            mirror_axes=model.mirror_axes,
            profiles=self.profiles,
            default_profile=self.default_profile,
            provenance=self._provenance(),
            files=files,
        )

    def _provenance(self) -> bundle_format.Provenance:
        model = self.model
        fingerprint = model.folder / "dataset_fingerprint.json"
        return bundle_format.Provenance(
            trainer=model.trainer,
            plans=str(model.plans.get("plans_name", PLANS)),
            configuration=model.configuration,
            folds=tuple(fold.number for fold in model.folds),
            epochs=tuple(fold.epochs for fold in model.folds),
            checkpoint_sha256=tuple(fold.sha256 for fold in model.folds),
            data_fingerprint_sha256=(
                hashlib.sha256(fingerprint.read_bytes()).hexdigest() if fingerprint.is_file() else None
            ),
            packages=package_versions(),
            git_revision=git_revision(),
            exported=datetime.now(UTC).isoformat(timespec="seconds"),
            agreement_with_torch=asdict(self.agreement),
        )


def _measure(
    draft: bundle_format.Bundle, samples: Samples, on_step: StepCallback, progress: Progress, *, plain: bool
) -> tuple[dict[str, bundle_format.Profile], dict[str, Any]]:
    """Predict the samples with every profile.

    Returns:
        The profiles with their measurements, and the metrics of the default profile for the manifest.
    """
    masks: dict[str, list[Mask]] = {}
    for name in draft.manifest.profiles:
        on_step(f"measuring profile {name} on {len(samples.images)} images ({samples.source})")
        segmenter = BundleSegmenter(draft, profile=name)
        masks[name] = []
        for image, ground in zip(samples.images, samples.grounds, strict=True):
            masks[name].append(segmenter.segment(image, ground, plain=plain).mask)
            progress(len(masks[name]), len(samples.images))
    measured, quality = {}, {}
    for name, profile in draft.manifest.profiles.items():
        agreement = np.mean([(a == b).mean() for a, b in zip(masks[name], masks["exact"], strict=True)])
        counts = [confusion(truth, mask) for truth, mask in zip(samples.truths, masks[name], strict=True)]
        metrics = compute_metrics(counts)
        figures = {"agreement_with_exact": round(float(agreement), 6), "miou": round(metrics.miou or 0.0, 4)}
        measured[name] = profile.model_copy(update={"figures": figures})
        quality[name] = {
            "data": samples.source,
            "images": metrics.images,
            "miou": metrics.miou,
            "image_wise_miou": metrics.image_wise_miou,
            "per_class_iou": metrics.per_class_iou,
            "unsafe_landing_rate": metrics.unsafe_landing_rate,
            "landing_recall": metrics.landing_recall,
            "intervals": _intervals(counts),
        }
    return measured, {"profile": draft.manifest.default_profile, **quality[draft.manifest.default_profile]}


def _intervals(counts: Sequence[Confusion]) -> dict[str, tuple[float | None, float | None]]:
    """Return the 95 % confidence intervals of the metrics in the manifest, by name."""
    intervals = bootstrap_intervals(np.stack(counts))
    names = ["miou", "image_wise_miou", "unsafe_landing_rate", "landing_recall"]
    return {name: (intervals[name].low, intervals[name].high) for name in names}
