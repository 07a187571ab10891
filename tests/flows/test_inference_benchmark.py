"""Tests of the benchmarks with real processes and real trainings."""

import io
import json
from pathlib import Path

import numpy as np
import pytest

from droneseg.core.classes import ClassTable, SegmentationClass
from droneseg.core.images import encode_png
from droneseg.data.synthetic import generate_scene
from droneseg.flows.benchmark_worker import BundlePredictor, Task, serve
from droneseg.flows.inference_benchmark import BaselineModel, run_benchmark
from droneseg.flows.training_benchmark import TrainingBenchmark, plot_benchmark
from droneseg.inference.segmenter import BundleSegmenter
from support.bundles import TRAINED_AT, VIEWS, make_bundle, write_network
from support.workspace import TINY, Workspace

pytestmark = pytest.mark.slow


def test_every_runtime_and_profile_is_compared_with_stock(exported: Workspace, tmp_path: Path) -> None:
    bundle = exported.root / "nnUNet_results/champion"
    (tmp_path / "photograph.png").write_bytes(encode_png(generate_scene(1, 130, 90)[0]))
    benchmark = run_benchmark(
        BaselineModel(exported.fold().parent, bundle, gflop=1.0),
        model=bundle,
        image=tmp_path / "photograph.png",
        cache=tmp_path / "cache",
        rounds=2,
        on_step=lambda _step: None,
    )
    rows = {row["name"]: row for row in benchmark.model_dump()["rows"]}
    profiles = {profile + runtime for profile in ("exact", "fast", "int8") for runtime in ("", "-onnxruntime")}
    assert set(rows) == {"stock-tta", "stock"} | profiles | {f"model-{name}" for name in profiles}
    covered = []
    for name, row in rows.items():
        assert len(row["seconds"]) == 2
        assert row["ratio_to_stock_tta"] == pytest.approx(rows["stock-tta"]["seconds_median"] / row["seconds_median"])
        assert row["ratio_to_stock"] == pytest.approx(rows["stock"]["seconds_median"] / row["seconds_median"])
        assert 10 < row["peak_mb"] < 20_000
        assert row["start_s"] > row["seconds_median"] * 0.5
        parts = row["parts_s_median"]
        if name.startswith("stock"):
            assert parts == {}
        else:
            assert list(parts) == ["decode", "preprocess", "network", "postprocess", "encode"]
            covered.append(sum(parts.values()) / row["seconds_median"])
        assert ("onnx" in row["runtime"].lower()) == name.endswith("onnxruntime")
    # on a busy machine, a pause between two stages belongs to neither
    assert max(covered) < 1.05
    assert max(covered) > 0.7
    # exact is compared with stock-tta, fast with stock; other weights have no reference
    assert rows["exact"]["agreement"] > 0.999
    assert rows["fast-onnxruntime"]["agreement"] > 0.99
    assert rows["stock"]["agreement"] is None
    assert rows["model-exact"]["agreement"] is None
    plot_benchmark(benchmark, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_bundles_get_the_same_pixels_as_the_predictor_of_nnunet(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", ground=TRAINED_AT, context=VIEWS)
    image = np.random.default_rng(0).integers(0, 256, (90, 130, 3), np.uint8)
    (tmp_path / "image.png").write_bytes(encode_png(image))
    task = Task("bundle", str(bundle.folder), str(tmp_path / "image.png"), "", runtime="auto", cache=str(tmp_path))
    mask, _ = BundlePredictor(task).predict()
    segmenter = BundleSegmenter(bundle)
    assert np.array_equal(mask, segmenter.segment(image, plain=True).mask)
    assert not np.array_equal(mask, segmenter.segment(image).mask)


def test_masks_are_encoded_with_the_classes_of_the_bundle(tmp_path: Path) -> None:
    classes = ClassTable(tuple(SegmentationClass(i, f"class {i}", (i, 0, 0)) for i in range(8)))
    biases = (*(0,) * 7, 9)  # every pixel gets the last class, which the default table lacks
    write_network(tmp_path / "network.onnx", ((0, 0, 0),) * 8, biases)
    bundle = make_bundle(tmp_path / "bundle", network=tmp_path / "network.onnx", classes=classes)
    (tmp_path / "image.png").write_bytes(encode_png(np.full((16, 24, 3), 99, np.uint8)))
    mask = tmp_path / "mask.npy"
    task = Task(
        "bundle", str(bundle.folder), str(tmp_path / "image.png"), str(mask), runtime="auto", cache=str(tmp_path)
    )
    replies = io.StringIO()
    serve(task, io.StringIO("go\n"), replies)
    assert [list(json.loads(line)) for line in replies.getvalue().splitlines()] == [
        ["ready"],
        ["seconds", "parts_s"],
        ["peak_mb"],
    ]
    assert (np.load(mask) == 7).all()


def test_each_trainer_is_timed_and_trained(workspace: Workspace) -> None:
    options = ("--iterations", "3", "--minutes", "0.05", "--our-minutes", "0.04", "--plot", "training.png", "--json")
    done = workspace.run("benchmark", "--training", *TINY, *options)
    report = json.loads(done.stdout)
    assert [done.stderr.count(f"training for {minutes} min") for minutes in ("0.05", "0.04")] == [1, 2]
    names = ["nnUNetTrainer", "DroneSegTrainer", "DroneSegTrainer, efficientnet-lite0"]
    assert [row["name"] for row in report["trainers"]] == names
    assert report["trainers"][0]["reached_s"] <= report["trainers"][0]["dice"][-1]["seconds"]
    for row in report["trainers"]:
        assert set(row["parts_s"]) == {"loading", "augmentation", "forward", "backward", "optimiser"}
        assert all(seconds > 0 for seconds in row["parts_s"].values())
        # with few iterations on a busy machine, the medians of the stages add up only roughly
        assert 0.05 * row["iteration_s"] < sum(row["parts_s"].values()) < 5 * row["iteration_s"]
        seconds = [epoch["seconds"] for epoch in row["dice"]]
        assert seconds == sorted(seconds)
        assert seconds
        assert all(0 <= epoch["dice"] <= 1 for epoch in row["dice"])
    # nnU-Net changes matplotlib's defaults, which must not change our plots
    plot_benchmark(TrainingBenchmark(**report), workspace.root / "again.png")
    assert (workspace.root / "training.png").read_bytes() == (workspace.root / "again.png").read_bytes()
    # the user's models are left alone
    assert not list((workspace.root / "nnUNet_results").rglob("*nnUNetTrainer__*"))


def test_training_overrides_need_the_option_training(workspace: Workspace) -> None:
    done = workspace.run("benchmark", "preset=smoke", check=False)
    assert done.returncode == 2
    assert "can only be used with --training" in done.stderr


def test_time_to_reach_uses_the_smoothed_dice() -> None:
    from droneseg.training.timing import EpochDice, smoothed_end, time_to_reach

    slow = [EpochDice(60.0 * number, dice) for number, dice in enumerate((0.1, 0.2, 0.3, 0.4, 0.5), start=1)]
    assert smoothed_end(slow) == pytest.approx(0.4)
    assert smoothed_end(slow[:1]) == pytest.approx(0.1)
    # one lucky epoch is not enough: the mean of the last three epochs counts
    fast = [EpochDice(30.0 * number, dice) for number, dice in enumerate((0.1, 0.9, 0.1, 0.4, 0.7), start=1)]
    assert time_to_reach(0.4, fast) == 120.0
    assert time_to_reach(0.8, fast) is None
    assert time_to_reach(0.1, fast[:1]) == 30.0
