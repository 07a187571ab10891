"""Settings read from the environment and `.env`."""

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
from droneseg.core.images import DEFAULT_MAX_PIXELS
from droneseg.core.runtimes import RuntimeName

logger = logging.getLogger(__name__)

Pull: TypeAlias = Literal["auto", "never", "always"]
"""When DVC fetches the model at service start."""


class LogFormat(StrEnum):
    """Format of log lines."""

    TEXT = "text"
    JSON = "json"


class LogLevel(StrEnum):
    """Lowest severity that is logged."""

    DEBUG = "DEBUG"
    INFO = "INFO"
    WARNING = "WARNING"
    ERROR = "ERROR"


class Settings(BaseSettings):
    """Application settings from `DRONESEG_*` variables or `.env`; read once at an entry point and passed down."""

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
        description="Model bundle used for prediction, as written by `droneseg export`.",
    )
    dvc_pull: Pull = Field(
        default="auto",
        description="When DVC fetches the model at service start: auto (if it is missing), never or always.",
    )
    dvc_remote: str | None = Field(
        default=None,
        description="DVC remote that models are pulled from and pushed to; default: the one configured in .dvc.",
    )
    profile: str | None = Field(
        default=None, description="Inference profile: exact, fast or int8; default: the bundle's default profile."
    )
    runtime: RuntimeName = Field(
        default=RuntimeName.AUTO,
        description="Inference runtime: openvino, onnxruntime or auto (ONNX Runtime with a GPU, else OpenVINO).",
    )
    cache_dir: Path = Field(
        default=Path("~/.cache/droneseg"), description="Folder for compiled networks, which speed up later starts."
    )
    max_pixels: int = Field(default=DEFAULT_MAX_PIXELS, ge=1, description="Largest accepted image, in pixels.")
    host: str = Field(default="127.0.0.1", description="Address the service listens on.")
    port: int = Field(
        default=8000,
        ge=0,
        le=65535,
        validation_alias=AliasChoices("DRONESEG_PORT", "PORT"),
        description="Port the service listens on; PORT, which Cloud Run sets, is read as well.",
    )
    api_key: SecretStr | None = Field(
        default=None,
        min_length=8,
        description="API key that requests must send in X-API-Key; without it, requests need no key.",
    )
    public_metrics: bool = Field(default=True, description="Whether /metrics can be read without the API key.")
    max_upload_bytes: int = Field(default=30 * 2**20, ge=1024, description="Largest accepted request body, in bytes.")
    max_batch: int = Field(default=32, ge=1, description="Maximum number of files in a request.")
    queue_seconds: float = Field(
        default=8, gt=0, description="Maximum queued work, in seconds; requests beyond it get status 429."
    )
    timeout_seconds: float = Field(default=60, gt=0, description="Seconds after which a waiting request times out.")
    records_url: str = Field(
        default="records",
        description="Where prediction records are written: a folder, gs://BUCKET/FOLDER or none.",
    )
    record_names: bool = Field(
        default=False, description="Whether records contain file names instead of their SHA-256."
    )
    sample_share: float = Field(
        default=0, ge=0, le=1, description="Share of images that are stored with their masks next to the records."
    )
    retention_days: int = Field(default=30, ge=0, description="Days that records and samples are kept; 0: no limit.")
    retention_mb: int = Field(
        default=1000,
        ge=0,
        description="Maximum total size of records and samples, in 10^6 bytes; "
        "the oldest are deleted first; 0: no limit.",
    )
    reports_url: str = Field(
        default="reports", description="Where drift reports are written: a folder, gs://BUCKET/FOLDER or none."
    )
    log_level: LogLevel = Field(default=LogLevel.INFO, description="Log level: DEBUG, INFO, WARNING or ERROR.")
    log_format: LogFormat = Field(default=LogFormat.TEXT, description="Log format: text or json.")
    wandb_api_key: SecretStr | None = Field(
        default=None,
        validation_alias="WANDB_API_KEY",
        description="Weights & Biases API key; without it, runs are logged offline.",
    )
    kaggle_api_token: SecretStr | None = Field(
        default=None,
        validation_alias="KAGGLE_API_TOKEN",
        description="Kaggle API token for `droneseg data download`; alternative to a user name and key.",
    )
    kaggle_username: str | None = Field(
        default=None, validation_alias="KAGGLE_USERNAME", description="Kaggle user name, used with KAGGLE_KEY."
    )
    kaggle_key: SecretStr | None = Field(
        default=None, validation_alias="KAGGLE_KEY", description="Kaggle API key, from kaggle.json."
    )
    nnunet_raw: Path = Field(
        default=Path("nnUNet_raw"), validation_alias="nnUNet_raw", description="Folder of nnU-Net's raw datasets."
    )
    nnunet_preprocessed: Path = Field(
        default=Path("nnUNet_preprocessed"),
        validation_alias="nnUNet_preprocessed",
        description="Folder of nnU-Net's plans and preprocessed data.",
    )
    nnunet_results: Path = Field(
        default=Path("nnUNet_results"),
        validation_alias="nnUNet_results",
        description="Folder of nnU-Net's trained models.",
    )


def variable_names() -> dict[str, str]:
    """Return the environment variable of each setting, mapped to the setting's description."""
    return {
        _alias(field.validation_alias) or _variable(name): field.description or ""
        for name, field in Settings.model_fields.items()
    }


def misspelt_variables() -> dict[str, str]:
    """Return likely misspelt `DRONESEG_` variables of the environment and `.env`, mapped to the closest setting."""
    known = set(variable_names())
    given = {*os.environ, *dotenv_values(".env")}
    unknown = sorted(name for name in given if name.upper().startswith("DRONESEG_") and name not in known)
    near = {name: get_close_matches(name.upper(), known, n=1, cutoff=0.85) for name in unknown}
    # pydantic-settings ignores the case of variables
    return {name: matches[0] for name, matches in near.items() if matches and name.upper() not in known}


def warn_of_misspelt() -> None:
    """Log a warning for each likely misspelt setting."""
    for wrong, meant in misspelt_variables().items():
        logger.warning("%s is not a setting; did you mean %s?", wrong, meant)


def load_settings() -> Settings:
    """Read the settings from the environment and `.env`.

    Raises:
        ConfigurationError: If values are invalid; the message lists all of them.
    """
    try:
        return Settings()
    except ValidationError as error:
        lines = [f"  - {_variable(str(item['loc'][0]))}{_shown(item)}: {item['msg']}" for item in error.errors()]
        raise ConfigurationError("\n".join(["Invalid settings in the environment or .env:", *lines])) from error


def _shown(problem: ErrorDetails) -> str:
    """Return the invalid value as `=VALUE` for the error message; empty for a secret."""
    name = str(problem["loc"][0]).lower()
    return "" if "key" in name else f"={problem['input']!r}"


def _variable(location: str) -> str:
    """Return the environment variable for the location in a pydantic error."""
    aliases = {_alias(field.validation_alias) for field in Settings.model_fields.values()}
    return location if location in aliases else f"DRONESEG_{location.upper().removeprefix('DRONESEG_')}"


def _alias(alias: str | AliasChoices | AliasPath | None) -> str | None:
    """Return the first environment variable that a validation alias names, or None without an alias."""
    if alias is None:
        return None
    return str(alias.choices[0] if isinstance(alias, AliasChoices) else alias)
