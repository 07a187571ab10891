"""Settings, options, tables, progress bars and JSON output shared by all commands."""

from __future__ import annotations

import json
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from droneseg.core.errors import ConfigurationError, MissingDependencyError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from droneseg.core.class_files import MaskColours
    from droneseg.core.classes import ClassTable
    from droneseg.core.image_files import ImageFiles
    from droneseg.core.settings import Settings
    from droneseg.evaluation.landing_risk import Risk
    from droneseg.flows.profiles import ProfileOptions
    from droneseg.inference.batch import ViewOptions
    from droneseg.inference.landing import LandingOptions
    from droneseg.model.bundle import TrainingGround


class Part(StrEnum):
    """Part of a split."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"


Classes = Annotated[
    Path | None,
    typer.Option(
        "--classes",
        help="CSV file of your own classes (id, name, r, g, b, role); default: classes.csv of the dataset, else the "
        "default classes.",
    ),
]
Gsd = Annotated[
    float | None,
    typer.Option("--gsd", metavar="M", help="Metres per pixel of the images; default: read from each file."),
]
Height = Annotated[
    float | None,
    typer.Option(
        "--height", metavar="M", help="Height of the camera above ground in metres; default: read from each file."
    ),
]
Radius = Annotated[float | None, typer.Option("--radius", metavar="M", help="Radius of the sites, in metres.")]
RadiusPx = Annotated[
    float | None, typer.Option("--radius-px", metavar="N", help="Radius of the sites, in pixels of the photograph.")
]
Clearance = Annotated[
    float | None,
    typer.Option("--clearance", metavar="M", help="Distance from the rim of a site to everything unsafe, in metres."),
]
ClearancePx = Annotated[
    float | None,
    typer.Option(
        "--clearance-px",
        metavar="N",
        help="Distance from the rim of a site to everything unsafe, in pixels of the photograph.",
    ),
]
ClearancePeople = Annotated[
    float | None,
    typer.Option(
        "--clearance-people",
        metavar="M",
        help="Distance from the rim of a site to people and vehicles, in metres.",
    ),
]
ClearancePeoplePx = Annotated[
    float | None,
    typer.Option(
        "--clearance-people-px",
        metavar="N",
        help="Distance from the rim of a site to people and vehicles, in pixels of the photograph.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Write JSON to stdout.")]
Model = Annotated[Path | None, typer.Option("--model", help="Model bundle; default: $DRONESEG_MODEL.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Training configuration: preset=smoke|cpu|pretrained|multiscale|gpu, max_minutes=30, resume=true, ...; "
        "`droneseg train --show` lists all keys.",
        show_default=False,
    ),
]
Plain = Annotated[
    bool,
    typer.Option("--plain", help="Use the pixels as they are: no resampling, smaller views or exposure correction."),
]
Plot = Annotated[Path | None, typer.Option("--plot", help="Write a plot to this file (.png, .svg or .pdf).")]
Records = Annotated[
    str | None, typer.Option("--records", help="Folder or URL of the records; default: $DRONESEG_RECORDS_URL.")
]
SplitFile = Annotated[Path | None, typer.Option("--split", help="Use only one part of this split file.")]
TrainGsd = Annotated[
    float | None,
    typer.Option(
        "--train-gsd", metavar="M", help="Metres per pixel of the training images, to which images are resampled."
    ),
]
TrainGsdRange = Annotated[
    tuple[float, float] | None,
    typer.Option(
        "--train-gsd-range", metavar="LOW HIGH", help="Smallest and largest metres per pixel of the training images."
    ),
]
TrainGsdSource = Annotated[
    str | None, typer.Option("--train-gsd-source", help="How the metres per pixel were determined.")
]
ValPart = Annotated[Part | None, typer.Option("--part", help="Part of the split to use; default: val.")]

BestScales = Annotated[
    str | None,
    typer.Option(
        "--best-scales",
        metavar="1,S,...",
        help="Add the profile best: mirrored, and averaged over these scales, relative to the model's resolution.",
    ),
]
Twin = Annotated[
    Path | None,
    typer.Option("--twin", help="Add the profile twin: the network of this other bundle, with weights in float16."),
]

_PACKAGES = {"cv2": "opencv-python-headless", "sklearn": "scikit-learn", "yaml": "pyyaml"}
"""Names of packages that differ from the names of their modules."""


def settings() -> Settings:
    """Read the settings from the environment and `.env`."""
    from droneseg.core.settings import load_settings

    return load_settings()


def choose_part(split: Path | None, part: Part | None, *, default: Part) -> str:
    """Return the name of the part of a split to use.

    Raises:
        typer.BadParameter: If a part is given without a split file.
    """
    if part and not split:
        raise typer.BadParameter("--part requires --split FILE", param_hint="--part")
    return (part or default).value


def view_options(gsd: float | None, height: float | None, *, plain: bool) -> ViewOptions:
    """Return how images are presented to the model.

    Raises:
        typer.BadParameter: If --gsd and --height are both given, or a value is not above 0.
    """
    from droneseg.inference.batch import ViewOptions

    try:
        return ViewOptions(gsd_m=gsd, height_m=height, plain=plain)
    except ConfigurationError as error:
        raise typer.BadParameter(str(error), param_hint="--gsd" if gsd is not None else "--height") from error


def find_images(inputs: Sequence[str], model: Path | None) -> list[ImageFiles]:
    """Return the images of files, folders and glob patterns; `model` names the colours of files of one channel."""
    from droneseg.inference.batch import find_inputs
    from droneseg.model.bundle import read_channel_order

    return find_inputs(inputs, channel_order=read_channel_order(model or settings().model))


def mask_colours(file: Path | None) -> MaskColours | None:
    """Return the class table and the mask colours of a file; None without one."""
    from droneseg.core.class_files import read_classes

    return read_classes(file) if file else None


def class_table(file: Path | None) -> ClassTable:
    """Return the class table of a file; the default one without a file."""
    from droneseg.core.classes import DEFAULT_CLASSES

    colours = mask_colours(file)
    return colours.classes if colours else DEFAULT_CLASSES


def landing_options(**values: object) -> LandingOptions:
    """Return the requirements for landing sites.

    Raises:
        typer.BadParameter: If a value is invalid; the message names the options.
    """
    from pydantic import ValidationError

    from droneseg.inference.landing import LandingOptions

    try:
        return LandingOptions.model_validate(values)
    except ValidationError as error:
        problems = [
            f"--{str(item['loc'][0]).removesuffix('_m').replace('_', '-')}: {item['msg']}"
            if item["loc"]
            else item["msg"]
            for item in error.errors()
        ]
        raise typer.BadParameter("; ".join(problems)) from error


def training_ground(
    gsd: float | None, gsd_range: tuple[float, float] | None, source: str | None
) -> TrainingGround | None:
    """Return the ground resolution of training images; None without --train-gsd.

    Raises:
        typer.BadParameter: If only some of the three options are given, or the range does not contain the value.
    """
    from pydantic import ValidationError

    from droneseg.model.bundle import TrainingGround

    if gsd is None and gsd_range is None and source is None:
        return None
    if gsd is None or gsd_range is None or not source:
        raise typer.BadParameter(
            "requires --train-gsd-range and --train-gsd-source; pass all three", param_hint="--train-gsd"
        )
    try:
        return TrainingGround(gsd_m=gsd, gsd_range_m=gsd_range, source=source)
    except ValidationError as error:
        message = "; ".join(item["msg"] for item in error.errors())
        raise typer.BadParameter(message, param_hint="--train-gsd") from error


def profile_options(best_scales: str | None, twin: Path | None) -> ProfileOptions:
    """Return the profiles to add to a bundle; the bundle of the twin is read and verified.

    Raises:
        typer.BadParameter: If the scales are not different numbers from 0.25 to 4, one of them 1.
    """
    from pydantic import ValidationError

    from droneseg.flows.profiles import ProfileOptions
    from droneseg.model.bundle import Profile, read_bundle

    scales: tuple[float, ...] | None = None
    if best_scales is not None:
        try:
            scales = tuple(float(scale) for scale in best_scales.split(","))
            Profile(network="model.onnx", mirroring=True, precision="fastest", scales=scales)
        except (ValueError, ValidationError) as error:
            raise typer.BadParameter(
                f"{best_scales!r} is not a list of different numbers from 0.25 to 4, one of them 1, such as 1,1.5",
                param_hint="--best-scales",
            ) from error
    return ProfileOptions(scales, read_bundle(twin) if twin else None)


def check_plot_suffix(path: Path | None) -> None:
    """Check that matplotlib can write the file type of a plot.

    Raises:
        typer.BadParameter: If the suffix is not .png, .svg or .pdf.
    """
    if path and path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise typer.BadParameter(f"{path} must end with .png, .svg or .pdf", param_hint="--plot")


def require_nnunet() -> None:
    """Raise `MissingDependencyError` unless torch and nnU-Net are installed; does not import them."""
    from importlib.util import find_spec

    for package in ("torch", "nnunetv2"):
        if find_spec(package) is None:
            raise MissingDependencyError(package, "train")


def extra_of(module: str) -> str | None:
    """Return the extra of droneseg that installs a module; None if no extra does."""
    from importlib.metadata import requires

    name = module.partition(".")[0]
    package = _PACKAGES.get(name, name.replace("_", "-"))
    pattern = re.compile(rf"{package}\b(?!-).*extra == ['\"](\w+)['\"]", re.IGNORECASE)
    matches = (pattern.match(requirement) for requirement in requires("droneseg") or [])
    return next((match[1] for match in matches if match), None)


def exit_on_sigterm() -> None:
    """Treat SIGTERM like Ctrl-C, so that unfinished output is removed before the process exits."""
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))


@cache
def out() -> Console:
    """Return the console for stdout."""
    return _console(stderr=False)


@cache
def err() -> Console:
    """Return the console for stderr."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    from rich.console import Console  # not needed for `--help`

    return Console(stderr=stderr, soft_wrap=True, highlight=False)


def show_json(value: Any) -> None:
    """Write a value or a dataclass as JSON to stdout."""
    content = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    sys.stdout.write(json.dumps(content, indent=2, default=str) + "\n")


def command(*arguments: object) -> str:
    """Return a droneseg command, quoted for a shell."""
    return shlex.join(["droneseg", *map(str, arguments)])


def show_next(*arguments: object) -> None:
    """Print the droneseg command to run next."""
    out().print(f"next: {command(*arguments)}", markup=False)


def show_step(step: str) -> None:
    """Write the name of a step to stderr when the step begins."""
    err().print(f"{step} ...", markup=False)


def table(title: str, columns: list[str], rows: list[list[str]]) -> Table:
    """Return a table; all columns except the first are right-aligned. Brackets are text, not markup."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title, style="table.title"), title_justify="left")
    for index, column in enumerate(columns):
        justify: Literal["left", "right"] = "left" if index == 0 else "right"
        table.add_column(Text(column), justify=justify, no_wrap=index == 0, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def percent(value: float | None, decimals: int = 1) -> str:
    """Format a fraction as a percentage, or None as a dash."""
    return "-" if value is None else f"{value:.{decimals}%}"


def number(value: float | None) -> str:
    """Format a number with three decimals, or None as a dash."""
    return "-" if value is None else f"{value:.3f}"


@contextmanager
def spinner(message: str) -> Iterator[None]:
    """Show a spinner on a terminal while the block runs."""
    if not err().is_terminal:
        yield
        return
    with err().status(message):
        yield


@contextmanager
def progress_bar(step: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on a terminal, or a line per quarter elsewhere; yield a callback with (done, total)."""
    with progress_bars(step) as update:
        yield lambda done, total: update(step, done, total)


@contextmanager
def progress_bars(*steps: str) -> Iterator[Callable[[str, int, int], None]]:
    """Show one progress bar per step, like `progress_bar`; yield a callback with (step, done, total)."""
    if not err().is_terminal:
        updates = {step: _plain_progress(step) for step in steps}
        yield lambda step, done, total: updates[step](done, total)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err(), transient=True) as progress:
        tasks = {step: progress.add_task(step, total=None) for step in steps}
        yield lambda step, done, total: progress.update(tasks[step], completed=done, total=total)


@contextmanager
def step_progress() -> Iterator[tuple[Callable[[str], None], Callable[[int, int], None]]]:
    """Show the steps of long work like `show_step`, and the images done in the current step like `progress_bar`.

    Yields:
        A callback with the name of a step when it begins, and one with the images done in it and their number.
    """
    if not err().is_terminal:
        lines = [_plain_progress("images")]

        def begin_plain(step: str) -> None:
            show_step(step)
            lines[0] = _plain_progress("images")

        yield begin_plain, lambda done, total: lines[0](done, total)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err(), transient=True) as progress:
        task = progress.add_task("images", total=None, visible=False)

        def begin(step: str) -> None:
            show_step(step)
            progress.reset(task, visible=False)

        yield begin, lambda done, total: progress.update(task, completed=done, total=total, visible=True)


def _plain_progress(step: str) -> Callable[[int, int], None]:
    shown = 0

    def update(done: int, total: int) -> None:
        nonlocal shown
        quarter = 4 * done // total if total else 4
        if quarter > shown:
            shown = quarter
            err().print(f"{step}: {done} of {total}")

    return update


def failures(risk: Risk | None) -> str:
    """Return a number of failures with the bound on their rate, for example "1 of 92 (up to 5.1%)"; "-" for None."""
    return "-" if risk is None else f"{risk.failures} of {risk.number} (up to {percent(risk.bound)})"
