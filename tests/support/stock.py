"""Stock nnU-Net: a small dataset of generated scenes, short trainings, and predictions of its own predictor."""

import copy
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
from PIL import Image as pillow

from droneseg.core.images import Image
from droneseg.core.masks import Mask, encode_grey_ids
from droneseg.data.synthetic import generate_scene
from droneseg.nnunet.paths import FINAL_CHECKPOINT, FoldName, NnunetPaths, export_environment
from droneseg.nnunet.preprocess import redirect_stdout_to_log, threads_for_workers
from support.images import png

DATASET = "Dataset205_Own"
CLASSES = ("background", "roof", "lake", "lawn", "car", "road")
"""The classes of generated scenes by names of the dataset's own."""
LABELS = {name: number for number, name in enumerate(CLASSES)}
SIZE = (96, 80)
PATCH = (64, 48)
STAGES = 3


def describe(**changes: object) -> dict[str, Any]:
    """Return nnU-Net's dataset.json with some values replaced."""
    return {
        "channel_names": {str(index): "rgb_to_0_1" for index in range(3)},
        "labels": LABELS,
        "numTraining": 6,
        "file_ending": ".png",
    } | changes


def write_image(folder: Path, case: str, image: Image, *, order: Sequence[int] | None = None) -> None:
    """Write a case's image: an RGB file, or one grey file for each of the colours in `order`."""
    folder.mkdir(parents=True, exist_ok=True)
    if order is None:
        (folder / f"{case}_0000.png").write_bytes(png(image))
        return
    for channel, colour in enumerate(order):
        pillow.fromarray(np.ascontiguousarray(image[..., colour])).save(folder / f"{case}_{channel:04d}.png")


def write_raw(raw: Path, description: Mapping[str, Any], *, order: Sequence[int] | None = None) -> None:
    """Write a raw dataset of six generated scenes."""
    folder = raw / DATASET
    (folder / "labelsTr").mkdir(parents=True)
    for number in range(6):
        image, mask = generate_scene(40 + number, *SIZE)
        write_image(folder / "imagesTr", f"case{number}", image, order=order)
        (folder / "labelsTr" / f"case{number}.png").write_bytes(encode_grey_ids(mask))
    (folder / "dataset.json").write_text(json.dumps(description))


def prepare(root: Path) -> NnunetPaths:
    """Write a dataset, and plan and preprocess it with nnU-Net; folds 0 and 1 have three cases each."""
    paths = NnunetPaths(root / "raw", root / "preprocessed", root / "results", dataset=DATASET)
    # preprocessed with the ignore label, so that trainings with and without it can use the data
    write_raw(paths.raw, describe(labels=LABELS | {"ignore": len(LABELS)}))
    export_environment(paths, processes=1, loaders=1)  # the planner uses as many threads as loaders
    from nnunetv2.experiment_planning import plan_and_preprocess_api as api
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

    paths.preprocessed_dataset.mkdir(parents=True)
    # to measure a network, the planner builds it, which takes seconds; `tiny_plans` replaces the sizes anyway
    small = patch.object(ExperimentPlanner, "static_estimate_VRAM_usage", staticmethod(lambda *_, **__: 1e8))
    with redirect_stdout_to_log(), threads_for_workers(), small, _few_sampled_pixels():
        api.extract_fingerprints([205], num_processes=1, show_progress_bar=False)
        api.plan_experiments([205])
        api.plan_experiments([205], experiment_planner_class_name="nnUNetPlannerResEncM")
        api.preprocess([205], configurations=["2d"], num_processes=[1], show_progress_bar=False)
    (paths.raw_dataset / "dataset.json").write_text(json.dumps(describe()))
    cases = [f"case{number}" for number in range(6)]
    folds = [{"train": cases[:3], "val": cases[3:]}, {"train": cases[3:], "val": cases[:3]}]
    (paths.preprocessed_dataset / "splits_final.json").write_text(json.dumps(folds))
    return paths


@contextmanager
def _few_sampled_pixels() -> Iterator[None]:
    """Let nnU-Net compute its statistics of colours from few pixels; it draws 100 million, however small the images.

    Neither normalisation of RGB images uses these statistics.
    """
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

    start = DatasetFingerprintExtractor.__init__

    def start_with_few(extractor: Any, *args: Any, **options: Any) -> None:
        start(extractor, *args, **options)
        extractor.num_foreground_voxels_for_intensitystats = 1e5

    with patch.object(DatasetFingerprintExtractor, "__init__", start_with_few):
        yield


def tiny_plans(paths: NnunetPaths, plans: str = "nnUNetPlans", **changes: object) -> dict[str, Any]:
    """Return nnU-Net's plans with a small patch and a small network, and with other values in its 2D configuration."""
    content: dict[str, Any] = json.loads((paths.preprocessed_dataset / f"{plans}.json").read_text())
    configuration = content["configurations"]["2d"]
    network = configuration["architecture"]["arch_kwargs"]
    stages = network["n_stages"]
    for name, value in network.items():
        if isinstance(value, list) and len(value) >= stages - 1:
            network[name] = value[: STAGES - stages + len(value)]
    network |= {"n_stages": STAGES, "features_per_stage": [4, 8, 8]}
    configuration |= {"patch_size": list(PATCH), "batch_size": 2} | changes
    return content


def train(
    paths: NnunetPaths,
    plans: Mapping[str, Any],
    name: str,
    *,
    folds: Sequence[FoldName] = (0,),
    description: Mapping[str, Any] | None = None,
) -> Path:
    """Train each fold for one epoch of a few steps with nnU-Net's own trainer, and return the model folder."""
    export_environment(paths, processes=1, loaders=0)
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    for fold in folds:
        torch.manual_seed(7)
        started = copy.deepcopy({**plans, "plans_name": name, "continue_training": False})
        with redirect_stdout_to_log():
            trainer = nnUNetTrainer(started, "2d", fold, dict(description or describe()), torch.device("cpu"))
            trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 1, 4, 1
            trainer.logger.plot_progress_png = lambda _folder: None
            trainer.run_training()
    return paths.results / DATASET / f"nnUNetTrainer__{name}__2d"


def predict(
    model: Path,
    paths: NnunetPaths,
    images: Path,
    *,
    folds: Sequence[FoldName] = (0,),
    checkpoint: str = FINAL_CHECKPOINT,
) -> list[Mask]:
    """Predict a folder of images as `nnUNetv2_predict -npp 0 -nps 0` does, and return the masks by case."""
    export_environment(paths, processes=1)
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    out = Path(tempfile.mkdtemp(dir=images.parent))
    with redirect_stdout_to_log():
        predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(str(model), tuple(folds), checkpoint_name=checkpoint)
        predictor.predict_from_files_sequential(str(images), str(out))
    return [np.asarray(pillow.open(file)) for file in sorted(out.glob("*.png"))]


@contextmanager
def threads_for_postprocessing() -> Iterator[None]:
    """Replace the process pools of nnU-Net's evaluation and postprocessing with thread pools."""
    from nnunetv2.evaluation import evaluate_predictions
    from nnunetv2.postprocessing import remove_connected_components

    modules = (evaluate_predictions, remove_connected_components)
    originals = [module.multiprocessing for module in modules]
    for module in modules:
        module.multiprocessing = SimpleNamespace(get_context=lambda _method: SimpleNamespace(Pool=ThreadPool))
    try:
        yield
    finally:
        for module, original in zip(modules, originals, strict=True):
            module.multiprocessing = original
