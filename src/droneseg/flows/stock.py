"""The network that stock nnU-Net plans for 960x736 photographs, untrained: what every model is timed against."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from droneseg.core.files import new_folder, write_text
from droneseg.core.images import DEFAULT_MAX_PIXELS
from droneseg.data.convert import convert_dataset
from droneseg.data.splits import Split, write_split
from droneseg.data.synthetic import write_samples
from droneseg.flows.export import export_model
from droneseg.model.bundle import read_bundle
from droneseg.nnunet.checkpoint import count_gflop, write_untrained_model
from droneseg.nnunet.paths import FINAL_CHECKPOINT, Layout
from droneseg.nnunet.preprocess import plan_dataset

_SCENES = 12
_SIZE = (960, 736)
_SUMMARY = "stock.json"


@dataclass(frozen=True)
class StockModel:
    """The stock plan with seeded, untrained weights.

    Attributes:
        trained: Model folder of nnU-Net.
        bundle: The same as a bundle, with an INT8 network.
        gflop: Arithmetic of one pass over one tile, 10^9 operations, a multiplication and its addition as two.
    """

    trained: Path
    bundle: Path
    gflop: float


def stock_model(cache: Path, report: Callable[[str], None]) -> StockModel:
    """Make the stock model, or take it from an earlier run of the same versions.

    Args:
        cache: Folder in which it is kept.
        report: Told what happens next.
    """
    folder = cache / f"stock-{version('droneseg')}-{version('nnunetv2')}"
    if not (folder / _SUMMARY).is_file():
        report("planning the stock network and exporting it, once")
        with new_folder(folder, marker=_SUMMARY, replace=True) as aside:
            _make(aside, report)
    summary = json.loads((folder / _SUMMARY).read_text(encoding="utf-8"))
    read_bundle(folder / "bundle")
    return StockModel(folder / summary["trained"], folder / "bundle", summary["gflop"])


def _make(folder: Path, report: Callable[[str], None]) -> None:
    layout = Layout(folder / "nnUNet_raw", folder / "nnUNet_preprocessed", folder / "nnUNet_results")
    write_samples(folder / "data", count=_SCENES, size=_SIZE, seed=0)
    stems = [f"{index:03d}" for index in range(_SCENES)]
    write_split(Split(tuple(stems[:-4]), tuple(stems[-4:])), folder / "split.json")
    convert_dataset(folder / "data", layout.raw, split_file=folder / "split.json", max_pixels=DEFAULT_MAX_PIXELS)
    plan_dataset(layout, show_progress=False)
    trained = write_untrained_model(layout)
    export_model(
        trained,
        layout,
        folder / "bundle",
        checkpoint=FINAL_CHECKPOINT,
        int8=True,
        licence="none needed: untrained",
        images=4,
        report=report,
    )
    summary = {"trained": str(trained.relative_to(folder)), "gflop": count_gflop(layout)}
    write_text(folder / _SUMMARY, json.dumps(summary) + "\n")
