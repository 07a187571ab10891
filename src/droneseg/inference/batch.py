"""Batch prediction: files and folders to masks, skipping unchanged images."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from glob import glob
from pathlib import Path

from droneseg.core.errors import DronesegError, OutputExistsError
from droneseg.core.files import write_bytes
from droneseg.core.images import SUFFIXES, Image, decode_image, encode_png
from droneseg.core.masks import encode_mask
from droneseg.core.overlay import draw_overlay
from droneseg.core.prediction import Prediction, Segmenter

LOG_NAME = "predictions.jsonl"
OVERLAY_SUFFIX = "_overlay.png"
_AHEAD = 3  # images read ahead of the network, including the current one


@dataclass(frozen=True)
class FileResult:
    """Result for one input file.

    Attributes:
        source: Path of the image.
        mask: Path of the mask, or None if the file failed.
        status: "predicted", "skipped" (predicted earlier by the same model from the same bytes) or "failed".
        error: Error message, if failed.
        confidence: Mean probability of the predicted class, if predicted.
        class_fractions: Share of pixels by class name, if predicted.
        timings_s: Seconds by stage, if predicted.
    """

    source: str
    mask: str | None
    status: str
    error: str | None = None
    confidence: float | None = None
    class_fractions: dict[str, float] | None = None
    timings_s: dict[str, float] | None = None


def find_inputs(inputs: Sequence[str]) -> list[Path]:
    """Expand files, folders and glob patterns to image files, in order and without duplicates.

    Raises:
        DronesegError: If an input matches no image, or two images would have the same mask name. The message lists all
            such inputs.
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
    same: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        same[path.stem].append(path)
    problems += [f"{' and '.join(map(str, p))} would both be written to {s}.png" for s, p in same.items() if len(p) > 1]
    if problems:
        raise DronesegError("\n".join(["Cannot use the inputs:", *(f"  - {line}" for line in problems)]))
    return list(files)


def require_output(sources: Sequence[Path], out: Path, *, overlay: bool, force: bool) -> None:
    """Check, before any prediction, that only files written by an earlier `predict` will be overwritten.

    Args:
        sources: Input images.
        out: Output folder.
        overlay: Whether `STEM_overlay.png` files are also written.
        force: Whether files that `predict` did not write may be replaced; input images never are.

    Raises:
        OutputExistsError: If files would be overwritten; the message lists all of them.
    """
    if out.exists() and not out.is_dir():
        raise OutputExistsError(f"{out} is a file and was not changed. Choose a folder for --out.")
    own = _written_hashes(out)
    inputs = {source.resolve() for source in sources}
    stems = {source.stem for source in sources}
    problems = []
    for source in sources:
        target = out / f"{source.stem}.png"
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
    sources: Sequence[Path],
    out: Path,
    *,
    overlay: bool = False,
    force: bool = False,
    max_pixels: int,
) -> Iterator[FileResult]:
    """Predict images one by one and write `out/STEM.png` for each.

    An image is skipped if `out` contains its unchanged mask, predicted by the same model and profile from the same
    bytes. `out/predictions.jsonl` logs each mask with its model, profile and checksums.

    Background threads decode images and write masks while the network runs.

    Args:
        segmenter: Segmenter to use.
        sources: Image files with distinct stems.
        out: Output folder for masks and overlays.
        overlay: Whether to also write `STEM_overlay.png`.
        force: Whether to predict all images, including those that could be skipped.
        max_pixels: Largest accepted image, in pixels.

    Yields:
        One result per image, in the order of `sources`.
    """
    out.mkdir(parents=True, exist_ok=True)
    previous = {} if force else _previous_entries(out)
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        waiting: list[Future[tuple[bytes, Image | DronesegError]]] = []
        writing: Future[FileResult] | None = None
        upcoming = iter(sources)
        for source in sources:
            while len(waiting) < _AHEAD and (following := next(upcoming, None)) is not None:
                waiting.append(reader.submit(_read, following, max_pixels))
            data, image = waiting.pop(0).result()
            finish: Callable[[], FileResult]
            if isinstance(image, DronesegError):
                finish = partial(FileResult, str(source), None, "failed", error=str(image))
            elif _is_up_to_date(source, data, out, previous, segmenter, overlay):
                finish = partial(FileResult, str(source), str(out / f"{source.stem}.png"), "skipped")
            else:
                prediction = segmenter.segment(image)
                finish = partial(_write, source, data, image, prediction, segmenter.profile, out, overlay)
            # the previous mask was written while the network processed this image
            if writing:
                yield writing.result()
            writing = writer.submit(finish)
        if writing:
            yield writing.result()


def _read(source: Path, max_pixels: int) -> tuple[bytes, Image | DronesegError]:
    try:
        data = source.read_bytes()
    except OSError as error:
        return b"", DronesegError(f"cannot be read: {error.strerror}")
    try:
        return data, decode_image(data, max_pixels=max_pixels)
    except DronesegError as error:
        return data, error


def _is_up_to_date(
    source: Path, data: bytes, out: Path, previous: dict[str, dict[str, str]], segmenter: Segmenter, overlay: bool
) -> bool:
    """Return whether `out` has an unchanged mask of this image by this model and profile, and any requested overlay."""
    target = out / f"{source.stem}.png"
    if not target.is_file() or (overlay and not (out / f"{source.stem}{OVERLAY_SUFFIX}").is_file()):
        return False
    return previous.get(source.stem) == {
        "model_id": segmenter.model_id,
        "profile": segmenter.profile,
        "source_sha256": _sha256(data),
        "mask_sha256": _sha256(target.read_bytes()),
    }


def _write(
    source: Path, data: bytes, image: Image, prediction: Prediction, profile: str, out: Path, overlay: bool
) -> FileResult:
    target = out / f"{source.stem}.png"
    encoded = encode_mask(prediction.mask)
    entry = {
        "stem": source.stem,
        "model_id": prediction.model_id,
        "profile": profile,
        "source_sha256": _sha256(data),
        "mask_sha256": _sha256(encoded),
    }
    result = FileResult(
        str(source),
        str(target),
        "predicted",
        confidence=prediction.confidence,
        class_fractions=prediction.class_fractions,
        timings_s=prediction.timings_s,
    )
    try:
        # log first: a mask without a log entry would count as written by another program
        with (out / LOG_NAME).open("a", encoding="utf-8") as log:
            log.write(json.dumps(entry | {"prediction": asdict(result)}) + "\n")
        write_bytes(target, encoded)
        if overlay:
            caption = f"{source.name}   confidence {prediction.confidence:.1%}   model {prediction.model_id}"
            drawn = draw_overlay(image, prediction.mask, prediction.class_fractions, caption=caption)
            write_bytes(out / f"{source.stem}{OVERLAY_SUFFIX}", encode_png(drawn))
    except OSError as error:
        return FileResult(str(source), None, "failed", error=f"{target} cannot be written: {error.strerror}")
    return result


def _previous_entries(out: Path) -> dict[str, dict[str, str]]:
    """Return the log entry of the newest mask of each stem."""
    return dict(_log_entries(out))


def _written_hashes(out: Path) -> dict[str, set[str]]:
    """Return the SHA-256 of all masks ever written to `out`, by stem."""
    hashes: dict[str, set[str]] = defaultdict(set)
    for stem, entry in _log_entries(out):
        hashes[stem].add(entry["mask_sha256"])
    return hashes


def _log_entries(out: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the stem and the provenance of each logged mask, oldest first; truncated lines are skipped."""
    log = out / LOG_NAME
    for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else []:
        try:
            entry = json.loads(line)
            yield entry["stem"], {key: entry[key] for key in ("model_id", "profile", "source_sha256", "mask_sha256")}
        except (ValueError, KeyError, TypeError):
            continue


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
