"""Raw datasets in nnU-Net's format with generated scenes, written without the code under test."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from droneseg.data.synthetic import generate_scene

SIZE = (48, 40)
LABELS = {"background": 0, "house": 1, "pond": 2, "meadow": 3, "car": 4, "road": 5}
"""Labels of the classes of generated scenes, under other names."""


def make_raw_dataset(
    root: Path,
    *,
    train: int = 2,
    test: int = 2,
    channels: str = "",
    suffix: str = ".png",
    ignore: bool = False,
) -> Path:
    """Write a raw dataset with the cases `tr0`, ... and `ts0`, ....

    Args:
        root: Folder of the dataset.
        train: Number of training cases.
        test: Number of test cases.
        channels: Colours of the channels, such as BGR, each in a file of its own; empty for RGB files.
        suffix: Suffix of all images and labels; TIFF files get files of spacings.
        ignore: Whether the first rows have the ignore label.
    """
    for part, count in (("Tr", train), ("Ts", test)):
        for folder in (f"images{part}", f"labels{part}"):
            (root / folder).mkdir(parents=True)
        for index in range(count):
            case = f"{part.lower()}{index}"
            image, mask = generate_scene(10 * index + len(part) + train, *SIZE)
            if ignore:
                mask[:8] = len(LABELS)
            write_case(root / f"images{part}", case, image, channels, suffix)
            Image.fromarray(mask).save(root / f"labels{part}" / f"{case}{suffix}")
            for folder in (f"images{part}", f"labels{part}") if suffix.startswith(".tif") else ():
                (root / folder / f"{case}.json").write_text(json.dumps({"spacing": [999, 0.1, 0.1]}))
    labels = LABELS | ({"ignore": len(LABELS)} if ignore else {})
    names = dict(enumerate(channels or "RGB"))
    description = {"channel_names": names, "labels": labels, "numTraining": train, "file_ending": suffix}
    (root / "dataset.json").write_text(json.dumps(description))
    return root


def write_case(folder: Path, case: str, image: np.ndarray, channels: str = "", suffix: str = ".png") -> None:
    """Write an image as an RGB file, or each of its channels as a grey file."""
    if not channels:
        Image.fromarray(image).save(folder / f"{case}_0000{suffix}")
    for number, colour in enumerate(channels):
        Image.fromarray(image[..., "RGB".index(colour)]).save(folder / f"{case}_{number:04d}{suffix}")
