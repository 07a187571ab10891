"""The settings, imported only when a command runs: `--help` has no use for pydantic."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from droneseg.core.settings import Settings


def settings() -> "Settings":
    """Read the settings from the environment and `.env`."""
    from droneseg.core.settings import load_settings

    return load_settings()
