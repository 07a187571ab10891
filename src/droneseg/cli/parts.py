"""The parts of a split, as options name them."""

from enum import StrEnum


class Part(StrEnum):
    """Part of a split."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"
