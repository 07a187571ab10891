"""Settings from the environment and .env; LogFormat, LogLevel."""

import logging
import os
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from typing import Literal, TypeAlias

from dotenv import dotenv_values
from pydantic import AliasChoices, AliasPath, Field, SecretStr, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from droneseg.core.errors import ConfigurationError
from droneseg.core.runtimes import RuntimeName

logger = logging.getLogger(__name__)

Pull: TypeAlias = Literal["auto", "never", "always"]
"""Whether DVC fetches a model."""


class LogFormat(StrEnum):
    """How a log line looks."""

    TEXT = "text"
    JSON = "json"


class LogLevel(StrEnum):
    """How much is logged."""

    DEBUG = "DEBUG"
    INFO = "INFO"
    WARNING = "WARNING"
    ERROR = "ERROR"


class Settings(BaseSettings):
    """What the environment (or a `.env` file) says; read once at an entry point and passed down."""

    model_config = SettingsConfigDict(
        env_prefix="DRONESEG_",
        env_file=".env",
        env_file_encoding="utf-8",
        extra="ignore",
        populate_by_name=True,
        env_ignore_empty=True,
    )

    model: Path = Field(
        default=Path("nnUNet_results/champion"),
        description="The model to predict with: a bundle, as `droneseg export` makes them.",
    )
    dvc_pull: Pull = Field(
        default="auto",
        description="Whether DVC fetches the model as a service starts: auto, if it is not there; never; or always.",
    )
    dvc_remote: str | None = Field(
        default=None, description="DVC's remote to fetch it from, and to push models to; by default the one in .dvc."
    )
    profile: str | None = Field(
        default=None, description="How to run it: exact, fast or int8; by default as the bundle says."
    )
    runtime: RuntimeName = Field(
        default=RuntimeName.AUTO, description="What runs the network; auto: ONNX Runtime with a GPU, else OpenVINO."
    )
    cache_dir: Path = Field(
        default=Path("~/.cache/droneseg"), description="Folder for compiled networks, which make later starts faster."
    )
    max_pixels: int = Field(default=40_000_000, ge=1, description="Largest image accepted, in pixels.")
    host: str = Field(default="127.0.0.1", description="Address the service listens on.")
    port: int = Field(
        default=8000,
        ge=0,
        le=65535,
        validation_alias=AliasChoices("DRONESEG_PORT", "PORT"),
        description="Port of the service; PORT, as Cloud Run sets it, is read, too.",
    )
    api_key: SecretStr | None = Field(
        default=None, min_length=8, description="Key that requests must carry in X-API-Key; without one none is asked."
    )
    public_metrics: bool = Field(default=True, description="Whether /metrics is open to those without the key.")
    max_upload_bytes: int = Field(default=30 * 2**20, ge=1024, description="Largest body of a request, in bytes.")
    max_batch: int = Field(default=32, ge=1, description="Most files in one request.")
    queue_seconds: float = Field(default=8, gt=0, description="Work that may wait, in seconds, before 429 is answered.")
    timeout_seconds: float = Field(default=60, gt=0, description="Longest a request may wait before it is given up.")
    records_url: str = Field(
        default="records",
        description="Where a line per prediction is kept: a folder, gs://BUCKET/FOLDER, or none.",
    )
    record_names: bool = Field(
        default=False, description="Whether records hold the names of files, rather than their SHA-256."
    )
    sample_share: float = Field(
        default=0, ge=0, le=1, description="Share of the photographs kept, with their masks, beside the records."
    )
    retention_days: int = Field(
        default=30, ge=0, description="How long records and samples are kept, in days; 0 keeps them for ever."
    )
    retention_mb: int = Field(
        default=1000,
        ge=0,
        description="What they may take in all, in 10^6 bytes; the oldest go first; 0 sets no limit.",
    )
    reports_url: str = Field(
        default="reports", description="Where reports on drift go: a folder, gs://BUCKET/FOLDER, or none."
    )
    log_level: LogLevel = Field(default=LogLevel.INFO, description="DEBUG, INFO, WARNING or ERROR.")
    log_format: LogFormat = Field(default=LogFormat.TEXT, description="text for people, json for machines.")
    wandb_api_key: SecretStr | None = Field(
        default=None,
        validation_alias="WANDB_API_KEY",
        description="Key of Weights & Biases; without one it is offline.",
    )
    kaggle_api_token: SecretStr | None = Field(
        default=None,
        validation_alias="KAGGLE_API_TOKEN",
        description="Token of Kaggle, for `droneseg data download`; or a user's name and key.",
    )
    kaggle_username: str | None = Field(
        default=None, validation_alias="KAGGLE_USERNAME", description="User's name at Kaggle, with KAGGLE_KEY."
    )
    kaggle_key: SecretStr | None = Field(
        default=None, validation_alias="KAGGLE_KEY", description="Key of that user, from kaggle.json."
    )
    nnunet_raw: Path = Field(
        default=Path("nnUNet_raw"), validation_alias="nnUNet_raw", description="nnU-Net's folder of raw datasets."
    )
    nnunet_preprocessed: Path = Field(
        default=Path("nnUNet_preprocessed"),
        validation_alias="nnUNet_preprocessed",
        description="nnU-Net's folder of plans and preprocessed data.",
    )
    nnunet_results: Path = Field(
        default=Path("nnUNet_results"),
        validation_alias="nnUNet_results",
        description="nnU-Net's folder of trained models.",
    )


def variable_names() -> dict[str, str]:
    """Return the environment variable of each setting, with the setting's description."""
    return {
        _alias(field.validation_alias) or _variable(name): field.description or ""
        for name, field in Settings.model_fields.items()
    }


def misspelt_variables() -> dict[str, str]:
    """Return variables of the environment and `.env` that are no settings but nearly; with what was probably meant."""
    known = set(variable_names())
    given = {*os.environ, *dotenv_values(".env")}
    unknown = sorted(name for name in given if name.upper().startswith("DRONESEG_") and name not in known)
    near = {name: get_close_matches(name.upper(), known, n=1, cutoff=0.85) for name in unknown}
    # the environment is read without regard to case
    return {name: found[0] for name, found in near.items() if found and name.upper() not in known}


def warn_of_misspelt() -> None:
    """Log a warning for each variable that is nearly a setting."""
    for wrong, meant in misspelt_variables().items():
        logger.warning("%s is no setting; did you mean %s?", wrong, meant)


def load_settings() -> Settings:
    """Read the settings from the environment and `.env`.

    Raises:
        ConfigurationError: If a value does not fit; all such values are listed.
    """
    try:
        return Settings()
    except ValidationError as error:
        lines = [f"  - {_variable(str(item['loc'][0]))}{_shown(item)}: {item['msg']}" for item in error.errors()]
        raise ConfigurationError("\n".join(["Wrong settings in the environment or .env:", *lines])) from error


def _shown(problem: ErrorDetails) -> str:
    """Return the value that does not fit, unless it is a secret."""
    name = str(problem["loc"][0]).lower()
    return "" if "key" in name else f"={problem['input']!r}"


def _variable(location: str) -> str:
    """Return the environment variable that pydantic's error location means."""
    aliases = {_alias(field.validation_alias) for field in Settings.model_fields.values()}
    return location if location in aliases else f"DRONESEG_{location.upper().removeprefix('DRONESEG_')}"


def _alias(alias: str | AliasChoices | AliasPath | None) -> str | None:
    """Return the variable a setting has instead of its name with our prefix, the first if there are several."""
    if alias is None:
        return None
    return str(alias.choices[0] if isinstance(alias, AliasChoices) else alias)
