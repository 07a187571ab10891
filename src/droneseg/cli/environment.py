"""The settings, imported only when a command runs: `--help` has no use for pydantic."""

import re
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


_PACKAGES = {"cv2": "opencv-python-headless", "sklearn": "scikit-learn", "yaml": "pyyaml"}


def extra_of(module: str) -> str | None:
    """Return the extra of droneseg that brings a module, None if none does: it is part of all, or not ours to bring."""
    from importlib.metadata import requires

    name = module.partition(".")[0]
    package = _PACKAGES.get(name, name.replace("_", "-"))
    found = re.compile(rf"{package}\b(?!-).*extra == ['\"](\w+)['\"]", re.IGNORECASE)
    return next((match[1] for stated in requires("droneseg") or [] if (match := found.match(stated))), None)
