"""Run benchmarks of catalogue.yaml and store their results for docs/benchmarks.md.

    uv run python benchmarks/record.py [NAME...]        # all by default

Run nothing else at the same time. Each result is stored with its command, date, git revision and machine.
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
    """Run a benchmark and write its result to results/NAME.json; return that file."""
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary, "out.json")
        words = shlex.split(command.format(out=out))
        program = [sys.executable, *words[1:]] if words[0] == "python" else words
        done = subprocess.run(program, cwd=FOLDER.parent, stdout=subprocess.PIPE, text=True, check=True)
        result = json.loads(out.read_text() if "{out}" in command else done.stdout)
    content = {
        "command": command.format(out="FILE"),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "revision": subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=FOLDER, text=True).strip(),
        "machine": describe_machine(),
        "found": result,
    }
    file = FOLDER / "results" / f"{name}.json"
    write_text(file, json.dumps(content, indent=1) + "\n")
    return file


def main() -> None:
    """Run the named benchmarks, or all, one after the other."""
    catalogue = yaml.safe_load((FOLDER / "catalogue.yaml").read_text())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(catalogue))
    for name in parser.parse_args().names or catalogue:
        print(record(name, catalogue[name]["command"]), flush=True)


if __name__ == "__main__":
    main()
