"""The settings, imported only when a command runs: `--help` has no use for pydantic."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from droneseg.core.settings import Settings


def settings() -> "Settings":
    """Read the settings from the environment and `.env`."""
    from droneseg.core.settings import load_settings

    return load_settings()


def require_nnunet() -> None:
    """Raise `MissingDependencyError` unless torch and nnU-Net are installed; does not import them."""
    from importlib.util import find_spec

    from droneseg.core.errors import MissingDependencyError

    for package in ("torch", "nnunetv2"):
        if find_spec(package) is None:
            raise MissingDependencyError(package, "train")
