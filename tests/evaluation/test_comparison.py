"""When a candidate may replace the champion, by the roles of the classes."""

from dataclasses import replace

import numpy as np
import pytest

from droneseg.core.classes import DEFAULT_CLASSES, UNSAFE_ROLES, ClassTable, Role
from droneseg.evaluation.bootstrap import bootstrap_intervals, paired_differences
from droneseg.evaluation.comparison import ComparisonReport, promotion_blockers

NO_ROLES = ClassTable(tuple(replace(entry, role=None) for entry in DEFAULT_CLASSES))
ONLY_LANDING = ClassTable(
    tuple(replace(entry, role=None if entry.role in UNSAFE_ROLES else entry.role) for entry in DEFAULT_CLASSES)
)


def compared(classes: ClassTable) -> ComparisonReport:
    """Return the comparison of a model with a better one, on 30 images."""
    better = np.tile(np.diag([0, 10, 10, 10, 10, 10]), (30, 1, 1))
    worse = better.copy()
    worse[:, 1, 1], worse[:, 1, 5] = 6, 4
    return ComparisonReport(
        models=("old", "new"),
        about=[],
        images=30,
        figures=(bootstrap_intervals(worse, classes), bootstrap_intervals(better, classes)),
        differences=paired_differences(worse, better, classes),
        landing_note=classes.landing_note,
    )


@pytest.mark.parametrize("classes", [DEFAULT_CLASSES, NO_ROLES], ids=["all roles", "no roles"])
def test_a_better_model_is_promoted_with_and_without_a_landing_role(classes: ClassTable) -> None:
    report = compared(classes)
    assert ("unsafe_landing_rate" in report.differences) == classes.has(Role.LANDING)
    assert promotion_blockers(report) == []


def test_a_model_whose_unsafe_classes_are_not_known_is_not_promoted() -> None:
    (reason,) = promotion_blockers(compared(ONLY_LANDING))
    assert reason == (
        "it may be less safe: No class has the role obstacle, water or moving, so the unsafe landing rate is not known."
    )
