"""Bundle: manifest schema, read and verify, write."""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from droneseg.core.classes import CLASSES
from droneseg.core.errors import BundleError, OtherClassesError
from droneseg.core.files import atomic_directory, write_bytes

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
NETWORK_NAME = "model.onnx"
INT8_NETWORK_NAME = "model.int8.onnx"
REFERENCE_NAME = "reference.csv"

_MAX_SIDE = 8192  # pixels of a patch
_FILE_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ClassEntry(_Part):
    """A class the network knows."""

    id: int
    name: str
    colour: tuple[int, int, int]


class Profile(_Part):
    """One way to run the model: a trade between speed and fidelity."""

    network: str = Field(pattern=_FILE_NAME, description="File of the network.")
    mirroring: bool = Field(description="Whether mirrored passes are averaged.")
    precision: Literal["f32", "fastest"] = Field(
        description="f32, or whatever the processor computes fastest without another file: bf16 where it has it."
    )
    half_sums: bool = Field(
        False, description="Sum tiles in float16 as nnU-Net's predictor does, to give its answer to the pixel."
    )
    figures: dict[str, float] = Field(default_factory=dict, description="Measured at export: agreement, mIoU.")


class FileRecord(_Part):
    """A file of the bundle."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=0)


class DriftReference(_Part):
    """What drift is told against."""

    file: str = Field(pattern=_FILE_NAME, description="CSV: a line per photograph, a column per figure.")
    data: str = Field(description="What photographs.")
    images: int = Field(ge=1)


class Provenance(_Part):
    """Where the weights come from."""

    trainer: str
    plans: str
    configuration: str
    folds: tuple[int, ...]
    epochs: tuple[int, ...] = Field(description="Epochs trained, by fold.")
    checkpoint_sha256: tuple[str, ...] = Field(description="Of each fold's checkpoint.")
    data_fingerprint_sha256: str | None = None
    packages: dict[str, str]
    git_revision: str | None = None
    agreement_with_torch: dict[str, float] = Field(description="Of the exported network, measured at export.")
    exported: str = Field(description="Time of the export, ISO 8601.")


class Manifest(_Part):
    """Everything a reader needs to know to run the network as nnU-Net would."""

    format_version: int = FORMAT_VERSION
    name: str = "droneseg"
    version: str
    description: str
    license: str
    classes: tuple[ClassEntry, ...]
    normalisation: Literal["rgb_to_0_1", "zscore"]
    patch_size: tuple[int, int] = Field(description="Height and width of what the network takes.")
    divisor: tuple[int, int] = Field(description="What height and width must be multiples of.")
    mirror_axes: tuple[Literal[0, 1], ...] = Field(description="Of the image: 0 upside down, 1 left to right.")
    tile_step: float = Field(0.5, gt=0, le=1, description="Distance of tiles as a share of the patch.")
    profiles: dict[str, Profile]
    default_profile: str
    provenance: Provenance
    quality: dict[str, Any] | None = Field(None, description="Figures on held-out data, with what data.")
    drift_reference: DriftReference | None = None
    files: dict[Annotated[str, Field(pattern=_FILE_NAME)], FileRecord]

    @model_validator(mode="after")
    def _be_consistent(self) -> "Manifest":
        for side, unit in zip(self.patch_size, self.divisor, strict=True):
            if not (0 < unit <= side <= _MAX_SIDE and side % unit == 0):
                raise ValueError(f"a patch of {self.patch_size} and a divisor of {self.divisor} do not fit each other")
        if self.default_profile not in self.profiles:
            raise ValueError(f"the default profile {self.default_profile!r} is not among {sorted(self.profiles)}")
        named = {profile.network for profile in self.profiles.values()}
        named |= {self.drift_reference.file} if self.drift_reference else set()
        if missing := sorted(named - set(self.files)):
            raise ValueError(f"{', '.join(missing)} is named, and not among the files")
        return self


def own_classes() -> tuple[ClassEntry, ...]:
    """Return the class table of this version as a bundle states it."""
    return tuple(ClassEntry(id=entry.id, name=entry.name, colour=entry.colour) for entry in CLASSES)


_CHUNK_BYTES = 1 << 20
_AGAIN = "Export or copy it again; the champion is fetched again with `droneseg models pull --force`."


@dataclass(frozen=True)
class Bundle:
    """A verified bundle.

    Attributes:
        folder: Where it lies.
        manifest: What it says of itself.
        model_id: Short hash of the manifest, and so of everything in it.
    """

    folder: Path
    manifest: Manifest
    model_id: str

    def network(self, profile: str) -> Path:
        """Return the network file of a profile of this bundle."""
        return self.folder / self.manifest.profiles[profile].network


def read_bundle(folder: Path) -> Bundle:
    """Read a bundle and verify all of it.

    Raises:
        BundleError: If anything is missing, changed, newer than this version or made for other classes; the message
            says which.
    """
    data = _manifest_bytes(folder)
    content = _parse(folder, data)
    if "format_version" not in content:
        raise BundleError(f"{folder / MANIFEST_NAME} is no manifest of a bundle: it has no format_version.")
    if content["format_version"] != FORMAT_VERSION:
        raise BundleError(
            f"{folder} has bundle format {content['format_version']!r}; this version of droneseg reads "
            f"{FORMAT_VERSION}. Update droneseg, or export the model again."
        )
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        lines = [f"  - {'.'.join(map(str, item['loc'])) or 'manifest'}: {item['msg']}" for item in error.errors()]
        raise BundleError("\n".join([f"{folder / MANIFEST_NAME} is malformed:", *lines])) from error
    _require_own_classes(folder, manifest, model_id_of(data))
    for name, record in manifest.files.items():
        _verify_file(folder / name, record)
    return Bundle(folder, manifest, model_id_of(data))


def write_bundle(folder: Path, build: Callable[[dict[str, FileRecord]], Manifest], files: Mapping[str, Path]) -> Bundle:
    """Write a bundle in one step; an older one in `folder` is replaced, and kept until the new one is whole.

    Args:
        folder: Where it shall be.
        build: Makes the manifest from the records of the files.
        files: What it holds, by name; the files are copied.

    Returns:
        The bundle, read back and verified.
    """
    with atomic_directory(folder, marker=MANIFEST_NAME, replace=True) as aside:
        for name, source in files.items():
            shutil.copyfile(source, aside / name)
        manifest = build({name: file_record(aside / name) for name in files})
        text = json.dumps(manifest.model_dump(mode="json"), indent=2) + "\n"
        write_bytes(aside / MANIFEST_NAME, text.encode())
    return read_bundle(folder)


def file_record(path: Path) -> FileRecord:
    """Return size and checksum of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return FileRecord(sha256=digest.hexdigest(), size_bytes=path.stat().st_size)


def model_id_of(manifest: bytes) -> str:
    """Return the short hash of a manifest, by which its model is known."""
    return hashlib.sha256(manifest).hexdigest()[:12]


def dvc_file_of(folder: Path) -> Path:
    """Return the file by which DVC knows a bundle's folder: of nnUNet_results/champion it is nnUNet_results.dvc."""
    return Path(f"{folder.parent}.dvc")


def _manifest_bytes(folder: Path) -> bytes:
    if folder.is_file():
        raise BundleError(f"{folder} is a file; a model bundle is a folder. Name the one it lies in: {folder.parent}.")
    if not folder.is_dir():
        tracked = dvc_file_of(folder)
        fetch = "Fetch it with `droneseg models pull`, make" if tracked.is_file() else "Make"
        raise BundleError(f"No model at {folder}. {fetch} one with `droneseg export`, or name another.")
    try:
        return (folder / MANIFEST_NAME).read_bytes()
    except FileNotFoundError:
        if (folder / "plans.json").is_file():
            raise BundleError(
                f"{folder} is a training folder of nnU-Net, not a bundle. "
                f"Make one of it with `droneseg export --from {folder}`."
            ) from None
        raise BundleError(f"{folder} is no model bundle: it holds no {MANIFEST_NAME}.") from None


def _parse(folder: Path, data: bytes) -> dict[str, Any]:
    try:
        content = json.loads(data)
    except ValueError as error:
        raise BundleError(f"{folder / MANIFEST_NAME} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise BundleError(f"{folder / MANIFEST_NAME} is not a JSON object.")
    return content


def _require_own_classes(folder: Path, manifest: Manifest, model_id: str) -> None:
    if manifest.classes == own_classes():
        return
    theirs = ", ".join(f"{entry.id} {entry.name} {entry.colour}" for entry in manifest.classes)
    ours = ", ".join(f"{entry.id} {entry.name} {entry.colour}" for entry in own_classes())
    raise OtherClassesError(f"{folder} was made for another class table: {theirs}. This version has: {ours}.", model_id)


def _verify_file(path: Path, record: FileRecord) -> None:
    if not path.is_file():
        raise BundleError(f"{path} is missing. The bundle is incomplete; fetch or export it again.")
    found = file_record(path)
    if found.size_bytes != record.size_bytes:
        raise BundleError(f"{path} has {found.size_bytes:,} bytes instead of {record.size_bytes:,}. {_AGAIN}")
    if found.sha256 != record.sha256:
        raise BundleError(f"{path} is damaged: its SHA-256 is not the manifest's. {_AGAIN}")
