"""Sum the durations of tests by file, from logs of pytest.

    uv run pytest --cov -n 2 --dist loadfile --durations=0 -vv > after.log
    uv run python benchmarks/durations.py [before.log] after.log [--count 25]

Durations include set-up and tear-down and are sums over all processes. A file in one log only was renamed, or new.
"""

import argparse
import re
from collections import Counter
from pathlib import Path

_DURATION = re.compile(r"^ *([0-9.]+)s (?:setup|call|teardown) +([^\s:]+)::", re.MULTILINE)


def seconds_by_file(log: Path) -> Counter[str]:
    """Return the seconds of each test file in a log."""
    seconds: Counter[str] = Counter()
    for duration, file in _DURATION.findall(log.read_text(encoding="utf-8")):
        seconds[file] += float(duration)
    return seconds


def main() -> None:
    """Print a table, slowest file first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", type=Path, nargs="+")
    parser.add_argument("--count", type=int, default=25, help="number of files to show")
    arguments = parser.parse_args()
    columns = [seconds_by_file(log) for log in arguments.logs]
    files = sorted(set().union(*columns), key=lambda file: max(column[file] for column in columns), reverse=True)
    rows = [(file, [column[file] for column in columns]) for file in files[: arguments.count]]
    rows.append(("all files", [sum(column.values()) for column in columns]))
    for name, seconds in rows:
        print(f"{name:44}", *(f"{value:8.1f}" for value in seconds))


if __name__ == "__main__":
    main()
