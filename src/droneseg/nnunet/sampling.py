"""Which photographs a training draws more often."""

from collections import Counter
from collections.abc import Mapping, Set

_MOST_REPEATS = 4


def repeat_rare(classes: Mapping[str, Set[int]]) -> list[str]:
    """Repeat the photographs that have a class few others have.

    A photograph stands in the result as often as its rarest class is missing elsewhere: once if every photograph has
    that class, three times if every third has it, at most four times.

    Args:
        classes: Ids of the classes that occur, by photograph.

    Returns:
        Names of photographs, to be drawn from evenly.
    """
    occurs = Counter(found for ids in classes.values() for found in ids)
    repeats = {
        name: min(_MOST_REPEATS, max((round(len(classes) / occurs[found]) for found in ids), default=1))
        for name, ids in classes.items()
    }
    return [name for name, count in repeats.items() for _ in range(count)]
