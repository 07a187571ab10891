"""Models in a bucket: the real client with fake-gcs-server, and failures of connection, bucket and disk."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from droneseg.core.errors import OutputExistsError, StoreError
from droneseg.model.bundle import read_bundle
from droneseg.model.store import pull_model, push_model
from support.buckets import Bucket, bucket, relay
from support.projects import GOOD, dvc, make_model, make_project
from support.waiting import HANG_S, wait_until
from support.workspace import COMMAND

_PULL = (sys.executable, "-W", "ignore", "-m", "droneseg.model.store", "nnUNet_results/champion", "gcs")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    with pytest.MonkeyPatch.context() as patch, bucket("team", patch) as served:
        yield served


@pytest.fixture(scope="module")
def pushed(store: Bucket, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project without git whose model of 2 MB is only in the bucket."""
    project = tmp_path_factory.mktemp("pushed") / "project"
    champion = make_project(project, scm=False, padding=2_000_000)
    dvc(project, "remote", "add", "gcs", f"{store.url}/models")
    dvc(project, "remote", "modify", "gcs", "allow_anonymous_login", "true")
    dvc(project, "remote", "modify", "gcs", "endpointurl", store.server)
    push_model(champion, "gcs")
    shutil.rmtree(project.parent / "project-remote")
    shutil.rmtree(project / "nnUNet_results")
    shutil.rmtree(project / ".dvc/cache")
    return project


@pytest.fixture
def project(pushed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pushed, tmp_path / "clone"))


@pytest.fixture
def champion(project: Path) -> Path:
    return project / "nnUNet_results/champion"


@pytest.fixture(autouse=True)
def one_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("droneseg.model.dvc_remote._TRIES", 1)
    monkeypatch.setattr("droneseg.model.dvc_remote.IDLE_TIMEOUT_S", 3)


def leftovers(project: Path) -> list[str]:
    folder = project / "nnUNet_results"
    return sorted(file.name for file in folder.iterdir() if file.name != "champion") if folder.is_dir() else []


def test_pull_works_without_git_and_satisfies_dvc_status(project: Path, champion: Path) -> None:
    seen: list[tuple[int, int]] = []
    done = pull_model(champion, "gcs", progress=lambda now, total: seen.append((now, total)))
    assert done.fetched
    assert done.bundle == read_bundle(champion)
    assert seen[-1][0] == seen[-1][1] == sum(file.stat().st_size for file in champion.iterdir())
    assert leftovers(project) == []
    dvc(project, "status", "--quiet", "nnUNet_results.dvc")  # fails if files are changed or missing
    assert not pull_model(champion, "gcs").fetched


def test_other_model_is_replaced_only_on_request(champion: Path) -> None:
    mine = make_model(champion, GOOD).model_id
    with pytest.raises(OutputExistsError, match="--force"):
        pull_model(champion, "gcs")
    assert read_bundle(champion).model_id == mine
    assert pull_model(champion, "gcs", replace=True).bundle.model_id != mine


def test_concurrent_pulls_both_succeed(project: Path, champion: Path) -> None:
    running = [subprocess.Popen(_PULL, cwd=project, stderr=subprocess.PIPE) for _ in range(2)]
    assert [(process.wait(HANG_S), process.communicate()[1]) for process in running] == [(0, b""), (0, b"")]
    assert read_bundle(champion)
    assert leftovers(project) == []


def test_damaged_object_is_rejected_and_the_model_kept(store: Bucket, project: Path, champion: Path) -> None:
    make_model(champion, GOOD)
    mine = read_bundle(champion).model_id
    largest = max((file for file in store.root.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    whole = largest.read_bytes()
    try:
        largest.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(StoreError, match="Checksum mismatch"):
            pull_model(champion, "gcs", replace=True)
    finally:
        largest.write_bytes(whole)
    assert read_bundle(champion).model_id == mine
    assert leftovers(project) == []
    assert pull_model(champion, "gcs", replace=True).bundle.model_id != mine


def test_unknown_remote_is_reported_with_the_command_to_add_it(champion: Path) -> None:
    with pytest.raises(StoreError, match=r"has no remote 'mars', only .*gcs.*dvc remote add mars gs://"):
        pull_model(champion, "mars")


def test_interrupted_pull_is_reported_and_the_next_one_succeeds(store: Bucket, project: Path, champion: Path) -> None:
    with relay(store.server, cut_after_bytes=500_000) as cut:
        dvc(project, "remote", "modify", "gcs", "endpointurl", cut)
        with pytest.raises(StoreError, match=r"remote gcs \(gs://team/models.*\) cannot be reached: .*try again"):
            pull_model(champion, "gcs")
    assert not champion.exists()
    assert leftovers(project) == []
    dvc(project, "remote", "modify", "gcs", "endpointurl", store.server)
    assert pull_model(champion, "gcs").fetched


def test_connection_cut_once_is_retried(
    store: Bucket, project: Path, champion: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("droneseg.model.dvc_remote._TRIES", 2)
    with relay(store.server, cut_after_bytes=500_000, cuts=1) as cut:
        dvc(project, "remote", "modify", "gcs", "endpointurl", cut)
        assert pull_model(champion, "gcs").fetched


def test_invalid_credentials_are_reported_with_a_remedy(store: Bucket, project: Path, champion: Path) -> None:
    with relay(store.server, status=403) as closed:
        dvc(project, "remote", "modify", "gcs", "endpointurl", closed)
        with pytest.raises(StoreError, match=r"denied access: .*GOOGLE_APPLICATION_CREDENTIALS"):
            pull_model(champion, "gcs")
    key = project / "key.json"
    key.write_text("{}")
    dvc(project, "remote", "modify", "gcs", "allow_anonymous_login", "false")
    dvc(project, "remote", "modify", "gcs", "credentialpath", str(key))
    with pytest.raises(StoreError, match=r"are invalid: .*GOOGLE_APPLICATION_CREDENTIALS"):
        pull_model(champion, "gcs")
    assert not champion.exists()


def test_full_disk_keeps_the_existing_model_and_leaves_no_files(project: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", small], check=False)
    if mounted.returncode:
        if os.environ.get("DRONESEG_REQUIRE_ALL"):
            pytest.fail("no small disk can be mounted")
        pytest.skip("needs the right to mount a small disk")
    try:
        clone = Path(shutil.copytree(project, small / "clone", ignore=shutil.ignore_patterns("tmp")))
        champion = clone / "nnUNet_results/champion"
        mine = make_model(champion, GOOD).model_id
        filler = small / "filler"
        filler.write_bytes(bytes(shutil.disk_usage(small).free - 1_000_000))
        with pytest.raises(OSError, match="No space left on device"):
            pull_model(champion, "gcs", replace=True)
        assert read_bundle(champion).model_id == mine
        assert leftovers(clone) == []
        filler.unlink()
        assert pull_model(champion, "gcs", replace=True, add_to_cache=False).bundle.model_id != mine
    finally:
        subprocess.run(["umount", small], check=True)


def test_killed_pull_leaves_no_partial_model(store: Bucket, project: Path, champion: Path) -> None:
    with relay(store.server, pause_s=0.2) as slow:
        dvc(project, "remote", "modify", "gcs", "endpointurl", slow)
        running = subprocess.Popen(_PULL, cwd=project, stderr=subprocess.DEVNULL)
        wait_until(lambda: leftovers(project) or running.poll() is not None)
        assert running.poll() is None
        running.send_signal(signal.SIGKILL)
        running.wait()
    assert not champion.exists()
    dvc(project, "remote", "modify", "gcs", "endpointurl", store.server)
    done = subprocess.run(
        [*COMMAND, "models", "pull", "--remote", "gcs"], cwd=project, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"model {read_bundle(champion).model_id}, downloaded from remote gcs" in done.stdout
    assert leftovers(project) == []


def test_untracked_model_is_not_pushed(project: Path, champion: Path) -> None:
    make_model(champion, GOOD)
    with pytest.raises(StoreError, match=r"is not the model that .* records.*droneseg models promote"):
        push_model(champion, "gcs")


@pytest.mark.parametrize("how", ["gone", "cut off"])
def test_push_repairs_missing_and_truncated_objects(store: Bucket, project: Path, champion: Path, how: str) -> None:
    pull_model(champion, "gcs")
    largest = max((file for file in store.root.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    if how == "gone":
        largest.unlink()
    else:
        largest.write_bytes(largest.read_bytes()[:-7])
    push_model(champion, "gcs")
    shutil.rmtree(champion)
    shutil.rmtree(project / ".dvc/cache")
    assert pull_model(champion, "gcs").fetched


def test_push_succeeds_after_the_bucket_was_unavailable(store: Bucket, project: Path, champion: Path) -> None:
    pull_model(champion, "gcs", add_to_cache=False)
    dvc(project, "remote", "add", "other", "gs://team/other")
    dvc(project, "remote", "modify", "other", "allow_anonymous_login", "true")
    dvc(project, "remote", "modify", "other", "endpointurl", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match="cannot be reached"):
        push_model(champion, "other")
    dvc(project, "remote", "modify", "other", "endpointurl", store.server)
    assert push_model(champion, "other") == "remote other (gs://team/other/files/md5)"
    shutil.rmtree(project / ".dvc/cache")
    shutil.rmtree(champion)
    assert pull_model(champion, "other").fetched


def test_unavailable_bucket_is_reported(project: Path, champion: Path) -> None:
    dvc(project, "remote", "modify", "gcs", "endpointurl", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match=r"remote gcs \(gs://team/models.*\) cannot be reached: .*Nothing was changed"):
        pull_model(champion, "gcs")
    assert not champion.exists()
