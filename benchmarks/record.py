"""Runs benchmarks of the catalogue and keeps what they say, for docs/benchmarks.md.

    uv run python benchmarks/record.py [NAME...]        # all, if none is named

Nothing else should run meanwhile. Results are kept with the command, the day, the revision and the machine.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import yaml

from droneseg.core.files import write_text
from droneseg.core.system import describe_machine

FOLDER = Path(__file__).parent


def record(name: str, command: str) -> Path:
    """Run a command and write what it says to results/NAME.json; return that file."""
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary, "out.json")
        words = shlex.split(command.format(out=out))
        program = [sys.executable, *words[1:]] if words[0] == "python" else words
        done = subprocess.run(program, cwd=FOLDER.parent, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(out.read_text() if "{out}" in command else done.stdout)
    kept = {
        "command": command.format(out="FILE"),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "revision": subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=FOLDER, text=True).strip(),
        "machine": describe_machine(),
        "found": found,
    }
    file = FOLDER / "results" / f"{name}.json"
    write_text(file, json.dumps(kept, indent=1) + "\n")
    return file


def main() -> None:
    """Run those named, one after the other."""
    catalogue = yaml.safe_load((FOLDER / "catalogue.yaml").read_text())
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(catalogue))
    for name in parser.parse_args().names or catalogue:
        print(record(name, catalogue[name]["command"]), flush=True)


if __name__ == "__main__":
    main()
