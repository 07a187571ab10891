"""Predictions are compared only with masks of the same classes, and not where pixels have no label."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from droneseg.core.class_files import CLASSES_NAME, MaskColours, write_classes
from droneseg.core.classes import DEFAULT_CLASSES, ClassTable, SegmentationClass
from droneseg.core.errors import ConfigurationError
from droneseg.core.settings import Settings
from droneseg.data.dataset import KAGGLE_FOLDER, DatasetInfo, list_pairs, read_true_mask, write_info
from droneseg.flows.export import add_reference, choose_pairs
from droneseg.flows.landing_quality import evaluate_sites
from droneseg.flows.map_plan import empty_index, plan_maps
from droneseg.flows.probabilities import FoldModel
from droneseg.flows.promote import compare_models
from droneseg.inference.batch import ViewOptions
from droneseg.inference.landing import LandingOptions
from support.bundles import make_bundle, write_network
from support.images import png

RENAMED = ClassTable(
    tuple(SegmentationClass(entry.id, entry.name.upper(), entry.colour) for entry in DEFAULT_CLASSES.entries)
)


@pytest.fixture
def renamed(dataset: Path) -> Path:
    """A dataset whose classes have other names."""
    write_classes(dataset / KAGGLE_FOLDER / CLASSES_NAME, MaskColours(RENAMED))
    return dataset


def compare(data: Path, folder: Path) -> object:
    write_network(folder / "other.onnx", biases=(0, 0, 0, 0, 0, 1))
    other = make_bundle(folder / "other", network=folder / "other.onnx").folder
    options = {"settings": Settings(model=folder / "bundle"), "progress": lambda *_: None}
    return compare_models(folder / "bundle", other, data, folder / "out", **options)  # type: ignore[arg-type]  # by name


def reference(data: Path, folder: Path) -> object:
    options = {"split_file": None, "part": "val", "quality": True, "max_pixels": 10_000}
    return add_reference(folder / "bundle", data, folder / "out", **options)  # type: ignore[arg-type]  # by name


def landing(data: Path, folder: Path) -> object:
    options = {
        "view": ViewOptions(),
        "boxes": {},
        "by_place": False,
        "model": folder / "bundle",
        "settings": Settings(),
    }
    return evaluate_sites(data, None, "val", LandingOptions(radius_px=3), **options)  # type: ignore[arg-type]  # by name


def maps(data: Path, folder: Path) -> object:
    del folder
    models = [FoldModel(None, lambda: pytest.fail("the model was loaded"), "aaa", DEFAULT_CLASSES)]
    return empty_index(plan_maps(data), data, None, models, profile=None, temperature=1)


@pytest.mark.parametrize("use", [compare, reference, landing, maps])
def test_masks_of_other_classes_are_refused(renamed: Path, tmp_path: Path, use: Callable[[Path, Path], object]) -> None:
    make_bundle(tmp_path / "bundle")
    with pytest.raises(
        ConfigurationError, match=r"has the classes BACKGROUND, OBSTACLES, .* has background, obstacles, "
    ):
        use(renamed, tmp_path)
    assert not (tmp_path / "out").exists()


def test_models_of_different_classes_are_not_compared(dataset: Path, tmp_path: Path) -> None:
    first, second = make_bundle(tmp_path / "first"), make_bundle(tmp_path / "second", classes=RENAMED)
    with pytest.raises(
        ConfigurationError,
        match=r"have different class tables.*: background, .* and BACKGROUND",
    ):
        compare_models(
            first.folder, second.folder, dataset, tmp_path / "out", settings=Settings(), progress=lambda *_: None
        )


def test_a_background_that_training_ignores_has_no_label(dataset: Path) -> None:
    root = dataset / KAGGLE_FOLDER
    mask = list_pairs(dataset).pairs[0].mask
    ids = np.full((30, 40), 2, np.uint8)
    ids[:10] = 0
    mask.write_bytes(png(DEFAULT_CLASSES.colours()[ids]))
    assert (read_true_mask(choose_pairs(dataset, None, "")[0]) == ids).all()
    write_info(root, DatasetInfo(4, ignore_background=True))
    truth = read_true_mask(choose_pairs(dataset, None, "", classes=DEFAULT_CLASSES)[0])
    assert (truth[:10] == DEFAULT_CLASSES.ignore_label).all()
    assert (truth[10:] == 2).all()
