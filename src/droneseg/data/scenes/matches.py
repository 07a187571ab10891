"""Finds photographs of the same place: local features, matched and checked by a plane between them."""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as pillow

from droneseg.core.errors import MissingDependencyError
from droneseg.core.files import write_bytes
from droneseg.core.images import decode_image
from droneseg.core.machine import usable_cores

MIN_INLIERS = 12
# Part of the name of cached features: change it when anything below changes what they are.
_VERSION = "sift-1"
_LONGEST_SIDE = 800
_FEATURES = 1200
_RATIO = 0.8  # Lowe 2004: the best match must be this much nearer than the second
_REPROJECTION_PIXELS = 4.0
_LEAST_MATCHES = 8  # fewer prove nothing, whatever plane they agree on; most pairs end here

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


def find_matches(
    images: dict[str, Path], *, cache: Path, max_pixels: int, min_inliers: int = MIN_INLIERS, progress: Progress
) -> list[Match]:
    """Match every photograph with every other one.

    Args:
        images: Files by stem.
        cache: Folder for features and matches, by content: what did not change is not computed again.
        max_pixels: Largest photograph accepted.
        min_inliers: How many features must agree on one plane.
        progress: Told how far it is.

    Raises:
        MissingDependencyError: If OpenCV is not installed.
        ImageError: If a photograph cannot be read.
    """
    stems = sorted(images)
    with ThreadPoolExecutor(usable_cores()) as workers:
        found = []
        for done, item in enumerate(workers.map(lambda s: _features(images[s], cache, max_pixels), stems), start=1):
            found.append(item)
            progress("features", done, len(stems))
        digests = [digest for digest, _ in found]
        pairs = list(combinations(range(len(stems)), 2))
        known = _read_inliers(cache, digests)
        missing = [pair for pair in pairs if (digests[pair[0]], digests[pair[1]]) not in known]

        def match(pair: tuple[int, int]) -> int:
            return count_inliers(found[pair[0]][1], found[pair[1]][1])

        for done, (pair, inliers) in enumerate(zip(missing, workers.map(match, missing), strict=True), start=1):
            known[digests[pair[0]], digests[pair[1]]] = inliers
            if done % 200 == 0 or done == len(missing):
                progress("matches", done, len(missing))
    if missing:
        _write_inliers(cache, digests, known)
    return [
        Match(stems[a], stems[b], known[digests[a], digests[b]])
        for a, b in pairs
        if known[digests[a], digests[b]] >= min_inliers
    ]


def count_inliers(first: Features, second: Features) -> int:
    """Return how many features of two photographs match and agree on one plane (a homography found by RANSAC)."""
    a, b = _matched(first, second)
    if len(a) < _LEAST_MATCHES:
        return 0
    _, inside = _opencv().findHomography(a, b, _opencv().RANSAC, _REPROJECTION_PIXELS, maxIters=2000, confidence=0.999)
    return 0 if inside is None else int(inside.sum())


def _matched(first: Features, second: Features) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the places of features that are each other's best match, clearly better than the second best."""
    nothing = np.empty((0, 2), np.float32)
    if len(first.points) < 2 or len(second.points) < 2:
        return nothing, nothing
    likeness = first.descriptors @ second.descriptors.T
    rows = np.arange(len(likeness))
    best = likeness.argmax(axis=1)
    back = likeness.argmax(axis=0)
    top = likeness[rows, best]
    likeness[rows, best] = -1
    # of vectors of length 1 the squared distance is 2 - 2 x likeness
    clear = (1 - top) < _RATIO**2 * (1 - likeness.max(axis=1))
    kept = rows[clear & (back[best] == rows)]
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
    if file.is_file():
        with np.load(file) as stored:
            return digest, Features(stored["points"], stored["descriptors"].astype(np.float32))
    features = extract_features(data, max_pixels=max_pixels)
    buffer = BytesIO()
    np.savez(buffer, points=features.points, descriptors=features.descriptors.astype(np.float16))
    write_bytes(file, buffer.getvalue())
    return digest, Features(features.points, features.descriptors.astype(np.float16).astype(np.float32))


def _table_file(cache: Path, digests: Sequence[str]) -> Path:
    name = hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()[:32]
    return cache / f"{_VERSION}-matches-{name}.npz"


def _read_inliers(cache: Path, digests: Sequence[str]) -> dict[tuple[str, str], int]:
    """Return the inliers of all pairs of this very set, if they were counted before."""
    file = _table_file(cache, digests)
    if not file.is_file():
        return {}
    with np.load(file) as stored:
        names, inliers = stored["digests"].tolist(), stored["inliers"]
    found = {(names[a], names[b]): int(inliers[a, b]) for a in range(len(names)) for b in range(len(names)) if a != b}
    return found if set(names) == set(digests) else {}


def _write_inliers(cache: Path, digests: Sequence[str], known: dict[tuple[str, str], int]) -> None:
    names = sorted(set(digests))
    places = {name: index for index, name in enumerate(names)}
    inliers = np.zeros((len(names), len(names)), np.int32)
    for (a, b), count in known.items():
        inliers[places[a], places[b]] = inliers[places[b], places[a]] = count
    buffer = BytesIO()
    np.savez(buffer, digests=np.array(names), inliers=inliers)
    write_bytes(_table_file(cache, digests), buffer.getvalue())


def _opencv() -> Any:
    """Return OpenCV's module."""
    try:
        import cv2
    except ImportError as error:
        raise MissingDependencyError("opencv-python-headless", "train") from error
    return cv2
