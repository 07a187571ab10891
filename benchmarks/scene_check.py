"""Search for places that occur in two parts of a split, independently of the method of `droneseg data split`.

It matches images in full resolution instead of 800 pixels, with twice the features, plain SIFT, an approximate
nearest-neighbour search (FLANN) without a mutual check, and plain RANSAC.

    uv run python benchmarks/scene_check.py FOLDER SPLIT_FILE
"""

import argparse
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations, product
from pathlib import Path

import cv2
import numpy as np

from droneseg.core.system import usable_cores
from droneseg.data.dataset import list_pairs

FEATURES = 2500
RATIO = 0.75
INLIERS = 12


def main() -> None:
    """Match all pairs of images in different parts, and print those that show the same place."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("split", type=Path)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    begin = time.perf_counter()
    parts = {name: stems for name, stems in json.loads(arguments.split.read_text()).items() if name != "dropped"}
    images = {pair.stem: pair.image for pair in list_pairs(arguments.folder).pairs}
    pairs = [pair for a, b in combinations(parts, 2) for pair in product(parts[a], parts[b])]
    stems = sorted({stem for pair in pairs for stem in pair})
    with ThreadPoolExecutor(usable_cores()) as workers:
        features = dict(zip(stems, workers.map(lambda stem: _features(images[stem]), stems), strict=True))
        inliers = []
        for points in workers.map(lambda pair: _inliers(features[pair[0]], features[pair[1]]), pairs):
            inliers.append(points)
            if len(inliers) % 1000 == 0:
                print(f"{len(inliers)} of {len(pairs)}", file=sys.stderr)
    crossing = [(pair, points) for pair, points in zip(pairs, inliers, strict=True) if len(points) >= INLIERS]
    for (first, second), points in sorted(crossing, key=lambda item: -len(item[1])):
        # a survey target that was moved between places matches too, but only in a small area
        width, height = np.ptp(points, axis=0)
        print(f"{first} and {second}: {len(points)} inliers on {width:.0f}x{height:.0f} pixels of {first}")
    seconds = time.perf_counter() - begin
    print(f"{len(pairs)} pairs across {', '.join(parts)}: {len(crossing)} show the same place ({seconds:.0f} s)")


def _features(file: Path) -> tuple[np.ndarray, np.ndarray]:
    points, descriptors = cv2.SIFT_create(nfeatures=FEATURES).detectAndCompute(cv2.imread(str(file), 0), None)
    return np.array([point.pt for point in points], np.float32), descriptors


def _inliers(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Return the points of the first image that match the second with one homography, shape (N, 2)."""
    matcher = cv2.FlannBasedMatcher({"algorithm": 1, "trees": 4}, {"checks": 32})
    nearest = matcher.knnMatch(first[1], second[1], k=2)
    good = [best for best, other in nearest if best.distance < RATIO * other.distance]
    # several features can match one feature of the other image; they would fit any homography
    good = list({match.trainIdx: match for match in sorted(good, key=lambda match: -match.distance)}.values())
    if len(good) < INLIERS:
        return np.empty((0, 2))
    a = first[0][[match.queryIdx for match in good]]
    b = second[0][[match.trainIdx for match in good]]
    _, inside = cv2.findHomography(a, b, cv2.RANSAC, 5.0)
    return np.empty((0, 2)) if inside is None else a[inside.ravel().astype(bool)]


if __name__ == "__main__":
    main()
