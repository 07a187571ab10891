"""Paired comparison of two models and the promotion rule."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from droneseg.core.files import atomic_directory, write_text
from droneseg.evaluation.bootstrap import MIN_IMAGES, Interval, bootstrap_intervals, paired_differences
from droneseg.evaluation.evaluate import Evaluation
from droneseg.evaluation.plots import plot_intervals
from droneseg.evaluation.report import (
    REPORT_MARKER,
    REPORT_NAME,
    escape,
    figure_title,
    interval_text,
    number,
    significance_label,
)

_METHOD = """\
Each bootstrap resample draws the same images for both models (paired percentile bootstrap, 2,000 resamples, 95 %), so
differences in image difficulty cancel out. A difference whose interval contains 0 may be due to chance.
"""


class ComparisonReport(BaseModel):
    """Metrics of two models on the same images, and their differences; the content of report.json.

    Attributes:
        kind: Type of the report.
        models: Names of the first and the second model.
        about: One line about each model and one about the data.
        images: Number of images.
        figures: Metrics of the first and of the second model, by name.
        differences: Second model minus first, by name.
        landing_note: Why landing figures are missing, as a sentence; empty if none is.
    """

    model_config = ConfigDict(frozen=True)
    kind: Literal["comparison"] = "comparison"
    models: tuple[str, str]
    about: list[str]
    images: int
    figures: tuple[dict[str, Interval], dict[str, Interval]]
    differences: dict[str, Interval]
    landing_note: str = ""


def compare_evaluations(
    first: Evaluation, second: Evaluation, names: tuple[str, str], *, about: Sequence[str]
) -> ComparisonReport:
    """Compare two models by their evaluations on the same images.

    Args:
        first: Evaluation of the current model.
        second: Evaluation of the model that may replace it, on the same images in the same order.
        names: Names of the two models.
        about: Lines that describe the models and the data.
    """
    classes = first.classes
    matrices = [np.stack([image.matrix for image in evaluation.images]) for evaluation in (first, second)]
    return ComparisonReport(
        models=names,
        about=list(about),
        images=len(first.images),
        figures=(bootstrap_intervals(matrices[0], classes), bootstrap_intervals(matrices[1], classes)),
        differences=paired_differences(matrices[0], matrices[1], classes),
        landing_note=classes.landing_note,
    )


def write_comparison(report: ComparisonReport, out: Path, *, replace: bool) -> None:
    """Write report.json, report.md and a plot of the differences to a folder.

    Args:
        report: Comparison of two models.
        out: Folder of the report.
        replace: Whether to replace an older report.

    Raises:
        OutputExistsError: If the folder exists and may not be replaced.
        MissingDependencyError: If matplotlib is not installed.
    """
    plotted = {name: value for name, value in report.differences.items() if not name.startswith("dice/")}
    with atomic_directory(out, marker=REPORT_MARKER, replace=replace) as staging_dir:
        write_text(staging_dir / REPORT_MARKER, "")
        write_text(staging_dir / REPORT_NAME, json.dumps(report.model_dump(mode="json"), indent=2) + "\n")
        write_text(staging_dir / "report.md", _markdown(report))
        plot_intervals(
            {figure_title(name): interval for name, interval in plotted.items()},
            staging_dir / "differences.png",
            title=f"{report.models[1]} minus {report.models[0]}",
        )


def _markdown(report: ComparisonReport) -> str:
    first, second = report.models
    lines = [f"# {second} compared with {first}", "", f"{report.images} images, the same for both models.", ""]
    lines += [*(f"- {line}" for line in report.about), ""]
    if report.images < MIN_IMAGES:
        lines += [f"**Few images**: with fewer than {MIN_IMAGES} images the intervals are too narrow.", ""]
    lines += [f"| metric | {first} | {second} | difference | 95 % interval | |", "|---|---|---|---|---|---|"]
    for name, difference in report.differences.items():
        values = " | ".join(number(figures[name].value) for figures in report.figures)
        lines.append(
            f"| {escape(figure_title(name))} | {values} | {number(difference.value, signed=True)} | "
            f"{interval_text(difference)} | {significance_label(difference)} |"
        )
    lines += ["", report.landing_note] if report.landing_note else []
    return "\n".join([*lines, "", "![differences](differences.png)", "", _METHOD])


def promotion_blockers(report: ComparisonReport) -> list[str]:
    """Return the reasons why a candidate may not replace the champion; empty if it may.

    A candidate may replace the champion if its mIoU is higher with 95 % confidence and its unsafe landing rate is not
    higher, both measured on at least `MIN_IMAGES` images. Models without a landing role say nothing about landing and
    have no such rate, so only their mIoU counts.

    Args:
        report: Comparison of the champion (first) and the candidate (second).
    """
    reasons = []
    if report.images < MIN_IMAGES:
        reasons.append(f"{report.images} images are too few for a comparison; at least {MIN_IMAGES} are needed")
    miou = report.differences["miou"]
    if miou.low is None:
        reasons.append("the difference in mIoU has no confidence interval on these images")
    elif miou.low <= 0:
        kind = "lower" if miou.high is not None and miou.high < 0 else "not significantly higher"
        reasons.append(
            f"its mIoU is {kind}: {number(miou.value, signed=True)}, 95 % interval {interval_text(miou)}; "
            "the whole interval must be above 0"
        )
    unsafe = report.differences.get("unsafe_landing_rate")
    if unsafe is None:
        return reasons
    if report.landing_note:
        reasons.append(f"it may be less safe: {report.landing_note}")
    elif unsafe.value is None:
        reasons.append(
            "one of the two models predicts no landing zones, so their unsafe landing rates cannot be compared"
        )
    elif unsafe.value > 0:
        before, after = (number(figures["unsafe_landing_rate"].value) for figures in report.figures)
        reasons.append(f"its {figure_title('unsafe_landing_rate')} is higher: {after} instead of {before}")
    return reasons
