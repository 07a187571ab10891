"""What the errors of a store's client mean: they come in many kinds."""

import errno

CREDENTIALS = (
    "Set GOOGLE_APPLICATION_CREDENTIALS to a key that may use it, or run `gcloud auth application-default login`."
)
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


def hopeless(error: BaseException) -> bool:
    """Say whether trying again is no help: the disk is full, or somebody pressed Ctrl-C."""
    if not isinstance(error, Exception):
        return True
    return isinstance(error, OSError) and error.errno in _OF_THE_DISK


def refused(error: BaseException) -> bool:
    """Say whether a store knows us not, or lets us not in."""
    status = getattr(error, "code", None) or getattr(error, "status", None)
    return status in (401, 403) or any(word in str(error).lower() for word in ("credentials", "forbidden"))


def short(error: BaseException) -> str:
    """Return the kind of an error and the first line it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
