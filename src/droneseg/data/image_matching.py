"""SIFT matching of photographs of the same place."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from io import BytesIO
from itertools import combinations
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from PIL import Image as pillow

from droneseg.core.errors import MissingDependencyError
from droneseg.core.files import write_bytes
from droneseg.core.images import decode_image
from droneseg.core.system import usable_cores

logger = logging.getLogger(__name__)

MIN_INLIERS = 12  # features that agree on one plane: as many prove a common place
# Part of the name of cached features: change it when anything below changes what they are.
_VERSION = "sift-2"
_TABLE_NAME = f"{_VERSION}-matches.npz"
_LONGEST_SIDE = 800
_FEATURES = 1200
_RATIO = 0.8  # Lowe 2004: the best match must be this much nearer than the second
_REPROJECTION_PIXELS = 4.0

_REPORTED_PAIRS = 200
_SAVED_PAIRS = 5000  # what an interrupted search does not lose

Progress = Callable[[str, int, int], None]
"""Called with what is done ("features", "matches"), how much and of how many."""


@dataclass(frozen=True)
class Features:
    """Local features of a photograph.

    Attributes:
        points: Places in pixels of the photograph made smaller, shape (N, 2), dtype float32.
        descriptors: RootSIFT (Arandjelovic and Zisserman 2012), shape (N, 128), dtype float32, length 1 each.
    """

    points: NDArray[np.float32]
    descriptors: NDArray[np.float32]


@dataclass(frozen=True)
class Match:
    """Two photographs that show the same place.

    Attributes:
        first: Stem.
        second: Stem, later in order.
        inliers: Features that agree on one plane between the two.
    """

    first: str
    second: str
    inliers: int


def find_matches(images: dict[str, Path], *, cache: Path, max_pixels: int, progress: Progress) -> list[Match]:
    """Match every photograph with every other one.

    Args:
        images: Files by stem.
        cache: Folder for features and matches, by content: what did not change is not computed again.
        max_pixels: Largest photograph accepted.
        progress: Told how far it is.

    Raises:
        MissingDependencyError: If OpenCV is not installed.
        ImageError: If a photograph cannot be read.
    """
    stems = sorted(images)
    found: list[Features] = []
    digests: list[str] = []
    # one photograph or pair per thread: threads inside the libraries would only get in each other's way
    with ThreadPoolExecutor(usable_cores()) as workers, _single_threads():
        for digest, features in workers.map(lambda stem: _features(images[stem], cache, max_pixels), stems):
            digests.append(digest)
            found.append(features)
            progress("features", len(found), len(stems))
        pairs = list(combinations(range(len(stems)), 2))
        known = _read_inliers(cache)
        missing = [pair for pair in pairs if _key(digests, pair) not in known]

        def match(pair: tuple[int, int]) -> int:
            return count_inliers(found[pair[0]], found[pair[1]])

        for done, (pair, inliers) in enumerate(zip(missing, workers.map(match, missing), strict=True), start=1):
            known[_key(digests, pair)] = inliers
            if done % _REPORTED_PAIRS == 0 or done == len(missing):
                progress("matches", done, len(missing))
            if done % _SAVED_PAIRS == 0 or done == len(missing):
                _write_inliers(cache, known)
    matches = (Match(stems[pair[0]], stems[pair[1]], known[_key(digests, pair)]) for pair in pairs)
    return [match for match in matches if match.inliers >= MIN_INLIERS]


def count_inliers(first: Features, second: Features) -> int:
    """Return how many features of two photographs match and agree on one plane (a homography).

    Returns 0 where fewer than `MIN_INLIERS` match at all.
    """
    a, b = _matched(first, second)
    if len(a) < MIN_INLIERS:  # most pairs end here
        return 0
    # USAC (Raguram et al. 2013) finds what plain RANSAC finds here, in a fiftieth of the time
    method = _opencv().USAC_ACCURATE
    _, inside = _opencv().findHomography(a, b, method, _REPROJECTION_PIXELS, maxIters=2000, confidence=0.999)
    return 0 if inside is None else int(inside.sum())


def _matched(first: Features, second: Features) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the places of features that are each other's best match, clearly better than the second best."""
    nothing = np.empty((0, 2), np.float32)
    if len(first.points) < 2 or len(second.points) < 2:
        return nothing, nothing
    likeness = first.descriptors @ second.descriptors.T
    rows = np.arange(len(likeness))
    best = likeness.argmax(axis=1)
    top = likeness[rows, best]
    likeness[rows, best] = -1
    # of vectors of length 1 the squared distance is 2 - 2 x likeness
    clear = np.flatnonzero((1 - top) < _RATIO**2 * (1 - likeness.max(axis=1)))
    likeness[rows, best] = top
    kept = clear[likeness[:, best[clear]].argmax(axis=0) == clear]
    return first.points[kept], second.points[best[kept]]


def extract_features(data: bytes, *, max_pixels: int) -> Features:
    """Find the local features of a photograph.

    Args:
        data: Bytes of its file.
        max_pixels: Largest photograph accepted.
    """
    picture = pillow.fromarray(decode_image(data, max_pixels=max_pixels)).convert("L")
    picture.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    found, descriptors = _opencv().SIFT_create(nfeatures=_FEATURES).detectAndCompute(np.asarray(picture), None)
    if descriptors is None:
        return Features(np.empty((0, 2), np.float32), np.empty((0, 128), np.float32))
    rooted = np.sqrt(descriptors / np.maximum(descriptors.sum(axis=1, keepdims=True), 1e-9))
    return Features(np.array([item.pt for item in found], np.float32), rooted.astype(np.float32))


def _features(path: Path, cache: Path, max_pixels: int) -> tuple[str, Features]:
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()[:32]
    file = cache / f"{_VERSION}-{digest}.npz"
    if kept := _load(file):
        return digest, Features(kept["points"], kept["descriptors"].astype(np.float32))
    features = extract_features(data, max_pixels=max_pixels)
    _keep(file, points=features.points, descriptors=features.descriptors.astype(np.float16))
    return digest, Features(features.points, features.descriptors.astype(np.float16).astype(np.float32))


def _key(digests: Sequence[str], pair: tuple[int, int]) -> tuple[str, str]:
    """Return what a pair is remembered by: the contents of its two photographs, in either order."""
    first, second = sorted((digests[pair[0]], digests[pair[1]]))
    return first, second


def _read_inliers(cache: Path) -> dict[tuple[str, str], int]:
    """Return the inliers of all pairs that were ever counted with these features."""
    kept = _load(cache / _TABLE_NAME)
    if not kept:
        return {}
    firsts, seconds, inliers = (kept[name].tolist() for name in ("first", "second", "inliers"))
    return dict(zip(zip(firsts, seconds, strict=True), inliers, strict=True))


def _write_inliers(cache: Path, known: dict[tuple[str, str], int]) -> None:
    firsts, seconds = zip(*known, strict=True)
    inliers = np.array(list(known.values()), np.int32)
    _keep(cache / _TABLE_NAME, first=np.array(firsts), second=np.array(seconds), inliers=inliers)


def _load(file: Path) -> dict[str, NDArray[Any]] | None:
    """Return what was kept in a file, or None if there is none or it is damaged."""
    try:
        with file.open("rb") as stream, np.load(stream) as stored:
            return dict(stored)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        logger.warning("%s is damaged and made anew: %s", file, error)
        return None


def _keep(file: Path, **arrays: NDArray[Any]) -> None:
    buffer = BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # the stubs know no keywords but their own
    try:
        write_bytes(file, buffer.getvalue())
    except OSError as error:
        logger.warning("not kept, so the next split is slow again: %s", error)


def _single_threads() -> AbstractContextManager[Any]:
    """Let libraries compute on the calling thread only while the block runs."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        raise MissingDependencyError("threadpoolctl", "train") from error
    limits: AbstractContextManager[Any] = threadpool_limits(limits=1)
    return limits


def _opencv() -> Any:
    """Return OpenCV's module."""
    try:
        import cv2
    except ImportError as error:
        raise MissingDependencyError("opencv-python-headless", "train") from error
    return cv2
