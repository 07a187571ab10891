"""Dataset folders: layouts, pairing of images and masks, decoding, validation."""

import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image as pillow
from pydantic import TypeAdapter, ValidationError

from droneseg.core.class_files import DESCRIPTION_NAME, MaskColours, find_classes
from droneseg.core.classes import BACKGROUND_ID, ClassTable
from droneseg.core.errors import DatasetError, DronesegError, ShapeMismatchError
from droneseg.core.files import read_json, write_text
from droneseg.core.image_files import CASE_NAME, CASE_SUFFIXES, ImageFiles, group_channels
from droneseg.core.images import DEFAULT_MAX_PIXELS, SUFFIXES, Image, decode_image, is_plain_rgb_png, open_image
from droneseg.core.masks import ColourTable, Mask, MaskKind, UnknownColour, UnknownPolicy, decode_colours
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
RAW = FolderLayout("imagesTr", "labelsTr")
"""nnU-Net's raw format: images have the suffix `_0000`, or one grey file per channel, and masks are labels."""
RAW_TEST = FolderLayout("imagesTs", "labelsTs")
"""Test part of nnU-Net's raw format."""
LAYOUTS: tuple[FolderLayout, ...] = (KAGGLE, PLAIN, RAW, RAW_TEST)
_NNUNET_LAYOUTS = (RAW, RAW_TEST)

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


def evaluated_colours(root: Path, colours: MaskColours) -> MaskColours:
    """Return the meaning of the colours of true masks in an evaluation.

    If the training ignores the background of a dataset, its pixels have no label.

    Args:
        root: Folder of the dataset.
        colours: Meaning of the colours in the dataset.
    """
    if not read_info(root).ignore_background:
        return colours
    background = colours.classes[BACKGROUND_ID]
    return replace(
        colours,
        ignored=(*colours.ignored, background.colour),
        ignored_ids=(*colours.ignored_ids, BACKGROUND_ID),
    )


@dataclass(frozen=True)
class MaskEncoding:
    """How the pixels of masks stand for classes.

    Attributes:
        kind: Class colours, class ids, or nnU-Net's labels.
        colours: Class table, and the meaning of the colours.
    """

    kind: MaskKind = "colours"
    colours: MaskColours = field(default_factory=MaskColours)

    @property
    def classes(self) -> ClassTable:
        """Class table of the masks."""
        return self.colours.classes

    def decode(
        self, data: bytes, *, unknown: UnknownPolicy = "fail", max_pixels: int = DEFAULT_MAX_PIXELS
    ) -> tuple[Mask, list[UnknownColour]]:
        """Decode the content of a mask file; see `MaskColours.decode`."""
        return self.colours.decode(data, self.kind, unknown=unknown, max_pixels=max_pixels)


@dataclass(frozen=True)
class Pair:
    """An image and its mask.

    Attributes:
        stem: File name without suffix, shared by both files.
        image: Path of the image.
        mask: Path of the mask.
        encoding: How the mask's pixels stand for classes.
        channels: Grey files of red, green and blue, if the image is not a single file; `image` is one of them.
    """

    stem: str
    image: Path
    mask: Path
    encoding: MaskEncoding = field(default_factory=MaskEncoding)
    channels: tuple[Path, ...] = ()

    @property
    def files(self) -> ImageFiles:
        """Files of the image."""
        return ImageFiles(self.stem, self.image, self.channels)


def open_pair_image(pair: Pair, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> tuple[pillow.Image, bytes]:
    """Open the image of a pair.

    Returns:
        The image, and the content of its file; of channels in files of their own, that of an equal RGB PNG file.

    Raises:
        ImageError: If a file cannot be read as an image.
        ShapeMismatchError: If channels differ in size.
    """
    data = pair.files.read(max_pixels=max_pixels)
    return open_image(data, max_pixels=max_pixels), data


def read_pair_image(pair: Pair, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Image:
    """Return the image of a pair, see `decode_image`. Error messages start with the path."""
    try:
        return decode_image(pair.files.read(max_pixels=max_pixels), max_pixels=max_pixels)
    except DronesegError as error:
        raise type(error)(f"{pair.image}: {str(error).removeprefix(f'{pair.image}: ')}") from error


def read_true_mask(pair: Pair, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Mask:
    """Return the mask of a pair; see `MaskEncoding.decode`. Error messages start with the path."""
    try:
        return pair.encoding.decode(pair.mask.read_bytes(), max_pixels=max_pixels)[0]
    except DronesegError as error:
        raise type(error)(f"{pair.mask}: {error}") from error


@dataclass(frozen=True)
class PairListing:
    """Pairs of a dataset folder and the problems with its file names.

    Attributes:
        root: Folder that contains the image and mask folders.
        pairs: Complete pairs, sorted by stem.
        problems: Errors to fix before the dataset can be used, one line each.
        notes: Information for the user, one line each.
        generated: Stem of the original photograph by stem of the generated pair.
        encoding: How the masks' pixels stand for classes.
    """

    root: Path
    pairs: tuple[Pair, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    generated: Mapping[str, str]
    encoding: MaskEncoding

    @property
    def classes(self) -> ClassTable:
        """Class table of the masks."""
        return self.encoding.classes

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
            note = f"{source} is one level too deep; using {parent}."
            return DatasetLocation(parent, layout, () if layout == RAW_TEST else (note,))
    candidates = {folder: layout for folder in _below(source) for layout in reversed(LAYOUTS) if layout.is_in(folder)}
    if len(candidates) == 1:
        ((root, layout),) = candidates.items()
        return DatasetLocation(root, layout, (f"{source} does not contain the data itself; using {root}.",))
    if candidates:
        roots = [str(root) for root in candidates]
        raise DatasetError(f"{source} contains several datasets. Choose one of them:", roots)
    raise DatasetError(_explain_not_found(source))


def list_pairs(source: Path, colours: MaskColours | None = None) -> PairListing:
    """List the pairs of a dataset folder and all problems with its file names.

    Args:
        source: Dataset folder, or a folder slightly above or below it.
        colours: Meaning of the colours of the masks; None for the class table in the dataset's folder.

    Raises:
        ConfigurationError: If the class table of the dataset is not valid.
        DatasetError: If the image and mask folders cannot be found.
    """
    return list_part(find_dataset(source), colours)


def find_raw_part(images: Path, masks: Path) -> DatasetLocation | None:
    """Return the part of a raw dataset of nnU-Net that has these folders; None if they are not such folders."""
    root = masks.resolve().parent
    if images.resolve().parent == root and (root / DESCRIPTION_NAME).is_file():
        for layout in _NNUNET_LAYOUTS:
            if (images.resolve().name, masks.resolve().name) == (layout.images, layout.masks) and layout.is_in(root):
                return DatasetLocation(masks.parent, layout)
    return None


def list_part(location: DatasetLocation, colours: MaskColours | None = None) -> PairListing:
    """List the pairs of a dataset whose folders are known; see `list_pairs`."""
    is_raw = location.layout in _NNUNET_LAYOUTS
    encoding = MaskEncoding("labels" if is_raw else "colours", colours or find_classes(location.root))
    if is_raw:
        pairs, problems, notes = _pair_cases(location, encoding)
    else:
        pairs, problems, notes = pair_folders(location.images, location.masks, encoding=encoding)
    generated, more = _read_generated(location.root / GENERATED_NAME)
    return PairListing(location.root, pairs, (*problems, *more), (*location.notes, *notes), generated, encoding)


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
    images: Path, masks: Path, *, mask_suffix: str = "", encoding: MaskEncoding | None = None
) -> tuple[tuple[Pair, ...], tuple[str, ...], tuple[str, ...]]:
    """Pair images and masks of two folders by file stem.

    An image without a mask of its own name may have nnU-Net's name: `NAME_0000.png`, or one file per channel.

    Args:
        images: Image folder.
        masks: Mask folder; may be the same folder.
        mask_suffix: Suffix that the stems of masks have and those of images lack.
        encoding: How the masks' pixels stand for classes; None for the colours of the default classes.

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
    channels, case_problems = _name_by_case(image_files, mask_files)
    problems = [*_broken_links(images), *_broken_links(masks), *case_problems]
    problems += [*_duplicates("images", image_files), *_duplicates("masks", mask_files)]
    for stem in sorted(image_files.keys() - mask_files.keys()):
        problems.append(f"{images.name}/{image_files[stem][0].name}: has no mask in {masks.name}")
    for stem in sorted(mask_files.keys() - image_files.keys()):
        problems.append(f"{masks.name}/{mask_files[stem][0].name}: has no image in {images.name}")
    if not image_files and not mask_files:
        problems.append(f"{images.name} and {masks.name}: both folders are empty")
    common = sorted(image_files.keys() & mask_files.keys())
    unique = [stem for stem in common if len(image_files[stem]) == len(mask_files[stem]) == 1]
    pairs = tuple(
        Pair(
            stem,
            image_files[stem][0],
            mask_files[stem][0],
            encoding or MaskEncoding(),
            channels.get(stem, ()),
        )
        for stem in unique
    )
    return pairs, tuple(problems), (*image_notes, *mask_notes)


def _name_by_case(
    images: dict[str, list[Path]], masks: Mapping[str, list[Path]]
) -> tuple[dict[str, tuple[Path, ...]], list[str]]:
    """Rename images of nnU-Net's format, such as `NAME_0000.png`, that have the mask NAME but none of their own name.

    Args:
        images: Image files by stem; such images are stored under the name of their case.
        masks: Mask files by stem.

    Returns:
        Files of red, green and blue, by case, of images with one file per channel; problems with channels.
    """
    files = [
        file
        for stem, same in images.items()
        if stem not in masks and (match := CASE_NAME.fullmatch(stem)) and match["case"] in masks
        for file in same
    ]
    found, problems = group_channels(files)
    cases = [case for case in found if case.stem in masks]
    for stem in {file.stem for file in files} if problems else {file.stem for case in cases for file in case.all_files}:
        del images[stem]
    for case in cases:
        images.setdefault(case.stem, []).append(case.file)
    return {case.stem: case.channels for case in cases}, [_relative(line, files[0].parents[1]) for line in problems]


def _relative(line: str, root: Path) -> str:
    return line.removeprefix(f"{root}{os.sep}")


def _pair_cases(
    location: DatasetLocation, encoding: MaskEncoding
) -> tuple[tuple[Pair, ...], tuple[str, ...], tuple[str, ...]]:
    """Pair images and labels of nnU-Net's raw format; see `pair_folders`."""
    read_json(location.root / DESCRIPTION_NAME, expected="Expected nnU-Net's description of a dataset.")
    files, notes = _group_by_stem(location.images, sidecar=".json")
    labels, label_notes = _group_by_stem(location.masks, sidecar=".json")
    cases, problems = _group_cases(location, [file for same in files.values() for file in same])
    problems = [*_broken_links(location.images), *_broken_links(location.masks), *problems]
    problems += [*_duplicates("images", {case: [image.file for image in same] for case, same in cases.items()})]
    problems += [*_duplicates("labels", labels)]
    for case in sorted(case for case, images in cases.items() if images and case not in labels):
        problems.append(f"{location.images.name}/{case}: has no label in {location.masks.name}")
    for case in sorted(labels.keys() - cases.keys()):
        problems.append(f"{location.masks.name}/{labels[case][0].name}: has no image in {location.images.name}")
    if not files and not labels:
        problems.append(f"{location.images.name} and {location.masks.name}: both folders are empty")
    pairs = tuple(
        Pair(case, same[0].file, labels[case][0], encoding, same[0].channels)
        for case, same in sorted(cases.items())
        if len(same) == len(labels.get(case, ())) == 1
    )
    return pairs, tuple(problems), (*notes, *label_notes)


def _group_cases(location: DatasetLocation, files: Iterable[Path]) -> tuple[dict[str, list[ImageFiles]], list[str]]:
    """Return the images by case, none for a case whose files are not an image, and the problems with their files."""
    cases: dict[str, list[ImageFiles]] = {}
    problems, named = [], []
    for file in files:
        match = CASE_NAME.fullmatch(file.stem)
        if match and file.suffix.lower() in CASE_SUFFIXES:
            named.append(file)
            cases[match["case"]] = []
        else:
            endings = ", ".join(f"_0000{suffix}" for suffix in CASE_SUFFIXES)
            problems.append(f"{location.images.name}/{file.name}: nnU-Net's images end in one of {endings}")
    images, image_problems = group_channels(named)
    for image in images:
        cases[image.stem].append(image)
    return cases, [*problems, *(_relative(line, location.root) for line in image_problems)]


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
    folder: Path, *, suffix: str = "", excluded_suffix: str = "", sidecar: str | None = None
) -> tuple[dict[str, list[Path]], list[str]]:
    """Group the image files of a folder by stem, with a note for every other file.

    Args:
        folder: Folder to list.
        suffix: Suffix that stems must have; it is removed.
        excluded_suffix: Suffix of stems to skip, unless empty.
        sidecar: Extension of other files that belong there and get no note.
    """
    files: dict[str, list[Path]] = defaultdict(list)
    notes = []
    for file in sorted(folder.iterdir()):
        if file.name.startswith(".") or file.name in ("Thumbs.db", "desktop.ini") or not file.exists():
            continue
        if file.is_file() and file.suffix.lower() == sidecar:
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
        table: Number by colour, instead of the pair's own encoding. Grey masks are then accepted, too; grey g counts as
            colour (g, g, g).

    Returns:
        The decoded pair, or None, and its problems, one line each.
    """
    problems = []
    opened = mask = None
    data, plain = b"", False
    replaced: list[UnknownColour] = []
    try:
        opened, data = open_pair_image(pair, max_pixels=max_pixels)
        plain = is_plain_rgb_png(opened)
    except (DronesegError, OSError) as error:
        problems.append(f"{_short(pair.image)}: {error}")
    try:
        mask_data = pair.mask.read_bytes()
        if table is None:
            mask, replaced = pair.encoding.decode(mask_data, unknown=unknown, max_pixels=max_pixels)
        else:
            mask, replaced = decode_colours(mask_data, table, unknown=unknown, grey=True, max_pixels=max_pixels)
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
        format: File format of the image, or that each channel is a file of its own.
        class_pixels: Number of pixels by class id, shape (C,), dtype int64; those without a label are left out.
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
        classes: Class table of the masks.
        facts: Properties of each valid pair, sorted by stem.
        problems: All problems, one line each.
        notes: Information for the user, one line each.
    """

    root: Path
    classes: ClassTable
    facts: tuple[PairFacts, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]


def inspect_dataset(
    source: Path, colours: MaskColours | None = None, *, max_pixels: int, progress: Progress | None = None
) -> Inspection:
    """Decode every pair of a dataset folder, and of the test part of a raw dataset, and list every problem.

    Args:
        source: Dataset folder, or a folder slightly above or below it.
        colours: Meaning of the colours of the masks; None for the class table in the dataset's folder.
        max_pixels: Maximum number of pixels of an image.
        progress: Progress callback with the number of inspected pairs and the total.

    Raises:
        ConfigurationError: If the class table of the dataset is not valid.
        DatasetError: If the image and mask folders cannot be found.
    """
    location = find_dataset(source)
    listing = list_part(location, colours)
    pairs, problems, notes, facts = list(listing.pairs), list(listing.problems), list(listing.notes), []
    if location.layout == RAW and RAW_TEST.is_in(location.root):
        test = list_part(DatasetLocation(location.root, RAW_TEST), colours)
        pairs, problems, notes = pairs + list(test.pairs), problems + list(test.problems), notes + list(test.notes)

    def inspect(pair: Pair) -> tuple[PairFacts | None, list[str]]:
        loaded, pair_problems = load_pair(pair, unknown="fail", max_pixels=max_pixels)
        return (_facts(loaded, listing.classes) if loaded else None), pair_problems

    for pair_facts, pair_problems in parallel_map(inspect, pairs, progress):
        problems.extend(pair_problems)
        if pair_facts:
            facts.append(pair_facts)
    return Inspection(listing.root, listing.classes, tuple(facts), tuple(problems), tuple(notes))


def _facts(loaded: LoadedPair, classes: ClassTable) -> PairFacts:
    height, width = loaded.mask.shape
    counts = np.bincount(loaded.mask.ravel(), minlength=len(classes))[: len(classes)]
    file_format = "one file per channel" if loaded.pair.channels else str(loaded.opened.format)
    return PairFacts(loaded.pair.stem, (width, height), file_format, counts)
