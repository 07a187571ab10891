"""Demo: the whole workflow on generated scenes."""

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from droneseg.core.classes import DEFAULT_CLASSES
from droneseg.core.errors import ConfigurationError, DronesegError
from droneseg.core.files import write_bytes, write_text
from droneseg.core.image_files import ImageFiles
from droneseg.core.images import Image, encode_png, read_image
from droneseg.core.masks import Mask, read_mask
from droneseg.core.metrics import SegmentationMetrics
from droneseg.data.convert import ConversionOptions, convert_dataset
from droneseg.data.dataset import IMAGES_FOLDER, KAGGLE_FOLDER, MASKS_FOLDER, inspect_dataset
from droneseg.data.splits import Split, write_split
from droneseg.data.synthetic import write_samples
from droneseg.evaluation.evaluate import colour_classifier_miou, constant_miou, evaluate_folder
from droneseg.evaluation.plots import contact_sheet
from droneseg.inference.batch import predict_files
from droneseg.inference.segmenter import BundleSegmenter
from droneseg.model.bundle import Bundle
from droneseg.nnunet.paths import NnunetPaths

if TYPE_CHECKING:
    from droneseg.training.config import TrainingConfig

STAGES = ("sample", "check", "convert", "preprocess", "train", "export", "predict", "evaluate")
SIZE = (192, 144)
TRAIN_SCENES, VAL_SCENES, TEST_SCENES = 200, 8, 24
_SEED = 7
_OVERLAY_SCENES = 4

StageProgress = Callable[[str, int, int], None]
"""Progress callback with the name of a stage, the number of steps done and the total."""


@dataclass
class StageClock:
    """Reports the progress of stages and measures their time.

    Attributes:
        report: Progress callback.
        seconds: Duration of each finished stage, by name.
    """

    report: StageProgress
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[Callable[[int, int], None]]:
        """Measure the time of a stage; yield a progress callback with (done, total)."""
        last_total = 1

        def update(done: int, total: int) -> None:
            nonlocal last_total
            last_total = total
            self.report(name, done, total)

        begin = time.perf_counter()
        self.report(name, 0, last_total)
        yield update
        self.seconds[name] = round(time.perf_counter() - begin, 2)
        self.report(name, last_total, last_total)


class TrainingProgress(logging.Handler):
    """Log handler that reports training progress in percent.

    The trainer's log records carry it as a fraction in the attribute `share_done`.
    """

    def __init__(self, update: Callable[[int, int], None]) -> None:
        super().__init__(logging.INFO)
        self._update = update

    def emit(self, record: logging.LogRecord) -> None:
        """Report the progress if the record has the attribute `share_done`."""
        fraction = getattr(record, "share_done", None)
        if fraction is not None:
            self._update(round(100 * fraction), 100)


@dataclass(frozen=True)
class DemoResult:
    """Result of the demo.

    Attributes:
        scores: Metrics on the held-out scenes.
        baseline_miou: mIoU of the best constant mask on the same scenes.
        colour_classifier_miou: mIoU of a classifier that uses only the colour of each pixel, on the same scenes.
        seconds: Duration by stage.
        report: Path of report.json.
        overlay: Path of overlay.png.
    """

    scores: SegmentationMetrics
    baseline_miou: float
    colour_classifier_miou: float
    seconds: dict[str, float]
    report: Path
    overlay: Path


@dataclass(frozen=True)
class _Folders:
    """Paths of the demo, all below one folder."""

    out: Path

    @property
    def data(self) -> Path:
        return self.out / "data"

    @property
    def images(self) -> Path:
        return self.data / KAGGLE_FOLDER / IMAGES_FOLDER

    @property
    def truth(self) -> Path:
        return self.data / KAGGLE_FOLDER / MASKS_FOLDER

    @property
    def split(self) -> Path:
        return self.out / "split.json"

    @property
    def predictions(self) -> Path:
        return self.out / "predictions"

    @property
    def paths(self) -> NnunetPaths:
        return NnunetPaths(self.out / "nnUNet_raw", self.out / "nnUNet_preprocessed", self.out / "nnUNet_results")

    def pairs(self, stems: Sequence[str]) -> list[tuple[Image, Mask]]:
        """Read images and their ground truth masks."""
        return [
            (read_image(self.images / f"{stem}.png"), read_mask(self.truth / f"{stem}.png", "colours", DEFAULT_CLASSES))
            for stem in stems
        ]


def run_demo(out: Path, report: StageProgress, *, max_pixels: int, overrides: tuple[str, ...] = ()) -> DemoResult:
    """Run the whole workflow on generated scenes; all output is written below `out`.

    Args:
        out: Folder for data, model, predictions, report.json and overlay.png; an earlier demo in it is replaced.
        report: Progress callback.
        max_pixels: Maximum number of pixels of an image.
        overrides: Overrides of the training configuration `preset=smoke`.

    Raises:
        ConfigurationError: If an override is not valid.
        DronesegError: If `out` contains something other than a demo, or a stage fails.
    """
    folders = _Folders(out.resolve())
    _require_demo_folder(folders.out)
    config = _load_config(overrides)
    (folders.out / "report.json").unlink(missing_ok=True)
    clock = StageClock(report)
    split = _prepare_data(folders, clock, max_pixels)
    model = _create_model(folders, clock, config)
    with clock.stage("predict") as progress:
        images = [ImageFiles.single(folders.images / f"{stem}.png") for stem in split.test]
        _predict(images, folders, model, max_pixels, progress)
    with clock.stage("evaluate"):
        scores = evaluate_folder(folders.predictions, folders.truth, DEFAULT_CLASSES, max_pixels=max_pixels).scores
        held_out = folders.pairs(split.test)
        baseline_miou = constant_miou([mask for _, mask in held_out], DEFAULT_CLASSES)
        colour_miou = colour_classifier_miou(folders.pairs(split.train), held_out, DEFAULT_CLASSES)
    result = DemoResult(
        scores, baseline_miou, colour_miou, clock.seconds, folders.out / "report.json", folders.out / "overlay.png"
    )
    _write_overlay(result, folders, split.test[:_OVERLAY_SCENES])
    write_text(result.report, json.dumps(_summary(result, folders), indent=2) + "\n")
    return result


def _prepare_data(folders: _Folders, clock: StageClock, max_pixels: int) -> Split:
    """Generate, check and convert the scenes; the last ones are the test part."""
    stems = [f"{index:03d}" for index in range(TRAIN_SCENES + VAL_SCENES + TEST_SCENES)]
    split = Split(tuple(stems[:TRAIN_SCENES]), tuple(stems[TRAIN_SCENES:-TEST_SCENES]), tuple(stems[-TEST_SCENES:]))
    with clock.stage("sample") as progress:
        write_samples(folders.data, count=len(stems), size=SIZE, seed=_SEED, replace=True, progress=progress)
        write_split(split, folders.split, replace=True)
    with clock.stage("check") as progress:
        inspection = inspect_dataset(folders.data, max_pixels=max_pixels, progress=progress)
        if inspection.problems:
            raise DronesegError("\n".join(["The generated data has problems:", *inspection.problems]))
    with clock.stage("convert") as progress:
        convert_dataset(
            folders.data,
            folders.paths.raw,
            ConversionOptions(split_file=folders.split),
            force=True,
            max_pixels=max_pixels,
            progress=progress,
        )
    return split


def _create_model(folders: _Folders, clock: StageClock, config: "TrainingConfig") -> Bundle:
    """Preprocess the data, train a model and export it."""
    with clock.stage("preprocess"):
        from droneseg.nnunet.preprocess import preprocess

        preprocess(folders.paths, show_progress=False)
    with clock.stage("train") as progress:
        trained = _train(folders.paths, config, progress)
    with clock.stage("export"):
        from droneseg.flows.export import export_model
        from droneseg.nnunet.paths import FINAL_CHECKPOINT

        return export_model(
            trained,
            folders.paths,
            folders.out / "model",
            checkpoint=FINAL_CHECKPOINT,
            default_profile="exact",
            licence="Apache-2.0",
            images=VAL_SCENES,
            on_step=lambda _step: None,
        )


def _require_demo_folder(out: Path) -> None:
    """Raise `DronesegError` unless the folder is missing, is empty or contains an earlier demo, which is replaced."""
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "data").is_dir())):
        raise DronesegError(f"{out} is not the output of an earlier demo. Choose another folder with --out.")


def _load_config(overrides: tuple[str, ...]) -> "TrainingConfig":
    """Return the configuration of the training; nothing is generated if it is not valid."""
    from droneseg.training.config import load_config
    from droneseg.training.run import problems_of_classes

    config = load_config(["preset=smoke", "overwrite=true", "validation=none", *overrides])
    if problems := problems_of_classes(config, DEFAULT_CLASSES):
        raise ConfigurationError("\n".join(problems))
    return config


def _train(paths: NnunetPaths, config: "TrainingConfig", progress: Callable[[int, int], None]) -> Path:
    from droneseg.training.run import train

    handler = TrainingProgress(progress)
    logger = logging.getLogger("droneseg.nnunet.trainer")
    logger.addHandler(handler)
    try:
        return train(config, paths).model_folder
    finally:
        logger.removeHandler(handler)


def _predict(
    images: list[ImageFiles], folders: _Folders, model: Bundle, max_pixels: int, progress: Callable[[int, int], None]
) -> None:
    segmenter = BundleSegmenter(model)
    results = predict_files(segmenter, images, folders.predictions, max_pixels=max_pixels, force=True)
    for done, result in enumerate(results, start=1):
        if result.error:
            raise DronesegError(f"{result.source}: {result.error}")
        progress(done, len(images))


def _write_overlay(result: DemoResult, folders: _Folders, stems: Sequence[str]) -> None:
    """Draw image, ground truth and prediction of some scenes side by side."""
    predictions = [read_mask(folders.predictions / f"{stem}.png", "ids", DEFAULT_CLASSES) for stem in stems]
    triples = [(image, truth, mask) for (image, truth), mask in zip(folders.pairs(stems), predictions, strict=True)]
    scores = result.scores
    caption = f"mIoU {scores.miou or 0:.3f} on {scores.images} held-out scenes"
    write_bytes(result.overlay, encode_png(contact_sheet(triples, DEFAULT_CLASSES, caption=caption)))


def _summary(result: DemoResult, folders: _Folders) -> dict[str, object]:
    scores = result.scores
    return {
        "miou": scores.miou,
        "baseline_miou": result.baseline_miou,
        "colour_classifier_miou": result.colour_classifier_miou,
        "per_class_iou": scores.per_class_iou,
        "image_wise_miou": scores.image_wise_miou,
        "unsafe_landing_rate": scores.unsafe_landing_rate,
        "landing_recall": scores.landing_recall,
        "images": scores.images,
        "seconds": result.seconds,
        "predictions": str(folders.predictions),
        "truth": str(folders.truth),
    }
