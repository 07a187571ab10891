"""Class maps: names, colours and roles for the classes of a network, and networks whose classes are folded."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from droneseg.core.classes import BACKGROUND_ID, ClassTable
from droneseg.core.errors import ConfigurationError

NamePairs: TypeAlias = Sequence[tuple[str, str]]
"""Pairs of the name of a network's class and the name of the class it becomes."""


@dataclass(frozen=True)
class ClassMap:
    """How the classes of a network become those of a bundle.

    Attributes:
        source: Classes that the network predicts.
        target: Classes of the bundle.
        ids: Id of the class in `target` for each class in `source`, in the order of their ids.
    """

    source: ClassTable
    target: ClassTable
    ids: tuple[int, ...]

    @property
    def folds_classes(self) -> bool:
        """Whether any class changes its id."""
        return self.ids != tuple(range(len(self.source)))

    def lookup(self) -> NDArray[np.uint8]:
        """Return the id in `target` for each pixel value of a mask of `source`, shape (256,), dtype uint8.

        The ignore label of `source` becomes that of `target`, as do values that are no class.
        """
        table = np.full(256, self.target.ignore_label, np.uint8)
        table[: len(self.ids)] = self.ids
        return table


def name_classes(source: ClassTable, given: ClassTable, origin: str = "The class table") -> ClassMap:
    """Return the map from a network's classes to the same classes with other colours and roles.

    Args:
        source: Classes that the network predicts.
        given: The same names and ids, with the colours and roles of the bundle. The name of class 0 may differ, because
            nnU-Net requires `background`.
        origin: Where `given` is from, for the error.

    Raises:
        ConfigurationError: If names or ids differ; all differences are listed.
    """
    given_ids, source_ids = ({entry.name: entry.id for entry in table.foreground} for table in (given, source))
    problems = [f"{name} is missing; its id is {source_ids[name]}" for name in source_ids if name not in given_ids]
    problems += [f"{name} is not a class of the model" for name in given_ids if name not in source_ids]
    problems += [
        f"{name} has the id {given_ids[name]}; in the model it is {class_id}"
        for name, class_id in source_ids.items()
        if given_ids.get(name, class_id) != class_id
    ]
    if problems:
        raise _error(f"{origin} does not match the labels in the model's dataset.json:", problems)
    return ClassMap(source, given, tuple(range(len(source))))


def fold_classes(source: ClassTable, target: ClassTable, pairs: NamePairs) -> ClassMap:
    """Return the map from a network's classes to those of another table.

    A class that is in no pair keeps its name. Classes of `target` that no class becomes are left out, because the
    network cannot predict them; the ids of the others are the numbers from 0, in the order of `target`.

    Args:
        source: Classes that the network predicts.
        target: Table with the classes that they may become.
        pairs: Name in `source` and name in `target` of each class whose name changes, or that is folded into another.

    Raises:
        ConfigurationError: If a name is unknown, a class is mapped twice or not at all, the background becomes another
            class, or fewer than two classes are left; all problems are listed.
    """
    problems = _problems(source, target, pairs)
    if problems:
        raise _error("The classes of the model cannot be mapped:", problems)
    given = dict(pairs)
    names = [given.get(name, name) for name in source.names]
    left = [entry for entry in target if entry.name in names]
    table = ClassTable(tuple(replace(entry, id=number) for number, entry in enumerate(left)))
    return ClassMap(source, table, tuple(table.id_of(name) for name in names))


def _problems(source: ClassTable, target: ClassTable, pairs: NamePairs) -> list[str]:
    given, counts = dict(pairs), Counter(name for name, _ in pairs)
    background = source[BACKGROUND_ID].name
    problems = [
        f"{name} is not a class of the model; its classes are {', '.join(source.names)}"
        for name in counts
        if name not in source.names
    ]
    problems += [f"{name} is mapped {times} times" for name, times in counts.items() if times > 1]
    problems += [
        f"{name} is not a class to map to; choose from {', '.join(target.names)}"
        for name in dict.fromkeys(given.values())
        if name not in target.names
    ]
    problems += [
        f"{name} is not mapped, and there is no class of this name to keep; choose from {', '.join(target.names)}"
        for name in source.names
        if name not in given and name not in target.names
    ]
    becomes = given.get(background, background)
    if becomes in target.names and target.id_of(becomes) != BACKGROUND_ID:
        problems.append(f"{background} is the background; it can only become {target[BACKGROUND_ID].name}")
    left = {given.get(name, name) for name in source.names}
    if len(left) < 2:
        problems.append(f"only {', '.join(left)} is left; at least two classes are needed")
    return problems


def _error(title: str, problems: Sequence[str]) -> ConfigurationError:
    return ConfigurationError("\n".join([title, *(f"  - {problem}" for problem in problems)]))
