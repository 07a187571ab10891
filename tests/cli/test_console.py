"""Progress of commands that have several steps, and tables."""

import io

import pytest
from rich.console import Console

from droneseg.cli import console


@pytest.mark.parametrize("terminal", [True, False])
def test_each_step_shows_its_name_and_its_images(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    shown = Console(file=io.StringIO(), force_terminal=terminal, width=100, highlight=False)
    monkeypatch.setattr(console, "err", lambda: shown)
    with console.step_progress() as (begin, update):
        for step in ("measuring", "calibrating"):
            begin(step)
            for done in range(5):
                update(done, 4)
    written = shown.file.getvalue()  # type: ignore[attr-defined]  # a StringIO
    assert written.index("measuring ...") < written.index("calibrating ...")
    if not terminal:
        lines = [f"images: {done} of 4" for done in (1, 2, 3, 4)]
        assert written.splitlines() == ["measuring ...", *lines, "calibrating ...", *lines]


def test_brackets_in_tables_are_text() -> None:
    shown = Console(file=io.StringIO(), width=100)
    shown.print(console.table("masks [old]", ["class", "[share]"], [["roof [flat]", "[red]"], ["[/]", "1"]]))
    written = shown.file.getvalue()  # type: ignore[attr-defined]  # a StringIO
    assert all(text in written for text in ("masks [old]", "[share]", "roof [flat]", "[red]", "[/]"))
