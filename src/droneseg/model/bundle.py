"""Model bundles: manifest schema, reading with verification, writing."""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from droneseg.core.classes import DEFAULT_CLASSES, ClassTable, Normalisation, Role, SegmentationClass
from droneseg.core.errors import BundleError
from droneseg.core.files import atomic_directory, file_sha256, write_bytes
from droneseg.core.image_files import RGB_ORDER, ChannelOrder
from droneseg.core.landing_grid import LandingPolicy

FORMAT_VERSION = 2
_READABLE_VERSIONS = (1, 2)
MANIFEST_NAME = "manifest.json"
NETWORK_NAME = "model.onnx"
INT8_NETWORK_NAME = "model.int8.onnx"
TWIN_NETWORK_NAME = "model.twin.onnx"
NNUNET_OUTPUT = "nnunet_logits"
"""Output of a network with the logits of all folds and classes of nnU-Net; see `NnunetLogits`."""
REFERENCE_NAME = "reference.csv"
SELF_CHECK_IMAGE_NAME = "self_check.png"
SELF_CHECK_EXPECTED_NAME = "self_check.json"

NOT_MEASURED = "not measured: no photographs that the model was not trained on"
"""Description, in `quality`, of the data of a model whose quality is not known."""

_MAX_PATCH_SIDE = 8192
_RESTORE_HINT = "Export or copy the bundle again; `droneseg models pull --force` restores the champion."
_FILE_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ClassEntry(_Section):
    """Class predicted by the network."""

    id: int
    name: str
    colour: tuple[int, int, int]
    role: Role | None = Field(None, description="What the class means for landing; null if nothing.")


class NnunetLogits(_Section):
    """Output `nnunet_logits` of a network: the logits of nnU-Net's folds and classes, shape (N, folds * K, h, w).

    The output `logits` is their mean over the folds, with the probabilities of the classes summed by `class_ids`.
    """

    folds: int = Field(ge=1, description="Number of folds.")
    class_ids: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        min_length=2, description="Class of the bundle for each of nnU-Net's K classes."
    )

    @model_validator(mode="after")
    def _check_ids(self) -> "NnunetLogits":
        if set(self.class_ids) != set(range(max(self.class_ids) + 1)):
            raise ValueError(f"class_ids are {self.class_ids}; every number from 0 to the largest must occur")
        return self


class Profile(_Section):
    """Inference profile: a trade-off between speed and fidelity to nnU-Net."""

    network: str = Field(pattern=_FILE_NAME, description="Name of the network's file.")
    mirroring: bool = Field(description="Average the predictions of mirrored copies of the image.")
    precision: Literal["f32", "fastest"] = Field(
        description="f32, or the fastest precision that the processor supports with the same file, such as bf16."
    )
    half_sums: bool = Field(
        False, description="Accumulate tiles in float16 like nnU-Net's predictor, for pixel-identical masks."
    )
    nnunet_logits: NnunetLogits | None = Field(
        None, description="How nnU-Net's mask follows from the output `nnunet_logits`; null if `logits` is enough."
    )
    scales: tuple[Annotated[float, Field(ge=0.25, le=4)], ...] = Field(
        (1.0,),
        description="Scales at which the image is predicted, relative to the model's ground resolution; one of them is "
        "1. Their logits are averaged.",
    )
    temperature: float | None = Field(
        None, ge=0.05, le=20, description="Temperature of this profile; null for that of the calibration."
    )
    patch_size: tuple[int, int] | None = Field(
        None, description="Height and width of the network's input; null for those of the manifest."
    )
    divisor: tuple[int, int] | None = Field(
        None, description="The input's height and width are multiples of these numbers; null for those of the manifest."
    )
    figures: dict[str, float] = Field(
        default_factory=dict, description="Metrics measured at export: agreement with torch, mIoU."
    )

    @model_validator(mode="after")
    def _check_options(self) -> "Profile":
        if 1.0 not in self.scales or len(set(self.scales)) != len(self.scales):
            raise ValueError(f"scales are {self.scales}; they must differ, and one of them must be 1")
        if self.half_sums and len(self.scales) > 1:
            raise ValueError("a profile with half_sums reproduces nnU-Net and cannot have several scales")
        if self.nnunet_logits and not self.half_sums:
            raise ValueError("nnunet_logits need half_sums")
        if (self.patch_size is None) != (self.divisor is None):
            raise ValueError("patch_size and divisor belong together; give both or none")
        return self


class FileRecord(_Section):
    """Checksum and size of a file in the bundle."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=0)


class DriftReference(_Section):
    """Reference table of the drift test."""

    file: str = Field(pattern=_FILE_NAME, description="CSV file: one row per image, one column per feature.")
    data: str = Field(description="Description of the images.")
    images: int = Field(ge=1)


class Provenance(_Section):
    """Origin of the weights."""

    trainer: str
    plans: str
    configuration: str
    folds: tuple[int | Literal["all"], ...]
    epochs: tuple[int, ...] = Field(description="Number of epochs of each fold.")
    checkpoint_sha256: tuple[str, ...] = Field(description="SHA-256 of each fold's checkpoint.")
    data_fingerprint_sha256: str | None = None
    packages: dict[str, str]
    git_revision: str | None = None
    agreement_with_torch: dict[str, float] = Field(description="Agreement of the exported network with torch.")
    exported: str = Field(description="Time of the export in ISO 8601.")


class TrainingGround(_Section):
    """Ground resolution of the training images."""

    gsd_m: float = Field(gt=0, description="Metres per pixel that images are resampled to.")
    gsd_range_m: tuple[float, float] = Field(
        description="Smallest and largest metres per pixel in the training images."
    )
    source: str = Field(description="How the ground resolution was determined.")

    @model_validator(mode="after")
    def _check_range(self) -> "TrainingGround":
        low, high = self.gsd_range_m
        if not 0 < low <= self.gsd_m <= high:
            raise ValueError(f"gsd_range_m is {low:g} to {high:g}; it must contain gsd_m, {self.gsd_m:g}")
        return self


class Exposure(_Section):
    """Correction of images that are darker or brighter than the training images."""

    methods: tuple[Literal["gamma", "stretch", "mixed"], ...] = Field(
        min_length=1,
        description="Corrections whose predictions are averaged: gamma to the target, percentile stretch, or the mean "
        "of both.",
    )
    range: tuple[float, float] = Field(description="Median luma of images that are not corrected, 0 to 1.")
    target: float = Field(gt=0, lt=1, description="Median luma after the gamma correction, 0 to 1.")

    @model_validator(mode="after")
    def _check_range(self) -> "Exposure":
        if not 0 <= self.range[0] <= self.range[1] <= 1:
            raise ValueError(f"range is {self.range}; it must ascend from 0 to 1")
        return self


class Context(_Section):
    """How several views of an image are combined."""

    whole_weight: float = Field(
        gt=0, lt=1, description="Weight of the logits of the whole image if the ground resolution is not known."
    )
    region_classes: tuple[str, ...] = Field(
        min_length=2, description="Classes that views coarser than the training images may exchange for each other."
    )
    exposure: Exposure | None = None
    source: str = Field(description="How these values were chosen.")


class FeatureRange(_Section):
    """Range of a feature for images like the training images."""

    centre: float = Field(description="Median of the training images.")
    low: float | None = Field(None, description="Smallest accepted value; null if small values are accepted.")
    high: float | None = Field(None, description="Largest accepted value; null if large values are accepted.")

    @model_validator(mode="after")
    def _check_order(self) -> "FeatureRange":
        limits = [value for value in (self.low, self.centre, self.high) if value is not None]
        if not all(smaller < larger for smaller, larger in pairwise(limits)):
            raise ValueError(f"low, centre and high are {limits}; each must be larger than the one before")
        return self


class UnlikeTraining(_Section):
    """Ranges outside which an image counts as unlike the training images."""

    features: dict[str, FeatureRange]
    source: str = Field(description="Images that the ranges were fitted on.")


class Calibration(_Section):
    """Calibration of the confidence and of the check for images unlike the training images."""

    temperature: float = Field(1.0, ge=0.05, le=20, description="Logits are divided by this number before the softmax.")
    source: str = Field(description="Images that the temperature was fitted on.")
    unlike_training: UnlikeTraining | None = None


class SelfCheck(_Section):
    """A generated image and the predictions that every runtime must make for it."""

    image: str = Field(pattern=_FILE_NAME, description="PNG file of one tile that shows every class.")
    expected: str = Field(
        pattern=_FILE_NAME,
        description="JSON file with the class probabilities by network, class and part of the image.",
    )
    max_difference: float = Field(
        gt=0, lt=1, description="Largest accepted share of the probability that is predicted for another class."
    )


class Manifest(_Section):
    """Content of `manifest.json`: everything needed to run the network as nnU-Net would."""

    format_version: int = FORMAT_VERSION
    name: str = "droneseg"
    version: str
    description: str
    license: str
    classes: tuple[ClassEntry, ...]
    normalisation: Normalisation
    patch_size: tuple[int, int] = Field(description="Height and width of the network's input.")
    divisor: tuple[int, int] = Field(description="The input's height and width are multiples of these numbers.")
    channel_order: ChannelOrder = Field(
        RGB_ORDER,
        description="Colour (0 red, 1 green, 2 blue) of each channel where every channel is a file of its own.",
    )
    mirror_axes: tuple[Literal[0, 1], ...] = Field(description="Axes to mirror: 0 is vertical, 1 is horizontal.")
    tile_step: float = Field(0.5, gt=0, le=1, description="Distance between tiles as a fraction of the patch size.")
    profiles: dict[str, Profile]
    default_profile: str
    provenance: Provenance
    quality: dict[str, Any] | None = Field(
        None, description="Metrics on held-out data, and a description of the data; only the latter if not measured."
    )
    drift_reference: DriftReference | None = None
    ground: TrainingGround | None = None
    context: Context | None = None
    self_check: SelfCheck | None = None
    calibration: Calibration | None = None
    landing: dict[str, LandingPolicy] = Field(
        default_factory=dict, description="Limits of the probabilities for landing sites, by profile."
    )
    files: dict[Annotated[str, Field(pattern=_FILE_NAME)], FileRecord]

    @model_validator(mode="after")
    def _check_consistency(self) -> "Manifest":
        _ = self.class_table  # raises an error if the classes are not a table
        if sorted(self.channel_order) != list(RGB_ORDER):
            raise ValueError(f"channel_order is {self.channel_order}; it must contain 0, 1 and 2")
        _check_patch(self.patch_size, self.divisor)
        for profile in self.profiles.values():
            if profile.patch_size and profile.divisor:
                _check_patch(profile.patch_size, profile.divisor)
        patches = {(profile.network, self.patch_of(name)) for name, profile in self.profiles.items()}
        if len(patches) > len({network for network, _ in patches}):
            raise ValueError("profiles with the same network must have the same patch_size")
        if self.default_profile not in self.profiles:
            raise ValueError(f"default profile {self.default_profile!r} is not one of {sorted(self.profiles)}")
        for name, profile in self.profiles.items():
            if profile.nnunet_logits and max(profile.nnunet_logits.class_ids) + 1 != len(self.classes):
                raise ValueError(f"class_ids of profile {name} must be those of the {len(self.classes)} classes")
        if unknown := sorted(set(self.landing) - set(self.profiles)):
            raise ValueError(f"landing has limits of unknown profiles: {', '.join(unknown)}")
        names = {entry.name for entry in self.classes}
        if self.context and (unknown := sorted(set(self.context.region_classes) - names)):
            raise ValueError(f"region_classes has unknown classes: {', '.join(unknown)}")
        required = {profile.network for profile in self.profiles.values()}
        required |= {self.drift_reference.file} if self.drift_reference else set()
        required |= {self.self_check.image, self.self_check.expected} if self.self_check else set()
        if missing := sorted(required - set(self.files)):
            raise ValueError(f"files has no entry for {', '.join(missing)}")
        return self

    @property
    def class_table(self) -> ClassTable:
        """Classes that the network predicts; see `table_of`.

        Raises:
            ValueError: If the classes are not a valid table.
        """
        return table_of(self.classes)

    def patch_of(self, profile: str) -> tuple[int, int]:
        """Return the height and width of the input of a profile's network."""
        return self.profiles[profile].patch_size or self.patch_size

    def temperature_of(self, profile: str) -> float:
        """Return the number that the logits of a profile are divided by; 1 without a calibration."""
        own = self.profiles[profile].temperature
        if own is not None:
            return own
        return self.calibration.temperature if self.calibration else 1.0


def _check_patch(patch_size: tuple[int, int], divisor: tuple[int, int]) -> None:
    for side, unit in zip(patch_size, divisor, strict=True):
        if not (0 < unit <= side <= _MAX_PATCH_SIDE and side % unit == 0):
            limits = f"a multiple of divisor {divisor}, at most {_MAX_PATCH_SIDE}"
            raise ValueError(f"patch_size is {patch_size}; it must be {limits}")


def table_of(entries: Sequence[ClassEntry]) -> ClassTable:
    """Return the class table of entries of a manifest. Default classes without roles, as in older bundles, get theirs.

    Raises:
        ValueError: If the entries are not a valid table.
    """
    classes = [SegmentationClass(entry.id, entry.name, entry.colour, entry.role) for entry in entries]
    without_roles = [replace(entry, role=None) for entry in DEFAULT_CLASSES]
    return DEFAULT_CLASSES if classes == without_roles else ClassTable(tuple(classes))


def class_entries(classes: ClassTable) -> tuple[ClassEntry, ...]:
    """Return a class table as entries of a manifest."""
    return tuple(ClassEntry(id=entry.id, name=entry.name, colour=entry.colour, role=entry.role) for entry in classes)


@dataclass(frozen=True)
class Bundle:
    """A verified bundle.

    Attributes:
        folder: Folder of the bundle.
        manifest: Validated manifest.
        model_id: Short hash of the manifest, which contains the checksums of all files.
    """

    folder: Path
    manifest: Manifest
    model_id: str

    def network(self, profile: str) -> Path:
        """Return the path of a profile's network."""
        return self.folder / self.manifest.profiles[profile].network


def read_bundle(folder: Path) -> Bundle:
    """Read a bundle and verify every file.

    Raises:
        BundleError: If a file is missing or damaged, or if the manifest is malformed or of a newer format.
    """
    data = _read_manifest(folder)
    manifest = _validate(folder, _parse(folder, data))
    model_id = model_id_of(data)
    for name, record in manifest.files.items():
        _verify_file(folder / name, record)
    return Bundle(folder, manifest, model_id)


def read_channel_order(folder: Path) -> ChannelOrder:
    """Return the colours of the channels of a bundle, from its manifest alone; red, green, blue if it cannot be read.

    Loading such a bundle reports the problem.
    """
    try:
        return _validate(folder, _parse(folder, _read_manifest(folder))).channel_order
    except BundleError:
        return RGB_ORDER


def write_bundle(folder: Path, build: Callable[[dict[str, FileRecord]], Manifest], files: Mapping[str, Path]) -> Bundle:
    """Write a bundle in one step; an existing bundle in `folder` is replaced once the new one is complete.

    Args:
        folder: Folder to write.
        build: Function that returns the manifest, given the record of each file by name.
        files: Files to copy into the bundle, by name.

    Returns:
        The written bundle, read again and verified.
    """
    with atomic_directory(folder, marker=MANIFEST_NAME, replace=True) as staging_dir:
        for name, source in files.items():
            shutil.copyfile(source, staging_dir / name)
        manifest = build({name: file_record(staging_dir / name) for name in files})
        text = json.dumps(manifest.model_dump(mode="json"), indent=2) + "\n"
        write_bytes(staging_dir / MANIFEST_NAME, text.encode())
    return read_bundle(folder)


def file_record(path: Path) -> FileRecord:
    """Return the checksum and size of a file."""
    return FileRecord(sha256=file_sha256(path), size_bytes=path.stat().st_size)


def model_id_of(manifest: bytes) -> str:
    """Return the model's id: the first 12 hexadecimal digits of the SHA-256 of its manifest."""
    return hashlib.sha256(manifest).hexdigest()[:12]


def dvc_file_of(folder: Path) -> Path:
    """Return the `.dvc` file that records the version of a bundle's folder.

    For `nnUNet_results/champion` this is `nnUNet_results.dvc`: DVC tracks the parent directory.
    """
    return Path(f"{folder.parent}.dvc")


def _read_manifest(folder: Path) -> bytes:
    if folder.is_file():
        raise BundleError(f"{folder} is a file; a model bundle is a folder. Pass the folder: {folder.parent}.")
    if not folder.is_dir():
        fetch = "Fetch it with `droneseg models pull`, create" if dvc_file_of(folder).is_file() else "Create"
        raise BundleError(f"No model at {folder}. {fetch} one with `droneseg export`, or choose another folder.")
    try:
        return (folder / MANIFEST_NAME).read_bytes()
    except FileNotFoundError:
        if (folder / "plans.json").is_file():
            raise BundleError(
                f"{folder} is a training folder of nnU-Net, not a bundle. "
                f"Create a bundle with `droneseg export --from {folder}`."
            ) from None
        raise BundleError(
            f"{folder} is not a model bundle: {MANIFEST_NAME} is missing. Choose another folder, or export a model."
        ) from None


def _parse(folder: Path, data: bytes) -> dict[str, Any]:
    path = folder / MANIFEST_NAME
    try:
        content = json.loads(data)
    except ValueError as error:
        raise BundleError(f"{path} is not JSON: {error}. {_RESTORE_HINT}") from error
    if not isinstance(content, dict) or "format_version" not in content:
        raise BundleError(f"{path} is not the manifest of a bundle: format_version is missing. {_RESTORE_HINT}")
    return content


def _validate(folder: Path, content: dict[str, Any]) -> Manifest:
    if content["format_version"] not in _READABLE_VERSIONS:
        raise BundleError(
            f"{folder} has bundle format {content['format_version']!r}; this version of droneseg reads "
            f"{' and '.join(map(str, _READABLE_VERSIONS))}. Update droneseg, or export the model again."
        )
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        lines = [f"  - {'.'.join(map(str, item['loc'])) or 'manifest'}: {item['msg']}" for item in error.errors()]
        raise BundleError("\n".join([f"{folder / MANIFEST_NAME} is malformed:", *lines, _RESTORE_HINT])) from error


def _verify_file(path: Path, record: FileRecord) -> None:
    if not path.is_file():
        raise BundleError(f"{path} is missing; the bundle is incomplete. {_RESTORE_HINT}")
    actual = file_record(path)
    if actual.size_bytes != record.size_bytes:
        raise BundleError(f"{path} has {actual.size_bytes:,} bytes instead of {record.size_bytes:,}. {_RESTORE_HINT}")
    if actual.sha256 != record.sha256:
        raise BundleError(f"{path} is corrupt: its SHA-256 does not match the manifest. {_RESTORE_HINT}")
