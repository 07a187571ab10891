"""Generate the reference page of the command line from the commands."""

import re

import mkdocs_gen_files
from typer.cli import app as typer_cli
from typer.testing import CliRunner

_COMMANDS = re.compile(r"^\*\*Commands\*\*:\n\n(?:\* .*\n)+", re.MULTILINE)
_HEADING = re.compile(r"^(##+) `(.+)`$", re.MULTILINE)


def reference() -> str:
    """Return Typer's documentation of every command in Markdown."""
    done = CliRunner().invoke(typer_cli, ["droneseg.cli.main", "utils", "docs", "--name", "droneseg"])
    if done.exit_code:
        raise RuntimeError(done.output)
    _, _, commands = done.output.partition("\n## ")
    # Typer cuts its lists of commands off in the middle of sentences; the table of contents replaces them
    text = _COMMANDS.sub("", f"## {commands}")
    return _HEADING.sub(lambda found: f"{found[1]} {found[2]}", text)


with mkdocs_gen_files.open("reference/cli.md", "w") as page:
    page.write(
        "# Command line\n\n"
        "All commands with their arguments and options. `droneseg COMMAND --help` prints the same.\n\n"
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
