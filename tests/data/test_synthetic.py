"""Generated scenes are reproducible, contain every class and cannot be solved by colour alone."""

from pathlib import Path

import numpy as np
import pytest

from droneseg.core.classes import DEFAULT_CLASSES
from droneseg.core.errors import OutputExistsError
from droneseg.data.dataset import inspect_dataset
from droneseg.data.stats import compute_stats, plot_stats
from droneseg.data.synthetic import generate_scene, write_samples
from droneseg.evaluation.evaluate import colour_classifier_miou


def test_scene_is_reproducible_and_has_the_requested_size() -> None:
    first, second, other = (generate_scene(seed, 96, 64) for seed in (5, 5, 6))
    assert first[0].shape == (64, 96, 3)
    assert first[1].shape == (64, 96)
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(first[1], second[1])
    assert not np.array_equal(first[0], other[0])


def test_every_class_is_frequent_and_background_absent() -> None:
    masks = [generate_scene(seed, 128, 96)[1] for seed in range(30)]
    shares = np.bincount(np.concatenate([m.ravel() for m in masks]), minlength=6) / (30 * 128 * 96)
    assert shares[0] == 0
    assert shares[1:].min() > 0.02


def test_colour_alone_does_not_reveal_the_class() -> None:
    scenes = [generate_scene(seed, 192, 144) for seed in range(60)]
    assert colour_classifier_miou(scenes[:44], scenes[44:], DEFAULT_CLASSES) < 0.45


def test_samples_are_a_valid_dataset_in_the_kaggle_layout(tmp_path: Path) -> None:
    write_samples(tmp_path / "s", count=3, size=(96, 64), seed=1)
    inspection = inspect_dataset(tmp_path / "s", max_pixels=10_000)
    assert not inspection.problems
    stats = compute_stats(inspection.facts, DEFAULT_CLASSES)
    assert (stats.pairs, stats.sizes, stats.formats) == (3, {"96x64": 3}, {"PNG": 3})
    assert sum(stats.class_shares.values()) == pytest.approx(1)
    plot_stats(inspection.facts, DEFAULT_CLASSES, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_samples_are_replaced_only_with_force(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    with pytest.raises(OutputExistsError):
        write_samples(tmp_path, count=1, size=(64, 64), seed=1)
    assert [p.name for p in tmp_path.iterdir()] == ["precious"]
