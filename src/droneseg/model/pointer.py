"""The `.dvc` file beside a model's folder: it names the version that belongs to this checkout."""

import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

from droneseg.core.errors import StoreError
from droneseg.core.files import write_text


@dataclass(frozen=True)
class Version:
    """A version of the tracked folder, as DVC names it.

    Attributes:
        md5: Of the folder's listing; ends with `.dir`.
        size_bytes: Of all files.
        files: How many there are.
    """

    md5: str
    size_bytes: int
    files: int


def read_pointer(path: Path) -> Version:
    """Read which version a `.dvc` file names.

    Raises:
        StoreError: If there is no such file, or it is not one of a folder.
    """
    try:
        (out,) = yaml.safe_load(path.read_text(encoding="utf-8"))["outs"]
        version = Version(str(out["md5"]), int(out["size"]), int(out["nfiles"]))
    except FileNotFoundError:
        raise StoreError(f"{path} is missing: it names the version of the model beside it.") from None
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{path} does not name a folder's version; take it from git again.") from error
    if not version.md5.endswith(".dir"):
        raise StoreError(f"{path} names a file, not a folder with a model in it.")
    return version


def write_pointer(path: Path, version: Version) -> None:
    """Make a `.dvc` file name this version."""
    out = {
        "md5": version.md5,
        "size": version.size_bytes,
        "nfiles": version.files,
        "hash": "md5",
        "path": path.name.removesuffix(".dvc"),
    }
    write_text(path, yaml.safe_dump({"outs": [out]}, sort_keys=False))


def main() -> None:
    """Keep of a `.dvc` file its version alone: `python -m droneseg.model.pointer FILE`.

    One that somebody sent may name places, remotes or commands, too: DVC would follow them.
    """
    path = Path(sys.argv[1])
    try:
        write_pointer(path, read_pointer(path))
    except StoreError as error:
        sys.exit(f"{error}")


if __name__ == "__main__":
    main()
