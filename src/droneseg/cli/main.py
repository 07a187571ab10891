"""Entry point of the command line, error handling, and the `doctor` and `serve` commands."""

from __future__ import annotations

import errno
import logging
import platform
import shlex
import shutil
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from typer.core import TyperGroup

from droneseg.cli import benchmark, console, data, land, models, predict, reports, train
from droneseg.cli.console import Json
from droneseg.core.errors import DronesegError, MissingDependencyError

if TYPE_CHECKING:
    from typer._click import Context, HelpFormatter

    from droneseg.core.settings import Settings

_EXTRAS = {
    "": ("numpy", "pillow", "openvino", "onnxruntime"),
    "train": ("torch", "nnunetv2", "hydra-core", "wandb", "kaggle"),
    "store": ("dvc",),
    "serve": ("fastapi",),
    "bento": ("bentoml",),
    "drift": ("evidently",),
}

_SECTIONS = {
    "Start": ("demo", "doctor"),
    "Data and training": ("data", "preprocess", "train", "sweep", "export"),
    "Models and predictions": ("models", "predict", "land", "probabilities", "label", "evaluate", "benchmark"),
    "Service": ("serve", "drift"),
}


class SectionedGroup(TyperGroup):
    """Command group whose help lists the commands in sections.

    Typer's own sections (`rich_help_panel`) need rich.
    """

    def format_commands(self, ctx: Context, formatter: HelpFormatter) -> None:  # noqa: ARG002  # Typer's signature
        """Write the names and the short help of all commands."""
        width = max(map(len, self.commands))
        for section, names in _SECTIONS.items():
            with formatter.section(section):
                formatter.write_dl(
                    [
                        (name.ljust(width), self.commands[name].get_short_help_str(formatter.width - width - 6))
                        for name in names
                    ]
                )

    def list_commands(self, ctx: Context) -> list[str]:  # noqa: ARG002  # Typer's signature
        """Return the names of all commands in the order of the sections."""
        return [name for names in _SECTIONS.values() for name in names]


app = typer.Typer(
    name="droneseg",
    cls=SectionedGroup,
    help="Train nnU-Net on drone photographs and serve the model: semantic segmentation for safe landing.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: importing rich would take longer than the rest of `--help`
    context_settings={"help_option_names": ["-h", "--help"]},
)


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

    # when imported, torch warns about its own future changes, on which users of a command cannot act
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
    settings = console.settings()
    configure_logging(settings.log_level, settings.log_format)
    warn_of_misspelt()


@app.command()
def doctor(json: Json = False) -> None:
    """Show packages, devices and folders, and check the model."""
    from droneseg.core.system import usable_cores

    settings = console.settings()
    findings = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": str(usable_cores()),
        **_packages(),
        **_devices(),
        **_folders(settings),
        **_model(settings),
    }
    if json:
        console.show_json(findings)
        return
    width = max(map(len, findings))
    for name, finding in findings.items():
        console.out().print(f"{name:<{width}}  {finding}", markup=False)


def _packages() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for extra, packages in _EXTRAS.items():
        for package in packages:
            try:
                versions[package] = version(package)
            except PackageNotFoundError:
                versions[package] = f"not installed; run `uv sync --extra {extra}`" if extra else "not installed"
    return versions


def _devices() -> dict[str, str]:
    if find_spec("torch") is None:
        return {"training device": "none: torch is not installed"}
    from droneseg.nnunet.paths import choose_device, cpu_has_bf16

    return {
        "training device": choose_device("auto").type,
        "bfloat16 on the CPU": "supported" if cpu_has_bf16() else "not supported; float32 is used",
    }


def _folders(settings: Settings) -> dict[str, str]:
    from droneseg.nnunet.paths import NnunetPaths, finds_our_trainer, trained_folders, trainer_path

    paths = NnunetPaths.from_settings(settings)
    export = f"export nnUNet_extTrainer={shlex.quote(trainer_path())}"
    free_gb = shutil.disk_usage(Path.cwd()).free / 1e9
    return {
        "nnUNet_raw": _datasets(paths.raw, "run `droneseg data convert`"),
        "nnUNet_preprocessed": _datasets(paths.preprocessed, "run `droneseg preprocess`"),
        "nnUNet_results": f"{len(trained_folders(paths.results))} trained model(s) in {paths.results}",
        "nnUNet_extTrainer": (
            "set; nnU-Net's own commands find DroneSegTrainer"
            if finds_our_trainer()
            else f"without DroneSegTrainer; for nnU-Net's own commands, run `{export}`"
        ),
        "DRONESEG_MODEL": _path_or_remedy(settings.model, "choose a model with --model"),
        "free disk": f"{free_gb:.0f} GB",
    }


def _model(settings: Settings) -> dict[str, str]:
    """Load the model, and return its runtime, the blocks of its manifest and the result of its self-check."""
    from droneseg.inference.segmenter import load_segmenter
    from droneseg.model.bundle import read_bundle

    if not settings.model.exists():
        return {}
    try:
        segmenter = load_segmenter(settings)
    except DronesegError as error:
        return {"model": f"cannot be used: {error}"}
    return {
        "model": f"{segmenter.model_id}, profile {segmenter.profile}, {segmenter.runtime}",
        **models.describe_blocks(read_bundle(settings.model).manifest),
        "self-check": segmenter.info.self_check,
    }


def _datasets(folder: Path, remedy: str) -> str:
    """Return the datasets in one of nnU-Net's folders, or what to do if there are none."""
    names = sorted(file.parent.name for file in folder.glob("Dataset*/dataset.json"))
    return f"{', '.join(names)} in {folder}" if names else f"no dataset in {folder}; {remedy}"


def _path_or_remedy(path: Path, remedy: str) -> str:
    return str(path) if path.exists() else f"{path} does not exist; {remedy}"


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; default: $DRONESEG_HOST.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port to listen on; default: $DRONESEG_PORT.")
    ] = None,
) -> None:
    """Serve the model over HTTP, with a web page at /ui.

    On SIGTERM, the service finishes the requests it has accepted and exits.
    """
    for package in ("fastapi", "uvicorn", "python_multipart", "prometheus_client"):
        if find_spec(package) is None:
            raise MissingDependencyError(package, "serve")
    from droneseg.core.logs import configure_logging
    from droneseg.serving.app import create_app
    from droneseg.serving.server import run

    settings = console.settings()
    configure_logging(settings.log_level, settings.log_format, also=("uvicorn",))
    service = create_app(settings)
    run(service, service.state.service, host=host or settings.host, port=settings.port if port is None else port)


app.command()(train.demo)
app.add_typer(data.app, name="data")
app.command()(train.preprocess)
app.command()(train.train)
app.command()(train.sweep)
app.command()(train.export)
app.add_typer(models.app, name="models")
app.command()(predict.predict)
app.command()(land.land)
app.command()(predict.probabilities)
app.command()(predict.label)
app.command()(reports.evaluate)
app.command()(benchmark.benchmark)
app.command()(reports.drift)


def main() -> None:
    """Run the command line; an expected error is shown as a message on stderr, with exit code 1."""
    try:
        app(prog_name="droneseg")
    except DronesegError as error:
        _fail(str(error), None)
    except OSError as error:
        # for example a full disk or a read-only folder; users need no traceback
        path = f"{error.filename}: " if error.filename else ""
        remedy = (
            ". Free some disk space and run the command again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        )
        _fail(f"{path}{error.strerror or error}{remedy}", error)
    except ModuleNotFoundError as error:
        extra = console.extra_of(error.name or "")
        if not extra:
            raise
        _fail(str(MissingDependencyError(error.name or "", extra)), error)


def _fail(message: str, error: Exception | None) -> NoReturn:
    """Write an error message to stderr, as text or as a JSON log entry, and exit with code 1."""
    from droneseg.core.logs import logs_json

    logger = logging.getLogger("droneseg")
    if error:
        logger.debug("cause of the error", exc_info=error)
    if logs_json():
        logger.error(message)
    else:
        sys.stderr.write(f"error: {message}\n")
    raise SystemExit(1) from None
