"""CPU count, machine description, low-priority subprocesses, telemetry opt-out."""

import math
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def usable_cores(root: Path = Path("/")) -> int:
    """Return the number of CPU cores this process may use.

    This is the smaller one of the CPU affinity and the CPU quota of the container (`docker --cpus`, a Kubernetes
    limit), rounded up and at least 1.

    Args:
        root: Root of the file system with `proc` and `sys`, which hold the quota on Linux.
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
        # inside a container the group may be named as the host sees it; then only the mount itself exists
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
    """Return the platform, the usable cores and Python's version."""
    return {"platform": platform.platform(), "cores": usable_cores(), "python": platform.python_version()}


_PACKAGE = "openvino_telemetry"


@contextmanager
def no_telemetry() -> Iterator[None]:
    """Let what is imported in the block find no telemetry: both have a stand-in for when its package is missing."""
    before = sys.modules.get(_PACKAGE)
    sys.modules[_PACKAGE] = None  # type: ignore[assignment]  # makes importing it fail
    try:
        yield
    finally:
        del sys.modules[_PACKAGE]
        if before:
            sys.modules[_PACKAGE] = before
