"""Takes the photographs and masks out of an archive of a dataset, and nothing else."""

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from droneseg.core.errors import DownloadError
from droneseg.data.layouts import IMAGES_FOLDER, KAGGLE_FOLDER, MASKS_FOLDER


def unpack_pairs(archive: Path, folder: Path, progress: Callable[[int, int], None]) -> int:
    """Unpack the folders of photographs and masks, wherever in the archive they are, into the Kaggle layout.

    Args:
        archive: A ZIP file.
        folder: Where `classes_dataset/classes_dataset/...` shall be.
        progress: Told of the files done, and of all.

    Returns:
        How many files were left out.

    Raises:
        DownloadError: If it holds no such folders, two of a kind, or a damaged file.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [member for member in opened.infolist() if not member.is_dir()]
            wanted = _wanted([member.filename for member in members], archive)
            for done, (name, target) in enumerate(wanted.items(), start=1):
                # only two folders and a file's own name: an archive cannot write elsewhere
                path = folder / KAGGLE_FOLDER / target
                path.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(name) as source, path.open("wb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
                progress(done, len(wanted))
    except zipfile.BadZipFile as error:
        archive.unlink()
        raise DownloadError(f"What was downloaded is damaged ({error}). Try again.") from error
    return len(members) - len(wanted)


def _wanted(names: list[str], archive: Path) -> dict[str, Path]:
    """Return the members to take, and where each goes."""
    folders = {PurePosixPath(name).parent for name in names}
    complete = {
        folder.parent for folder in folders if {folder.parent / IMAGES_FOLDER, folder.parent / MASKS_FOLDER} <= folders
    }
    if len(complete) != 1:
        found = ", ".join(sorted(map(str, folders))[:8])
        raise DownloadError(
            f"{archive.name} holds {len(complete)} folders with both {IMAGES_FOLDER} and {MASKS_FOLDER}, not one. "
            f"It has: {found}"
        )
    (root,) = complete
    wanted = {root / IMAGES_FOLDER, root / MASKS_FOLDER}
    return {name: Path(path.parent.name, path.name) for name in names if (path := PurePosixPath(name)).parent in wanted}
