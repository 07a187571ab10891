"""Files in a local folder or an fsspec URL."""

from pathlib import Path
from typing import Any

import fsspec
import fsspec.utils

from droneseg.core.errors import ConfigurationError
from droneseg.core.files import write_bytes

DISABLED = "none"


def check_url(variable: str, url: str) -> None:
    """Refuse a kind of place that nothing here can write to.

    Args:
        variable: The setting it is from.
        url: The place.

    Raises:
        ConfigurationError: If it is one.
    """
    try:
        fsspec.get_filesystem_class(fsspec.utils.get_protocol(url))
    except (ImportError, ValueError) as error:
        raise ConfigurationError(f"{variable}={url} cannot be used: {error}") from error


def open_url(url: str) -> tuple[Any, str]:
    """Return the file system of a place, and the path in it."""
    options: dict[str, Any] = {} if "://" in url else {"auto_mkdir": True}
    filesystem, root = fsspec.core.url_to_fs(url, **options)
    return filesystem, str(root).rstrip("/")


def is_folder(filesystem: Any) -> bool:
    """Say whether a file system is this machine's own."""
    protocol = filesystem.protocol
    return "file" in ((protocol,) if isinstance(protocol, str) else protocol)


def write_file(url: str, name: str, data: bytes) -> str:
    """Write a file in one step, and return its URL.

    Args:
        url: The place.
        name: Path below it.
        data: What to write.
    """
    filesystem, root = open_url(url)
    if is_folder(filesystem):
        write_bytes(Path(root) / name, data)  # fsspec's own transaction is none from one disk to another
    else:
        filesystem.pipe_file(f"{root}/{name}", data)  # a bucket shows an object when it is whole
    return str(filesystem.unstrip_protocol(f"{root}/{name}"))
