"""Loader of training crops at random scales, used instead of nnU-Net's if `crop_scales` is set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from droneseg.core.classes import NORMAL_WEIGHT, Normalisation
from droneseg.core.images import Image
from droneseg.nnunet.case_arrays import CaseArrays
from droneseg.nnunet.photometric import PhotometricAugmentation, log_uniform
from droneseg.nnunet.trainer_settings import TrainerSettings

_CENTRAL = (0.25, 0.75)  # part of the crop that contains an oversampled pixel
_DRAWS = 30  # attempts to draw a labelled pixel
_AS_PREDICTED = {"crop_scales": (1.0, 1.0), "whole_share": 0.0, "rotation_share": 0.0}
"""Settings of validation crops: at scale 1, as in prediction."""


@dataclass(frozen=True)
class Crop:
    """Window of a photograph.

    Attributes:
        top: Row of the window's upper edge, in pixels of the photograph; negative above the photograph.
        left: Column of the window's left edge, in the same way.
        factor: Number of crop pixels per pixel of the photograph.
    """

    top: float
    left: float
    factor: float


class CaseSampler:
    """Draws cases: generated ones with a given share, else photographs; uniformly within both.

    Args:
        names: Case names; a repeated name is drawn more often.
        generated: Names of the generated cases.
        generated_share: Share of draws from the generated cases; None draws uniformly from all cases.
    """

    def __init__(self, names: Sequence[str], generated: frozenset[str], generated_share: float | None) -> None:
        self._groups = [list(names)]
        self._share = 0.0
        parts = [[name for name in names if (name in generated) == is_generated] for is_generated in (False, True)]
        if generated_share is not None and all(parts):
            self._groups, self._share = parts, generated_share

    def draw(self, rng: np.random.Generator) -> str:
        """Return the name of a random case."""
        group = self._groups[1 if self._share and rng.random() < self._share else 0]
        return group[rng.integers(len(group))]


def draw_factor(
    settings: TrainerSettings, size: tuple[int, int], crop: tuple[int, int], base: float, rng: np.random.Generator
) -> float:
    """Return a random factor by which a photograph is resampled.

    Args:
        settings: Settings with the range of scales and the share of whole photographs.
        size: Height and width of the photograph.
        crop: Height and width of the crop.
        base: Factor that resamples the photograph to the model's ground resolution.
        rng: Random generator.
    """
    if settings.whole_share and rng.random() < settings.whole_share:
        return min(crop[0] / size[0], crop[1] / size[1])
    low, high = settings.crop_scales or (1.0, 1.0)
    if low == high:
        return base * low
    if settings.scale_sampling == "triangular":
        mode = float(np.clip(0.0, np.log(low), np.log(high)))
        return base * float(np.exp(rng.triangular(np.log(low), mode, np.log(high))))
    return base * log_uniform(rng, (low, high))


def place_crop(
    size: tuple[int, int],
    window: tuple[float, float],
    point: tuple[int, int] | None,
    rng: np.random.Generator,
) -> tuple[float, float]:
    """Return a random position of a window: row and column of its upper left corner, in pixels of the photograph.

    Along each axis, the window is inside the photograph or, if it is larger, contains the photograph.

    Args:
        size: Height and width of the photograph.
        window: Height and width of the window, in pixels of the photograph.
        point: Row and column of a pixel that will be in the central half of the window, unless it is too close to a
            border; None for a uniform position.
        rng: Random generator.
    """
    corner = []
    for axis in (0, 1):
        low, high = sorted((0.0, size[axis] - window[axis]))
        if point is None:
            corner.append(float(rng.uniform(low, high)))
        else:
            start = point[axis] + 0.5 - rng.uniform(*_CENTRAL) * window[axis]
            corner.append(float(np.clip(start, low, high)))
    return corner[0], corner[1]


def read_crop(case: CaseArrays, crop: Crop, shape: tuple[int, int]) -> tuple[Image, NDArray[np.uint8]]:
    """Return the image and the targets of a crop; both are reflected at the borders of the photograph.

    Only the window is read, at the coarsest stored resolution that still has all details of the crop.

    Args:
        case: Arrays of the case.
        crop: Window and factor.
        shape: Height and width of the crop.

    Returns:
        Image, shape (h, w, 3), and targets, shape (h, w, channels), dtype uint8.
    """
    level = int(np.clip(np.floor(-np.log2(crop.factor)), 0, case.levels - 1))
    image, targets = case.image(level), case.targets(level)
    scale = 2**level
    factor = crop.factor * scale
    rows = _span(crop.top / scale, shape[0], factor, image.shape[0])
    columns = _span(crop.left / scale, shape[1], factor, image.shape[1])
    area = (slice(*rows.source), slice(*columns.source))
    # for factors above one half, two pixels along each axis suffice; OpenCV's area filter takes eight times as long
    method = cv2.INTER_LINEAR if factor >= 0.5 else cv2.INTER_AREA
    return (
        _resample(image[area], rows, columns, method),
        _resample(targets[area], rows, columns, cv2.INTER_NEAREST_EXACT),
    )


@dataclass(frozen=True)
class _Span:
    """One axis of a crop.

    Attributes:
        source: First pixel to read, and the one after the last.
        resized: Number of pixels that were read, after resampling.
        offset: Position of the first resampled pixel in the crop; negative if the crop begins after it.
        length: Number of pixels of the crop.
    """

    source: tuple[int, int]
    resized: int
    offset: int
    length: int


def _span(start: float, length: int, factor: float, limit: int) -> _Span:
    """Return the pixels to read for `length` pixels of a crop that starts at `start`, in pixels of the source."""
    first = int(np.clip(np.floor(start), 0, limit - 1))
    last = int(np.clip(np.ceil(start + length / factor), first + 1, limit))
    return _Span((first, last), max(1, round((last - first) * factor)), round((first - start) * factor), length)


def _resample(pixels: NDArray[np.uint8], rows: _Span, columns: _Span, method: int) -> NDArray[np.uint8]:
    """Resample the pixels that were read; cut them to the crop, and reflect them where the crop extends further."""
    channels = pixels.shape[2]
    if (rows.resized, columns.resized) != pixels.shape[:2]:
        resized = cv2.resize(np.ascontiguousarray(pixels), (columns.resized, rows.resized), interpolation=method)
        pixels = resized.astype(np.uint8, copy=False)
    pixels = pixels.reshape(rows.resized, columns.resized, channels)
    cut = [max(0, -span.offset) for span in (rows, columns)]
    pixels = pixels[cut[0] :, cut[1] :][: rows.length, : columns.length]
    before = [max(0, span.offset) for span in (rows, columns)]
    after = [
        span.length - start - present
        for span, start, present in zip((rows, columns), before, pixels.shape[:2], strict=True)
    ]
    if any((*before, *after)):
        pixels = pixels[: rows.length - before[0], : columns.length - before[1]]
        after = [max(0, count) for count in after]
        padded = cv2.copyMakeBorder(
            np.ascontiguousarray(pixels), before[0], after[0], before[1], after[1], cv2.BORDER_REFLECT_101
        )
        pixels = padded.astype(np.uint8, copy=False)
    return pixels.reshape(rows.length, columns.length, channels)


def turn(pixels: NDArray[np.uint8], *, transpose: bool, flip: tuple[bool, bool]) -> NDArray[np.uint8]:
    """Return a crop, optionally transposed and then flipped.

    All combinations together are the mirror images and the rotations by multiples of 90 degrees.

    Args:
        pixels: Image or targets, shape (h, w, channels), dtype uint8.
        transpose: Whether to exchange rows and columns.
        flip: Whether to reverse the order of the rows, and that of the columns.
    """
    channels = pixels.shape[2]
    if transpose:
        pixels = cv2.transpose(pixels).astype(np.uint8, copy=False)
    if any(flip):
        code = {(True, True): -1, (True, False): 0, (False, True): 1}[flip]
        pixels = cv2.flip(pixels, code).astype(np.uint8, copy=False)
    return pixels.reshape(*pixels.shape[:2], channels)


class CropLoader:
    """Infinite iterator over batches of random crops.

    A batch has these keys:

    - `data`: crops, shape (N, 3, h, w), dtype uint8, in channels-last memory format.
    - `gain`, `offset`: factors and summands with which `normalise` computes the network's input, shape (N, 3, 1, 1),
      dtype float32.
    - `target`: targets, shape (N, 1 or 3, h, w), dtype uint8, with the channels of `CaseArrays`; with deep supervision,
      a list of them at several resolutions.
    - `keys`: case names.

    Validation crops are at scale 1, are not augmented, and have only the class ids as target.

    Args:
        cases: Arrays of the cases by name.
        sampler: Draws the cases.
        settings: Settings of crops and augmentation.
        batch_size: Number of crops in a batch.
        crop: Height and width of a crop.
        gsd_m: Ground resolution of the photographs in metres per pixel, by case name, if it is known.
        normalisation: Normalisation of the colours.
        ignore: Label of pixels that have no loss; None if there is none.
        oversample: Share of crops that contain a pixel of a random foreground class.
        strides: With deep supervision, the strides of each target along both axes; None for one target.
        training: Whether to augment the crops.
    """

    def __init__(
        self,
        cases: Mapping[str, CaseArrays],
        sampler: CaseSampler,
        settings: TrainerSettings,
        *,
        batch_size: int,
        crop: tuple[int, int],
        gsd_m: Mapping[str, float],
        normalisation: Normalisation,
        ignore: int | None = None,
        oversample: float = 0.0,
        strides: Sequence[tuple[int, int]] | None = None,
        training: bool = True,
    ) -> None:
        self._cases = cases
        self._sampler = sampler
        self._settings = settings.model_copy(update={} if training else _AS_PREDICTED)
        self._batch_size = batch_size
        self._crop = crop
        self._gsd_m = gsd_m
        self._normalisation = normalisation
        self._ignore = ignore
        self._oversample = oversample
        self._strides = strides
        self._training = training
        self._channels = max(case.channels for case in cases.values()) if training else 1
        self.transforms = PhotometricAugmentation(settings) if training else None

    def __iter__(self) -> Self:
        """Return the loader itself."""
        return self

    def set_thread_id(self, thread_id: int) -> None:  # noqa: ARG002  # named by nnU-Net's workers
        """Prepare a worker process, in which OpenCV must not start threads."""
        cv2.setNumThreads(0)

    def __next__(self) -> dict[str, Any]:
        """Return a batch, determined by NumPy's global random state, which nnU-Net seeds in each worker."""
        rng = np.random.default_rng(np.random.randint(2**31, size=4))  # noqa: NPY002
        height, width = self._crop
        data = np.empty((self._batch_size, height, width, 3), np.uint8)
        target = np.empty((self._batch_size, height, width, self._channels), np.uint8)
        names = [self._sampler.draw(rng) for _ in range(self._batch_size)]
        for index, name in enumerate(names):
            self._load(self._cases[name], rng, data[index], target[index])
        gain, offset = self._normalisation_of(names)
        return {
            "data": torch.from_numpy(data).permute(0, 3, 1, 2),
            "gain": gain,
            "offset": offset,
            "target": self._targets(torch.from_numpy(target).permute(0, 3, 1, 2).contiguous()),
            "keys": names,
        }

    def _load(
        self, case: CaseArrays, rng: np.random.Generator, data: NDArray[np.uint8], target: NDArray[np.uint8]
    ) -> None:
        """Write a random crop of a case, and its targets."""
        image, targets = self._cut(case, rng)
        if self.transforms is not None:
            image = self.transforms(image=image, rng=rng)
        square = self._crop[0] == self._crop[1]
        transpose = self._training and square and rng.random() < 0.5
        flip = (self._training and rng.random() < 0.5, self._training and rng.random() < 0.5)
        data[:] = turn(image, transpose=transpose, flip=flip)
        turned = turn(targets, transpose=transpose, flip=flip)
        channels = min(self._channels, turned.shape[2])
        target[..., :channels] = turned[..., :channels]
        if channels < self._channels:
            target[..., channels:] = (0, NORMAL_WEIGHT)

    def _cut(self, case: CaseArrays, rng: np.random.Generator) -> tuple[Image, NDArray[np.uint8]]:
        """Return the image and the targets of a random crop before `turn`."""
        factor = draw_factor(self._settings, case.size, self._crop, self._base_factor(case.name), rng)
        share = self._settings.rotation_share
        angle = float(rng.uniform(0, 360)) if share and rng.random() < share else 0.0
        shape = rotated_shape(self._crop, angle) if angle else self._crop
        window = (shape[0] / factor, shape[1] / factor)
        top, left = place_crop(case.size, window, self._point(case, rng), rng)
        image, targets = read_crop(case, Crop(top, left, factor), shape)
        if not angle:
            return image, targets
        return rotate(image, angle, self._crop, cv2.INTER_LINEAR), rotate(targets, angle, self._crop, cv2.INTER_NEAREST)

    def _base_factor(self, name: str) -> float:
        """Return the factor that resamples a photograph to the model's ground resolution, 1 if either is unknown."""
        gsd_m = self._gsd_m.get(name)
        return gsd_m / self._settings.model_gsd if gsd_m and self._settings.model_gsd else 1.0

    def _point(self, case: CaseArrays, rng: np.random.Generator) -> tuple[int, int] | None:
        """Return a pixel of a random foreground class or a labelled pixel; None if the crop may be anywhere."""
        foreground = [class_id for class_id in case.classes if class_id]
        if foreground and rng.random() < self._oversample:
            return _draw_pixel(case, foreground[rng.integers(len(foreground))], rng)
        if case.complete or self._ignore is None:
            return None
        labels = case.targets(0)
        for _ in range(_DRAWS):
            row, column = (int(rng.integers(side)) for side in case.size)
            if labels[row, column, 0] != self._ignore:
                return row, column
        return None

    def _normalisation_of(self, names: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return `gain` and `offset` of a batch."""
        if self._normalisation == Normalisation.RGB_TO_0_1:
            shape = (len(names), 3, 1, 1)
            return torch.full(shape, 1 / 255), torch.zeros(shape)
        # nnU-Net's z-score uses the statistics of the whole image
        mean = torch.tensor([self._cases[name].mean for name in names])[..., None, None]
        deviation = torch.tensor([self._cases[name].deviation for name in names])[..., None, None].clamp_min(1e-8)
        return 1 / deviation, -mean / deviation

    def _targets(self, target: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        if self._strides is None:
            return target
        return [target[:, :, ::rows, ::columns].contiguous() for rows, columns in self._strides]


def _draw_pixel(case: CaseArrays, class_id: int, rng: np.random.Generator) -> tuple[int, int]:
    """Return the row and the column of a random pixel of a class that the case contains."""
    for level in (1, 0):  # small objects may be missing at half the resolution
        if level >= case.levels:
            continue
        labels = case.targets(level)[..., 0]
        positions = np.flatnonzero(labels == class_id)
        if len(positions):
            row, column = divmod(int(positions[rng.integers(len(positions))]), labels.shape[1])
            return row << level, column << level
    raise ValueError(f"{case.name} has no pixel of class {class_id}")


def rotated_shape(shape: tuple[int, int], angle: float) -> tuple[int, int]:
    """Return the height and the width of a crop that contains a crop of this shape rotated by an angle in degrees."""
    cosine, sine = abs(np.cos(np.radians(angle))), abs(np.sin(np.radians(angle)))
    return (
        int(np.ceil(shape[0] * cosine + shape[1] * sine)) + 2,
        int(np.ceil(shape[0] * sine + shape[1] * cosine)) + 2,
    )


def rotate(pixels: NDArray[np.uint8], angle: float, shape: tuple[int, int], method: int) -> NDArray[np.uint8]:
    """Rotate pixels around their centre, and cut out the centre.

    Args:
        pixels: Image or targets, shape (h, w, channels), dtype uint8.
        angle: Angle in degrees, counter-clockwise.
        shape: Height and width of the result.
        method: Interpolation of OpenCV.
    """
    height, width = pixels.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1.0)
    matrix[:, 2] += ((shape[1] - width) / 2, (shape[0] - height) / 2)
    rotated = cv2.warpAffine(
        np.ascontiguousarray(pixels), matrix, shape[::-1], flags=method, borderMode=cv2.BORDER_REFLECT_101
    )
    return rotated.astype(np.uint8, copy=False).reshape(*shape, pixels.shape[2])


def in_processes(loader: CropLoader, processes: int, *, cached: int, pinned: bool) -> Any:
    """Return an iterator over the batches of a loader that runs in worker processes, like nnU-Net's loaders.

    Args:
        loader: Loader of crops.
        processes: Number of worker processes; 0 loads in this process.
        cached: Number of batches that are loaded in advance.
        pinned: Whether batches are copied to pinned memory, for a GPU.
    """
    from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
    from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter

    if not processes:
        return SingleThreadedAugmenter(loader, None)
    workers = NonDetMultiThreadedAugmenter(
        loader, None, processes, num_cached=cached, seeds=None, pin_memory=pinned, wait_time=0.002
    )
    next(workers)  # starts them
    return workers


def normalise(batch: Mapping[str, Any], device: torch.device, *, channels_last: bool) -> torch.Tensor:
    """Return the network's input for a batch of `CropLoader`, shape (N, 3, h, w), dtype float32, on a device."""
    data, gain, offset = (batch[name].to(device, non_blocking=True) for name in ("data", "gain", "offset"))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    normalised: torch.Tensor = data.mul(gain).add_(offset).contiguous(memory_format=layout)
    return normalised
