"""Files in a local folder or an fsspec URL."""

from pathlib import Path
from typing import Any

import fsspec
import fsspec.utils

from droneseg.core.errors import ConfigurationError
from droneseg.core.files import write_bytes

DISABLED = "none"
"""Value of a URL setting that turns the feature off."""


def check_url(variable: str, url: str) -> None:
    """Check that the protocol of a URL is supported.

    Args:
        variable: Name of the setting, for the error message.
        url: Folder or URL to check.

    Raises:
        ConfigurationError: If no installed file system supports the URL.
    """
    try:
        fsspec.get_filesystem_class(fsspec.utils.get_protocol(url))
    except (ImportError, ValueError) as error:
        raise ConfigurationError(f"{variable}={url} cannot be used: {error}") from error


def open_url(url: str) -> tuple[Any, str]:
    """Return the fsspec file system of a URL and the path in it."""
    options: dict[str, Any] = {} if "://" in url else {"auto_mkdir": True}
    filesystem, root = fsspec.core.url_to_fs(url, **options)
    return filesystem, str(root).rstrip("/")


def is_local(filesystem: Any) -> bool:
    """Return whether an fsspec file system is the local one."""
    protocol = filesystem.protocol
    return "file" in ((protocol,) if isinstance(protocol, str) else protocol)


def write_file(url: str, name: str, data: bytes) -> str:
    """Write a file atomically; return its URL.

    Args:
        url: Folder or URL.
        name: Path of the file below `url`.
        data: Content of the file.
    """
    filesystem, root = open_url(url)
    if is_local(filesystem):
        write_bytes(Path(root) / name, data)  # fsspec's transactions are not atomic across disks
    else:
        filesystem.pipe_file(f"{root}/{name}", data)  # in a bucket, an object appears only when it is complete
    return str(filesystem.unstrip_protocol(f"{root}/{name}"))
