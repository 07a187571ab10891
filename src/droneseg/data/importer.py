"""Import images and masks whose colours differ from those of the class table."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from droneseg.core.camera import check_scale
from droneseg.core.class_files import CLASSES_NAME, MaskColours, encode_colours, write_classes
from droneseg.core.errors import DatasetError, DronesegError
from droneseg.core.files import atomic_directory
from droneseg.core.masks import ColourTable, Mask, colour_table, encode_grey_ids
from droneseg.data.dataset import (
    DATASET_MARKER,
    PLAIN,
    DatasetInfo,
    Pair,
    Progress,
    find_raw_part,
    list_part,
    load_pair,
    pair_folders,
    parallel_map,
    write_info,
)
from droneseg.data.fine_classes import FINE_CLASSES_NAME, FINE_MASKS_FOLDER, write_fine_classes
from droneseg.data.mask_legend import MaskLegend, is_grey


@dataclass(frozen=True)
class ImportedDataset:
    """Result of an import.

    Attributes:
        folder: Folder of the written dataset.
        pairs: Number of pairs.
        pixels: Number of pixels by class name.
        fine_classes: Number of fine classes.
        ignores_background: Whether training ignores background pixels.
    """

    folder: Path
    pairs: int
    pixels: dict[str, int]
    fine_classes: int
    ignores_background: bool


def require_pairs(images: Path, masks: Path, mask_suffix: str = "") -> tuple[Pair, ...]:
    """Pair the images and masks of two folders, and raise an error if there is any problem.

    Folders of a raw dataset of nnU-Net are paired by its rules, others with `pair_folders`.

    Raises:
        DatasetError: If a file has no counterpart, or several files share a stem; all problems are listed.
    """
    location = find_raw_part(images, masks)
    if location and not mask_suffix:
        listing = list_part(location)
        pairs, problems = listing.pairs, listing.problems
    else:
        pairs, problems, _ = pair_folders(images, masks, mask_suffix=mask_suffix)
    if problems:
        raise DatasetError(f"Images in {images} and masks in {masks} do not match:", problems)
    return pairs


def import_dataset(
    pairs: Sequence[Pair],
    legend: MaskLegend,
    out: Path,
    *,
    gsd_m: float | None = None,
    replace: bool = False,
    max_pixels: int,
    progress: Progress | None = None,
) -> ImportedDataset:
    """Copy images and recolour masks into a dataset folder. Nothing is written if there is a problem.

    Args:
        pairs: Images and masks.
        legend: Class and fine class by colour or id of the masks.
        out: Folder to write.
        gsd_m: Ground resolution of all images in metres per pixel, to record in the dataset; None if it is not known
            or in the metadata of the images.
        replace: Whether an earlier import in `out` may be replaced.
        max_pixels: Largest accepted number of pixels.
        progress: Progress callback.

    Raises:
        ConfigurationError: If `gsd_m` is not plausible.
        DatasetError: If a file cannot be read, a colour has no class, or image and mask differ in size; all problems
            are listed.
        OutputExistsError: If `out` contains files of another origin, or an import while `replace` is False.
    """
    check_scale(gsd_m, None)
    classes = legend.classes
    problems, total = list[str](), np.zeros(len(classes), dtype=np.int64)
    with atomic_directory(out, marker=DATASET_MARKER, replace=replace) as staging_dir:
        writer = _Writer(staging_dir, legend, max_pixels)
        for mask, pair_problems in parallel_map(writer.write, list(pairs), progress):
            problems += pair_problems
            if mask is not None:
                total += np.bincount(mask.ravel(), minlength=len(classes))[: len(classes)]
        if problems:
            raise DatasetError("The dataset was not imported. Fix these problems:", problems)
        write_info(staging_dir, DatasetInfo(len(pairs), ignore_background=legend.ignores, gsd_m=gsd_m))
    pixels = dict(zip(classes.names, total.tolist(), strict=True))
    return ImportedDataset(out, len(pairs), pixels, len(legend.fine_classes), legend.ignores)


class _Writer:
    """Writes pairs into a dataset folder."""

    def __init__(self, root: Path, legend: MaskLegend, max_pixels: int) -> None:
        self._root, self._legend, self._max_pixels = root, legend, max_pixels
        self._by_colour = colour_table(legend.colours)
        self._by_index = colour_table(legend.indices)
        for folder in (PLAIN.images_in(root), PLAIN.masks_in(root)):
            folder.mkdir()
        self._colours = MaskColours(legend.classes, (legend.ignored,) if legend.ignored else ())
        if self._colours != MaskColours():
            write_classes(root / CLASSES_NAME, self._colours)
        if legend.fine_classes:
            (root / FINE_MASKS_FOLDER).mkdir()
            write_fine_classes(root / FINE_CLASSES_NAME, legend.fine_classes)

    def write(self, pair: Pair) -> tuple[Mask | None, list[str]]:
        """Write a pair; return its mask, or None, and its problems."""
        table = self._table(pair)
        if table is None:
            return None, [f"{pair.mask.name}: the mask is not grey; add the columns r, g and b to the table"]
        loaded, problems = load_pair(pair, unknown="fail", max_pixels=self._max_pixels, table=table)
        if loaded is None:
            return None, problems
        mask = self._legend.class_ids[loaded.mask]
        suffix = ".png" if pair.channels else pair.image.suffix.lower()
        (PLAIN.images_in(self._root) / f"{pair.stem}{suffix}").write_bytes(loaded.data)
        (PLAIN.masks_in(self._root) / f"{pair.stem}.png").write_bytes(encode_colours(mask, self._colours))
        if self._legend.fine_classes:
            fine = encode_grey_ids(self._legend.fine_ids[loaded.mask])
            (self._root / FINE_MASKS_FOLDER / f"{pair.stem}.png").write_bytes(fine)
        return mask, []

    def _table(self, pair: Pair) -> ColourTable | None:
        """Return the table for a mask: by id if it is grey and the legend has ids, else by colour, if it has any."""
        try:
            grey = is_grey(pair.mask.read_bytes(), max_pixels=self._max_pixels)
        except (DronesegError, OSError):
            return self._by_colour  # decoding the mask reports the problem
        if grey and self._legend.indices:
            return self._by_index
        return self._by_colour if self._legend.colours else None
