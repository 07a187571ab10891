"""Trained model to bundle; evaluation images; drift reference."""

import hashlib
import json
import tempfile
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

from droneseg.core.errors import ConfigurationError, DatasetError, DriftError
from droneseg.core.files import check_writable
from droneseg.core.images import Image, read_image
from droneseg.core.masks import Mask, read_mask
from droneseg.core.metrics import Confusion, compute_metrics, confusion
from droneseg.data.dataset import Pair, list_pairs
from droneseg.data.splits import read_split
from droneseg.data.synthetic import generate_scene
from droneseg.evaluation.bootstrap import bootstrap_intervals
from droneseg.inference.segmenter import BundleSegmenter
from droneseg.inference.sliding_window import central_tile, normalisation_table
from droneseg.model.bundle import (
    INT8_NETWORK_NAME,
    MANIFEST_NAME,
    NETWORK_NAME,
    REFERENCE_NAME,
    Bundle,
    DriftReference,
    FileRecord,
    Manifest,
    Profile,
    Provenance,
    own_classes,
    read_bundle,
    write_bundle,
)
from droneseg.monitoring.drift import MIN_RECORDS, measure_reference, write_reference
from droneseg.nnunet.checkpoint import TrainedModel, load_trained_model
from droneseg.nnunet.paths import PLANS, NnunetPaths
from droneseg.training.onnx import TorchAgreement, export_onnx, quantise
from droneseg.training.run import git_revision, package_versions

_GENERATED_SEED = 1_000_000
_GENERATED_SIZE = (480, 368)


@dataclass(frozen=True)
class Samples:
    """Photographs an exported network is measured on.

    Attributes:
        source: What they are, in words.
        images: RGB, shape (H, W, 3), dtype uint8 each.
        truths: True masks, shape (H, W), dtype uint8 each.
        calibration: Other photographs, to calibrate INT8 on.
    """

    source: str
    images: tuple[Image, ...]
    truths: tuple[Mask, ...]
    calibration: tuple[Image, ...]


def take_samples(layout: NnunetPaths, fold: int, count: int) -> Samples:
    """Take photographs of the validation part of a fold from the raw dataset, or generate scenes if there is none.

    Args:
        layout: nnU-Net's folders.
        fold: Whose validation part.
        count: How many, at most.
    """
    folds = _read_folds(layout)
    if not folds:
        return _generate(count)
    chosen = folds[fold if fold < len(folds) else 0]
    validation, training = _spread(chosen["val"], count), _spread(chosen["train"], count)
    raw = layout.raw_dataset
    return Samples(
        f"validation part of fold {fold}",
        tuple(read_image(raw / "imagesTr" / f"{case}_0000.png") for case in validation),
        tuple(read_mask(raw / "labelsTr" / f"{case}.png", "ids") for case in validation),
        tuple(read_image(raw / "imagesTr" / f"{case}_0000.png") for case in training),
    )


def validation_images(layout: NnunetPaths, fold: int, most: int) -> list[Path]:
    """Return the photographs of the validation part of a fold, at most so many; none without the raw dataset."""
    folds = _read_folds(layout)
    if not folds:
        return []
    cases = _spread(folds[fold if fold < len(folds) else 0]["val"], most)
    return [layout.raw_dataset / "imagesTr" / f"{case}_0000.png" for case in cases]


def choose_pairs(data: Path, split_file: Path | None, part: str) -> list[Pair]:
    """Return the pairs of a dataset, or those of one part of a split.

    Args:
        data: Dataset folder.
        split_file: Take only one part of this split.
        part: Which one.

    Raises:
        DatasetError: If the data has problems, or no such pair.
        SplitError: If the split does not fit it.
    """
    listing = list_pairs(data)
    if listing.problems:
        raise DatasetError(f"{listing.root} has {len(listing.problems)} problem(s):", listing.problems)
    pairs = list(listing.pairs)
    if split_file:
        chosen = set(getattr(read_split(split_file, [pair.stem for pair in pairs]), part))
        pairs = [pair for pair in pairs if pair.stem in chosen]
    if not pairs:
        raise DatasetError(f"No photograph of part {part!r} in {listing.root}.")
    return pairs


def _read_folds(layout: NnunetPaths) -> list[dict[str, list[str]]]:
    """Return nnU-Net's folds, if the raw dataset they name is there."""
    if not (layout.raw_dataset / "labelsTr").is_dir():
        return []
    for folder in (layout.preprocessed_dataset, layout.raw_dataset):
        file = folder / "splits_final.json"
        if file.is_file():
            folds: list[dict[str, list[str]]] = json.loads(file.read_text(encoding="utf-8"))
            return folds
    return []


def _generate(count: int) -> Samples:
    made = [generate_scene(_GENERATED_SEED + index, *_GENERATED_SIZE) for index in range(2 * count)]
    return Samples(
        "generated scenes",
        tuple(image for image, _ in made[:count]),
        tuple(mask for _, mask in made[:count]),
        tuple(image for image, _ in made[count:]),
    )


def _spread(cases: list[str], count: int) -> list[str]:
    """Return at most `count` cases, evenly spread over all."""
    step = max(1, len(cases) // count)
    return list(islice(sorted(cases)[::step], count))


MOST_OF_REFERENCE = 500


def take_reference(bundle: Bundle, images: Iterable[Image], source: str, file: Path) -> DriftReference:
    """Predict photographs with the bundle's default profile, and write their figures.

    Args:
        bundle: The model.
        images: RGB, shape (H, W, 3), dtype uint8 each.
        source: What they are, in words.
        file: Where the table goes.

    Returns:
        What the manifest says of it.
    """
    reference = measure_reference(BundleSegmenter(bundle), images, source)
    write_reference(reference, file)
    return DriftReference(file=file.name, data=source, images=reference.images)


def add_reference(
    model: Path,
    data: Path,
    out: Path,
    *,
    split_file: Path | None,
    part: str,
    max_pixels: int,
    replace: bool = False,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Bundle:
    """Write a copy of a bundle with a reference for drift.

    Args:
        model: The bundle.
        data: Dataset of photographs it was not trained on.
        out: Folder of the copy.
        split_file: Take only a part of this split.
        part: Which one.
        max_pixels: Largest photograph.
        replace: Whether an older bundle there may be replaced.
        progress: Told of the photographs that are done, and of all.

    Raises:
        BundleError: If the model does not verify.
        DatasetError: If the photographs cannot be found.
        SplitError: If the split does not fit them.
        DriftError: If they are too few.
        OutputExistsError: If something is in the way.
    """
    bundle = read_bundle(model)
    check_writable(out, marker=MANIFEST_NAME, replace=replace)
    pairs = choose_pairs(data, split_file, part)
    if len(pairs) < MIN_RECORDS:
        raise DriftError(f"{len(pairs)} photographs are too few for a reference; {MIN_RECORDS} are needed.")

    def images() -> Iterator[Image]:
        for done, pair in enumerate(pairs):
            progress(done, len(pairs))
            yield read_image(pair.image, max_pixels=max_pixels)
        progress(len(pairs), len(pairs))

    source = f"{part} part of {split_file.name}" if split_file else f"photographs of {data.name}"
    with TemporaryDirectory() as temporary:
        table = Path(temporary, REFERENCE_NAME)
        stated = take_reference(bundle, images(), source, table)
        files = {name: bundle.folder / name for name in bundle.manifest.files} | {REFERENCE_NAME: table}
        return write_bundle(
            out,
            lambda records: bundle.manifest.model_copy(update={"files": records, "drift_reference": stated}),
            files,
        )


PROFILES = {
    "exact": Profile(network=NETWORK_NAME, mirroring=True, precision="f32", half_sums=True),
    "fast": Profile(network=NETWORK_NAME, mirroring=False, precision="fastest"),
}
INT8_PROFILE = Profile(network=INT8_NETWORK_NAME, mirroring=False, precision="f32")
_CHECKED_PATCHES = 4

Report = Callable[[str], None]
"""Told what happens next."""


def export_model(
    folder: Path,
    layout: NnunetPaths,
    out: Path,
    *,
    checkpoint: str,
    folds: tuple[int, ...] | None = None,
    trust: bool = False,
    int8: bool = False,
    default_profile: str = "fast",
    licence: str,
    images: int = 8,
    report: Report,
) -> Bundle:
    """Make a bundle of a trained model; it is written only if the exported network agrees with the trained one.

    Args:
        folder: A model folder of nnU-Net.
        layout: nnU-Net's folders; the validation part of its raw dataset is what the bundle is measured on. Without
            one, generated scenes are.
        out: Folder of the bundle; an older bundle there is replaced.
        checkpoint: File name of the checkpoint in each fold.
        folds: Which folds; None for all.
        trust: Whether to load checkpoints that pickle more than numbers and text.
        int8: Whether to add an INT8 network.
        default_profile: The one that is used unless another is named.
        licence: Terms of the weights.
        images: How many photographs to measure on, at most.
        report: Told what happens next.

    Raises:
        ModelError: If the model cannot be loaded or exported.
        ConfigurationError: If its plan is one that cannot be exported.
    """
    report("loading the checkpoint")
    model = load_trained_model(folder, layout, checkpoint=checkpoint, folds=folds, trust=trust)
    profiles = PROFILES | ({"int8": INT8_PROFILE} if int8 else {})
    if default_profile not in profiles:
        raise ConfigurationError(f"No profile {default_profile!r}; there will be {', '.join(profiles)}.")
    samples = take_samples(layout, model.folds[0].number, images)
    with tempfile.TemporaryDirectory() as temporary:
        network = Path(temporary, NETWORK_NAME)
        report("exporting, and comparing with torch")
        agreement = export_onnx(model, network, _tiles(model, samples.images[:_CHECKED_PATCHES]))
        files = {NETWORK_NAME: network}
        if int8:
            report("quantising to INT8")
            files[INT8_NETWORK_NAME] = Path(temporary, INT8_NETWORK_NAME)
            quantise(network, files[INT8_NETWORK_NAME], _tiles(model, samples.calibration))
        describe = _Description(model, profiles, default_profile, licence, agreement)
        draft = write_bundle(Path(temporary, "draft"), describe.manifest, files)
        measured, quality = _measure(draft, samples, report)
        photographs = validation_images(layout, model.folds[0].number, MOST_OF_REFERENCE)
        stated = None
        if photographs:
            report(f"taking the reference for drift from {len(photographs)} photographs")
            files[REFERENCE_NAME] = Path(temporary, REFERENCE_NAME)
            stated = take_reference(draft, map(read_image, photographs), samples.source, files[REFERENCE_NAME])
        return write_bundle(
            out,
            lambda records: describe.manifest(records, profiles=measured, quality=quality, drift_reference=stated),
            files,
        )


def _tiles(model: TrainedModel, images: Sequence[Image]) -> NDArray[np.float32]:
    patch, normalisation = model.plan.patch_size, model.normalisation
    return np.stack([central_tile(image, normalisation_table(image, normalisation), patch) for image in images])


@dataclass(frozen=True)
class _Description:
    """What the manifest says, but for the files and the figures."""

    model: TrainedModel
    profiles: dict[str, Profile]
    default_profile: str
    licence: str
    agreement: TorchAgreement

    def manifest(
        self,
        files: dict[str, FileRecord],
        *,
        profiles: dict[str, Profile] | None = None,
        quality: dict[str, Any] | None = None,
        drift_reference: DriftReference | None = None,
    ) -> Manifest:
        """Return the manifest of a bundle with these files."""
        model = self.model
        fingerprint = model.folder / "dataset_fingerprint.json"
        folds = ", ".join(str(fold.number) for fold in model.folds)
        return Manifest(
            version=version("droneseg"),
            description=f"{model.trainer}, {model.configuration}, fold {folds}",
            license=self.licence,
            classes=own_classes(),
            normalisation=model.normalisation,
            patch_size=model.plan.patch_size,
            divisor=model.plan.divisor,
            mirror_axes=model.mirror_axes,
            profiles=profiles or self.profiles,
            default_profile=self.default_profile,
            provenance=Provenance(
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
            ),
            quality=quality,
            drift_reference=drift_reference,
            files=files,
        )


def _measure(draft: Bundle, samples: Samples, report: Report) -> tuple[dict[str, Profile], dict[str, Any]]:
    """Run every profile on the samples; return the profiles with their figures, and the default one's quality."""
    masks = {}
    for name in draft.manifest.profiles:
        report(f"measuring {name} on {len(samples.images)} photographs ({samples.source})")
        segmenter = BundleSegmenter(draft, profile=name)
        masks[name] = [segmenter.segment(image).mask for image in samples.images]
    measured, quality = {}, {}
    for name, profile in draft.manifest.profiles.items():
        agreement = np.mean([(a == b).mean() for a, b in zip(masks[name], masks["exact"], strict=True)])
        counts = [confusion(t, p) for t, p in zip(samples.truths, masks[name], strict=True)]
        scores = compute_metrics(counts)
        figures = {"agreement_with_exact": round(float(agreement), 6), "miou": round(scores.miou or 0.0, 4)}
        measured[name] = profile.model_copy(update={"figures": figures})
        quality[name] = {
            "data": samples.source,
            "images": scores.images,
            "miou": scores.miou,
            "image_wise_miou": scores.image_wise_miou,
            "per_class_iou": scores.per_class_iou,
            "unsafe_landing_rate": scores.unsafe_landing_rate,
            "landing_recall": scores.landing_recall,
            "intervals": _intervals(counts),
        }
    return measured, {"profile": draft.manifest.default_profile, **quality[draft.manifest.default_profile]}


def _intervals(counts: Sequence[Confusion]) -> dict[str, tuple[float | None, float | None]]:
    """Return the 95 % intervals of what a manifest states, by name."""
    found = bootstrap_intervals(np.stack(counts))
    names = ["miou", "image_wise_miou", "unsafe_landing_rate", "landing_recall"]
    return {name: (found[name].low, found[name].high) for name in names}
