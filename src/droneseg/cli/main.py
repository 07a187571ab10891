"""Entry point of the command line, error handling, and the `doctor` and `serve` commands."""

import errno
import logging
import platform
import shutil
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from droneseg.cli import benchmark, console, data, models, predict, train
from droneseg.core.errors import DronesegError, MissingDependencyError

if TYPE_CHECKING:
    from droneseg.core.settings import Settings

_EXTRAS = {
    "": ("numpy", "pillow", "openvino", "onnxruntime"),
    "train": ("torch", "nnunetv2", "hydra-core", "wandb", "kaggle"),
    "store": ("dvc",),
    "serve": ("fastapi",),
    "bento": ("bentoml",),
    "drift": ("evidently",),
}


def doctor(json: Annotated[bool, typer.Option("--json", help="Write JSON to stdout.")] = False) -> None:
    """Show what is installed, what is where, and what is missing."""
    from droneseg.core.system import usable_cores

    settings = console.settings()
    findings = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": str(usable_cores()),
        **_packages(),
        **_devices(),
        **_folders(settings),
    }
    if json:
        console.show_json(findings)
        return
    width = max(map(len, findings))
    for name, finding in findings.items():
        console.out().print(f"{name:<{width}}  {finding}", markup=False)


def _packages() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for extra, packages in _EXTRAS.items():
        for package in packages:
            try:
                found[package] = version(package)
            except PackageNotFoundError:
                found[package] = f"not installed; uv sync --extra {extra}" if extra else "not installed"
    return found


def _devices() -> dict[str, str]:
    from importlib.util import find_spec

    if find_spec("torch") is None:
        return {"training device": "none: torch is not installed"}
    from droneseg.nnunet.paths import choose_device, cpu_has_bf16

    return {
        "training device": choose_device("auto").type,
        "bfloat16 on the CPU": "in hardware" if cpu_has_bf16() else "not in hardware; float32 is used",
    }


def _folders(settings: "Settings") -> dict[str, str]:
    from droneseg.nnunet.paths import NnunetPaths, trained_folders

    layout = NnunetPaths.from_settings(settings)
    free_gb = shutil.disk_usage(Path.cwd()).free / 1e9
    return {
        "nnUNet_raw": _state(layout.raw_dataset, "run `droneseg data convert`"),
        "nnUNet_preprocessed": _state(layout.plans_file, "run `droneseg preprocess`"),
        "nnUNet_results": f"{len(trained_folders(layout.results))} trained model(s) in {layout.results}",
        "DRONESEG_MODEL": _state(settings.model, "name a model with --model"),
        "free disk": f"{free_gb:.0f} GB",
    }


def _state(path: Path, remedy: str) -> str:
    return str(path) if path.exists() else f"{path} is not there; {remedy}"


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; default: $DRONESEG_HOST.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; default: $DRONESEG_PORT.", min=0, max=65535)] = None,
) -> None:
    """Serve predictions over HTTP, with a page at /ui.

    SIGTERM ends it: what was admitted is finished first.
    """
    for package in ("fastapi", "uvicorn", "python_multipart", "prometheus_client"):
        if find_spec(package) is None:
            raise MissingDependencyError(package, "serve")
    from droneseg.core.logs import configure_logging
    from droneseg.serving.app import create_app
    from droneseg.serving.server import run

    settings = console.settings()
    configure_logging(settings.log_level, settings.log_format, also=("uvicorn",))
    app = create_app(settings)
    run(app, app.state.service, host=host or settings.host, port=settings.port if port is None else port)


app = typer.Typer(
    name="droneseg",
    help="Drone photographs with colour masks in, a trained nnU-Net and what-is-where masks out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: importing rich takes longer than everything else of `--help`
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data.app, name="data")
app.add_typer(models.app, name="models")
app.command()(train.demo)
app.command()(train.preprocess)
app.command(context_settings={"allow_extra_args": False})(train.train)
app.command()(train.sweep)
app.command()(predict.export)
app.command()(predict.predict)
app.command()(predict.evaluate)
app.command()(benchmark.benchmark)
app.command()(serve)
app.command()(predict.drift)
app.command()(doctor)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"droneseg {version('droneseg')}")
        raise typer.Exit


@app.callback()
def start(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Configure logging before any command runs."""
    from droneseg.core.logs import configure_logging
    from droneseg.core.settings import warn_of_misspelt

    # torch warns of its own future while it is imported; nobody who runs a command can act on that
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
    settings = console.settings()
    configure_logging(settings.log_level, settings.log_format)
    warn_of_misspelt()


def main() -> None:
    """Run the command line: expected errors become one message on stderr and exit code 1."""
    try:
        app(prog_name="droneseg")
    except DronesegError as error:
        _fail(str(error), None)
    except OSError as error:
        # the disk is full, a folder is read-only, a name is taken: a traceback is for those who ask for it
        where = f"{error.filename}: " if error.filename else ""
        advice = ". Make room, and run it again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        _fail(f"{where}{error.strerror or error}{advice}", error)
    except ModuleNotFoundError as error:
        extra = console.extra_of(error.name or "")
        if not extra:
            raise
        _fail(str(MissingDependencyError(error.name or "", extra)), error)


def _fail(message: str, error: Exception | None) -> NoReturn:
    """Say what went wrong, as a person or as a program reads it, and end."""
    from droneseg.core.logs import logs_json

    logger = logging.getLogger("droneseg")
    if error:
        logger.debug("what led to the error", exc_info=error)
    if logs_json():
        logger.error(message)
    else:
        sys.stderr.write(f"error: {message}\n")
    raise SystemExit(1) from None
