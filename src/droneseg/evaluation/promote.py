"""Whether a candidate may become the champion: better for sure, and not less safe."""

from collections.abc import Mapping
from typing import Any

from droneseg.evaluation.bootstrap import FEW_IMAGES, Interval
from droneseg.evaluation.wording import figure_title, interval_text, number


def reasons_against(found: Mapping[str, Any]) -> list[str]:
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
