"""What a bundle says of itself: `manifest.json`, validated."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from droneseg.core.classes import CLASSES

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
