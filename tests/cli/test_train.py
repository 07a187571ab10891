"""Progress bar of `droneseg train` on a terminal."""

import io
import logging

import pytest
from rich.console import Console
from typer.testing import CliRunner

from droneseg.cli import console
from droneseg.cli.main import app
from droneseg.cli.train import _name_pairs, _step_bar
from droneseg.core import logs
from droneseg.nnunet.callbacks import step_logger

BAR = {"epoch": 1, "epochs": 2, "step": 3, "steps": 60, "remaining_s": 720.0}


@pytest.mark.parametrize("terminal", [True, False])
def test_bar_replaces_the_lines_within_an_epoch_on_a_terminal(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    stream = io.StringIO()
    shown = Console(file=stream, force_terminal=terminal, width=100)
    monkeypatch.setattr(console, "err", lambda: shown)
    logger = logging.getLogger(logs.ROOT)
    for name in ("handlers", "level", "propagate"):
        monkeypatch.setattr(logger, name, getattr(logger, name))
    monkeypatch.setattr("sys.stderr", stream)
    logs.configure_logging()
    before = logger.handlers[0].stream  # type: ignore[attr-defined]  # a stream handler
    with _step_bar():
        step_logger.info("", extra={"bar": BAR})
        logger.info("epoch 1/2  step 3/60", extra={"bar": BAR})
        logger.info("finished an epoch")
    written = stream.getvalue()
    assert "finished an epoch" in written
    assert ("about 12 min left" in written) == terminal
    assert ("step 3/60" in written) == (not terminal)
    assert logger.handlers[0].stream is before  # type: ignore[attr-defined]  # a stream handler
    assert not logger.handlers[0].filters
    assert not step_logger.handlers


def test_map_takes_pairs_of_names_in_one_or_several_options() -> None:
    assert _name_pairs([" road = landing-zones,car=moving-objects", "roof=obstacles"]) == [
        ("road", "landing-zones"),
        ("car", "moving-objects"),
        ("roof", "obstacles"),
    ]
    assert _name_pairs([]) == []


@pytest.mark.parametrize("value", ["road", "road=", "=car", "a=b=c", ""])
def test_map_refuses_other_forms(value: str) -> None:
    done = CliRunner().invoke(app, ["export", "--map", f"car=water,{value}"], terminal_width=200)
    assert done.exit_code == 2
    assert f"{value!r} is not of the form FROM=TO" in done.output
