"""Measure the self-check of a bundle: differences by profile, runtime and instruction set, and its cost at a start.

    uv run python benchmarks/self_check.py [--model BUNDLE] [--starts 9]

A bundle without self-check gets one in a temporary folder. If it has an INT8 network with signed activations, the same
network with unsigned ones is measured as well. Starts with and without the self-check take turns; compiled networks are
in the cache. Seconds are medians of the differences between two starts, one after the other.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import onnx

from droneseg.core.images import Image
from droneseg.core.runtimes import RUNTIMES, RuntimeName
from droneseg.data.synthetic import generate_self_check_image
from droneseg.inference.runtimes import start_runtime
from droneseg.inference.segmenter import BundleSegmenter
from droneseg.inference.self_check import build_self_check, class_probabilities, difference, network_of, read_self_check
from droneseg.model.bundle import INT8_NETWORK_NAME, Bundle, read_bundle, write_bundle
from droneseg.training.onnx import make_activations_unsigned

INSTRUCTION_SETS = ("AVX2", "AVX512_CORE", "DEFAULT")


def main() -> None:
    """Run the benchmark and print its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("nnUNet_results/champion"))
    parser.add_argument("--starts", type=int, default=9)
    parser.add_argument("--differences-of", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.differences_of:
        print_differences(read_bundle(arguments.differences_of))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        bundle = read_bundle(arguments.model)
        bundle = bundle if bundle.manifest.self_check else with_self_check(bundle, folder / "checked")
        variants = [bundle] if not (unsigned := with_unsigned_int8(bundle, folder / "unsigned")) else [bundle, unsigned]
        for variant in variants:
            print(variant.folder.name)
            for instructions in INSTRUCTION_SETS:
                command = [sys.executable, __file__, "--differences-of", str(variant.folder)]
                subprocess.run(command, env={**os.environ, "ONEDNN_MAX_CPU_ISA": instructions}, check=True)
        print_cost(bundle, folder, arguments.starts)


def with_self_check(bundle: Bundle, folder: Path) -> Bundle:
    """Write a copy of a bundle with a self-check."""
    image = generate_self_check_image(*bundle.manifest.patch_size[::-1])
    block, files = build_self_check(bundle, image, folder.parent)
    return copy(bundle, folder, files, self_check=block)


def with_unsigned_int8(bundle: Bundle, folder: Path) -> Bundle | None:
    """Write a copy of a bundle whose INT8 network has unsigned activations; None if it has no signed ones."""
    if INT8_NETWORK_NAME not in bundle.manifest.files:
        return None
    model = onnx.load(bundle.folder / INT8_NETWORK_NAME)
    if not make_activations_unsigned(model):
        return None
    onnx.save(model, folder.parent / INT8_NETWORK_NAME)
    return copy(bundle, folder, {INT8_NETWORK_NAME: folder.parent / INT8_NETWORK_NAME})


def copy(bundle: Bundle, folder: Path, files: dict[str, Path], **changes: object) -> Bundle:
    """Write a copy of a bundle with other files and other values in its manifest."""
    return write_bundle(
        folder,
        lambda records: bundle.manifest.model_copy(update={"files": records, **changes}),
        {name: bundle.folder / name for name in bundle.manifest.files} | files,
    )


def print_differences(bundle: Bundle) -> None:
    """Print the difference of each profile and runtime from the expected probabilities."""
    for profile in bundle.manifest.profiles:
        image, expected = read_self_check(bundle, profile)
        for name in RUNTIMES:
            if name is RuntimeName.ONNXRUNTIME and os.environ["ONEDNN_MAX_CPU_ISA"] != "DEFAULT":
                continue  # does not use oneDNN
            runtime = start_runtime(name, network_of(bundle, profile, None))
            found = difference(expected, class_probabilities(runtime, image, bundle, profile))
            print(f"  {os.environ['ONEDNN_MAX_CPU_ISA']:<12} {profile:<6} {runtime.name:<24} {found:.4f}", flush=True)


def print_cost(bundle: Bundle, folder: Path, starts: int) -> None:
    """Print the seconds that the self-check adds to a start, and to a start with a first prediction."""
    unchecked = copy(bundle, folder / "unchecked", {}, self_check=None)
    image = generate_self_check_image(*bundle.manifest.patch_size[::-1])
    for profile in bundle.manifest.profiles:
        if profile.startswith("int8"):
            continue
        pairs = []
        for number in range(starts + 1):
            pair = [start(each, profile, folder / "cache", image) for each in (unchecked, bundle)]
            if number:  # the first start compiles
                pairs.append(pair)
        added, with_prediction = (
            statistics.median(checked[index] - without[index] for without, checked in pairs) for index in (0, 1)
        )
        ratio = statistics.median(checked[1] / without[1] for without, checked in pairs)
        print(f"{profile:<6} start {added:+.3f} s; start and first prediction {with_prediction:+.3f} s, {ratio:.2f}x")


def start(bundle: Bundle, profile: str, cache: Path, image: Image) -> tuple[float, float]:
    """Return the seconds of a start, and of a start and one prediction."""
    begin = time.perf_counter()
    segmenter = BundleSegmenter(bundle, profile=profile, runtime=RuntimeName.OPENVINO, cache=cache)
    started = time.perf_counter()
    segmenter.segment(image, plain=True)
    return started - begin, time.perf_counter() - begin


if __name__ == "__main__":
    main()
