"""Every command that reads photographs groups files of one channel each, by nnU-Net's names."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from droneseg.cli.main import app
from droneseg.core.classes import DEFAULT_CLASSES
from droneseg.core.errors import DronesegError
from droneseg.data.synthetic import generate_scene
from droneseg.model.bundle import Bundle
from support.bundles import make_bundle
from support.raw_datasets import write_case

IMAGE = generate_scene(1, 24, 16)[0]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "bundle")


def droneseg(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    return done.exit_code, done.output


@pytest.mark.parametrize(
    ("command", "written"),
    [
        ("predict", "x.png"),
        ("land", "x_landing.json"),
        ("label", "masks/x.png"),
        ("probabilities", "x.npz"),
    ],
)
def test_files_of_channels_are_one_photograph(bundle: Bundle, tmp_path: Path, command: str, written: str) -> None:
    folder, out = tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    write_case(folder, "x", IMAGE, "RGB")
    code, output = droneseg(command, folder, "--out", out, "--model", bundle.folder)
    assert code == 0, output
    assert sorted(file.stem for file in (out / written).parent.glob(f"*{Path(written).suffix}")) in (
        [Path(written).stem],
        ["index", Path(written).stem],
        ["labels", Path(written).stem],
    )
    (folder / "x_0002.png").unlink()
    with pytest.raises(DronesegError, match=r"photos/x: has x_0000.png, x_0001.png: grey files"):
        droneseg(command, folder, "--out", out, "--model", bundle.folder)


def test_channels_have_the_order_of_the_model_unless_a_dataset_names_it(bundle: Bundle, tmp_path: Path) -> None:
    manifest = bundle.folder / "manifest.json"
    text = manifest.read_text()
    masks = {}
    for order in ("RGB", "BGR"):
        numbers = ", ".join(str("RGB".index(colour)) for colour in order)
        manifest.write_text(text.replace('"mirror_axes"', f'"channel_order": [{numbers}],\n  "mirror_axes"'))
        folder = tmp_path / order / "imagesTs"
        folder.mkdir(parents=True)
        write_case(folder, "x", IMAGE, order)
        code, output = droneseg("predict", folder, "--out", tmp_path / order, "--model", bundle.folder)
        assert code == 0, output
        masks[order] = np.asarray(Image.open(tmp_path / order / "x.png"))
    assert (masks["RGB"] == masks["BGR"]).all()
    names = {"0": "R", "1": "G", "2": "B"}
    (tmp_path / "BGR/dataset.json").write_text(f'{{"channel_names": {str(names).replace(chr(39), chr(34))}}}')
    droneseg("predict", folder, "--out", tmp_path / "out", "--model", bundle.folder)
    assert (np.asarray(Image.open(tmp_path / "out/x.png")) != masks["RGB"]).any()


def test_split_may_name_images_by_case_or_by_file(bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for case in ("a", "b", "c"):
        write_case(folder, case, IMAGE)
    for number, ending in enumerate(("", "_0000")):
        split = tmp_path / f"split{number}.json"
        split.write_text(f'{{"train": ["a{ending}", "c{ending}"], "test": ["b{ending}"]}}')
        out = tmp_path / f"out{number}"
        code, output = droneseg("predict", folder, "--out", out, "--model", bundle.folder, "--split", split)
        assert code == 0, output
        assert [file.name for file in out.glob("*.png")] == ["b.png"]


def test_format_of_masks_is_an_option(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    write_case(tmp_path / "photos", "x", IMAGE)
    found = []
    for options in ((), ("--format", "ids"), ("--format", "ids", "--overlay"), ("--format", "colours")):
        arguments = ("--out", tmp_path / "out", "--model", bundle.folder, *options)
        assert droneseg("predict", tmp_path / "photos", *arguments)[0] == 0
        with Image.open(tmp_path / "out/x.png") as mask:
            found.append(mask.copy())
    assert [mask.mode for mask in found] == ["P", "L", "L", "P"]
    assert (np.asarray(found[0]) == np.asarray(found[1])).all()
    assert (np.asarray(found[0].convert("RGB")) == DEFAULT_CLASSES.colours()[np.asarray(found[1])]).all()
