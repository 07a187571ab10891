"""Generate the reference page of the command line from the commands."""

import re
from collections.abc import Iterator

import mkdocs_gen_files
import typer
from typer.cli import app as typer_cli
from typer.testing import CliRunner

from droneseg.cli.main import app

_COMMANDS = re.compile(r"^\*\*Commands\*\*:\n\n(?:\* .*\n)+", re.MULTILINE)
_HEADING = re.compile(r"^(##+) `(.+)`$", re.MULTILINE)


def hidden_commands() -> Iterator[str]:
    """Yield the commands that are not documented, such as earlier names."""
    groups = [("droneseg", typer.main.get_command(app))]
    for path, group in groups:
        for name, command in getattr(group, "commands", {}).items():
            if command.hidden:
                yield f"{path} {name}"
            groups.append((f"{path} {name}", command))


def reference() -> str:
    """Return Typer's documentation of every command in Markdown."""
    done = CliRunner().invoke(typer_cli, ["droneseg.cli.main", "utils", "docs", "--name", "droneseg"])
    if done.exit_code:
        raise RuntimeError(done.output)
    _, _, commands = done.output.partition("\n## ")
    # Typer cuts its lists of commands off in the middle of sentences; the table of contents replaces them
    text = _COMMANDS.sub("", f"## {commands}")
    for name in hidden_commands():
        text = re.sub(rf"^##+ `{name}`\n.*?(?=^##|\Z)", "", text, flags=re.MULTILINE | re.DOTALL)
    return _HEADING.sub(lambda heading: f"{heading[1]} {heading[2]}", text)


with mkdocs_gen_files.open("reference/cli.md", "w") as page:
    page.write(
        "# Command line\n\n"
        "All commands with their arguments and options. `--help` after a command prints the same.\n\n"
        "- `droneseg --version` prints the version.\n"
        "- `droneseg --install-completion` installs completion for your shell.\n\n"
        "| exit code | meaning |\n|---|---|\n"
        "| 0 | success |\n"
        "| 1 | expected error, or some inputs failed |\n"
        "| 2 | wrong usage |\n"
        "| 130 | interrupted by Ctrl-C |\n"
        "| 143 | terminated by SIGTERM |\n\n"
    )
    page.write(reference())
