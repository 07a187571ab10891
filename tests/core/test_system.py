"""CPU count under affinity and CPU quotas, and low-priority subprocesses."""

import os
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest

from droneseg.core.system import background_command, usable_cores

CGROUP_V1 = Path("/sys/fs/cgroup/cpu")


def make_root(tmp_path: Path, membership: str, **files: str) -> Path:
    """Write a fake `/proc/self/cgroup` and fake cgroup files, whose names use `__` for `/`."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(membership)
    for name, content in files.items():
        file = tmp_path / "sys/fs/cgroup" / name.replace("__", "/").replace("cpu_", "cpu.")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{content}\n")
    return tmp_path


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)), raising=False)


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000", 8), ("200000 100000", 2), ("150000 100000", 2), ("50000 100000", 1), ("1600000 100000", 8)],
)
def test_cgroup_v2_quota_limits_cores(tmp_path: Path, quota: str, cores: int) -> None:
    assert usable_cores(make_root(tmp_path, "0::/\n", cpu_max=quota)) == cores


def test_smallest_quota_of_nested_cgroups_applies(tmp_path: Path) -> None:
    quotas = {"pod__cpu_max": "300000 100000", "pod__container__cpu_max": "max 100000", "cpu_max": "700000 100000"}
    assert usable_cores(make_root(tmp_path, "0::/pod/container\n", **quotas)) == 3


def test_quota_of_the_mount_applies_to_a_cgroup_named_by_the_host(tmp_path: Path) -> None:
    assert usable_cores(make_root(tmp_path, "0::/docker/0123\n", cpu_max="200000 100000")) == 2


def test_cgroup_v1_quota_limits_cores(tmp_path: Path) -> None:
    files = {"cpu__a__cpu_cfs_quota_us": "250000", "cpu__a__cpu_cfs_period_us": "100000"}
    assert usable_cores(make_root(tmp_path, "2:memory:/x\n1:cpu,cpuacct:/a\n0::/\n", **files)) == 3


def test_cgroup_v1_without_quota_leaves_the_affinity(tmp_path: Path) -> None:
    files = {"cpu__cpu_cfs_quota_us": "-1", "cpu__cpu_cfs_period_us": "100000"}
    assert usable_cores(make_root(tmp_path, "1:cpu:/\n", **files)) == 8


def test_no_cgroup_file_leaves_the_affinity(tmp_path: Path) -> None:
    assert usable_cores(tmp_path) == 8


@pytest.mark.skipif(not os.access(CGROUP_V1 / "cgroup.procs", os.W_OK), reason="needs a writable CPU cgroup (v1)")
def test_quota_of_a_real_cgroup_limits_cores() -> None:
    group = CGROUP_V1 / f"droneseg-{uuid4().hex}"
    inner = group / "inner"
    inner.mkdir(parents=True)
    try:
        (group / "cpu.cfs_quota_us").write_text("100000")
        (group / "cpu.cfs_period_us").write_text("100000")
        code = "from droneseg.core.system import usable_cores; print(usable_cores())"
        # the child moves itself, so that this process keeps its own cgroup
        move = f"import pathlib; pathlib.Path({str(inner / 'cgroup.procs')!r}).write_text('0')"
        child = subprocess.run([sys.executable, "-c", f"{move}; {code}"], check=True, capture_output=True, text=True)
        assert child.stdout.strip() == "1"
    finally:
        inner.rmdir()
        group.rmdir()


@pytest.mark.skipif(not hasattr(os, "nice"), reason="needs POSIX priorities")
def test_background_command_runs_a_module_at_the_lowest_priority(tmp_path: Path) -> None:
    (tmp_path / "shown.py").write_text("import os, sys; print(os.nice(0), *sys.argv[1:])")
    command = background_command("shown", ["a", "b c"])
    child = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path)
    assert child.stdout == "19 a b c\n"
