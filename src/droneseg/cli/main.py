"""The `droneseg` command."""

import errno
import logging
import sys
import warnings
from typing import Annotated, NoReturn

import typer

from droneseg.cli import (
    benchmark,
    data,
    demo,
    doctor,
    drift,
    environment,
    evaluate,
    export,
    models,
    predict,
    serve,
    sweep,
    train,
)
from droneseg.core.errors import DronesegError, MissingDependencyError

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
app.command()(demo.demo)
app.command()(train.preprocess)
app.command(context_settings={"allow_extra_args": False})(train.train)
app.command()(sweep.sweep)
app.command()(export.export)
app.command()(predict.predict)
app.command()(evaluate.evaluate)
app.command()(benchmark.benchmark)
app.command()(serve.serve)
app.command()(drift.drift)
app.command()(doctor.doctor)


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
    settings = environment.settings()
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
        extra = environment.extra_of(error.name or "")
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
