"""Batch prediction: files and folders to masks, skipping unchanged images."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from glob import glob
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from droneseg.core.camera import UNKNOWN_GROUND, Ground, PredictionWarning, check_scale, read_ground
from droneseg.core.errors import DronesegError, OutputExistsError
from droneseg.core.files import write_bytes
from droneseg.core.image_files import RGB_ORDER, ChannelOrder, ImageFiles, group_channels
from droneseg.core.images import SUFFIXES, Image, decode_image, encode_png
from droneseg.core.masks import MaskFormat, encode_mask
from droneseg.core.overlay import draw_prediction
from droneseg.core.prediction import Prediction, Segmenter

LOG_NAME = "predictions.jsonl"
OVERLAY_SUFFIX = "_overlay.png"
_AHEAD = 3  # images read ahead of the network, including the current one


@dataclass(frozen=True)
class ViewOptions:
    """How images are presented to the model; the options change the mask.

    Attributes:
        gsd_m: Metres per pixel of the images; None to read it from each file.
        height_m: Height of the camera above ground in metres; None to read it from each file.
        plain: Whether to use the pixels as they are, see `Segmenter.segment`.

    Raises:
        ConfigurationError: If both `gsd_m` and `height_m` are given, or a value is not a finite number above 0.
    """

    gsd_m: float | None = None
    height_m: float | None = None
    plain: bool = False

    def __post_init__(self) -> None:
        check_scale(self.gsd_m, self.height_m)

    def read_ground(self, data: bytes) -> Ground:
        """Return the ground resolution of an image file."""
        return read_ground(data, gsd_m=self.gsd_m, height_m=self.height_m)

    def __str__(self) -> str:
        """Return the options as they are given on the command line; empty without options."""
        numbers = {"--gsd": self.gsd_m, "--height": self.height_m}
        given = [f"{name} {value:g}" for name, value in numbers.items() if value is not None]
        return " ".join([*given, *(["--plain"] if self.plain else [])])


DEFAULT_VIEW = ViewOptions()
"""Ground resolution read from each file."""


class FileResult(BaseModel):
    """Result for one input file.

    Attributes:
        source: Path of the image, or of its first channel.
        mask: Path of the mask, or None if the file failed.
        status: "predicted", "skipped" (predicted earlier by the same model from the same bytes) or "failed".
        error: Error message, if failed.
        confidence: Mean probability of the predicted class; of the earlier prediction, if skipped.
        class_fractions: Share of pixels by class name; of the earlier prediction, if skipped.
        timings_s: Seconds by stage, if predicted.
        ground: Ground resolution, resampling and warning codes, if predicted or skipped.
        warnings: Warnings about the prediction, in words.
    """

    model_config = ConfigDict(frozen=True)

    source: str
    mask: str | None = None
    status: Literal["predicted", "skipped", "failed"]
    error: str | None = None
    confidence: float | None = None
    class_fractions: dict[str, float] | None = None
    timings_s: dict[str, float] | None = None
    ground: Ground | None = None
    warnings: tuple[PredictionWarning, ...] = ()


class LogEntry(BaseModel):
    """Line of `predictions.jsonl`.

    Attributes:
        stem: File name of the mask without suffix.
        mask_format: Format of the mask; earlier versions wrote only colours.
        model_id: Id of the model.
        profile: Profile of the bundle.
        view: How the image was presented to the model. Earlier versions did not write it; they had only bundles of
            format 1, whose masks do not depend on it.
        source_sha256: SHA-256 of the image file; of channels in files of their own, that of an equal RGB PNG file.
        mask_sha256: SHA-256 of the mask file.
        prediction: Result for the image.
    """

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    stem: str
    mask_format: MaskFormat = "colours"
    model_id: str
    profile: str
    view: ViewOptions = DEFAULT_VIEW
    source_sha256: str
    mask_sha256: str
    prediction: FileResult | None = None

    @property
    def mask_name(self) -> str:
        """Name of the file of the mask."""
        written = self.prediction.mask if self.prediction else None
        return Path(written).name if written else f"{self.stem}.png"

    @property
    def identity(self) -> tuple[str, str, str, ViewOptions, str, str]:
        """Everything that the mask depends on, and the checksum of the mask."""
        return self.mask_format, self.model_id, self.profile, self.view, self.source_sha256, self.mask_sha256


def find_inputs(inputs: Sequence[str], *, channel_order: ChannelOrder = RGB_ORDER) -> list[ImageFiles]:
    """Expand files, folders and glob patterns to images, in order and without duplicates.

    Files of one channel each are grouped by nnU-Net's names; see `group_channels`.

    Args:
        inputs: Files, folders and glob patterns.
        channel_order: Colours of the channels of images that are in no raw dataset of nnU-Net.

    Raises:
        DronesegError: If an input matches no image, channels are not an image, or two images would have the same mask
            name. The message lists all such inputs.
    """
    files: dict[Path, None] = {}
    problems = []
    for entry in inputs:
        path = Path(entry)
        if path.is_dir():
            matches = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
        else:
            matches = [path] if path.is_file() else [Path(match) for match in sorted(glob(entry, recursive=True))]  # noqa: PTH207  # Path.glob takes no absolute patterns
            matches = [match for match in matches if match.is_file()]
        if not matches:
            below = sorted({file.parent for file in path.rglob("*") if file.suffix.lower() in SUFFIXES})
            hint = f"; there are images in {', '.join(map(str, below[:4]))}" if below else ""
            problems.append(f"{entry}: no image file found{hint}")
        files.update(dict.fromkeys(matches))
    images, channel_problems = group_channels(files, order=channel_order)
    problems += channel_problems
    same: dict[str, list[ImageFiles]] = defaultdict(list)
    for image in images:
        same[image.stem].append(image)
    problems += [f"{' and '.join(map(str, p))} would both be written to {s}.png" for s, p in same.items() if len(p) > 1]
    if problems:
        raise DronesegError("\n".join(["Cannot use the inputs:", *(f"  - {line}" for line in problems)]))
    return images


def mask_name(source: ImageFiles, mask_format: MaskFormat) -> str:
    """Return the name of the file of an image's mask.

    It is `STEM.png`. A mask of ids of an image in nnU-Net's raw format has the suffix of the image instead, since
    nnU-Net's tools expect the `file_ending` of the dataset for images and masks.
    """
    return f"{source.stem}{source.file.suffix if mask_format == 'ids' and source.is_case else '.png'}"


def require_output(
    sources: Sequence[ImageFiles], out: Path, *, mask_format: MaskFormat = "colours", overlay: bool, force: bool
) -> None:
    """Check, before any prediction, that only files written by an earlier `predict` will be overwritten.

    Args:
        sources: Input images.
        out: Output folder.
        mask_format: Format of the masks.
        overlay: Whether `STEM_overlay.png` files are also written.
        force: Whether files that `predict` did not write may be replaced; input images never are.

    Raises:
        OutputExistsError: If files would be overwritten; the message lists all of them.
    """
    if out.exists() and not out.is_dir():
        raise OutputExistsError(f"{out} is a file and was not changed. Choose a folder for --out.")
    own = _written_hashes(out)
    inputs = {file.resolve() for source in sources for file in source.all_files}
    stems = {source.stem for source in sources}
    problems = []
    for source in sources:
        target = out / mask_name(source, mask_format)
        if target.resolve() in inputs:
            problems.append(f"{target} is an input image")
        elif target.is_file() and not force and _sha256(target.read_bytes()) not in own.get(source.stem, ()):
            problems.append(
                f"{target} was not written by `droneseg predict`, or was changed since; --force replaces it"
            )
        elif overlay and (out / f"{source.stem}{OVERLAY_SUFFIX}").exists() and source.stem not in own and not force:
            problems.append(
                f"{out / (source.stem + OVERLAY_SUFFIX)} was not written by `droneseg predict`; --force replaces it"
            )
        if overlay and f"{source.stem}{OVERLAY_SUFFIX}".removesuffix(".png") in stems:
            problems.append(f"{out / (source.stem + OVERLAY_SUFFIX)} would be both a mask and an overlay")
    if problems:
        raise OutputExistsError(
            "\n".join(
                ["Nothing was predicted. Choose another folder for --out:", *(f"  - {line}" for line in problems)]
            )
        )


def predict_files(
    segmenter: Segmenter,
    sources: Sequence[ImageFiles],
    out: Path,
    *,
    view: ViewOptions = DEFAULT_VIEW,
    mask_format: MaskFormat = "colours",
    overlay: bool = False,
    force: bool = False,
    max_pixels: int,
) -> Iterator[FileResult]:
    """Predict images one by one and write the mask of each, `out/STEM.png`; see `mask_name`.

    An image is skipped if `out` contains its unchanged mask, predicted by the same model and profile with the same
    `view` and `mask_format` from the same bytes. `out/predictions.jsonl` logs each mask with its model, profile, view,
    format and checksums.

    Background threads decode images and write masks while the network runs.

    Args:
        segmenter: Segmenter to use.
        sources: Images with distinct stems.
        out: Output folder for masks and overlays.
        view: How the images are presented to the model.
        mask_format: Format of the masks.
        overlay: Whether to also write `STEM_overlay.png`.
        force: Whether to predict all images, including those that could be skipped.
        max_pixels: Largest accepted image, in pixels.

    Yields:
        One result per image, in the order of `sources`.
    """
    out.mkdir(parents=True, exist_ok=True)
    job = _Job(segmenter, out, view, mask_format, overlay, {} if force else _previous_entries(out))
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        waiting: list[Future[_Input]] = []
        writing: Future[FileResult] | None = None
        upcoming = iter(sources)
        for _ in sources:
            while len(waiting) < _AHEAD and (following := next(upcoming, None)) is not None:
                waiting.append(reader.submit(_read, following, view, max_pixels))
            finish = job.predict(waiting.pop(0).result())
            # the previous mask was written while the network processed this image
            if writing:
                yield writing.result()
            writing = writer.submit(finish)
        if writing:
            yield writing.result()


@dataclass(frozen=True)
class _Input:
    """An image that was read and decoded; `image` is None if that failed."""

    source: ImageFiles
    data: bytes = b""
    image: Image | None = None
    ground: Ground = UNKNOWN_GROUND
    error: str | None = None


def _read(source: ImageFiles, view: ViewOptions, max_pixels: int) -> _Input:
    try:
        data = source.read(max_pixels=max_pixels)
        return _Input(source, data, decode_image(data, max_pixels=max_pixels), view.read_ground(data))
    except DronesegError as error:
        return _Input(source, error=str(error).removeprefix(f"{source}: "))


@dataclass(frozen=True)
class _Job:
    """A call of `predict_files`."""

    segmenter: Segmenter
    out: Path
    view: ViewOptions
    mask_format: MaskFormat
    overlay: bool
    previous: dict[str, LogEntry]

    def predict(self, photo: _Input) -> Callable[[], FileResult]:
        """Segment an image unless its mask is up to date; return a function that writes the result and returns it."""
        if photo.image is None:
            return partial(FileResult, source=str(photo.source), status="failed", error=photo.error)
        if earlier := self._earlier(photo):
            return lambda: earlier
        prediction = self.segmenter.segment(photo.image, photo.ground, plain=self.view.plain)
        return partial(self._write, photo, photo.image, prediction)

    def _earlier(self, photo: _Input) -> FileResult | None:
        """Return the logged result if `out` has the unchanged mask of this image, and any requested overlay."""
        target, entry = self._target(photo), self.previous.get(photo.source.stem)
        if entry is None or not target.is_file() or (self.overlay and not self._overlay_file(photo).is_file()):
            return None
        if entry.identity != self._entry(photo, target.read_bytes()).identity:
            return None
        result = entry.prediction or FileResult(source="", status="skipped")
        return result.model_copy(
            update={"source": str(photo.source), "mask": str(target), "status": "skipped", "timings_s": None}
        )

    def _write(self, photo: _Input, image: Image, prediction: Prediction) -> FileResult:
        target = self._target(photo)
        encoded = encode_mask(prediction.mask, prediction.classes, self.mask_format, suffix=target.suffix)
        result = FileResult(
            source=str(photo.source),
            mask=str(target),
            status="predicted",
            confidence=prediction.confidence,
            class_fractions=prediction.class_fractions,
            timings_s=prediction.timings_s,
            ground=prediction.ground,
            warnings=prediction.warnings,
        )
        try:
            # log first: a mask without a log entry would count as written by another program
            with (self.out / LOG_NAME).open("a", encoding="utf-8") as log:
                log.write(self._entry(photo, encoded, result).model_dump_json() + "\n")
            write_bytes(target, encoded)
            if self.overlay:
                drawn = draw_prediction(image, prediction, name=photo.source.file.name)
                write_bytes(self._overlay_file(photo), encode_png(drawn))
        except OSError as error:
            message = f"{target} cannot be written: {error.strerror}"
            return FileResult(source=str(photo.source), status="failed", error=message)
        return result

    def _entry(self, photo: _Input, mask: bytes, result: FileResult | None = None) -> LogEntry:
        return LogEntry(
            stem=photo.source.stem,
            mask_format=self.mask_format,
            model_id=self.segmenter.model_id,
            profile=self.segmenter.profile,
            view=self.view,
            source_sha256=_sha256(photo.data),
            mask_sha256=_sha256(mask),
            prediction=result,
        )

    def _target(self, photo: _Input) -> Path:
        return self.out / mask_name(photo.source, self.mask_format)

    def _overlay_file(self, photo: _Input) -> Path:
        return self.out / f"{photo.source.stem}{OVERLAY_SUFFIX}"


def _previous_entries(out: Path) -> dict[str, LogEntry]:
    """Return the log entry of the newest mask of each stem."""
    return {entry.stem: entry for entry in read_log(out)}


def _written_hashes(out: Path) -> dict[str, set[str]]:
    """Return the SHA-256 of all masks ever written to `out`, by stem."""
    hashes: dict[str, set[str]] = defaultdict(set)
    for entry in read_log(out):
        hashes[entry.stem].add(entry.mask_sha256)
    return hashes


def read_log(out: Path) -> Iterator[LogEntry]:
    """Yield the entries of the log in a folder of masks, oldest first; truncated lines are skipped."""
    log = out / LOG_NAME
    for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else []:
        try:
            yield LogEntry.model_validate_json(line)
        except ValidationError:
            continue


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
