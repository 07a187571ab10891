"""Dataset folders: layouts, pairing of images and masks, decoding, validation."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image as pillow
from pydantic import TypeAdapter, ValidationError

from droneseg.core.classes import CLASSES
from droneseg.core.errors import DatasetError, DronesegError, ShapeMismatchError
from droneseg.core.files import write_text
from droneseg.core.images import SUFFIXES, is_plain_rgb_png, open_image
from droneseg.core.masks import ColourTable, Mask, UnknownColour, UnknownPolicy, decode_colours
from droneseg.core.system import usable_cores

KAGGLE_FOLDER = Path("classes_dataset/classes_dataset")
IMAGES_FOLDER = "original_images"
MASKS_FOLDER = "label_images_semantic"

_SEARCH_DEPTH = 4

Progress = Callable[[int, int], None]
"""Progress callback with the number of items done and the total."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class FolderLayout:
    """Layout with one folder of images and one of colour masks, paired by file stem.

    Attributes:
        images: Name of the image folder.
        masks: Name of the mask folder.
        inside: Path of both folders relative to the dataset folder.
    """

    images: str
    masks: str
    inside: Path = Path()

    def images_in(self, root: Path) -> Path:
        """Return the image folder of a dataset."""
        return root / self.images

    def masks_in(self, root: Path) -> Path:
        """Return the mask folder of a dataset."""
        return root / self.masks

    def is_in(self, root: Path) -> bool:
        """Return whether the image and mask folders of this layout exist in `root`."""
        return self.images_in(root).is_dir() and self.masks_in(root).is_dir()

    def __str__(self) -> str:
        """Return the layout as a path, for example `data/{images,masks}`."""
        return (self.inside / f"{{{self.images},{self.masks}}}").as_posix()


KAGGLE = FolderLayout(IMAGES_FOLDER, MASKS_FOLDER, KAGGLE_FOLDER)
PLAIN = FolderLayout("images", "masks")
LAYOUTS: tuple[FolderLayout, ...] = (KAGGLE, PLAIN)

GENERATED_NAME = "generated.json"
"""File that names the original photograph of every generated one."""

LABELS_NAME = "labels.json"
"""File that describes the labels of a dataset that `droneseg label` wrote."""

DATASET_MARKER = "adopted.json"  # the name that earlier versions used
"""File that marks an imported dataset and describes it."""


@dataclass(frozen=True)
class DatasetInfo:
    """Description of a dataset, written by the import.

    Attributes:
        pairs: Number of pairs; None for a dataset without description.
        ignore_background: Whether background pixels have no label, so that training ignores them.
        gsd_m: Ground resolution of all images in metres per pixel, if given.
    """

    pairs: int | None = None
    ignore_background: bool = False
    gsd_m: float | None = None


def write_info(root: Path, info: DatasetInfo) -> None:
    """Write the description of a dataset into its folder."""
    write_text(root / DATASET_MARKER, json.dumps(asdict(info)) + "\n")


def read_info(root: Path) -> DatasetInfo:
    """Read the description of a dataset from its folder; the default if there is none.

    Raises:
        DatasetError: If the file is not a valid description.
    """
    file = root / DATASET_MARKER
    if not file.is_file():
        return DatasetInfo()
    try:
        return TypeAdapter(DatasetInfo).validate_json(file.read_bytes())
    except (ValidationError, OSError) as error:
        raise DatasetError(f"{file} is not a valid description of a dataset. Import the dataset again.") from error


@dataclass(frozen=True)
class Pair:
    """An image and its mask.

    Attributes:
        stem: File name without suffix, shared by both files.
        image: Path of the image.
        mask: Path of the mask.
    """

    stem: str
    image: Path
    mask: Path


@dataclass(frozen=True)
class PairListing:
    """Pairs of a dataset folder and the problems with its file names.

    Attributes:
        root: Folder that contains the image and mask folders.
        pairs: Complete pairs, sorted by stem.
        problems: Errors to fix before the dataset can be used, one line each.
        notes: Information for the user, one line each.
        generated: Stem of the original photograph by stem of the generated pair.
    """

    root: Path
    pairs: tuple[Pair, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    generated: Mapping[str, str]

    @property
    def photographs(self) -> tuple[Pair, ...]:
        """Pairs that are not generated from others."""
        return tuple(pair for pair in self.pairs if pair.stem not in self.generated)


@dataclass(frozen=True)
class DatasetLocation:
    """Location of a dataset's image and mask folders.

    Attributes:
        root: Folder that contains both folders.
        layout: Layout of the dataset.
        notes: A note if the dataset is in another folder than expected.
    """

    root: Path
    layout: FolderLayout
    notes: tuple[str, ...] = ()

    @property
    def images(self) -> Path:
        """Image folder."""
        return self.layout.images_in(self.root)

    @property
    def masks(self) -> Path:
        """Mask folder."""
        return self.layout.masks_in(self.root)


def find_dataset(source: Path) -> DatasetLocation:
    """Find a dataset of any known layout at, above or below `source`.

    Raises:
        DatasetError: If there is no dataset, or more than one.
    """
    if not source.is_dir():
        raise DatasetError(f"{source} is not a folder. Pass a dataset folder.")
    for layout in LAYOUTS:
        for expected in (source / layout.inside, source):
            if layout.is_in(expected):
                return DatasetLocation(expected, layout)
    parent = source.resolve().parent
    for layout in LAYOUTS:
        if source.resolve().name in (layout.images, layout.masks) and layout.is_in(parent):
            return DatasetLocation(parent, layout, (f"{source} is one level too deep; using {parent}.",))
    candidates = [(folder, layout) for folder in _below(source) for layout in LAYOUTS if layout.is_in(folder)]
    if len(candidates) == 1:
        root, layout = candidates[0]
        return DatasetLocation(root, layout, (f"{source} does not contain the data itself; using {root}.",))
    if candidates:
        roots = [str(root) for root, _ in candidates]
        raise DatasetError(f"{source} contains several datasets. Choose one of them:", roots)
    raise DatasetError(_explain_not_found(source))


def list_pairs(source: Path) -> PairListing:
    """List the pairs of a dataset folder and all problems with its file names.

    Raises:
        DatasetError: If the image and mask folders cannot be found.
    """
    location = find_dataset(source)
    pairs, problems, notes = pair_folders(location.images, location.masks)
    generated, more = _read_generated(location.root / GENERATED_NAME)
    return PairListing(location.root, pairs, (*problems, *more), (*location.notes, *notes), generated)


def _read_generated(file: Path) -> tuple[dict[str, str], list[str]]:
    """Return the original stem by generated stem, empty without a file, and problems with the file."""
    if not file.is_file():
        return {}, []
    try:
        generated = TypeAdapter(dict[str, str]).validate_json(file.read_bytes())
    except (ValidationError, OSError):
        return {}, [f"{file.name}: is not a JSON object with the stem of the original of each generated image"]
    chained = sorted(stem for stem, original in generated.items() if original in generated)
    return generated, [f"{file.name}: the original of {stem} is generated itself" for stem in chained]


def pair_folders(
    images: Path, masks: Path, *, mask_suffix: str = ""
) -> tuple[tuple[Pair, ...], tuple[str, ...], tuple[str, ...]]:
    """Pair images and masks of two folders by file stem.

    Args:
        images: Image folder.
        masks: Mask folder; may be the same folder.
        mask_suffix: Suffix that the stems of masks have and those of images lack.

    Returns:
        Complete pairs, sorted by stem; problems and notes, one line each.

    Raises:
        DatasetError: If one of the folders does not exist.
    """
    for folder in (images, masks):
        if not folder.is_dir():
            raise DatasetError(f"{folder} is not a folder. Pass an existing folder.")
    image_files, image_notes = _group_by_stem(images, excluded_suffix=mask_suffix)
    mask_files, mask_notes = _group_by_stem(masks, suffix=mask_suffix)
    problems = [*_broken_links(images), *_broken_links(masks)]
    problems += [*_duplicates("images", image_files), *_duplicates("masks", mask_files)]
    for stem in sorted(image_files.keys() - mask_files.keys()):
        problems.append(f"{images.name}/{image_files[stem][0].name}: has no mask in {masks.name}")
    for stem in sorted(mask_files.keys() - image_files.keys()):
        problems.append(f"{masks.name}/{mask_files[stem][0].name}: has no image in {images.name}")
    if not image_files and not mask_files:
        problems.append(f"{images.name} and {masks.name}: both folders are empty")
    common = sorted(image_files.keys() & mask_files.keys())
    unique = [stem for stem in common if len(image_files[stem]) == len(mask_files[stem]) == 1]
    pairs = tuple(Pair(stem, image_files[stem][0], mask_files[stem][0]) for stem in unique)
    return pairs, tuple(problems), (*image_notes, *mask_notes)


def _below(source: Path) -> Iterable[Path]:
    """Yield the folders below `source` level by level, down to `_SEARCH_DEPTH`, without hidden ones."""
    level = [source]
    for _ in range(_SEARCH_DEPTH):
        level = [
            child
            for folder in level
            for child in sorted(folder.iterdir())
            if child.is_dir() and not child.name.startswith(".")
        ]
        yield from level


def _explain_not_found(source: Path) -> str:
    if (source / LABELS_NAME).is_file():
        return (
            f"{source} has no labels yet: `droneseg label` was interrupted before the first one. Run the same "
            "`droneseg label` command again."
        )
    expected = " or ".join(str(layout) for layout in LAYOUTS)
    if not any(source.iterdir()):
        return f"{source} is empty. Expected {expected} in it."
    for folder in (source, *_below(source)):
        for layout in LAYOUTS:
            for present, absent in ((layout.images, layout.masks), (layout.masks, layout.images)):
                if (folder / present).is_dir():
                    return f"{folder} contains {present} but no {absent}."
    return f"{source} does not contain a dataset. Expected {expected} in it or up to {_SEARCH_DEPTH} levels below."


def _group_by_stem(
    folder: Path, *, suffix: str = "", excluded_suffix: str = ""
) -> tuple[dict[str, list[Path]], list[str]]:
    """Group the image files of a folder by stem, with a note for every other file.

    Args:
        folder: Folder to list.
        suffix: Suffix that stems must have; it is removed.
        excluded_suffix: Suffix of stems to skip, unless empty.
    """
    files: dict[str, list[Path]] = defaultdict(list)
    notes = []
    for file in sorted(folder.iterdir()):
        if file.name.startswith(".") or file.name in ("Thumbs.db", "desktop.ini") or not file.exists():
            continue
        if not file.is_file() or file.suffix.lower() not in SUFFIXES:
            notes.append(f"{folder.name}/{file.name}: not an image file, ignored")
        elif file.stem.endswith(suffix) and not (excluded_suffix and file.stem.endswith(excluded_suffix)):
            files[file.stem.removesuffix(suffix)].append(file)
    return files, notes


def _broken_links(folder: Path) -> list[str]:
    """Return a problem for each broken symbolic link, for example to data that DVC has not fetched yet."""
    return [
        f"{folder.name}/{file.name}: is a link to {file.readlink()}, which does not exist"
        for file in sorted(folder.iterdir())
        if file.is_symlink() and not file.exists()
    ]


def _duplicates(kind: str, files: dict[str, list[Path]]) -> list[str]:
    return [
        f"{same[0].parent.name}: {len(same)} {kind} with the stem {stem!r}: {', '.join(file.name for file in same)}"
        for stem, same in sorted(files.items())
        if len(same) > 1
    ]


@dataclass(frozen=True)
class LoadedPair:
    """A decoded and validated pair.

    Attributes:
        pair: Paths of the pair.
        data: Content of the image file.
        opened: Decoded image, not yet converted to RGB.
        plain: Whether the file is an 8-bit RGB PNG, which can be copied unchanged.
        mask: Class ids, shape (H, W), dtype uint8.
        replaced: Unknown colours that became background.
    """

    pair: Pair
    data: bytes
    opened: pillow.Image
    plain: bool
    mask: Mask
    replaced: list[UnknownColour]


def load_pair(
    pair: Pair, *, unknown: UnknownPolicy, max_pixels: int, table: ColourTable | None = None
) -> tuple[LoadedPair | None, list[str]]:
    """Decode a pair completely. Both files are checked even if the first one is damaged.

    Args:
        pair: Paths of the pair.
        unknown: Handling of colours that belong to no class.
        max_pixels: Largest accepted number of pixels.
        table: Class id by colour; None for the colours of the class table.

    Returns:
        The decoded pair, or None, and its problems, one line each.
    """
    problems = []
    opened = mask = None
    data, plain = b"", False
    replaced: list[UnknownColour] = []
    try:
        data = pair.image.read_bytes()
        opened = open_image(data, max_pixels=max_pixels)
        plain = is_plain_rgb_png(opened)
    except (DronesegError, OSError) as error:
        problems.append(f"{_short(pair.image)}: {error}")
    try:
        mask, replaced = decode_colours(pair.mask.read_bytes(), unknown=unknown, max_pixels=max_pixels, table=table)
    except (DronesegError, OSError) as error:
        problems.append(f"{_short(pair.mask)}: {error}")
    if problems or opened is None or mask is None:
        return None, problems
    try:
        _require_same_size(opened, mask)
    except ShapeMismatchError as error:
        return None, [f"{_short(pair.image)}: {error}"]
    return LoadedPair(pair, data, opened, plain, mask, replaced), []


def _require_same_size(opened: pillow.Image, mask: Mask) -> None:
    width, height = opened.size
    if opened.getexif().get(0x0112, 1) >= 5:  # EXIF orientations 5-8 swap the sides
        width, height = height, width
    if (height, width) != mask.shape:
        raise ShapeMismatchError(f"image is {width}x{height}, but its mask is {mask.shape[1]}x{mask.shape[0]}")


def _short(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def parallel_map(work: Callable[[_Item], _Result], items: list[_Item], progress: Progress | None) -> Iterator[_Result]:
    """Yield `work(item)` in order, computed in threads: decoding and encoding release the GIL."""
    with ThreadPoolExecutor(usable_cores()) as workers:
        for done, result in enumerate(workers.map(work, items), start=1):
            if progress:
                progress(done, len(items))
            yield result


@dataclass(frozen=True)
class PairFacts:
    """Properties of a valid pair.

    Attributes:
        stem: Stem of the pair.
        size: Width and height in pixels.
        format: File format of the image.
        class_pixels: Number of pixels by class id, shape (C,), dtype int64.
    """

    stem: str
    size: tuple[int, int]
    format: str
    class_pixels: NDArray[np.int64]


@dataclass(frozen=True)
class Inspection:
    """Result of decoding every pair of a dataset folder.

    Attributes:
        root: Folder that contains the image and mask folders.
        facts: Properties of each valid pair, sorted by stem.
        problems: All problems, one line each.
        notes: Information for the user, one line each.
    """

    root: Path
    facts: tuple[PairFacts, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]


def inspect_dataset(source: Path, *, max_pixels: int, progress: Progress | None = None) -> Inspection:
    """Decode every pair of a dataset folder and list every problem.

    Raises:
        DatasetError: If the image and mask folders cannot be found.
    """
    listing = list_pairs(source)
    problems, facts = list(listing.problems), []

    def inspect(pair: Pair) -> tuple[PairFacts | None, list[str]]:
        loaded, pair_problems = load_pair(pair, unknown="fail", max_pixels=max_pixels)
        return (_facts(loaded) if loaded else None), pair_problems

    for pair_facts, pair_problems in parallel_map(inspect, list(listing.pairs), progress):
        problems.extend(pair_problems)
        if pair_facts:
            facts.append(pair_facts)
    return Inspection(listing.root, tuple(facts), tuple(problems), listing.notes)


def _facts(loaded: LoadedPair) -> PairFacts:
    height, width = loaded.mask.shape
    counts = np.bincount(loaded.mask.ravel(), minlength=len(CLASSES))
    return PairFacts(loaded.pair.stem, (width, height), str(loaded.opened.format), counts)
