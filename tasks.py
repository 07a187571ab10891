"""Development tasks for invoke; `invoke --list` shows them. Each task runs commands that also work without invoke."""

import os
import shlex
import shutil
import sys
from pathlib import Path

from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import task

DOCS = "mkdocs build --strict --site-dir site"
# silences warnings about MkDocs 2
_QUIET = {"DISABLE_MKDOCS_2_WARNING": "true", "NO_MKDOCS_2_WARNING": "1"}
LINT = "ruff check . && ruff format --check . && mypy && lint-imports"


@task
def download_data(c: Context, folder: str = "data/drone") -> None:
    """Download the dataset from Kaggle; needs KAGGLE_API_TOKEN."""
    c.run(f'droneseg data download "{folder}"', pty=True)


@task
def download_models(c: Context, remote: str = "") -> None:
    """Download the model named in nnUNet_results.dvc."""
    c.run("droneseg models pull" + (f' --remote "{remote}"' if remote else ""), pty=True)


@task
def export_data(c: Context, source: str, split: str = "") -> None:
    """Convert a dataset to nnU-Net's raw format."""
    c.run(f'droneseg data convert "{source}"' + (f' --split "{split}"' if split else ""), pty=True)


@task
def preprocess(c: Context) -> None:
    """Plan and preprocess the converted dataset with nnU-Net."""
    c.run("droneseg preprocess", pty=True)


@task
def train(c: Context, args: str = "preset=cpu") -> None:
    """Train a model; pass presets and overrides with --args."""
    c.run(f"droneseg train {args}", pty=True)


@task
def test(c: Context) -> None:
    """Run all tests and measure their coverage."""
    c.run("pytest --cov -n 2 --dist loadfile", pty=True)


@task
def app(_c: Context) -> None:
    """Serve the model on this machine, with a web page at /ui."""
    # replaces the process of invoke, which would not forward SIGTERM
    os.execvp("droneseg", ["droneseg", "serve"])  # noqa: S606  # needs no shell


@task
def load_test(c: Context, host: str = "http://127.0.0.1:8000") -> None:
    """Run the load test in configs/load.yaml against a running service; writes reports to load/."""
    c.run("mkdir -p load")
    c.run(f"locust -f tests/performance/locustfile.py --headless --host {host} --csv load/run --html load/run.html")


@task
def alarm_policies(c: Context) -> None:
    """Convert configs/alarms/rules.yaml to alert policies of Google Cloud Monitoring."""
    c.run("python -m droneseg.monitoring.alert_policies configs/alarms/rules.yaml configs/alarms/google")


@task
def check(c: Context) -> None:
    """Check style, types, import contracts and documentation."""
    c.run(f"{LINT} && {DOCS} --quiet", env=_QUIET, pty=True)


@task
def build_docs(c: Context) -> None:
    """Build the documentation in site/ and check its links."""
    c.run(f"{DOCS} && linkchecker --no-status --no-warnings site/index.html", env=_QUIET, pty=True)


@task
def serve_docs(c: Context) -> None:
    """Serve the documentation at http://127.0.0.1:8001."""
    c.run("mkdocs serve --dev-addr 127.0.0.1:8001", env=_QUIET, pty=True)


@task
def demo(c: Context, out: str = "demo") -> None:
    """Run the whole workflow on generated scenes."""
    c.run(f'droneseg demo --out "{out}"', pty=True)


@task
def bento_build(c: Context) -> None:
    """Build a bento that contains the model; DVC fetches the model if it is missing."""
    from droneseg.model.bundle import read_bundle
    from droneseg.model.store import fetch_model

    champion = Path("nnUNet_results/champion")
    fetch_model(champion, "auto")
    read_bundle(champion)  # a bento without a valid model must not be built
    c.run("uv build --wheel --clear --out-dir dist")
    c.run("uv export --quiet --extra bento --no-dev --no-emit-project --no-hashes -o dist/bento-requirements.txt")
    c.run("bentoml build", env={"BENTOML_DO_NOT_TRACK": "True"}, pty=True)


@task
def bento_serve(_c: Context) -> None:
    """Serve the model with BentoML on this machine, on port 3000 or $PORT."""
    os.environ["BENTOML_DO_NOT_TRACK"] = "True"
    os.execvp("bentoml", ["bentoml", "serve", "droneseg.serving.bentoml_service:DroneSegService"])  # noqa: S606  # needs no shell


IMAGES = ("api", "bento", "inference", "train")
_CHAMPION = "nnUNet_results/champion"
_MOUNTED = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "runs", "data")


@task
def docker_build(c: Context, image: str = "", model: str = "baked") -> None:
    """Build one container image, or all four; --model pulled builds them without the model."""
    for name in [image] if image else IMAGES:
        if name not in IMAGES:
            raise Exit(f"Unknown --image {name}. Choose one of {', '.join(IMAGES)}.")
        if model not in ("baked", "pulled"):
            raise Exit(f"Unknown --model {model}. Choose baked or pulled.")
        model_argument = "" if name == "train" else f" --build-arg MODEL={model}"
        revision = c.run("git rev-parse --short HEAD", hide=True, warn=True)
        revision_argument = f" --build-arg REVISION={revision.stdout.strip()}" if revision and revision.ok else ""
        arguments = f"--file {name}.dockerfile --tag droneseg-{name}{model_argument}{revision_argument}"
        c.run(f"{_docker()} build {arguments} .", pty=True)


@task
def docker_train(c: Context, args: str = "", build: bool = False) -> None:
    """Train in a container, for example with --args "preset=gpu epochs=200"; preprocesses the data if needed."""
    _need_image(c, "train", build=build)
    gpu = _has_gpu()
    if not gpu:
        sys.stderr.write("No GPU found (nvidia-smi is missing): training on the CPU, which takes many times longer.\n")
    run, environment = _run_as_me(gpu=gpu)
    for name in _MOUNTED:
        Path(name).mkdir(exist_ok=True)  # otherwise the container engine creates it, owned by root
        run += ["--volume", f"{Path(name).resolve()}:/work/{name}"]
    if not (Path("nnUNet_preprocessed") / "Dataset101_DroneSeg").is_dir():
        c.run(shlex.join([*run, "droneseg-train", "droneseg", "preprocess"]), env=environment, pty=True)
    overrides = shlex.split(args) or ["preset=gpu" if gpu else "preset=cpu"]
    c.run(shlex.join([*run, "droneseg-train", "droneseg", "train", *overrides]), env=environment, pty=True)


@task
def docker_inference(c: Context, source: str, out: str = "masks", build: bool = False) -> None:
    """Predict a folder of images in a container; writes masks and overlays to another folder."""
    if not Path(source).is_dir():
        raise Exit(f"{source} is not a folder of images. Choose one with --source.")
    _need_image(c, "inference", build=build)
    Path(out).mkdir(parents=True, exist_ok=True)
    volumes = ["--volume", f"{Path(source).resolve()}:/input:ro", "--volume", f"{Path(out).resolve()}:/output"]
    run, environment = _run_as_me(gpu=False)
    c.run(shlex.join([*run, *volumes, "droneseg-inference"]), env=environment, pty=True)


@task
def docker_run_api(c: Context, port: int = 8000, model: str = "", build: bool = False) -> None:
    """Serve with FastAPI in a container, with the included model or --model; reachable only from this machine."""
    _serve(c, "api", port, 8000, model, build=build)


@task
def docker_run_bento(c: Context, port: int = 3000, model: str = "", build: bool = False) -> None:
    """Serve with BentoML in a container, with the included model or --model; reachable only from this machine."""
    _serve(c, "bento", port, 3000, model, build=build)


@task
def smoke_test(c: Context, host: str = "http://127.0.0.1:8000") -> None:
    """Send an image to a running service and check the prediction; works with both backends."""
    c.run(f'python tests/performance/smoke.py "{host}"', pty=True)


@task
def cloud_deploy(c: Context, service: str = "api", region: str = "europe-west1") -> None:
    """Build in Google Cloud and deploy to Cloud Run; see docs/deploy.md."""
    if service not in ("api", "bento"):
        raise Exit(f"Unknown --service {service}. Choose api or bento.")
    c.run(
        f"gcloud builds submit --config cloudbuild.yaml "
        f'--substitutions _SERVICE={service},_REGION={region},_REVISION="$(git rev-parse --short HEAD)"',
        pty=True,
    )


@task
def cloud_logs(c: Context, service: str = "api", region: str = "europe-west1", limit: int = 100) -> None:
    """Show the latest log lines of a service in Cloud Run."""
    c.run(f"gcloud run services logs read droneseg-{service} --region {region} --limit {limit}", pty=True)


@task
def cloud_train(c: Context, image: str, region: str = "europe-west1", project: str = "") -> None:
    """Start a training job in Vertex AI on a GPU, with the given train image; see docs/deploy.md."""
    project = project or c.run("gcloud config get-value project", hide=True).stdout.strip()
    if project in ("", "(unset)"):
        raise Exit("No Google Cloud project is set. Use --project NAME or run: gcloud config set project NAME")
    environment = {"PROJECT": project, "REGION": region, "IMAGE": image}
    c.run("bash deploy/render.sh deploy/train.yaml job.yaml", env=environment)
    c.run(f"gcloud ai custom-jobs create --region={region} --display-name=droneseg --config=job.yaml", pty=True)


def _docker() -> str:
    return os.environ.get("DOCKER", "docker")  # podman accepts the same options


def _need_image(c: Context, name: str, *, build: bool) -> None:
    if build or not c.run(f"{_docker()} image inspect droneseg-{name}", hide=True, warn=True):
        docker_build(c, name)


def _has_gpu() -> bool:
    return shutil.which("nvidia-smi") is not None


def _environment(**ours: str) -> tuple[list[str], dict[str, str]]:
    """Return the container options and the environment that pass the variables of `.env`.

    The options contain only the names, so that no value is shown in a list of processes. The engine's own `--env-file`
    is not used: it takes quotes and comments as part of a value.

    Args:
        ours: Variables that override `.env`.
    """
    from dotenv import dotenv_values

    # addresses, ports and folders in .env are for this machine and are overridden
    values = {name: value for name, value in dotenv_values(".env").items() if value is not None} | ours
    return [part for name in values for part in ("--env", name)], values


def _run_as_me(*, gpu: bool) -> tuple[list[str], dict[str, str]]:
    """Return the command and the environment to run a container as the current user, who will own its output."""
    run = [_docker(), "run", "--rm", "--init", "--ipc=host"]
    if hasattr(os, "getuid"):
        run += ["--user", f"{os.getuid()}:{os.getgid()}", "--env", "HOME=/tmp"]
    if gpu:
        run += ["--gpus", "all"]
    if Path(_docker()).name == "podman":
        run.append("--userns=keep-id")  # makes the mounted folders writable
    folders = {f"nnUNet_{kind}": f"/work/nnUNet_{kind}" for kind in ("raw", "preprocessed", "results")}
    options, values = _environment(DRONESEG_MODEL=_CHAMPION, **folders)
    return run + options, values


def _serve(c: Context, name: str, port: int, inside: int, model: str, *, build: bool) -> None:
    if model and not (Path(model) / "manifest.json").is_file():
        raise Exit(f"{model} is not a bundle: it has no manifest.json. Create one with: droneseg export --out {model}")
    _need_image(c, name, build=build)
    folder = "/model" if model else _CHAMPION
    options, values = _environment(DRONESEG_HOST="0.0.0.0", DRONESEG_PORT=str(inside), DRONESEG_MODEL=folder)  # noqa: S104  # in the container
    if model:
        options += ["--volume", f"{Path(model).resolve()}:/model:ro"]
    run = [_docker(), "run", "--rm", "--init", "--publish", f"127.0.0.1:{port}:{inside}", *options]
    c.run(shlex.join([*run, f"droneseg-{name}"]), env=values, pty=True)
