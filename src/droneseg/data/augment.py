"""Write a copy of a dataset with additional photographs: with generated water, other ground, and shadows."""

import json
import os
import shutil
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as pillow

from droneseg.core.class_files import CLASSES_NAME
from droneseg.core.classes import DEFAULT_CLASSES, NORMAL_WEIGHT
from droneseg.core.errors import DatasetError, DronesegError
from droneseg.core.files import atomic_directory, check_writable, write_text
from droneseg.core.images import Image, encode_png, to_rgb
from droneseg.core.masks import encode_grey_ids, encode_mask
from droneseg.data.composition import (
    GROUND_IDS,
    Composition,
    Photograph,
    compose_ground,
    compose_shadow,
    compose_water,
)
from droneseg.data.dataset import (
    DATASET_MARKER,
    GENERATED_NAME,
    PLAIN,
    LoadedPair,
    Pair,
    PairListing,
    list_pairs,
    load_pair,
    parallel_map,
    read_info,
    read_pair_image,
    read_true_mask,
    write_info,
)
from droneseg.data.fine_classes import FINE_CLASSES_NAME, FINE_MASKS_FOLDER, FineClass, read_fine_classes
from droneseg.data.pixel_targets import WEIGHTS_FOLDER
from droneseg.data.splits import Fold, Split, read_split, write_split
from droneseg.data.textures import TextureLibrary, TextureRegion, find_texture_regions

SPLIT_NAME = "split.json"
"""Split of the originals, extended by the generated pairs."""
KINDS = ("water", "ground", "shadow")

_JPEG_QUALITY = 95
_CACHED_IMAGES = 32
_OVERHANGING = ("tree", "vegetation", "bush", "hedge", "roof", "building", "bridge")
_NOT_GROUND = ("roof", "building", "bridge")

Progress = Callable[[str, int, int], None]
"""Progress callback with the step ("textures" or "images"), the number done and the total."""


@dataclass(frozen=True)
class AugmentOptions:
    """Options of an augmentation.

    Attributes:
        water: Number of images with generated water per image; 0.5 is one for half of the images, chosen by the seed.
        ground: Number of images with ground from other images per image.
        shadow: Number of images with cast shadows per image.
        seed: Random seed; the same seed, options and dataset give the same images.
        part: Part of the split whose images are used.
        originals: Whether the new dataset also contains the original pairs.
    """

    water: float = 0.5
    ground: float = 0.5
    shadow: float = 0.25
    seed: int = 0
    part: str = "train"
    originals: bool = True


@dataclass(frozen=True)
class AugmentedDataset:
    """Result of an augmentation.

    Attributes:
        folder: Folder of the written dataset.
        originals: Number of original pairs in it.
        generated: Number of generated pairs by kind.
        laid_share: Share of the pixels of the generated images that show generated water, ground or banks.
    """

    folder: Path
    originals: int
    generated: dict[str, int]
    laid_share: float


@dataclass(frozen=True)
class _Source:
    """Dataset to augment.

    Attributes:
        listing: Its pairs.
        split: Its split; all pairs are in `train` if there is no split file.
        fine_classes: Its fine classes in the order of their ids; empty if it has none.
        max_pixels: Largest accepted number of pixels.
    """

    listing: PairListing
    split: Split
    fine_classes: tuple[FineClass, ...]
    max_pixels: int

    def fine_ids(self, words: Sequence[str]) -> set[int]:
        """Return the ids of the fine classes whose names contain one of the words."""
        return {n for n, fine in enumerate(self.fine_classes, 1) if any(word in fine.name.lower() for word in words)}

    def sidecar(self, folder: str, stem: str) -> Path:
        """Return the path of the fine mask or the weights of a pair."""
        return self.listing.root / folder / f"{stem}.png"


def augment_dataset(
    source: Path,
    out: Path,
    options: AugmentOptions,
    *,
    split_file: Path | None = None,
    replace: bool = False,
    max_pixels: int,
    progress: Progress | None = None,
) -> AugmentedDataset:
    """Write a dataset with generated images besides the originals. Nothing is written if there is a problem.

    The folder has images, masks, `generated.json` and, with the originals, `split.json`. Fine masks and weights are
    kept; in generated pairs, inserted pixels have no fine class and the normal weight.

    Args:
        source: Dataset folder.
        out: Folder to write.
        options: What to generate.
        split_file: Split of the dataset; None uses all images as the training part.
        replace: Whether an earlier result in `out` may be replaced.
        max_pixels: Largest accepted number of pixels.
        progress: Progress callback.

    Raises:
        ConfigurationError: If the table of fine classes is not valid.
        DatasetError: If a file cannot be read, or there is nothing to generate or no texture; all problems are listed.
        SplitError: If the split does not match the dataset.
        OutputExistsError: If `out` contains files of another origin, or a result while `replace` is False.
    """
    check_writable(out, marker=GENERATED_NAME, replace=replace)
    data = _read_source(source, split_file, max_pixels)
    plan = _plan(data, options)
    library = _read_textures(data, sorted(getattr(data.split, options.part)), progress)
    if options.ground and not library.select(lambda region: region.label in GROUND_IDS):
        raise DatasetError(
            f"No image of {data.listing.root} has a region of one soft surface or landing zone that is large enough "
            "for a texture. Use --ground 0."
        )
    with atomic_directory(out, marker=GENERATED_NAME, replace=replace) as folder:
        laid, pixels = _write_pairs(folder, data, plan, library, options, progress)
        generated = {stem: origin for origin, stems in plan.items() for stem in stems}
        write_text(folder / GENERATED_NAME, json.dumps(generated, indent=1) + "\n")
        if options.originals:
            write_split(extend_split(data.split, generated, options.part), folder / SPLIT_NAME)
        _copy_descriptions(data.listing.root, folder)
    counts = Counter(kind_of(stem) for stem in generated)
    originals = len(data.listing.pairs) if options.originals else 0
    return AugmentedDataset(out, originals, {kind: counts[kind] for kind in KINDS}, laid / max(1, pixels))


def _copy_descriptions(root: Path, folder: Path) -> None:
    """Copy the table of fine classes and the description of an import, if there are any."""
    if (root / FINE_CLASSES_NAME).is_file():
        shutil.copyfile(root / FINE_CLASSES_NAME, folder / FINE_CLASSES_NAME)
    if (root / DATASET_MARKER).is_file():
        pairs = sum(1 for _ in (folder / PLAIN.images).iterdir())
        write_info(folder, replace(read_info(root), pairs=pairs))


def kind_of(stem: str) -> str:
    """Return the kind of a generated image by its stem: that of `005__water1` is `water`."""
    return stem.rpartition("__")[2].rstrip("0123456789")


def extend_split(split: Split, generated: dict[str, str], part: str) -> Split:
    """Return a split with generated images in the part of their originals.

    A fold trains on the generated images whose originals it trains on, and drops the others.

    Args:
        split: Split of the originals.
        generated: Original stem by generated stem.
        part: Name of the part that contains the originals.
    """
    stems = (*getattr(split, part), *generated)
    folds = split.folds
    if part == "train":
        folds = tuple(_extend_fold(fold, generated) for fold in split.folds)
    return replace(split, **{part: stems, "folds": folds})


def _extend_fold(fold: Fold, generated: dict[str, str]) -> Fold:
    trained = set(fold.train)
    train = tuple(stem for stem, origin in generated.items() if origin in trained)
    dropped = tuple(stem for stem, origin in generated.items() if origin not in trained)
    return Fold((*fold.train, *train), fold.val, (*fold.dropped, *dropped))


def _read_source(source: Path, split_file: Path | None, max_pixels: int) -> _Source:
    listing = list_pairs(source)
    problems = list(listing.problems)
    if listing.classes != DEFAULT_CLASSES:
        problems.append(
            f"{CLASSES_NAME}: the dataset has classes of its own; generated water and ground have the default classes"
        )
    if listing.generated:
        problems.append(f"{GENERATED_NAME}: the dataset already contains generated images; use the original dataset")
    problems += [
        f"{pair.image.name}: names with __ are reserved for generated images"
        for pair in listing.pairs
        if "__" in pair.stem
    ]
    if problems:
        raise DatasetError(f"{listing.root} cannot be augmented. Fix these problems:", problems)
    stems = [pair.stem for pair in listing.pairs]
    split = read_split(split_file, stems) if split_file else Split(train=tuple(stems))
    table = listing.root / FINE_CLASSES_NAME
    return _Source(
        listing, split, read_fine_classes(table, listing.classes.names) if table.is_file() else (), max_pixels
    )


def _plan(data: _Source, options: AugmentOptions) -> dict[str, list[str]]:
    """Return the stems to generate by original stem."""
    stems = getattr(data.split, options.part)
    copies = {kind: _copies(stems, kind, getattr(options, kind), options.seed) for kind in KINDS}
    plan = {
        stem: [f"{stem}__{kind}{number}" for kind in KINDS for number in range(1, copies[kind][stem] + 1)]
        for stem in stems
    }
    if not any(plan.values()):
        raise DatasetError(
            f"There is nothing to generate from the {len(plan)} images of {options.part}. Choose another part or "
            "higher values of --water, --ground or --shadow."
        )
    return plan


def _copies(stems: Sequence[str], kind: str, rate: float, seed: int) -> dict[str, int]:
    """Return the number of copies of each photograph: `rate` of them, rounded to whole copies in total.

    The seed chooses which photographs get one copy more than the others.
    """
    total = int(rate * len(stems) + 0.5)
    least, further = divmod(total, max(1, len(stems)))
    order = sorted(stems, key=lambda stem: _random(f"{stem} {kind}", seed).random())
    return {stem: least + (rank < further) for rank, stem in enumerate(order)}


def _random(stem: str, seed: int) -> np.random.Generator:
    """Return the random generator of a generated image."""
    return np.random.default_rng([seed, zlib.crc32(stem.encode())])


def _read_textures(data: _Source, stems: Sequence[str], progress: Progress | None) -> TextureLibrary:
    """Find the textures of the images with the given stems.

    Raises:
        DatasetError: If a mask cannot be read; all problems are listed.
    """
    chosen = set(stems)
    pairs = {pair.stem: pair for pair in data.listing.pairs if pair.stem in chosen}
    not_ground = data.fine_ids(_NOT_GROUND)

    def find(pair: Pair) -> tuple[list[TextureRegion], list[str]]:
        try:
            mask = read_true_mask(pair, max_pixels=data.max_pixels)
            fine = _read_sidecar(data.sidecar(FINE_MASKS_FOLDER, pair.stem), mask.shape)
        except (DronesegError, OSError) as error:
            return [], [str(error)]
        return [region for region in find_texture_regions(pair.stem, mask, fine) if region.fine not in not_ground], []

    shown = (lambda done, total: progress("textures", done, total)) if progress else None
    found = list(parallel_map(find, list(pairs.values()), shown))
    if problems := [line for _, lines in found for line in lines]:
        raise DatasetError("Textures could not be read. Fix these problems:", problems)

    @lru_cache(_CACHED_IMAGES)
    def read(stem: str) -> Image:
        return read_pair_image(pairs[stem], max_pixels=data.max_pixels)

    return TextureLibrary([region for regions, _ in found for region in regions], read)


def _read_sidecar(file: Path, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """Read a grey file of fine ids or weights, shape (H, W); None if there is none.

    Raises:
        DatasetError: If it is not grey, or has another size than the mask.
    """
    if not file.is_file():
        return None
    with pillow.open(file) as opened:
        values = np.array(opened)
    if values.dtype != np.uint8 or values.shape != shape:
        raise DatasetError(f"{file.parent.name}/{file.name}: is not an 8-bit grey image of the mask's size")
    return values


def _write_pairs(
    folder: Path,
    data: _Source,
    plan: dict[str, list[str]],
    library: TextureLibrary,
    options: AugmentOptions,
    progress: Progress | None,
) -> tuple[int, int]:
    """Write all pairs.

    Returns:
        The number of inserted pixels, and the number of all pixels of generated images.

    Raises:
        DatasetError: If a pair cannot be read; all problems are listed.
    """
    for name in (PLAIN.images, PLAIN.masks, FINE_MASKS_FOLDER, WEIGHTS_FOLDER):
        if name in (PLAIN.images, PLAIN.masks) or (data.listing.root / name).is_dir():
            (folder / name).mkdir()

    def write(pair: Pair) -> tuple[int, int, list[str]]:
        if options.originals:
            _copy_original(folder, data, pair)
        stems = plan.get(pair.stem, [])
        try:
            loaded, problems = load_pair(pair, unknown="fail", max_pixels=data.max_pixels) if stems else (None, [])
            if loaded is None:
                return 0, 0, problems
            laid = [_generate(folder, data, loaded, stem, library, options.seed) for stem in stems]
        except (DronesegError, OSError) as error:
            return 0, 0, [str(error)]
        return sum(laid), loaded.mask.size * len(stems), []

    pairs = [pair for pair in data.listing.pairs if options.originals or plan.get(pair.stem)]
    shown = (lambda done, total: progress("images", done, total)) if progress else None
    results = list(parallel_map(write, pairs, shown))
    if problems := [line for *_, lines in results for line in lines]:
        raise DatasetError("Nothing was generated. Fix these problems:", problems)
    return sum(laid for laid, _, _ in results), sum(pixels for _, pixels, _ in results)


def _copy_original(folder: Path, data: _Source, pair: Pair) -> None:
    """Copy an original pair with its fine mask and weights, as hard links where that is possible."""
    if pair.channels:
        (folder / PLAIN.images / f"{pair.stem}.png").write_bytes(pair.files.read(max_pixels=data.max_pixels))
    else:
        _link(pair.image, folder / PLAIN.images / f"{pair.stem}{pair.image.suffix}")
    _link(pair.mask, folder / PLAIN.masks / pair.mask.name)
    for name in (FINE_MASKS_FOLDER, WEIGHTS_FOLDER):
        file = data.sidecar(name, pair.stem)
        if file.is_file():
            _link(file, folder / name / file.name)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)


def _generate(folder: Path, data: _Source, loaded: LoadedPair, stem: str, library: TextureLibrary, seed: int) -> int:
    """Write one generated pair and return its number of inserted pixels."""
    fine = _read_sidecar(data.sidecar(FINE_MASKS_FOLDER, loaded.pair.stem), loaded.mask.shape)
    overhang = None if fine is None else np.isin(fine, list(data.fine_ids(_OVERHANGING)))
    photograph = Photograph(to_rgb(loaded.opened), loaded.mask, overhang)
    composition = _compose(
        photograph, kind_of(stem), _donors(data.split, library, loaded.pair.stem), _random(stem, seed)
    )
    data_bytes = _encode(composition.image, loaded.opened.format)
    suffix = ".png" if loaded.opened.format == "PNG" else ".jpg"
    (folder / PLAIN.images / f"{stem}{suffix}").write_bytes(data_bytes)
    (folder / PLAIN.masks / f"{stem}.png").write_bytes(encode_mask(composition.mask, DEFAULT_CLASSES))
    if fine is not None:
        fine[composition.changed] = 0
        (folder / FINE_MASKS_FOLDER / f"{stem}.png").write_bytes(encode_grey_ids(fine))
    weights = _read_sidecar(data.sidecar(WEIGHTS_FOLDER, loaded.pair.stem), loaded.mask.shape)
    if weights is not None:
        weights[composition.changed] = NORMAL_WEIGHT
        (folder / WEIGHTS_FOLDER / f"{stem}.png").write_bytes(encode_grey_ids(weights))
    return int(composition.changed.sum())


def _compose(photograph: Photograph, kind: str, library: TextureLibrary, rng: np.random.Generator) -> Composition:
    if kind == "water":
        return compose_water(photograph, library, rng)
    if kind == "ground":
        return compose_ground(photograph, library, rng)
    return compose_shadow(photograph, rng)


def _donors(split: Split, library: TextureLibrary, stem: str) -> TextureLibrary:
    """Return the textures that may be used for an image.

    Every fold that trains on the image must also train on the photographs that the textures come from; otherwise it
    would train on pixels of its validation part.
    """
    trains = [set(fold.train) for fold in split.folds if stem in fold.train]
    return library.select(lambda region: all(region.stem in train for train in trains))


def _encode(image: Image, source_format: str | None) -> bytes:
    """Encode a generated image in the format of its original: PNG, or JPEG for all others."""
    if source_format == "PNG":
        return encode_png(image)
    buffer = BytesIO()
    pillow.fromarray(image).save(buffer, format="JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()
