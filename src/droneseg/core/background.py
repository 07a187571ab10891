"""Runs a module at the lowest priority from its first import on.

`python -m droneseg.core.background MODULE ARGUMENT...` does it.
"""

import os
import runpy
import sys
from collections.abc import Mapping, Sequence


def background_command(module: str, arguments: Sequence[str]) -> list[str]:
    """Return the command that runs a module so."""
    return [sys.executable, "-W", "ignore", "-m", "droneseg.core.background", module, *arguments]


def background_environment() -> Mapping[str, str]:
    """Return the environment for it: one thread, since more would take turns with those that matter."""
    return os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def lower_priority() -> None:
    """Give this process the lowest priority: it computes while nobody else wants to."""
    if hasattr(os, "nice"):
        os.nice(19)
    if hasattr(os, "sched_setscheduler") and hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def main() -> None:
    """Run the module as if it were started by itself."""
    lower_priority()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
