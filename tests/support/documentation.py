"""Readers of the built documentation, the README, and the commands and messages of the code."""

import ast
import importlib.util
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import markdown
import typer
from bs4 import BeautifulSoup, Tag
from invoke.collection import Collection

from droneseg.cli.main import app

ROOT = Path(__file__).parents[2]
_ASSIGNMENT = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*=")
_SEPARATORS = {"&&", "||", "|", ";", "&"}


@dataclass(frozen=True)
class Page:
    """Rendered page."""

    name: str
    content: Tag

    @property
    def blocks(self) -> list[str]:
        return [code.get_text() for code in self.content.select("pre code")]

    @property
    def inline(self) -> list[str]:
        return [code.get_text() for code in self.content.select("code") if not code.find_parent("pre")]

    @property
    def text(self) -> str:
        return self.content.get_text(" ")

    def tables(self) -> Iterator[list[list[Tag]]]:
        for table in self.content.select("table"):
            yield [list(row.select("td")) for row in table.select("tr") if row.select("td")]


def read_site(site: Path) -> dict[str, Page]:
    """Return the README and the pages of a built site except decisions, experiments and the API reference."""
    pages = {}
    for file in sorted(site.rglob("*.html")):
        name = str(file.relative_to(site)).removesuffix(".html")
        if name.startswith(("decisions/", "experiments", "404", "reference/api/")):
            continue
        article = BeautifulSoup(file.read_text(encoding="utf-8"), "html.parser").select_one("article")
        assert article is not None, name
        pages[name] = Page(name, article)
    readme = markdown.markdown((ROOT / "README.md").read_text(encoding="utf-8"), extensions=["fenced_code", "tables"])
    pages["README"] = Page("README", BeautifulSoup(readme, "html.parser"))
    return pages


@dataclass
class Command:
    """Command of `droneseg` or task of invoke: path and options."""

    path: tuple[str, ...]
    options: set[str] = field(default_factory=set)


def droneseg_commands() -> dict[tuple[str, ...], Command]:
    """Return all commands and groups of `droneseg` that are not hidden."""
    commands = {}

    def visit(command: object, path: tuple[str, ...]) -> None:
        options = {
            name
            for parameter in command.params
            for name in (*parameter.opts, *parameter.secondary_opts)
            if name.startswith("-")
        }  # type: ignore[attr-defined]  # Typer's own copy of click
        commands[path] = Command(path, options | {"--help", "-h"})
        for name, inner in getattr(command, "commands", {}).items():
            if not inner.hidden:
                visit(inner, (*path, name))

    visit(typer.main.get_command(app), ())
    return commands


def invoke_tasks() -> dict[str, Command]:
    """Return all invoke tasks by name."""
    spec = importlib.util.spec_from_file_location("tasks", ROOT / "tasks.py")
    assert spec is not None
    assert spec.loader is not None
    tasks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tasks)
    collection = Collection.from_module(tasks)
    return {
        name: Command((name,), {flag for option in collection[name].get_arguments() for flag in _flags(option.names)})
        for name in collection.task_names
    }


def _flags(names: tuple[str, ...]) -> list[str]:
    return [f"--{name.replace('_', '-')}" if len(name) > 1 else f"-{name}" for name in names]


def command_lines(page: Page) -> Iterator[list[str]]:
    """Yield the command lines of a page as lists of words, without variables and `uv run`."""
    for text in [*page.blocks, *page.inline]:
        for line in re.sub(r"\\\n\s*", " ", text).splitlines():
            try:
                lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;")
                lexer.whitespace_split, lexer.commenters = True, "#"
                words = list(lexer)
            except ValueError:
                continue  # not a shell command
            part: list[str] = []
            for word in [*words, "&&"]:
                if word not in _SEPARATORS:
                    part.append(word)
                    continue
                while part and (_ASSIGNMENT.match(part[0]) or part[0] in ("uv", "run", "$")):
                    part.pop(0)
                if part and part[0] in ("droneseg", "invoke"):
                    yield part
                part = []


def templates() -> list[str]:
    """Return all string literals of the source; NUL replaces the values in f-strings."""
    texts = []
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
                texts.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return texts
