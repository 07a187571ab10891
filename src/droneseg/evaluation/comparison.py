"""Paired comparison of two models and the promotion rule."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from droneseg.core.files import atomic_directory, write_text
from droneseg.evaluation.bootstrap import FEW_IMAGES, Interval, bootstrap_intervals, paired_differences
from droneseg.evaluation.evaluate import Evaluation
from droneseg.evaluation.plots import plot_intervals
from droneseg.evaluation.report import (
    REPORT_MARKER,
    REPORT_NAME,
    figure_title,
    interval_text,
    number,
    significance_label,
)

_METHOD = """\
Both models are drawn on the same images each time (paired percentile bootstrap, 2,000 draws, 95 %), so that what makes
an image hard for both cancels out. A difference whose interval holds 0 may be chance.
"""


def write_comparison(
    first: Evaluation, second: Evaluation, names: tuple[str, str], out: Path, *, about: Sequence[str], replace: bool
) -> Any:
    """Write the report of two models on the same images: both figures, and the difference with its interval.

    Args:
        first: Of the model that is there.
        second: Of the one that may replace it; the same images.
        names: What to call them.
        out: Folder of the report.
        about: What to say of models and data, a line each.
        replace: Whether an older report may be replaced.

    Returns:
        What is in report.json.
    """
    matrices = [np.stack([image.matrix for image in each.images]) for each in (first, second)]
    figures = [bootstrap_intervals(each) for each in matrices]
    differences = paired_differences(*matrices)
    found = {
        "kind": "comparison",
        "models": list(names),
        "about": list(about),
        "images": len(first.images),
        "figures": [{name: asdict(interval) for name, interval in each.items()} for each in figures],
        "differences": {name: asdict(interval) for name, interval in differences.items()},
    }
    lines = [f"# {names[1]} against {names[0]}", "", f"{len(first.images)} images, the same for both.", ""]
    lines += [*(f"- {line}" for line in about), ""]
    if len(first.images) < FEW_IMAGES:
        lines += [f"**So few images say little**: intervals begin to hold what they promise at about {FEW_IMAGES}.", ""]
    lines += [f"| figure | {names[0]} | {names[1]} | difference | 95 % interval | |", "|---|---|---|---|---|---|"]
    for name, difference in differences.items():
        values = [number(each[name].value) for each in figures]
        lines.append(
            f"| {figure_title(name)} | {values[0]} | {values[1]} | {number(difference.value, signed=True)} | "
            f"{interval_text(difference)} | {significance_label(difference)} |"
        )
    lines += ["", "![differences](differences.png)", "", _METHOD]
    shown = {name: differences[name] for name in differences if not name.startswith("dice/")}
    with atomic_directory(out, marker=REPORT_MARKER, replace=replace) as aside:
        write_text(aside / REPORT_MARKER, "")
        write_text(aside / REPORT_NAME, json.dumps(found, indent=2) + "\n")
        write_text(aside / "report.md", "\n".join(lines))
        plot_intervals(
            {figure_title(name): interval for name, interval in shown.items()},
            aside / "differences.png",
            title=f"{names[1]} minus {names[0]}",
        )
    return found


def promotion_blockers(found: Mapping[str, Any]) -> list[str]:
    """Say why a candidate may not replace the champion; nothing if it may.

    It may if its mIoU is higher with 95 % confidence and its unsafe landing rate is not higher, both on the same
    photographs, of which there are enough for an interval.

    Args:
        found: The report of the comparison, champion first, as `write_comparison` returns it.
    """
    reasons = []
    if found["images"] < FEW_IMAGES:
        reasons.append(f"{found['images']} photographs are too few to tell; {FEW_IMAGES} are needed")
    miou = Interval(**found["differences"]["miou"])
    if miou.low is None:
        reasons.append("the difference in mIoU has no interval on these photographs")
    elif miou.low <= 0:
        kind = "worse" if miou.high is not None and miou.high < 0 else "not better for sure"
        reasons.append(
            f"its mIoU is {kind}: {number(miou.value, signed=True)}, 95 % between {interval_text(miou)}; "
            "the whole interval must lie above 0"
        )
    unsafe = Interval(**found["differences"]["unsafe_landing_rate"])
    if unsafe.value is None:
        reasons.append("one of the two calls nothing a landing zone, so there is no unsafe landing rate to compare")
    elif unsafe.value > 0:
        before, after = (number(figures["unsafe_landing_rate"]["value"]) for figures in found["figures"])
        reasons.append(f"its {figure_title('unsafe_landing_rate')} is higher: {after} instead of {before}")
    return reasons
