"""What DVC knows files and folders by: md5."""

import base64
import hashlib
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from droneseg.core.errors import MissingDependencyError

_CHUNK_BYTES = 1 << 20


def version_of(folder: Path) -> str | None:
    """Return the md5 by which DVC would name the version of a folder's parent that holds this folder alone.

    Returns:
        As it stands in a `.dvc` file, ending with `.dir`; None if the folder is not there.

    Raises:
        MissingDependencyError: If DVC is not installed.
    """
    require_dvc()
    from dvc_data.hashfile.tree import Tree

    files = sorted(file for file in folder.rglob("*") if file.is_file())
    if not files:
        return None
    tree = Tree.from_list(
        [{"md5": md5_of(file), "relpath": file.relative_to(folder.parent).as_posix()} for file in files]
    )
    tree.digest()
    return str(tree.hash_info.value)


def require_dvc() -> None:
    """Raise `MissingDependencyError` unless DVC is installed; does not import it."""
    if find_spec("dvc") is None:
        raise MissingDependencyError("dvc", "store")


def md5_of(path: Path) -> str:
    """Return the md5 of a file, by which DVC knows it."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def stated_md5(about: Mapping[str, Any], otherwise: str) -> str:
    """Return the md5 of an object as Cloud Storage keeps it, or as a file on this machine has it."""
    if "md5Hash" in about:
        return base64.b64decode(about["md5Hash"]).hex()
    return md5_of(Path(about["name"])) if Path(about["name"]).is_file() else otherwise.removesuffix(".dir")
