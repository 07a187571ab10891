"""Where models come from: DVC fetches the promoted one, which a `.dvc` file beside its folder names."""

import logging
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from droneseg.core.errors import MissingDependencyError, StoreError
from droneseg.core.settings import Pull
from droneseg.model.bundle import pointer_to
from droneseg.model.manifest import MANIFEST_NAME

logger = logging.getLogger(__name__)

_TIMEOUT_S = 200  # Cloud Run gives a start 240 s


def fetch_model(folder: Path, pull: Pull) -> None:
    """Let DVC fetch a model, if it is asked to.

    Args:
        folder: Of the bundle; `nnUNet_results/champion` is fetched by `nnUNet_results.dvc`.
        pull: "auto" fetches what is not there and is named by such a file.

    Raises:
        StoreError: If it cannot be fetched. What DVC says of it is logged: it may name places that not all may know.
        MissingDependencyError: If DVC is not installed.
    """
    pointer = pointer_to(folder)
    there = (folder / MANIFEST_NAME).is_file()
    if pull == "never" or (pull == "auto" and (there or not pointer.is_file())):
        return
    if not pointer.is_file():
        raise StoreError(f"{pointer} is missing: it names the version of {folder}. Or set DRONESEG_DVC_PULL=never.")
    if find_spec("dvc") is None:
        raise MissingDependencyError("dvc", "store")
    logger.info("fetching %s with DVC", folder)
    command = [sys.executable, "-m", "dvc", "pull", pointer.name]
    try:
        subprocess.run(command, cwd=pointer.parent, check=True, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise StoreError(f"DVC did not fetch {folder} within {_TIMEOUT_S} s.") from error
    except subprocess.CalledProcessError as error:
        logger.error("DVC said: %s", " ".join(error.stderr.split()) or f"nothing, and ended with {error.returncode}")
        raise StoreError(f"DVC could not fetch {folder} as {pointer} names it; the log says why.") from error
