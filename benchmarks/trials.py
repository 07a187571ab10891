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

from droneseg.core.classes import FOREGROUND
from droneseg.core.files import write_text
from droneseg.core.logs import configure_logging
from droneseg.core.metrics import confusion
from droneseg.core.settings import load_settings
from droneseg.evaluation.bootstrap import bootstrap_intervals
from droneseg.flows.export import export_model, take_samples
from droneseg.inference.segmenter import BundleSegmenter
from droneseg.nnunet.paths import FINAL_CHECKPOINT, NnunetPaths
from droneseg.training.config import load_config
from droneseg.training.run import train

ALL = 1_000_000
COLUMNS = [entry.name for entry in FOREGROUND]


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
    print("| trial | epochs | " + " | ".join(COLUMNS) + " | mIoU (95 %) | unsafe landing rate, landing recall |")
    print("|" + "---|" * (len(COLUMNS) + 4))
    for name, *overrides in [["base"], *arguments.trial]:
        if name not in results:
            results[name] = run_trial([*arguments.base, *overrides], arguments.minutes)
            if arguments.json:
                write_text(arguments.json, json.dumps(results, indent=2) + "\n")
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
        samples = take_samples(paths, config.fold, ALL)
        counts = [
            confusion(truth, segmenter.segment(image).mask)
            for image, truth in zip(samples.images, samples.truths, strict=True)
        ]
    intervals = bootstrap_intervals(np.stack(counts))
    epochs = bundle.manifest.provenance.epochs
    return {"epochs": epochs[0] if epochs else None} | {name: vars(interval) for name, interval in intervals.items()}


def table_row(name: str, result: dict[str, Any]) -> str:
    """Return the row of a trial in the Markdown table."""
    miou, unsafe, recall = (result[key] for key in ("miou", "unsafe_landing_rate", "landing_recall"))
    cells = [name, str(result["epochs"]), *(f"{result[f'iou/{column}']['value']:.3f}" for column in COLUMNS)]
    cells.append(f"**{miou['value']:.3f}** ({miou['low']:.3f} to {miou['high']:.3f})")
    cells.append(f"{unsafe['value']:.1%}, {recall['value']:.1%}")
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
