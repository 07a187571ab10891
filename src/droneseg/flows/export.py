"""Export of a trained model to a bundle, with measured profiles and a drift reference."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from droneseg.core.camera import Ground
from droneseg.core.class_files import CLASSES_NAME, DESCRIPTION_NAME, MaskColours, find_classes, has_labels_only
from droneseg.core.class_map import ClassMap, NamePairs, fold_classes, name_classes
from droneseg.core.classes import DEFAULT_CLASSES, IGNORE, ClassTable
from droneseg.core.errors import ConfigurationError, DatasetError, DriftError, ModelError
from droneseg.core.files import check_writable, read_json
from droneseg.core.images import DEFAULT_MAX_PIXELS, Image, to_rgb
from droneseg.core.masks import Mask, UnknownColour, UnknownPolicy
from droneseg.core.metrics import Confusion, compute_metrics, confusion
from droneseg.data.dataset import (
    RAW,
    MaskEncoding,
    Pair,
    Progress,
    evaluated_colours,
    list_pairs,
    open_pair_image,
    read_true_mask,
)
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
from droneseg.nnunet.paths import FINGERPRINT_NAME, PLANS, SPLITS_NAME, FoldName, NnunetPaths
from droneseg.nnunet.predictor import NnunetPredictor
from droneseg.training.class_folding import fold_outputs
from droneseg.training.onnx import TorchAgreement, export_onnx, quantise
from droneseg.training.run import git_revision, package_versions

_GENERATED_SEED = 1_000_000
_GENERATED_SIZE = (480, 368)
_CHECKED_PATCHES = 4
_CHECKED_IMAGES = 2
_MIN_AGREEMENT = 0.999
_MOST_IMAGES = 500
"""Maximum number of images of a calibration and a drift reference."""

_STATISTICS = "foreground_intensity_properties_per_channel"

StepCallback = Callable[[str], None]
"""Callback with the name of each step when it begins."""


def _no_progress(_done: int, _total: int) -> None:
    """Ignore the progress."""


@dataclass(frozen=True)
class Samples:
    """Images for measuring an exported network.

    Attributes:
        source: Description of the held-out images, or that there are none.
        images: RGB images, each of shape (H, W, 3), dtype uint8.
        grounds: Ground resolution of each image.
        truths: True masks, each of shape (H, W), dtype uint8; None if the images are not held out.
        calibration: Other RGB images, for INT8 calibration.
    """

    source: str
    images: tuple[Image, ...]
    grounds: tuple[Ground, ...]
    truths: tuple[Mask, ...] | None
    calibration: tuple[Image, ...]


@dataclass(frozen=True)
class ModelCases:
    """Cases of the raw dataset of a model.

    Attributes:
        held_out: Cases that none of its folds was trained on.
        trained: Other cases.
        source: Description of the held-out cases.
    """

    held_out: tuple[Pair, ...] = ()
    trained: tuple[Pair, ...] = ()
    source: str = bundle_format.NOT_MEASURED


@dataclass(frozen=True, kw_only=True)
class MappedEncoding(MaskEncoding):
    """Encoding of masks whose classes are mapped to those of a bundle.

    Attributes:
        class_map: Map from the classes of the masks to those of the bundle.
    """

    class_map: ClassMap

    @property
    def classes(self) -> ClassTable:
        """Classes of the bundle."""
        return self.class_map.target

    def decode(
        self, data: bytes, *, unknown: UnknownPolicy = "fail", max_pixels: int = DEFAULT_MAX_PIXELS
    ) -> tuple[Mask, list[UnknownColour]]:
        """Decode the content of a mask file to ids of the bundle's classes; see `MaskEncoding.decode`."""
        # with the classes of the masks, which `MaskEncoding.decode` would read from the property
        plain = MaskEncoding(self.kind, self.colours)
        mask, colours = plain.decode(data, unknown=unknown, max_pixels=max_pixels)
        return self.class_map.lookup()[mask], colours


def map_of(
    model: TrainedModel, paths: NnunetPaths, *, classes: ClassTable | None = None, pairs: NamePairs = ()
) -> ClassMap:
    """Return how the classes of a model become those of its bundle.

    nnU-Net stores names and ids only. Without `classes`, colours and roles are those that droneseg stored in the
    model's dataset.json, or else those of the raw dataset, if it has the same classes.

    Args:
        model: Trained model.
        paths: nnU-Net's folders, with the dataset of the model.
        classes: Class table of the bundle; with `pairs`, the table with the classes to map to, by default Kaggle's.
        pairs: Name of a class of the model and name of the class it becomes.

    Raises:
        ConfigurationError: If the names do not fit; all problems are listed.
    """
    own = model.classes
    if pairs:
        return fold_classes(own, classes or DEFAULT_CLASSES, pairs)
    if classes is None and has_labels_only(model.dataset) and _is_dataset_of(model, paths):
        return name_classes(own, find_classes(paths.raw_dataset).classes, str(paths.raw_dataset / CLASSES_NAME))
    return name_classes(own, classes or own)


def _is_dataset_of(model: TrainedModel, paths: NnunetPaths) -> bool:
    """Return whether the raw dataset is there, and is that of the model: another one may have the same name.

    It has the same classes, as many training cases, and, where nnU-Net wrote them, the same statistics of the pixels.
    """
    raw, file = paths.raw_dataset, paths.raw_dataset / DESCRIPTION_NAME
    if not RAW.is_in(raw) or not file.is_file():
        return False
    descriptions = (model.dataset, read_json(file, expected="Expected nnU-Net's description of a dataset."))
    own, found = ({**description.get("labels", {}), IGNORE: None} for description in descriptions)
    statistics = _statistics(model.folder) or model.plans.get(_STATISTICS), _statistics(paths.preprocessed_dataset)
    return (
        own == found
        and len({description.get("numTraining") for description in descriptions}) == 1
        and (None in statistics or statistics[0] == statistics[1])
    )


def _statistics(folder: Path) -> Any:
    """Return nnU-Net's statistics of the pixels of a dataset; None if they are not in this folder."""
    file = folder / FINGERPRINT_NAME
    if not file.is_file():
        return None
    return read_json(file, expected="Expected nnU-Net's fingerprint of a dataset.").get(_STATISTICS)


def cases_of(model: TrainedModel, paths: NnunetPaths, class_map: ClassMap) -> ModelCases:
    """Return the cases of the raw dataset that a model was trained on; no case if that dataset is not there.

    Args:
        model: Trained model.
        paths: nnU-Net's folders, with the dataset of the model.
        class_map: Map from the classes of the masks to those of the bundle.
    """
    if not _is_dataset_of(model, paths):
        return ModelCases()
    listing = list_pairs(paths.raw_dataset, MaskColours(model.classes))
    encoding = MappedEncoding(listing.encoding.kind, listing.encoding.colours, class_map=class_map)
    cases = {pair.stem: replace(pair, encoding=encoding) for pair in listing.pairs}
    splits, numbers = _read_folds(paths), [fold.name for fold in model.folds]
    validated = [splits[n]["val"] for n in numbers if n != "all" and n < len(splits)]
    held_out = set(cases).intersection(*validated) if len(validated) == len(numbers) else set()
    names = ", ".join(map(str, numbers))
    return ModelCases(
        tuple(cases[name] for name in sorted(held_out)),
        tuple(pair for name, pair in cases.items() if name not in held_out),
        f"validation part of fold {names}" if held_out else bundle_format.NOT_MEASURED,
    )


def take_samples(parts: ModelCases, count: int, view: ViewOptions = DEFAULT_VIEW) -> Samples:
    """Read held-out images of a model with their true masks, or other images without masks.

    Args:
        parts: Cases of the raw dataset; without any, scenes are generated.
        count: Maximum number of images.
        view: Ground resolution of the images, by default read from their files.
    """
    chosen = _select_evenly(parts.held_out or parts.trained, count)
    others = _select_evenly(parts.trained, count)
    if not chosen:
        scenes = [generate_scene(_GENERATED_SEED + index, *_GENERATED_SIZE)[0] for index in range(2 * count)]
        grounds = (view.read_ground(b""),) * count
        return Samples(parts.source, tuple(scenes[:count]), grounds, None, tuple(scenes[count:]))
    opened = [open_pair_image(pair) for pair in chosen]
    return Samples(
        parts.source,
        tuple(to_rgb(image) for image, _ in opened),
        tuple(view.read_ground(data) for _, data in opened),
        tuple(map(read_true_mask, chosen)) if parts.held_out else None,
        tuple(to_rgb(open_pair_image(pair)[0]) for pair in others),
    )


def require_same_classes(first: str, first_classes: ClassTable, second: str, second_classes: ClassTable) -> None:
    """Raise ConfigurationError unless two class tables have the same names in the same order.

    Colours and roles may differ: nnU-Net's datasets often have none.

    Args:
        first: Description of what has the first table.
        first_classes: Class table.
        second: Description of what has the second table.
        second_classes: Class table.
    """
    if first_classes.names != second_classes.names:
        raise ConfigurationError(
            f"{first} has the classes {', '.join(first_classes.names)}, but {second} has "
            f"{', '.join(second_classes.names)}. Their masks cannot be compared; use the same classes."
        )


def choose_pairs(data: Path, split_file: Path | None, part: str, *, classes: ClassTable | None = None) -> list[Pair]:
    """Return the pairs of a dataset, or only those in one part of a split, to compare predictions with their masks.

    Pixels of the masks that a training ignores have no label.

    Args:
        data: Dataset folder.
        split_file: Split file that selects one part of the dataset; None selects all pairs.
        part: Name of the part.
        classes: Classes of the model, which the dataset must have; None if the masks are not used.

    Raises:
        ConfigurationError: If the dataset has other classes.
        DatasetError: If the dataset has problems, or the part contains no pair.
        SplitError: If the split does not match the dataset.
    """
    listing = list_pairs(data)
    if listing.problems:
        raise DatasetError(f"{listing.root} has {len(listing.problems)} problem(s):", listing.problems)
    if classes is not None:
        require_same_classes(str(listing.root), listing.classes, "the model", classes)
    colours = evaluated_colours(listing.root, listing.encoding.colours)
    pairs = [replace(pair, encoding=replace(pair.encoding, colours=colours)) for pair in listing.pairs]
    if split_file:
        chosen = set(getattr(read_split(split_file, [pair.stem for pair in pairs]), part))
        pairs = [pair for pair in pairs if pair.stem in chosen]
    if not pairs:
        raise DatasetError(f"{listing.root} has no images of part {part!r}. Choose another part with --part.")
    return pairs


def _read_folds(paths: NnunetPaths) -> list[dict[str, list[str]]]:
    """Return the cases of each fold, as nnU-Net stores them; none if they are not known."""
    for folder in (paths.preprocessed_dataset, paths.raw_dataset):
        file = folder / SPLITS_NAME
        if file.is_file():
            folds: list[dict[str, list[str]]] = json.loads(file.read_text(encoding="utf-8"))
            return folds
    return []


def _select_evenly(pairs: Sequence[Pair], count: int) -> list[Pair]:
    """Return at most `count` pairs, evenly spaced in the list."""
    step = max(1, len(pairs) // count)
    return list(islice(pairs[::step], count))


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
        ConfigurationError: If the quality is measured, and the dataset has other classes.
        DatasetError: If the dataset has problems.
        SplitError: If the split does not match the dataset.
        DriftError: If there are too few images.
        OutputExistsError: If `out` exists and may not be replaced.
    """
    bundle = bundle_format.read_bundle(model)
    check_writable(out, marker=bundle_format.MANIFEST_NAME, replace=replace)
    classes = bundle.manifest.class_table if quality else None
    pairs = choose_pairs(data, split_file, part, classes=classes)
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
    truths = tuple(read_true_mask(pair, max_pixels=max_pixels) for pair in pairs)
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
        image, data = open_pair_image(pair, max_pixels=max_pixels)
        yield to_rgb(image), view.read_ground(data)
        progress(done, len(pairs))


def export_model(
    folder: Path,
    paths: NnunetPaths,
    out: Path,
    *,
    checkpoint: str,
    folds: tuple[FoldName, ...] | None = None,
    trust: bool = False,
    apply_postprocessing: bool = True,
    int8: bool = False,
    default_profile: str = "fast",
    classes: ClassTable | None = None,
    mapping: NamePairs = (),
    licence: str,
    ground: bundle_format.TrainingGround | None = None,
    further: ProfileOptions = NO_PROFILES,
    view: ViewOptions = DEFAULT_VIEW,
    images: int = 8,
    on_step: StepCallback,
    progress: Progress = _no_progress,
) -> bundle_format.Bundle:
    """Export a trained model to a bundle.

    The bundle is written only if its masks agree with those of nnU-Net's own predictor. Its profiles are measured on
    cases of the raw dataset that none of the folds was trained on; without any, the quality is not measured. With at
    least 20 such cases, the bundle is also calibrated on them.

    Args:
        folder: nnU-Net's model folder.
        paths: nnU-Net's folders.
        out: Folder of the bundle; an earlier bundle is replaced.
        checkpoint: File name of the checkpoint in each fold.
        folds: Folds to average; None averages all numbered ones, or else takes fold_all.
        trust: Whether to load checkpoints with pickled objects other than numbers and text. Loading them can execute
            arbitrary code.
        apply_postprocessing: Whether nnU-Net's postprocessing belongs to the model, if it was found useful.
        int8: Whether to add an INT8 network.
        default_profile: Name of the default profile.
        classes: Class table of the bundle, see `map_of`; None for that of the model.
        mapping: Name of a class of the model and name of the class it becomes, see `map_of`; classes that become the
            same one are folded inside the graph.
        licence: Licence of the weights.
        ground: Ground resolution of the training images; without it, images are not resampled.
        further: Further profiles.
        view: How the validation images are presented to the model.
        images: Maximum number of images to measure the profiles on.
        on_step: Callback, called when a step begins.
        progress: Progress callback with the number of images that the current step has processed, and the total.

    Raises:
        ModelError: If the model cannot be loaded or exported.
        ConfigurationError: If the plan cannot be exported, the default profile does not exist, the classes do not fit
            the model, or the twin is not compatible with it.
    """
    profiles = choose_profiles(default_profile, int8=int8)
    on_step("loading the checkpoint")
    model = load_trained_model(
        folder, paths, checkpoint=checkpoint, folds=folds, trust=trust, apply_postprocessing=apply_postprocessing
    )
    paths = replace(paths, dataset=str(model.plans.get("dataset_name", paths.dataset)))
    class_map = map_of(model, paths, classes=classes, pairs=mapping)
    parts = cases_of(model, paths, class_map)
    samples = take_samples(parts, images, view)
    with TemporaryDirectory() as temporary:
        staging_dir = Path(temporary)
        networks, agreement = _export_networks(model, class_map, samples, staging_dir, int8=int8, on_step=on_step)
        description = _Description(
            model, class_map, _with_nnunet_logits(profiles, model, class_map), default_profile, licence, agreement
        )
        draft = bundle_format.write_bundle(staging_dir / "networks", description.manifest, networks)
        on_step(f"comparing with nnU-Net's own predictor on {_CHECKED_IMAGES} images")
        whole = _require_agreement(model, class_map, checkpoint, draft, samples.images[:_CHECKED_IMAGES])
        provenance = draft.manifest.provenance
        agreement_block = {**provenance.agreement_with_torch, "agreement_with_nnunet": whole}
        validation = _select_evenly(parts.held_out, _MOST_IMAGES)
        images_to_fit = _calibration_images(validation, samples.source, on_step)
        draft = add_blocks(
            draft, staging_dir / "draft", ground=ground, images=images_to_fit, profiles=further, progress=progress
        )
        measured, quality = _measure(draft, samples, on_step, progress, plain=view.plain)
        changes: dict[str, object] = {
            "profiles": measured,
            "quality": quality,
            "provenance": provenance.model_copy(update={"agreement_with_torch": agreement_block}),
        }
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
    return CalibrationImages(f"{len(validation)} images, {source}", validation)


def _with_nnunet_logits(
    profiles: dict[str, bundle_format.Profile], model: TrainedModel, class_map: ClassMap
) -> dict[str, bundle_format.Profile]:
    """Return the profiles; of several folds or folded classes, `exact` combines nnU-Net's logits after the tiles."""
    if len(model.folds) == 1 and not class_map.folds_classes:
        return profiles
    form = bundle_format.NnunetLogits(folds=len(model.folds), class_ids=class_map.ids)
    return profiles | {"exact": profiles["exact"].model_copy(update={"nnunet_logits": form})}


def _export_networks(
    model: TrainedModel, class_map: ClassMap, samples: Samples, folder: Path, *, int8: bool, on_step: StepCallback
) -> tuple[dict[str, Path], TorchAgreement]:
    """Export the network to ONNX, quantise it if `int8` is set, and fold its classes.

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
    if class_map.folds_classes:
        on_step("merging classes inside the network")
        for name, file in files.items():
            fold_outputs(file, class_map.ids, keep_classes=name == bundle_format.NETWORK_NAME)
    return files, agreement


def _tiles(model: TrainedModel, images: Sequence[Image]) -> NDArray[np.float32]:
    patch, normalisation = model.plan.patch_size, model.normalisation
    return np.stack([central_tile(image, normalisation_table(image, normalisation), patch) for image in images])


@dataclass(frozen=True)
class _Description:
    """Contents of the manifest, except for files and measurements."""

    model: TrainedModel
    class_map: ClassMap
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
        folds = ", ".join(str(fold.name) for fold in model.folds)
        return bundle_format.Manifest(
            version=version("droneseg"),
            description=f"{model.trainer}, {model.configuration}, fold {folds}",
            license=self.licence,
            classes=bundle_format.class_entries(self.class_map.target),
            normalisation=model.normalisation,
            patch_size=model.plan.patch_size,
            divisor=model.plan.divisor,
            channel_order=model.channel_order,
            mirror_axes=model.mirror_axes,
            profiles=self.profiles,
            default_profile=self.default_profile,
            provenance=self._provenance(),
            files=files,
        )

    def _provenance(self) -> bundle_format.Provenance:
        model = self.model
        fingerprint = model.folder / FINGERPRINT_NAME
        return bundle_format.Provenance(
            trainer=model.trainer,
            plans=str(model.plans.get("plans_name", PLANS)),
            configuration=model.configuration,
            folds=tuple(fold.name for fold in model.folds),
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
        The profiles with their measurements, and the metrics of the default profile for the manifest; only the
        description of the samples if they have no true masks.
    """
    masks: dict[str, list[Mask]] = {}
    held_out = f" ({samples.source})" if samples.truths else ""
    for name in draft.manifest.profiles:
        on_step(f"measuring profile {name} on {len(samples.images)} images{held_out}")
        segmenter = BundleSegmenter(draft, profile=name)
        masks[name] = []
        for image, ground in zip(samples.images, samples.grounds, strict=True):
            masks[name].append(segmenter.segment(image, ground, plain=plain).mask)
            progress(len(masks[name]), len(samples.images))
    measured: dict[str, bundle_format.Profile] = {}
    quality: dict[str, Any] = {"data": samples.source}
    for name, profile in draft.manifest.profiles.items():
        agreement = np.mean([(a == b).mean() for a, b in zip(masks[name], masks["exact"], strict=True)])
        figures = {"agreement_with_exact": round(float(agreement), 6)}
        if samples.truths:
            metrics = _quality(samples.source, samples.truths, masks[name], draft.manifest.class_table)
            figures["miou"] = round(metrics["miou"] or 0.0, 4)
            if name == draft.manifest.default_profile:
                quality = {"profile": name, **metrics}
        measured[name] = profile.model_copy(update={"figures": figures})
    return measured, quality


def _quality(source: str, truths: Sequence[Mask], masks: Sequence[Mask], classes: ClassTable) -> dict[str, Any]:
    """Return the metrics of predicted masks for the manifest."""
    counts = [confusion(truth, mask, len(classes)) for truth, mask in zip(truths, masks, strict=True)]
    metrics = compute_metrics(counts, classes)
    note = {"landing_note": classes.landing_note} if classes.landing_note else {}
    return note | {
        "data": source,
        "images": metrics.images,
        "miou": metrics.miou,
        "image_wise_miou": metrics.image_wise_miou,
        "per_class_iou": metrics.per_class_iou,
        "unsafe_landing_rate": metrics.unsafe_landing_rate,
        "landing_recall": metrics.landing_recall,
        "intervals": _intervals(counts, classes),
    }


def _require_agreement(
    model: TrainedModel, class_map: ClassMap, checkpoint: str, draft: bundle_format.Bundle, images: Sequence[Image]
) -> float:
    """Compare the masks of the profile `exact` with those of nnU-Net's own predictor, on whole images.

    Unlike the comparison of tiles, this includes everything between the image and the mask: the order of the channels,
    normalisation, resampling, tiles and mirroring. nnU-Net's classes are mapped to those of the bundle.

    Returns:
        Share of the pixels with the same class.

    Raises:
        ModelError: If it is below 99.9 %.
    """
    predictor = NnunetPredictor.of_model(model, checkpoint)
    segmenter = BundleSegmenter(draft, profile="exact")
    table = class_map.lookup()
    same = [
        float((table[predictor.segment(image)] == segmenter.segment(image, plain=True).mask).mean()) for image in images
    ]
    agreement = float(np.mean(same))
    if not agreement >= _MIN_AGREEMENT:
        raise ModelError(
            f"The bundle agrees with nnU-Net's own predictor on only {agreement:.2%} of the pixels of {len(images)} "
            "images, so no bundle was written. Report this with the model's plans.json and dataset.json."
        )
    return agreement


def _intervals(counts: Sequence[Confusion], classes: ClassTable) -> dict[str, tuple[float | None, float | None]]:
    """Return the 95 % confidence intervals of the metrics in the manifest, by name."""
    intervals = bootstrap_intervals(np.stack(counts), classes)
    names = ("miou", "image_wise_miou", "unsafe_landing_rate", "landing_recall")
    return {name: (intervals[name].low, intervals[name].high) for name in names if name in intervals}
