"""Compare the profiles of a bundle with nnU-Net's own predictor, pixel by pixel.

    uv run python benchmarks/agreement.py MODEL_FOLDER BUNDLE IMAGES [--count 10]

The profile exact is compared with mirroring, the other profiles without.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from droneseg.core.images import SUFFIXES, encode_png, read_image
from droneseg.inference.segmenter import BundleSegmenter
from droneseg.model.bundle import read_bundle
from droneseg.nnunet.paths import NnunetPaths
from droneseg.nnunet.predictor import NnunetPredictor


def main() -> None:
    """Compare the masks and print one line per profile."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trained", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--count", type=int, default=10)
    arguments = parser.parse_args()
    bundle = read_bundle(arguments.bundle)
    images = sorted(file for file in arguments.images.iterdir() if file.suffix.lower() in SUFFIXES)
    images = images[:: max(1, len(images) // arguments.count)][: arguments.count]
    with tempfile.TemporaryDirectory() as temporary:
        root, png = Path(temporary), Path(temporary, "image.png")
        stock = {
            mirrored: NnunetPredictor(arguments.trained, NnunetPaths(root, root, root), mirrored=mirrored)
            for mirrored in (True, False)
        }
        segmenters = {name: BundleSegmenter(bundle, profile=name) for name in bundle.manifest.profiles}
        same: dict[str, list[float]] = {name: [] for name in segmenters}
        for image in images:
            pixels = read_image(image)
            png.write_bytes(encode_png(pixels))
            expected = {mirrored: predictor.segment_file(png) for mirrored, predictor in stock.items()}
            for name, segmenter in segmenters.items():
                mask = segmenter.segment(pixels, plain=True).mask
                same[name].append(float(np.mean(mask == expected[bundle.manifest.profiles[name].mirroring])))
    for name, shares in same.items():
        print(f"{name:<6} mean {np.mean(shares):.4%}  lowest {np.min(shares):.4%}  on {len(shares)} images")


if __name__ == "__main__":
    main()
