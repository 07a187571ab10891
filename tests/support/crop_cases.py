"""Raw nnU-Net cases in a folder, and their arrays for the loader of crops."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from droneseg.nnunet.case_arrays import CaseArrays, prepare_cases
from support.images import png


def write_case(
    raw: Path,
    name: str,
    image: NDArray[np.uint8],
    label: NDArray[np.uint8],
    targets: NDArray[np.uint8] | None = None,
) -> None:
    """Write the files of a training case."""
    for folder, suffix, array in (("imagesTr", "_0000", image), ("labelsTr", "", label), ("targetsTr", "", targets)):
        if array is not None:
            (raw / folder).mkdir(parents=True, exist_ok=True)
            (raw / folder / f"{name}{suffix}.png").write_bytes(png(array))


def arrays(raw: Path, *names: str, ignore: int | None = None) -> dict[str, CaseArrays]:
    """Return the arrays of cases."""
    return prepare_cases(raw, raw.parent / "arrays", names, ignore=ignore)


def coordinates(height: int, width: int) -> NDArray[np.uint8]:
    """Return an image whose red is the row and whose green is the column."""
    rows, columns = np.indices((height, width))
    return np.dstack([rows, columns, np.zeros_like(rows)]).astype(np.uint8)
