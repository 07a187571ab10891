"""Settings access, shared options, tables, progress bars, JSON output."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from droneseg.core.settings import Settings


def settings() -> "Settings":
    """Read the settings from the environment and `.env`."""
    from droneseg.core.settings import load_settings

    return load_settings()


def require_nnunet() -> None:
    """Raise `MissingDependencyError` unless torch and nnU-Net are installed; does not import them."""
    from importlib.util import find_spec

    from droneseg.core.errors import MissingDependencyError

    for package in ("torch", "nnunetv2"):
        if find_spec(package) is None:
            raise MissingDependencyError(package, "train")


_PACKAGES = {"cv2": "opencv-python-headless", "sklearn": "scikit-learn", "yaml": "pyyaml"}


def extra_of(module: str) -> str | None:
    """Return the extra of droneseg that brings a module, None if none does: it is part of all, or not ours to bring."""
    from importlib.metadata import requires

    name = module.partition(".")[0]
    package = _PACKAGES.get(name, name.replace("_", "-"))
    found = re.compile(rf"{package}\b(?!-).*extra == ['\"](\w+)['\"]", re.IGNORECASE)
    return next((match[1] for stated in requires("droneseg") or [] if (match := found.match(stated))), None)


class Part(StrEnum):
    """Part of a split."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"


@cache
def out() -> "Console":
    """Return the console of stdout."""
    return _console(stderr=False)


@cache
def err() -> "Console":
    """Return the console of stderr."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> "Console":
    from rich.console import Console  # `--help` has no use for it

    return Console(stderr=stderr, soft_wrap=True, highlight=False)


def show_json(value: Any) -> None:
    """Write a value or a dataclass as JSON to stdout."""
    content = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    sys.stdout.write(json.dumps(content, indent=2, default=str) + "\n")


def table(title: str, columns: list[str], rows: list[list[str]]) -> "Table":
    """Build a table; all columns but the first are aligned to the right."""
    from rich.table import Table

    built = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        built.add_column(column, justify="left" if index == 0 else "right", no_wrap=index == 0, overflow="fold")
    for row in rows:
        built.add_row(*row)
    return built


def percent(value: float | None, decimals: int = 1) -> str:
    """Return a share as a percentage, a dash for none."""
    return "-" if value is None else f"{value:.{decimals}%}"


def figure(value: float | None) -> str:
    """Return a figure with three decimals, a dash for none."""
    return "-" if value is None else f"{value:.3f}"


def require_plot_suffix(path: Path | None) -> None:
    """Refuse a file for a plot that matplotlib could not write.

    Raises:
        typer.BadParameter: If the suffix is another.
    """
    if path and path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise typer.BadParameter(f"{path} must end with .png, .svg or .pdf", param_hint="--plot")


@contextmanager
def working(what: str) -> Iterator[None]:
    """Show on a terminal that something of unknown length is going on."""
    if not err().is_terminal:
        yield
        return
    with err().status(what):
        yield


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on a terminal, a line per quarter elsewhere; yields a function that takes (done, total)."""
    with progress_of(what) as update:
        yield lambda done, total: update(what, done, total)


@contextmanager
def progress_of(*steps: str) -> Iterator[Callable[[str, int, int], None]]:
    """Show one bar per step, as `progress` does; yields a function that takes (step, done, total)."""
    if not err().is_terminal:
        plain = {step: _plain_progress(step) for step in steps}
        yield lambda step, done, total: plain[step](done, total)
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err(), transient=True) as bar:
        tasks = {step: bar.add_task(step, total=None) for step in steps}
        yield lambda step, done, total: bar.update(tasks[step], completed=done, total=total)


def _plain_progress(what: str) -> Callable[[int, int], None]:
    shown = 0

    def update(done: int, total: int) -> None:
        nonlocal shown
        quarter = 4 * done // total if total else 4
        if quarter > shown:
            shown = quarter
            err().print(f"{what}: {done} of {total}")

    return update
