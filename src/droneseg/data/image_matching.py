"""Find images of the same place with SIFT features."""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
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

from droneseg.core.errors import optional_import
from droneseg.core.files import write_bytes
from droneseg.core.image_files import ImageFiles
from droneseg.core.images import decode_image
from droneseg.core.system import usable_cores

logger = logging.getLogger(__name__)

MIN_INLIERS = 12  # images with this many features that agree on one plane show the same place
# part of the file names in the cache; change it whenever a change below affects features or inliers
_VERSION = "sift-2"
_TABLE_NAME = f"{_VERSION}-matches.npz"
_LONGEST_SIDE = 800
_FEATURES = 1200
_RATIO = 0.8  # Lowe 2004: the best match must be this much nearer than the second
_REPROJECTION_PIXELS = 4.0

_REPORTED_PAIRS = 200
_SAVED_PAIRS = 5000  # results are saved after this many pairs

Progress = Callable[[str, int, int], None]
"""Progress callback with the stage ("features" or "matches"), the number done and the total."""


@dataclass(frozen=True)
class Features:
    """Local features of an image.

    Attributes:
        points: Positions (x, y) in pixels of the downscaled image, shape (N, 2), dtype float32.
        descriptors: RootSIFT (Arandjelovic and Zisserman 2012), shape (N, 128), dtype float32, each of
            length 1.
    """

    points: NDArray[np.float32]
    descriptors: NDArray[np.float32]


@dataclass(frozen=True)
class Match:
    """Two images that show the same place.

    Attributes:
        first: Stem of one image.
        second: Stem of the other image, later in alphabetical order.
        inliers: Number of feature matches consistent with one homography.
    """

    first: str
    second: str
    inliers: int


def find_matches(images: Mapping[str, ImageFiles], *, cache: Path, max_pixels: int, progress: Progress) -> list[Match]:
    """Match every image with every other one.

    Args:
        images: Files by stem.
        cache: Folder in which features and inliers are cached by the content of the images.
        max_pixels: Largest accepted number of pixels.
        progress: Progress callback.

    Returns:
        All pairs of images with at least `MIN_INLIERS` inliers.

    Raises:
        MissingDependencyError: If OpenCV is not installed.
        ImageError: If an image cannot be decoded.
    """
    stems = sorted(images)
    features: list[Features] = []
    digests: list[str] = []
    # one image or pair per thread, without further threads inside the libraries
    with ThreadPoolExecutor(usable_cores()) as workers, _single_threads():
        for digest, extracted in workers.map(lambda stem: _features(images[stem], cache, max_pixels), stems):
            digests.append(digest)
            features.append(extracted)
            progress("features", len(features), len(stems))
        pairs = list(combinations(range(len(stems)), 2))
        known = _read_inliers(cache)
        missing = [pair for pair in pairs if _key(digests, pair) not in known]

        def match(pair: tuple[int, int]) -> int:
            return count_inliers(features[pair[0]], features[pair[1]])

        for done, (pair, inliers) in enumerate(zip(missing, workers.map(match, missing), strict=True), start=1):
            known[_key(digests, pair)] = inliers
            if done % _REPORTED_PAIRS == 0 or done == len(missing):
                progress("matches", done, len(missing))
            if done % _SAVED_PAIRS == 0 or done == len(missing):
                _write_inliers(cache, known)
    matches = (Match(stems[pair[0]], stems[pair[1]], known[_key(digests, pair)]) for pair in pairs)
    return [match for match in matches if match.inliers >= MIN_INLIERS]


def count_inliers(first: Features, second: Features) -> int:
    """Return the number of feature matches between two images that are consistent with one homography.

    The result is 0 if fewer than `MIN_INLIERS` features match.
    """
    a, b = _match_features(first, second)
    if len(a) < MIN_INLIERS:  # true for most pairs
        return 0
    # USAC (Raguram et al. 2013) finds the same inliers as RANSAC here, 50 times faster
    method = _opencv().USAC_ACCURATE
    _, inside = _opencv().findHomography(a, b, method, _REPROJECTION_PIXELS, maxIters=2000, confidence=0.999)
    return 0 if inside is None else int(inside.sum())


def _match_features(first: Features, second: Features) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the positions, in both images, of mutual best matches that pass Lowe's ratio test: two arrays (M, 2)."""
    empty = np.empty((0, 2), np.float32)
    if len(first.points) < 2 or len(second.points) < 2:
        return empty, empty
    similarity = first.descriptors @ second.descriptors.T
    rows = np.arange(len(similarity))
    best = similarity.argmax(axis=1)
    top = similarity[rows, best]
    similarity[rows, best] = -1
    # the squared distance of vectors of length 1 is 2 - 2 x similarity
    distinct = np.flatnonzero((1 - top) < _RATIO**2 * (1 - similarity.max(axis=1)))
    similarity[rows, best] = top
    mutual = distinct[similarity[:, best[distinct]].argmax(axis=0) == distinct]
    return first.points[mutual], second.points[best[mutual]]


def extract_features(data: bytes, *, max_pixels: int) -> Features:
    """Extract the local features of an image.

    Args:
        data: Content of the image file.
        max_pixels: Largest accepted number of pixels.
    """
    grey = pillow.fromarray(decode_image(data, max_pixels=max_pixels)).convert("L")
    grey.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    keypoints, descriptors = _opencv().SIFT_create(nfeatures=_FEATURES).detectAndCompute(np.asarray(grey), None)
    if descriptors is None:
        return Features(np.empty((0, 2), np.float32), np.empty((0, 128), np.float32))
    rooted = np.sqrt(descriptors / np.maximum(descriptors.sum(axis=1, keepdims=True), 1e-9))
    return Features(np.array([keypoint.pt for keypoint in keypoints], np.float32), rooted.astype(np.float32))


def _features(image: ImageFiles, cache: Path, max_pixels: int) -> tuple[str, Features]:
    """Return the digest of an image and its features, from the cache if possible."""
    data = image.read(max_pixels=max_pixels)
    digest = hashlib.sha256(data).hexdigest()[:32]
    file = cache / f"{_VERSION}-{digest}.npz"
    if cached := _load(file):
        return digest, Features(cached["points"], cached["descriptors"].astype(np.float32))
    features = extract_features(data, max_pixels=max_pixels)
    _save(file, points=features.points, descriptors=features.descriptors.astype(np.float16))
    return digest, Features(features.points, features.descriptors.astype(np.float16).astype(np.float32))


def _key(digests: Sequence[str], pair: tuple[int, int]) -> tuple[str, str]:
    """Return the cache key of a pair: the digests of both images, independent of their order."""
    first, second = sorted((digests[pair[0]], digests[pair[1]]))
    return first, second


def _read_inliers(cache: Path) -> dict[tuple[str, str], int]:
    """Return the cached numbers of inliers by the digests of both images."""
    table = _load(cache / _TABLE_NAME)
    if not table:
        return {}
    firsts, seconds, inliers = (table[name].tolist() for name in ("first", "second", "inliers"))
    return dict(zip(zip(firsts, seconds, strict=True), inliers, strict=True))


def _write_inliers(cache: Path, known: dict[tuple[str, str], int]) -> None:
    firsts, seconds = zip(*known, strict=True)
    inliers = np.array(list(known.values()), np.int32)
    _save(cache / _TABLE_NAME, first=np.array(firsts), second=np.array(seconds), inliers=inliers)


def _load(file: Path) -> dict[str, NDArray[Any]] | None:
    """Return the arrays of a cache file; None if it is missing or damaged."""
    try:
        with file.open("rb") as stream, np.load(stream) as stored:
            return dict(stored)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        logger.warning("discarding corrupt cache file %s: %s", file, error)
        return None


def _save(file: Path, **arrays: NDArray[Any]) -> None:
    buffer = BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # the stubs accept no other keywords
    try:
        write_bytes(file, buffer.getvalue())
    except OSError as error:
        logger.warning("cannot write the cache; the next split will compute the matches again: %s", error)


def _single_threads() -> AbstractContextManager[Any]:
    """Limit the thread pools of native libraries to one thread while the block runs."""
    with optional_import("threadpoolctl", "train"):
        from threadpoolctl import threadpool_limits
    limits: AbstractContextManager[Any] = threadpool_limits(limits=1)
    return limits


def _opencv() -> Any:
    """Import and return the `cv2` module.

    Raises:
        MissingDependencyError: If it is not installed.
    """
    with optional_import("opencv-python-headless", "train"):
        import cv2
    return cv2
