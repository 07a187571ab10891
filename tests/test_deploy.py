"""Dockerfiles, cloud and compose files, deployment scripts and container tasks."""

import json
import os
import re
import subprocess
import sys
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml

from droneseg.core.settings import variable_names
from support.buckets import bucket
from support.programs import require_program

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
DOCKERFILES = sorted(ROOT.glob("*.dockerfile"))
EXTRAS = {
    "api": {"serve", "drift", "store"},
    "bento": {"bento", "store"},
    "inference": {"store"},
    "train": {"train", "store"},
}


def test_there_are_four_dockerfiles() -> None:
    assert {file.stem for file in DOCKERFILES} == set(EXTRAS)


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.stem)
def test_dockerfile_passes_hadolint_and_our_rules(file: Path) -> None:
    done = subprocess.run([BIN / "hadolint", file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    text = file.read_text()
    assert "ARG BASE_IMAGE=python:3.12-slim-bookworm" in text
    extras = [set(re.findall(r"--extra (\w+)", line)) for line in text.splitlines() if "uv sync" in line]
    assert extras == [EXTRAS[file.stem]] * 2
    last = text[text.rindex("\nFROM ") :]
    assert re.search(r"^USER 1000$", last, re.M)
    assert re.search(r'^CMD \["(droneseg|bentoml)", ', last, re.M)
    assert "ENTRYPOINT" not in text
    assert "HEALTHCHECK" in last
    assert "org.opencontainers.image.licenses" in last
    assert "uv" not in re.findall(r"COPY --from=\S+ (\S+)", last)


def test_dockerfiles_use_the_lock_file_and_the_project_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for file in DOCKERFILES:
        assert f"ARG VERSION={version}\n" in file.read_text()
        assert file.read_text().count("uv sync --frozen") == 2


def test_build_context_contains_only_what_the_images_copy(tmp_path: Path) -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        name.rstrip("/")
        for file in DOCKERFILES
        for line in file.read_text().splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for name in line.split()[1:-1]
    }
    assert copied == allowed
    assert (ROOT / ".dockerignore").read_text().splitlines()[1] == "*"


@pytest.mark.parametrize("variable", ["PORT", "DRONESEG_PORT"])
@pytest.mark.parametrize("image", ["api", "bento"])
def test_health_check_uses_the_port_of_the_service(image: str, variable: str) -> None:
    paths = []

    class Service(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # so http.server calls it
            paths.append(self.path)
            self.send_response(200 if len(paths) == 1 else 503)
            self.end_headers()

        def log_message(self, *_arguments: object) -> None: ...

    text = (ROOT / f"{image}.dockerfile").read_text().replace("\\\n", "")
    match = re.search(r"^HEALTHCHECK .*?CMD (\[.*\])$", text, re.M)
    assert match
    program, *arguments = json.loads(match[1])
    assert program == "python"
    with HTTPServer(("127.0.0.1", 0), Service) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = {"PATH": os.environ["PATH"], variable: str(server.server_port)}
        command = [sys.executable, *arguments]
        codes = [subprocess.run(command, env=environment, capture_output=True).returncode for _ in range(2)]
        server.shutdown()
    assert paths == ["/livez"] * 2
    assert codes == [0, 1]


def test_gcloudignore_uploads_sources_and_no_secrets(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    (tmp_path / ".gitignore").write_text((ROOT / ".gcloudignore").read_text())  # the same patterns
    sent = [
        "api.dockerfile",
        "src/a.py",
        "deploy/render.sh",
        "dvc-remote/a",
        ".dvc/config",
        "nnUNet_results.dvc",
        "uv.lock",
    ]
    ignored = [
        ".env",
        ".dvc/config.local",
        ".dvc/cache/a",
        "data/a.png",
        "nnUNet_raw/a",
        "candidate/model.onnx",
        "job.yaml",
    ]
    for name in sent + ignored:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    listed = ["git", "ls-files", "--others", "--exclude-standard"]
    done = subprocess.run(listed, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == set(sent)


@pytest.mark.parametrize(
    ("schema", "file"),
    [
        ("vendor.cloudbuild", "cloudbuild.yaml"),
        ("vendor.compose-spec", "compose.yaml"),
        ("vendor.dependabot", ".github/dependabot.yml"),
    ],
)
def test_file_matches_its_json_schema(schema: str, file: str) -> None:
    command = [BIN / "check-jsonschema", "--builtin-schema", schema, ROOT / file]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def render(template: str, folder: Path) -> str:
    environment = os.environ | {"PROJECT": "a-project", "REGION": "europe-west1", "IMAGE": "registry/image:1"}
    command = ["bash", ROOT / "deploy/render.sh", ROOT / "deploy" / template, folder / "out.yaml"]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return (folder / "out.yaml").read_text()


@pytest.mark.parametrize("name", ["api", "bento"])
def test_cloud_run_configuration_fits_the_service(name: str, tmp_path: Path) -> None:
    service = yaml.safe_load(render(f"{name}.yaml", tmp_path))
    spec = service["spec"]["template"]["spec"]
    main, sidecar = spec["containers"]
    assert main["image"] == "registry/image:1"
    assert {entry["name"] for entry in main["env"]} <= set(variable_names())
    assert main["ports"][0]["containerPort"] == 8080, "where the sidecar looks"
    assert "prometheus" in sidecar["image"] or "gmp" in sidecar["image"]
    start = main["startupProbe"]
    assert start["periodSeconds"] * start["failureThreshold"] <= 240
    assert (start["httpGet"]["path"], main["livenessProbe"]["httpGet"]["path"]) == ("/readyz", "/livez")
    (limit,) = [int(entry["value"]) for entry in main["env"] if entry["name"] == "DRONESEG_MAX_UPLOAD_BYTES"]
    assert limit < 32 * 2**20
    secrets = [entry for entry in main["env"] if "KEY" in entry["name"]]
    assert all("secretKeyRef" in entry["valueFrom"] for entry in secrets)


def test_vertex_training_runs_existing_commands(tmp_path: Path) -> None:
    job = yaml.safe_load(render("train.yaml", tmp_path))
    (pool,) = job["workerPoolSpecs"]
    commands = [part.split() for part in pool["containerSpec"]["args"][0].split(";")]
    assert [words[1] for words in commands if words[0] == "droneseg"] == ["preprocess", "train", "export"]
    assert "/gcs" not in " ".join(commands[2]), "a mounted bucket renames no folders"
    assert commands[-1][:2] == ["cp", "/tmp/bundle/*"]  # of the container
    assert {entry["name"] for entry in pool["containerSpec"]["env"]} <= set(variable_names())


def test_render_rejects_a_template_with_unset_variables(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("image: ${IMAGE}\nother: ${OTHER}\n")
    done = subprocess.run(
        ["bash", ROOT / "deploy/render.sh", tmp_path / "a.yaml", tmp_path / "b.yaml"],
        env=os.environ | {"PROJECT": "p", "REGION": "r", "IMAGE": "i"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert "${OTHER}" in done.stdout + done.stderr


def test_deploy_scripts_are_valid_and_executable() -> None:
    for script in (ROOT / "deploy").glob("*.sh"):
        assert subprocess.run(["bash", "-n", script]).returncode == 0
        assert os.access(script, os.X_OK)
        assert "set -euo pipefail" in script.read_text()


GCLOUD = """#!/usr/bin/env bash
printf '%s\\n' "$*" >> "$HOME/calls"
case "$*" in
    *" describe "*"--format=value(projectNumber)"*) echo 123 ;;
    *" describe "*"--format=value(status.url)"*) echo https://service ;;
    *" access "*) echo key ;;
    "secrets create"*) cat > "$HOME/secret" ;;
    *" describe "*) [ -e "$HOME/made" ] ;;
    *droneseg-train*add-iam*|*add-iam*droneseg-train*) # not known everywhere at once
        [ -e "$HOME/known" ] || { touch "$HOME/known"; exit 1; } ;;
esac
"""


@pytest.fixture
def gcloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Fake gcloud that logs its arguments and at first finds no resource; the real one needs an account."""
    program = tmp_path / "bin/gcloud"
    program.parent.mkdir()
    program.write_text(GCLOUD)
    (tmp_path / "bin/sleep").write_text("#!/bin/sh\n")
    for file in program.parent.iterdir():
        file.chmod(0o755)
    for name, value in {"PROJECT": "p", "REGION": "r", "REPOSITORY": "o/n", "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    return tmp_path


def run_script(name: str) -> str:
    done = subprocess.run(["bash", ROOT / "deploy" / name], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_setup_creates_everything_once(gcloud: Path) -> None:
    output = run_script("setup.sh")
    assert "retrying in 15 s, 5 attempts left" in output
    assert "SERVICE_ACCOUNT=droneseg-deploy@p.iam.gserviceaccount.com" in output
    assert len((gcloud / "secret").read_text()) >= 40
    first = (gcloud / "calls").read_text()
    created = [line for line in first.splitlines() if re.search(r" create(-oidc)? ", line)]
    assert len([line for line in created if "buckets create" in line]) == 3
    assert len([line for line in created if "service-accounts create" in line]) == 5
    (provider,) = [line for line in created if "create-oidc" in line]
    assert "attribute.place=assertion.repository + ':' + (has(assertion.environment) ? assertion.environment : '')" in (
        provider
    )
    trusted = re.findall(r"--member=(principal\S+)", first)
    pool = "principalSet://iam.googleapis.com/projects/123/locations/global/workloadIdentityPools/github"
    assert trusted == [
        f"{pool}/attribute.repository/o/n",
        f"{pool}/attribute.place/o/n:production",
        f"{pool}/attribute.place/o/n:model-promotion",
    ]
    for file in re.findall(r"--lifecycle-file=(\S+)", first):
        assert json.loads((ROOT / "deploy" / file).read_text())["rule"]
    (gcloud / "calls").unlink()
    (gcloud / "made").touch()
    run_script("setup.sh")
    assert not re.search(r" create(-oidc)? ", (gcloud / "calls").read_text())


def test_drift_schedule_is_created_once_and_then_updated(gcloud: Path) -> None:
    for action in ("create", "update"):
        run_script("schedule-drift.sh")
        last = (gcloud / "calls").read_text().splitlines()[-1]
        assert last.startswith(f"scheduler jobs {action} http droneseg-api-drift ")
        assert "--uri=https://service/drift?n=500" in last
        assert "--oidc-token-audience=https://service" in last
        (gcloud / "made").touch()


def test_compose_mounts_existing_files_that_prometheus_accepts(tmp_path: Path) -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    for service in compose["services"].values():
        for volume in service.get("volumes", []):
            assert (ROOT / volume.split(":")[0]).is_file(), volume
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    program = require_program("promtool")
    text = (ROOT / "configs/compose/prometheus.yaml").read_text()
    (tmp_path / "prometheus.yaml").write_text(
        text.replace("/etc/prometheus/rules.yaml", str(ROOT / "configs/alarms/rules.yaml"))
    )
    done = subprocess.run([program, "check", "config", tmp_path / "prometheus.yaml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_compose_accepts_an_existing_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    _, option, code = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["bucket"]["command"]
    assert option == "-c"
    with bucket("another", monkeypatch) as served:
        for _ in range(2):
            environment = os.environ | {"STORAGE_EMULATOR_HOST": served.server}
            subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=environment, check=True)
        assert (served.root / "flights").is_dir()


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Fake container engine without images that logs its arguments, one JSON list per call."""
    log = tmp_path / "calls"
    program = tmp_path / "bin" / "engine"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable}\nimport json, os, sys\n"
        "values = [f'{word}={os.environ[word]}' if word in os.environ else word for word in sys.argv[1:]]\n"
        f"open({str(log)!r}, 'a').write(json.dumps([sys.argv[1:], values]) + '\\n')\n"
        "sys.exit(sys.argv[1] == 'image')\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("DOCKER", str(program))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{BIN}:/usr/bin:/bin")
    return log


def invoke(folder: Path, *arguments: str, code: int = 0) -> str:
    command = [BIN / "invoke", "--search-root", ROOT, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def calls(log: Path, *, filled: bool = False) -> list[list[str]]:
    """Return the arguments of every call of the engine; `filled` adds the values of variables passed by name."""
    return [json.loads(line)[filled] for line in log.read_text().splitlines()]


def test_docker_train_builds_preprocesses_and_trains_with_the_overrides(engine: Path, tmp_path: Path) -> None:
    output = invoke(tmp_path, "docker-train", "--args", "preset=smoke epochs=2")
    assert "No GPU found" in output
    inspect, build, preprocess, train = calls(engine)
    assert inspect[:2] == ["image", "inspect"]
    assert build[:3] == ["build", "--file", "train.dockerfile"]
    assert preprocess[-2:] == ["droneseg", "preprocess"]
    assert train[-4:] == ["droneseg", "train", "preset=smoke", "epochs=2"]
    assert "--gpus" not in train
    assert "--ipc=host" in train
    assert f"{os.getuid()}:{os.getgid()}" in train
    assert f"{tmp_path / 'nnUNet_raw'}:/work/nnUNet_raw" in train


def test_docker_train_passes_the_gpu_and_secrets_to_the_container(engine: Path, tmp_path: Path) -> None:
    (tmp_path / "bin/nvidia-smi").write_text("#!/bin/sh\n")
    (tmp_path / "bin/nvidia-smi").chmod(0o755)
    (tmp_path / ".env").write_text('WANDB_API_KEY="secret"  # mine\nnnUNet_raw=/here/alone\n')
    (tmp_path / "nnUNet_preprocessed/Dataset101_DroneSeg").mkdir(parents=True)
    assert "No GPU" not in invoke(tmp_path, "docker-train")
    train = calls(engine)[-1]
    assert train[train.index("--gpus") + 1] == "all"
    assert "WANDB_API_KEY" in train
    assert not any("secret" in word for word in train), "it would stand in every list of processes"
    assert {"WANDB_API_KEY=secret", "nnUNet_raw=/work/nnUNet_raw"} <= set(calls(engine, filled=True)[-1])
    assert train[-1] == "preset=gpu"


def test_rootless_podman_keeps_the_user_id(engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "bin/engine").rename(tmp_path / "bin/podman")
    monkeypatch.setenv("DOCKER", "podman")
    invoke(tmp_path, "docker-inference", "--source", "photos")
    assert "--userns=keep-id" in calls(engine)[-1]


def test_docker_inference_mounts_source_and_output(engine: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    invoke(tmp_path, "docker-inference", "--source", "photos", "--out", "masks")
    run = calls(engine)[-1]
    assert f"{tmp_path / 'photos'}:/input:ro" in run
    assert f"{tmp_path / 'masks'}:/output" in run


def test_container_ports_are_published_on_localhost_only(engine: Path, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("DRONESEG_MODEL=elsewhere\n")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/manifest.json").write_text("{}")
    invoke(tmp_path, "docker-run-api")
    invoke(tmp_path, "docker-run-bento", "--port", "3100", "--model", "mine")
    runs = [call for call in calls(engine, filled=True) if call[0] == "run"]
    published = [call[call.index("--publish") + 1] for call in runs]
    assert published == ["127.0.0.1:8000:8000", "127.0.0.1:3100:3000"]
    for call, port in zip(runs, (8000, 3000), strict=True):
        assert {"DRONESEG_HOST=0.0.0.0", f"DRONESEG_PORT={port}"} <= set(call)
    assert "DRONESEG_MODEL=nnUNet_results/champion" in runs[0]
    assert {"DRONESEG_MODEL=/model", f"{tmp_path / 'mine'}:/model:ro"} <= set(runs[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["docker-build", "--image", "apii"], "Unknown --image apii. Choose one of api, bento, inference, train"),
        (["docker-build", "--model", "Pulled"], "Unknown --model Pulled. Choose baked or pulled"),
        (["docker-inference", "--source", "missing"], "missing is not a folder of images"),
        (["docker-run-api", "--model", "missing"], "missing is not a bundle"),
        (["cloud-deploy", "--service", "train"], "Unknown --service train. Choose api or bento"),
    ],
)
def test_invalid_task_options_are_rejected_before_anything_runs(
    engine: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    assert message in invoke(tmp_path, *arguments, code=1)
    assert not engine.exists()
