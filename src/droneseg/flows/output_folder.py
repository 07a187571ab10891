"""Output folders with a record of each photograph, which an interrupted or repeated run continues."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from droneseg.core.errors import DronesegError, OutputExistsError
from droneseg.core.image_files import ImageFiles

Record = TypeVar("Record")


@dataclass(frozen=True)
class PhotographResult(Generic[Record]):
    """Result for one photograph.

    Attributes:
        source: Files of the photograph.
        record: Facts about its output; None if it failed.
        error: Error message; None if it succeeded.
        skipped: Whether an earlier output was up to date.
    """

    source: ImageFiles
    record: Record | None
    error: str | None = None
    skipped: bool = False

    @property
    def stem(self) -> str:
        """Stem of the photograph."""
        return self.source.stem


def result_of(source: ImageFiles, work: Callable[[], PhotographResult[Record]]) -> PhotographResult[Record]:
    """Return the result of `work` for a photograph, or a failed one if it raises an expected error."""
    try:
        return work()
    except DronesegError as error:
        return PhotographResult(source, None, str(error))
    except OSError as error:
        return PhotographResult(source, None, f"{error.filename or source}: {error.strerror}")


def require_output_folder(out: Path, index_name: str, content: str) -> None:
    """Check that a folder is missing, empty, or was written by an earlier run.

    Args:
        out: Output folder.
        index_name: Name of the file that an earlier run wrote.
        content: Word for the output in error messages, such as "labels".

    Raises:
        OutputExistsError: If it is a file, or a folder with other content.
    """
    if out.exists() and not out.is_dir():
        raise OutputExistsError(f"{out} is a file and was not changed. Choose a folder for --out.")
    if out.is_dir() and any(out.iterdir()) and not (out / index_name).is_file():
        raise OutputExistsError(f"{out} holds no {content} (it has no {index_name}). Choose another folder for --out.")
