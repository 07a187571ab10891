"""CPU count, machine description, low-priority subprocesses and telemetry opt-out."""

import math
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

_TELEMETRY = "openvino_telemetry"


def usable_cores(root: Path = Path("/")) -> int:
    """Return the number of CPU cores this process may use.

    This is the smaller of the CPU affinity and the CPU quota of the container (`docker --cpus`, a Kubernetes limit),
    rounded up and at least 1.

    Args:
        root: Root of the file system; on Linux, the quota is read from its folders `proc` and `sys`.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for group in _cpu_cgroups(root) if (quota := _cpu_quota(group)) is not None]
    return max(1, min([cores, *map(math.ceil, quotas)]))


def _cpu_cgroups(root: Path) -> Iterator[Path]:
    """Yield the folders of this process's CPU cgroups and of all their ancestors: each may have a quota."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if not controllers:  # version 2
            mount = root / "sys/fs/cgroup"
        elif "cpu" in controllers.split(","):
            mount = root / "sys/fs/cgroup/cpu"
        else:
            continue
        # inside a container, the group may have the name it has on the host; then only the mount itself exists
        folder = mount / group.lstrip("/")
        yield from (parent for parent in (folder, *folder.parents) if parent.is_relative_to(mount))


def _cpu_quota(cgroup: Path) -> float | None:
    """Return the number of cores that a cgroup may use, or None if it has no limit."""
    try:
        if (cgroup / "cpu.max").exists():
            quota, period = (cgroup / "cpu.max").read_text(encoding="utf-8").split()
        else:
            quota, period = (
                (cgroup / f"cpu.cfs_{name}_us").read_text(encoding="utf-8").strip() for name in ("quota", "period")
            )
    except OSError:  # the root cgroup has no such file
        return None
    return None if quota in ("max", "-1") else int(quota) / int(period)


def describe_machine() -> dict[str, str | int]:
    """Return the platform, the number of usable cores and the Python version."""
    return {"platform": platform.platform(), "cores": usable_cores(), "python": platform.python_version()}


def background_command(module: str, arguments: Sequence[str]) -> list[str]:
    """Return the command line that runs a Python module at the lowest CPU priority, where `nice` exists."""
    nice = ["nice", "-n", "19"] if shutil.which("nice") else []
    return [*nice, sys.executable, "-W", "ignore", "-m", module, *arguments]


def background_environment() -> Mapping[str, str]:
    """Return the environment of a background process: one thread, so that it competes for one core at most."""
    return os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@contextmanager
def no_telemetry() -> Iterator[None]:
    """Hide OpenVINO's telemetry package from imports inside a `with` block.

    OpenVINO and NNCF report to Google Analytics when they are imported or used, and store an identifier in `~/intel`.
    Both use a stub if the package is missing.
    """
    before = sys.modules.get(_TELEMETRY)
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # importing it raises ImportError
    try:
        yield
    finally:
        del sys.modules[_TELEMETRY]
        if before:
            sys.modules[_TELEMETRY] = before
