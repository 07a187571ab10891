"""Arrays of training cases: resolutions, statistics, reuse and errors."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from droneseg.core.errors import ConfigurationError
from droneseg.nnunet.case_arrays import halve_targets
from support.crop_cases import arrays, coordinates, write_case
from support.raw_datasets import make_raw_dataset


def test_half_resolution_keeps_the_most_frequent_class_with_its_fine_class_and_weight() -> None:
    targets = np.zeros((3, 4, 3), np.uint8)
    targets[:2, :2] = [[(1, 11, 100), (2, 20, 50)], [(2, 21, 60), (3, 30, 70)]]
    targets[:2, 2:] = [[(5, 50, 100), (4, 40, 90)], [(4, 41, 80), (4, 42, 70)]]
    halved = halve_targets(targets)
    assert halved.shape == (1, 2, 3)
    assert halved[0, 0].tolist() == [2, 20, 50]
    assert halved[0, 1].tolist() == [4, 40, 90]


def test_arrays_have_three_resolutions_and_the_statistics_of_the_image(tmp_path: Path) -> None:
    image = coordinates(130, 160)
    label = np.full((130, 160), 3, np.uint8)
    label[:10] = 6
    write_case(tmp_path / "raw", "a", image, label)
    case = arrays(tmp_path / "raw", "a", ignore=6)["a"]
    assert (case.size, case.levels, case.channels) == ((130, 160), 3, 1)
    assert (case.classes, case.complete) == ((3,), False)
    assert case.image(2).shape == (32, 40, 3)
    np.testing.assert_array_equal(case.image(0), image)
    # the mean of four neighbours
    np.testing.assert_allclose(case.image(1)[..., 1], np.tile(np.arange(0.5, 160, 2), (65, 1)), atol=0.51)
    assert case.mean == pytest.approx(image.reshape(-1, 3).mean(0))
    assert case.deviation == pytest.approx(image.reshape(-1, 3).std(0))


def test_arrays_are_reused_until_a_file_changes(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    image, label = coordinates(64, 64), np.full((64, 64), 3, np.uint8)
    write_case(raw, "a", image, label)
    written = arrays(raw, "a")["a"].folder / "a_image_0.npy"
    before = written.stat().st_mtime_ns
    arrays(raw, "a")
    assert written.stat().st_mtime_ns == before
    write_case(raw, "a", image, label, np.dstack([label, label, label]))
    assert arrays(raw, "a")["a"].channels == 3
    for file in raw.rglob("*.png"):
        file.unlink()
    assert arrays(raw, "a")["a"].channels == 3, "the raw dataset is no longer needed"


@pytest.mark.parametrize(("channels", "suffix"), [("", ".tif"), ("RGB", ".png"), ("BGR", ".bmp")])
def test_cases_of_other_formats_have_the_channels_of_nnunet(tmp_path: Path, channels: str, suffix: str) -> None:
    from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO

    raw = make_raw_dataset(tmp_path / "raw", channels=channels, suffix=suffix)
    for name, case in arrays(raw, "tr0", "tr1").items():
        files = sorted(str(file) for file in (raw / "imagesTr").glob(f"{name}_*"))
        expected, _ = NaturalImage2DIO().read_images(files)
        np.testing.assert_array_equal(case.image(0), expected[:, 0].transpose(1, 2, 0))
        label, _ = NaturalImage2DIO().read_seg(str(raw / "labelsTr" / f"{name}{suffix}"))
        np.testing.assert_array_equal(case.targets(0)[..., 0], label[0, 0])
    changed = raw / "imagesTr" / f"tr0_0000{suffix}"
    with Image.open(changed) as opened:
        flipped = opened.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    flipped.save(changed)
    expected, _ = NaturalImage2DIO().read_images(sorted(map(str, (raw / "imagesTr").glob("tr0_*"))))
    np.testing.assert_array_equal(arrays(raw, "tr0")["tr0"].image(0), expected[:, 0].transpose(1, 2, 0))


def test_all_missing_and_mismatched_files_are_listed(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    write_case(raw, "good", coordinates(64, 64), np.zeros((64, 64), np.uint8))
    write_case(raw, "small", coordinates(64, 64), np.zeros((64, 48), np.uint8))
    with pytest.raises(ConfigurationError) as caught:
        arrays(raw, "good", "small", "lost")
    _, *lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert "small.png: 48x64 pixels, but the image is 64x64" in lines[0]
    assert "lost_0000.png" in lines[1]
    assert "lost.png: missing; run `droneseg data convert`" in lines[1]
