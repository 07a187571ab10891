"""The whole flow on generated scenes: sample, check, convert, train, predict, evaluate."""

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from droneseg.core.errors import DronesegError
from droneseg.core.files import write_bytes, write_text
from droneseg.core.images import Image, encode_png, read_image
from droneseg.core.masks import Mask, read_mask
from droneseg.core.metrics import Scores
from droneseg.core.overlay import blend, draw_overlay
from droneseg.core.prediction import class_fractions
from droneseg.data.convert import convert_dataset
from droneseg.data.inspect import inspect_dataset
from droneseg.data.pairs import IMAGES_FOLDER, KAGGLE_FOLDER, MASKS_FOLDER
from droneseg.data.splits import Split, write_split
from droneseg.data.synthetic.scene import write_samples
from droneseg.evaluation.baseline import colour_classifier_miou, constant_miou
from droneseg.evaluation.folder import evaluate_folder
from droneseg.inference.folder import predict_files
from droneseg.nnunet.layout import Layout

STAGES = ("sample", "check", "convert", "preprocess", "train", "predict", "evaluate")
SIZE = (192, 144)
TRAIN_SCENES, VAL_SCENES, TEST_SCENES = 120, 8, 16
_SEED = 7
_OVERLAY_SCENES = 4

Report = Callable[[str, float], None]
"""Called with a stage and the share of it that is done, 0 to 1."""


@dataclass
class _Clock:
    """Tells a stage's progress and keeps its time."""

    report: Report
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[Callable[[int, int], None]]:
        """Time a stage; yields a function that takes (done, total)."""
        begin = time.perf_counter()
        self.report(name, 0.0)
        yield lambda done, total: self.report(name, done / total)
        self.seconds[name] = round(time.perf_counter() - begin, 2)
        self.report(name, 1.0)


class _TrainingProgress(logging.Handler):
    """Passes on the share of the training that its log records carry."""

    def __init__(self, update: Callable[[int, int], None]) -> None:
        super().__init__(logging.INFO)
        self._update = update

    def emit(self, record: logging.LogRecord) -> None:
        """Read the share, if the record has one."""
        share = getattr(record, "share_done", None)
        if share is not None:
            self._update(round(1000 * share), 1000)


@dataclass(frozen=True)
class DemoResult:
    """What the demo found.

    Attributes:
        scores: On the held-out scenes.
        baseline_miou: mIoU of the best constant class on the same scenes.
        colour_classifier_miou: mIoU of a classifier that sees colour only, on the same scenes.
        seconds: By stage.
        report: Path of report.json.
        overlay: Path of overlay.png.
    """

    scores: Scores
    baseline_miou: float
    colour_classifier_miou: float
    seconds: dict[str, float]
    report: Path
    overlay: Path


def run_demo(out: Path, report: Report, *, max_pixels: int, overrides: tuple[str, ...] = ()) -> DemoResult:
    """Run the whole flow on generated scenes; everything is written below `out`.

    Args:
        out: Folder for data, model, predictions, report.json and overlay.png; an earlier demo in it is replaced.
        report: Told about progress.
        max_pixels: Largest photograph accepted.
        overrides: Of the training configuration, after `preset=smoke`.

    Raises:
        DronesegError: If `out` holds something that is not a demo, or a step fails.
    """
    out = out.resolve()
    _require_demo_folder(out)
    (out / "report.json").unlink(missing_ok=True)
    clock = _Clock(report)
    data, layout = out / "data", Layout(out / "nnUNet_raw", out / "nnUNet_preprocessed", out / "nnUNet_results")
    root = data / KAGGLE_FOLDER
    stems = [f"{index:03d}" for index in range(TRAIN_SCENES + VAL_SCENES + TEST_SCENES)]
    split = Split(tuple(stems[:TRAIN_SCENES]), tuple(stems[TRAIN_SCENES:-TEST_SCENES]), tuple(stems[-TEST_SCENES:]))
    with clock.stage("sample") as progress:
        write_samples(data, count=len(stems), size=SIZE, seed=_SEED, replace=True, progress=progress)
        write_split(split, out / "split.json")
    with clock.stage("check") as progress:
        inspection = inspect_dataset(data, max_pixels=max_pixels, progress=progress)
        if inspection.problems:
            raise DronesegError("\n".join(["The generated data has problems:", *inspection.problems]))
    with clock.stage("convert") as progress:
        convert_dataset(
            data, layout.raw, split_file=out / "split.json", force=True, max_pixels=max_pixels, progress=progress
        )
    with clock.stage("preprocess"):
        from droneseg.nnunet.preprocess import preprocess

        preprocess(layout, show_progress=False)
    with clock.stage("train") as progress:
        model_folder = _train(layout, overrides, progress)
    predictions = out / "predictions"
    with clock.stage("predict") as progress:
        _predict(
            [root / IMAGES_FOLDER / f"{stem}.png" for stem in split.test],
            predictions,
            layout,
            model_folder,
            max_pixels,
            progress,
        )
    with clock.stage("evaluate"):
        truth = root / MASKS_FOLDER
        scores = evaluate_folder(predictions, truth, max_pixels=max_pixels).scores
        fitted, held_out = ([_read_pair(root, stem) for stem in part] for part in (split.train, split.test))
        baseline = constant_miou([mask for _, mask in held_out])
        colour = colour_classifier_miou(fitted, held_out)
    result = DemoResult(scores, baseline, colour, clock.seconds, out / "report.json", out / "overlay.png")
    shown = split.test[:_OVERLAY_SCENES]
    masks = [read_mask(predictions / f"{stem}.png", "ids") for stem in shown]
    write_bytes(result.overlay, encode_png(_contact_sheet(held_out[: len(shown)], masks, scores)))
    write_text(result.report, json.dumps(_summary(result, predictions, truth), indent=2) + "\n")
    return result


def _require_demo_folder(out: Path) -> None:
    """Refuse to mix a demo into something else: a demo replaces what it finds."""
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "data").is_dir())):
        raise DronesegError(f"{out} holds something that is not a demo. Choose another folder with --out.")


def _train(layout: Layout, overrides: tuple[str, ...], progress: Callable[[int, int], None]) -> Path:
    from droneseg.training.presets import load_config
    from droneseg.training.run import train

    handler = _TrainingProgress(progress)
    logger = logging.getLogger("droneseg.nnunet.trainer")
    logger.addHandler(handler)
    try:
        return train(
            load_config(["preset=smoke", "overwrite=true", "validation=none", *overrides]), layout
        ).model_folder
    finally:
        logger.removeHandler(handler)


def _predict(
    images: list[Path],
    out: Path,
    layout: Layout,
    model_folder: Path,
    max_pixels: int,
    progress: Callable[[int, int], None],
) -> None:
    from droneseg.nnunet.reference import ReferenceSegmenter

    segmenter = ReferenceSegmenter(model_folder, layout)
    for done, result in enumerate(predict_files(segmenter, images, out, max_pixels=max_pixels, force=True), start=1):
        if result.error:
            raise DronesegError(f"{result.source}: {result.error}")
        progress(done, len(images))


def _read_pair(root: Path, stem: str) -> tuple[Image, Mask]:
    return (
        read_image(root / IMAGES_FOLDER / f"{stem}.png"),
        read_mask(root / MASKS_FOLDER / f"{stem}.png", "colours"),
    )


def _contact_sheet(held_out: list[tuple[Image, Mask]], predicted: list[Mask], scores: Scores) -> Image:
    """Draw photograph, truth and prediction of some scenes side by side, with one legend."""
    rows = [
        np.hstack([image, blend(image, truth), blend(image, mask)])
        for (image, truth), mask in zip(held_out, predicted, strict=True)
    ]
    sheet = np.vstack(rows)
    everything = np.hstack([np.ravel(mask) for mask in predicted])
    caption = f"photograph | truth | prediction     mIoU {scores.miou or 0:.3f} on {scores.images} held-out scenes"
    legend = draw_overlay(sheet, np.zeros(sheet.shape[:2], np.uint8), class_fractions(everything), caption=caption)
    return np.vstack([sheet, legend[sheet.shape[0] :]])


def _summary(result: DemoResult, predictions: Path, truth: Path) -> dict[str, object]:
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
        "predictions": str(predictions),
        "truth": str(truth),
    }
