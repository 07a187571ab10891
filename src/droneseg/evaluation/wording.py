"""Figures and intervals in words, the same in every report."""

import numpy as np

from droneseg.core.metrics import background_share
from droneseg.evaluation.bootstrap import Interval

_MUCH_BACKGROUND = 0.01

REPORT_NAME = "report.json"
REPORT_MARKER = ".droneseg-report"
"""What tells a folder that may be replaced from somebody else's with a report.json in it."""
TITLES = {
    "miou": "mIoU",
    "image_wise_miou": "image-wise mIoU",
    "pixel_accuracy": "pixel accuracy",
    "unsafe_landing_rate": "unsafe landing rate",
    "landing_recall": "landing recall",
    "boundary_error_px": "boundary error (pixels)",
}


def figure_title(name: str) -> str:
    """Return a figure's name as people read it."""
    kind, _, of = name.partition("/")
    return f"{ {'iou': 'IoU', 'dice': 'Dice'}[kind] } {of}" if of else TITLES.get(name, name)


def number(value: float | None, *, signed: bool = False) -> str:
    """Return a figure with three decimals, a dash for none."""
    return "-" if value is None else f"{value:+.3f}" if signed else f"{value:.3f}"


def interval_text(interval: Interval) -> str:
    """Return the ends of an interval, a dash if it has none."""
    if interval.low is None or interval.high is None:
        return "-"
    return f"{interval.low:.3f} to {interval.high:.3f}"


def verdict(difference: Interval) -> str:
    """Say whether a difference is more than chance."""
    if difference.low is None or difference.high is None:
        return "unknown"
    return "higher" if difference.low > 0 else "lower" if difference.high < 0 else "chance?"


def background_note(confusion: list[list[int]]) -> str:
    """Say what it means that much of the truth is of no class; empty if little is."""
    share = float(background_share(np.array(confusion)))
    if not share >= _MUCH_BACKGROUND:
        return ""
    return (
        f"{share:.1%} of the true pixels are background: what is predicted there counts as wrong for IoU, and as not "
        "unsafe for landing, so mIoU is too low and the unsafe landing rate flatters."
    )
