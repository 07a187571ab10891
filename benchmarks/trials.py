"""Ablation study: short trainings that differ in one setting, on the preprocessed dataset.

    uv run --extra train python benchmarks/trials.py --minutes 3 --base preset=pretrained crop_size=[384,384] \
        --trial "no averaging" averaged_weights=null --trial "encoder frozen" encoder_rate=0.000001

The base and each trial are trained for the same time, one after the other, exported, and measured on the full images of
the validation part. With --json, trials whose results are in the file are not repeated.
"""

import argparse
import json
import logging
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from droneseg.cli.console import percent
from droneseg.core.files import write_text
from droneseg.core.logs import configure_logging
from droneseg.core.metrics import confusion
from droneseg.core.settings import load_settings
from droneseg.evaluation.bootstrap import bootstrap_intervals
from droneseg.evaluation.report import number
from droneseg.flows.export import cases_of, export_model, map_of, take_samples
from droneseg.inference.segmenter import BundleSegmenter
from droneseg.nnunet.checkpoint import load_trained_model
from droneseg.nnunet.paths import FINAL_CHECKPOINT, NnunetPaths
from droneseg.training.config import load_config
from droneseg.training.run import train

ALL = 1_000_000
PER_CLASS = "iou/"
"""Start of the names of metrics of a class."""


def main() -> None:
    """Train and measure each trial, and print one line per trial."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", nargs="+", default=["preset=pretrained"], metavar="KEY=VALUE")
    parser.add_argument("--trial", nargs="+", action="append", default=[], metavar=("NAME", "KEY=VALUE"))
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    configure_logging()
    results = json.loads(arguments.json.read_text()) if arguments.json and arguments.json.is_file() else {}
    for index, (name, *overrides) in enumerate([["base"], *arguments.trial]):
        if name not in results:
            results[name] = run_trial([*arguments.base, *overrides], arguments.minutes)
            if arguments.json:
                write_text(arguments.json, json.dumps(results, indent=2) + "\n")
        if index == 0:
            columns = [key.removeprefix(PER_CLASS) for key in results[name] if key.startswith(PER_CLASS)]
            print(
                "| trial | epochs | " + " | ".join(columns) + " | mIoU (95 %) | unsafe landing rate, landing recall |"
            )
            print("|" + "---|" * (len(columns) + 4))
        print(table_row(name, results[name]), flush=True)


def run_trial(overrides: list[str], minutes: float) -> dict[str, Any]:
    """Train in a temporary folder, and measure the profile fast on the validation part."""
    project_paths = NnunetPaths.from_settings(load_settings())
    fixed = [f"max_minutes={minutes}", "validation=none", "configuration=2d_trial"]
    config = load_config([*overrides, *fixed])
    with tempfile.TemporaryDirectory() as temporary:
        paths = replace(project_paths, results=Path(temporary, "results"))
        result = train(config, paths)
        bundle = export_model(
            result.model_folder,
            paths,
            Path(temporary, "bundle"),
            checkpoint=FINAL_CHECKPOINT,
            licence="a trial",
            images=1,
            on_step=logging.info,
        )
        segmenter = BundleSegmenter(bundle, profile="fast")
        model = load_trained_model(result.model_folder, paths, checkpoint=FINAL_CHECKPOINT)
        samples = take_samples(cases_of(model, paths, map_of(model, paths)), ALL)
        counts = [
            confusion(truth, segmenter.segment(image).mask, len(segmenter.classes))
            for image, truth in zip(samples.images, samples.truths or (), strict=True)
        ]
    intervals = bootstrap_intervals(np.stack(counts), segmenter.classes)
    epochs = bundle.manifest.provenance.epochs
    return {"epochs": epochs[0] if epochs else None} | {name: vars(interval) for name, interval in intervals.items()}


def table_row(name: str, result: dict[str, Any]) -> str:
    """Return the row of a trial in the Markdown table."""
    miou, unsafe, recall = (result[key] for key in ("miou", "unsafe_landing_rate", "landing_recall"))
    per_class = [value for key, value in result.items() if key.startswith(PER_CLASS)]
    cells = [name, str(result["epochs"]), *(number(value["value"]) for value in per_class)]
    cells.append(f"**{number(miou['value'])}** ({number(miou['low'])} to {number(miou['high'])})")
    cells.append(", ".join(percent(value["value"]) for value in (unsafe, recall)))
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
