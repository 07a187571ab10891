"""Where a training came from: versions, revision."""

import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("droneseg", "nnunetv2", "torch", "numpy", "batchgeneratorsv2", "dynamic-network-architectures")


def package_versions(packages: tuple[str, ...] = _PACKAGES) -> dict[str, str]:
    """Return the installed version of each package, "not installed" without one."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def git_revision() -> str | None:
    """Return the commit of the checkout this code runs from, with "-dirty" after changes; None outside one."""
    folder = Path(__file__).parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
        tracked = subprocess.run(
            ["git", "ls-files", "--error-unmatch", Path(__file__).name], cwd=folder, capture_output=True, check=False
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    # an installed copy may lie inside somebody else's repository
    return described.stdout.strip() if tracked.returncode == 0 else None
