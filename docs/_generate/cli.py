"""The command line's reference, from the commands themselves."""

import re

import mkdocs_gen_files
from typer.cli import app as typer_cli
from typer.testing import CliRunner

_COMMANDS = re.compile(r"^\*\*Commands\*\*:\n\n(?:\* .*\n)+", re.MULTILINE)
_HEADING = re.compile(r"^(##+) `(.+)`$", re.MULTILINE)


def reference() -> str:
    """Return what Typer says of every command, in Markdown."""
    done = CliRunner().invoke(typer_cli, ["droneseg.cli.main", "utils", "docs", "--name", "droneseg"])
    if done.exit_code:
        raise RuntimeError(done.output)
    _, _, commands = done.output.partition("\n## ")
    # its lists of commands are cut off in the middle of sentences; the table of contents says the same
    text = _COMMANDS.sub("", f"## {commands}")
    return _HEADING.sub(lambda found: f"{found[1]} {found[2]}", text)


with mkdocs_gen_files.open("reference/cli.md", "w") as page:
    page.write(
        "# Command line\n\n"
        "Every command has `--help`, which says the same. Exit codes: 0 done; 1 an expected error, or some inputs "
        "failed; 2 wrong usage; 130 ended by Ctrl-C, 143 by SIGTERM.\n\n"
        "`droneseg --version` shows the version; `droneseg --install-completion` teaches your shell the commands.\n\n"
    )
    page.write(reference())
