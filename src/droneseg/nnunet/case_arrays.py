"""Training cases as memory-mapped arrays at several resolutions, from which crops of any scale are read quickly.

nnU-Net's preprocessed data are compressed float32 arrays at one resolution. For a crop at scale 0.4, six times as many
pixels would have to be decompressed as the crop has.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from droneseg.core.classes import TARGETS_FOLDER
from droneseg.core.errors import ConfigurationError
from droneseg.core.files import write_text
from droneseg.core.image_files import CASE_SUFFIXES, ImageFiles, list_cases
from droneseg.core.images import Image
from droneseg.core.system import usable_cores

FOLDER = "crop_arrays"
"""Folder beside nnU-Net's plans with the arrays of all cases."""

_LEVELS = 3  # resolutions 1, 1/2 and 1/4
_SMALLEST_SIDE = 32
_MAX_PIXELS = 2**31
_IMAGES, _LABELS = "imagesTr", "labelsTr"


@dataclass(frozen=True)
class CaseArrays:
    """Arrays of one case.

    Attributes:
        name: nnU-Net's case name.
        size: Height and width of the photograph.
        levels: Number of resolutions, each half of the previous one.
        classes: Class ids of the label's pixels, without the ignore label.
        complete: Whether no pixel has the ignore label.
        channels: Number of channels of the targets: 1 (class id), or 3 (class id, fine class id, weight in hundredths).
        mean: Mean of each colour channel, 0 to 255.
        deviation: Standard deviation of each colour channel.
        folder: Folder of the arrays.
    """

    name: str
    size: tuple[int, int]
    levels: int
    classes: tuple[int, ...]
    complete: bool
    channels: int
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]
    folder: Path

    def image(self, level: int) -> Image:
        """Return the photograph at a resolution of 1 / 2^level, shape (h, w, 3), dtype uint8, memory-mapped."""
        image: Image = np.load(self.folder / f"{self.name}_image_{level}.npy", mmap_mode="r")
        return image

    def targets(self, level: int) -> NDArray[np.uint8]:
        """Return the targets at a resolution of 1 / 2^level, shape (h, w, channels), dtype uint8, memory-mapped."""
        targets: NDArray[np.uint8] = np.load(self.folder / f"{self.name}_targets_{level}.npy", mmap_mode="r")
        return targets


def prepare_cases(
    raw: Path, folder: Path, names: Sequence[str], *, ignore: int | None, processes: int | None = None
) -> dict[str, CaseArrays]:
    """Return the arrays of cases by name; missing and outdated ones are written first.

    Args:
        raw: Folder of the raw dataset.
        folder: Folder of the arrays.
        names: Names of the cases.
        ignore: Label of pixels that have no loss; None if there is none.
        processes: Number of threads; None for one per core, at most 8.

    Raises:
        ConfigurationError: If files of cases are missing or do not match; the message lists all of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sources = _Sources.find(raw)
    with ThreadPool(processes or min(8, usable_cores())) as pool:
        results = pool.map(lambda name: _prepare_case(sources, folder, name, ignore), names)
    problems = [result for result in results if isinstance(result, str)]
    if problems:
        raise ConfigurationError("\n".join(["The raw dataset cannot be cropped:", *(f"  - {p}" for p in problems)]))
    return {result.name: result for result in results if isinstance(result, CaseArrays)}


@dataclass(frozen=True)
class _Sources:
    """Files of a raw dataset, of any of nnU-Net's formats.

    Attributes:
        raw: Folder of the raw dataset.
        images: Image of each case.
        labels: Label file of each case.
    """

    raw: Path
    images: Mapping[str, ImageFiles]
    labels: Mapping[str, Path]

    @classmethod
    def find(cls, raw: Path) -> "_Sources":
        """Return the files of a raw dataset; none if it is no longer there."""
        images = list_cases(raw / _IMAGES) if (raw / _IMAGES).is_dir() else []
        labels = (raw / _LABELS).iterdir() if (raw / _LABELS).is_dir() else ()
        return cls(
            raw,
            {image.stem: image for image in images},
            {file.stem: file for file in labels if file.suffix.lower() in CASE_SUFFIXES},
        )

    def of_case(self, name: str) -> tuple[ImageFiles, Path, Path]:
        """Return the files of image, label and targets of a case, which need not exist."""
        return (
            self.images.get(name, ImageFiles(name, self.raw / _IMAGES / f"{name}_0000.png")),
            self.labels.get(name, self.raw / _LABELS / f"{name}.png"),
            self.raw / TARGETS_FOLDER / f"{name}.png",
        )


def _read_channels(image: ImageFiles) -> Image:
    """Return the channels of an image in the order of the network's input, shape (H, W, 3), dtype uint8.

    As in nnU-Net, those of an RGB file are red, green and blue; files of one channel each are in the order of their
    numbers, whatever their colours.
    """
    if not image.channels:
        return image.decode(max_pixels=_MAX_PIXELS)
    return replace(image, channels=tuple(sorted(image.channels))).decode(max_pixels=_MAX_PIXELS)


def _prepare_case(found: _Sources, folder: Path, name: str, ignore: int | None) -> CaseArrays | str:
    """Return the arrays of a case, or a line that describes its problem."""
    image_files, label_file, targets_file = found.of_case(name)
    files = {_IMAGES: image_files.all_files, _LABELS: (label_file,), TARGETS_FOLDER: (targets_file,)}
    sources = {key: _stamp(*of) for key, of in files.items() if all(file.is_file() for file in of)}
    record = folder / f"{name}.json"
    recorded = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    if recorded and (recorded["sources"] == sources or not sources):
        return _from_record(recorded, folder)
    missing = [str(file) for file in (image_files.file, label_file) if not file.is_file()]
    if missing:
        remedy = "run `droneseg data convert` and `droneseg preprocess`, or set crop_scales=null for other formats"
        return f"{', '.join(missing)}: missing; {remedy}"
    image, label = _read_channels(image_files), _read_pixels(label_file, cv2.IMREAD_GRAYSCALE)
    extra = _read_pixels(targets_file, cv2.IMREAD_COLOR_RGB) if targets_file.is_file() else None
    for file, array in ((label_file, label), (targets_file, extra)):
        if array is not None and array.shape[:2] != image.shape[:2]:
            return (
                f"{file}: {array.shape[1]}x{array.shape[0]} pixels, but the image is {image.shape[1]}x{image.shape[0]}"
            )
    targets = label[..., None] if extra is None else np.dstack([label, extra[..., 0], extra[..., 1]])
    record.unlink(missing_ok=True)  # the record is written last: a case without it is incomplete
    levels = _write_levels(folder, name, image, targets)
    written = _describe(name, image, label, targets.shape[2], levels, ignore) | {"sources": sources}
    write_text(record, json.dumps(written))
    return _from_record(written, folder)


def _stamp(*files: Path) -> list[int]:
    """Return numbers that change with the content of the files."""
    return [number for status in (file.stat() for file in files) for number in (status.st_size, status.st_mtime_ns)]


def _read_pixels(file: Path, mode: int) -> NDArray[np.uint8]:
    decoded = cv2.imread(str(file), mode)
    if decoded is None:
        raise ConfigurationError(f"{file} is not an image. Run `droneseg data convert --force`.")
    return decoded.astype(np.uint8, copy=False)


def _describe(
    name: str, image: Image, label: NDArray[np.uint8], channels: int, levels: int, ignore: int | None
) -> dict[str, Any]:
    mean, deviation = cv2.meanStdDev(image)
    classes = np.flatnonzero(np.bincount(label.ravel(), minlength=256))
    return {
        "name": name,
        "size": label.shape,
        "levels": levels,
        "classes": [int(class_id) for class_id in classes if class_id != ignore],
        "complete": ignore is None or ignore not in classes,
        "channels": channels,
        "mean": mean.ravel().tolist(),
        "deviation": deviation.ravel().tolist(),
    }


def _from_record(record: dict[str, Any], folder: Path) -> CaseArrays:
    mean, deviation = record["mean"], record["deviation"]
    return CaseArrays(
        record["name"],
        (record["size"][0], record["size"][1]),
        record["levels"],
        tuple(record["classes"]),
        record["complete"],
        record["channels"],
        (mean[0], mean[1], mean[2]),
        (deviation[0], deviation[1], deviation[2]),
        folder,
    )


def _write_levels(folder: Path, name: str, image: Image, targets: NDArray[np.uint8]) -> int:
    """Write image and targets at each resolution; return the number of resolutions."""
    for level in range(_LEVELS):
        if level:
            if min(image.shape[:2]) < 2 * _SMALLEST_SIDE:
                return level
            height, width = image.shape[0] // 2, image.shape[1] // 2
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
            targets = halve_targets(targets)
        for kind, array in (("image", image), ("targets", targets)):
            file = folder / f"{name}_{kind}_{level}.npy"
            partial = file.with_suffix(".part.npy")
            np.save(partial, np.ascontiguousarray(array))
            os.replace(partial, file)
    return _LEVELS


def halve_targets(targets: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return targets at half the resolution: each 2x2 square becomes one of its pixels with the most frequent class.

    Fine class and weight are those of the same pixel.

    Args:
        targets: Shape (h, w, channels), dtype uint8; the first channel is the class id. An odd last row or column is
            left out.
    """
    height, width = targets.shape[0] // 2, targets.shape[1] // 2
    pixels = targets[: 2 * height, : 2 * width]
    corners = np.stack([pixels[row::2, column::2] for row in (0, 1) for column in (0, 1)])
    classes = corners[..., 0]
    votes = (classes[:, None] == classes[None]).sum(1)
    chosen = votes.argmax(0)[None, :, :, None]
    return np.ascontiguousarray(np.take_along_axis(corners, chosen, axis=0)[0])
