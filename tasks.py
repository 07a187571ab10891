"""Tasks for people: `invoke --list`. Each is one line around a command that works without invoke, too."""

import os
import shlex
import shutil
import sys
from pathlib import Path

from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import task

DOCS = "mkdocs build --strict --site-dir site"
# warnings about what version 2 of MkDocs will not take
_QUIET = {"DISABLE_MKDOCS_2_WARNING": "true", "NO_MKDOCS_2_WARNING": "1"}
LINT = "ruff check . && ruff format --check . && mypy && lint-imports"


@task
def download_data(c: Context, folder: str = "data/drone") -> None:
    """Download the dataset from Kaggle; KAGGLE_API_TOKEN is needed."""
    c.run(f'droneseg data download "{folder}"', pty=True)


@task
def download_models(c: Context, remote: str = "") -> None:
    """Fetch the model as nnUNet_results.dvc names it."""
    c.run("droneseg models pull" + (f' --remote "{remote}"' if remote else ""), pty=True)


@task
def export_data(c: Context, source: str, split: str = "") -> None:
    """Convert a folder in the Kaggle layout into nnU-Net's raw layout."""
    c.run(f'droneseg data convert "{source}"' + (f' --split "{split}"' if split else ""), pty=True)


@task
def preprocess(c: Context) -> None:
    """Let nnU-Net plan and preprocess the converted data."""
    c.run("droneseg preprocess", pty=True)


@task
def train(c: Context, args: str = "preset=cpu") -> None:
    """Train; pass presets and overrides with --args."""
    c.run(f"droneseg train {args}", pty=True)


@task
def test(c: Context) -> None:
    """Run all tests with coverage."""
    c.run("pytest --cov -n 2 --dist loadfile", pty=True)


@task
def app(_c: Context) -> None:
    """Serve the model on this machine; the page is at /ui."""
    # in the place of invoke, which would not pass on the signal that ends it
    os.execvp("droneseg", ["droneseg", "serve"])  # noqa: S606  # no shell is needed


@task
def load_test(c: Context, host: str = "http://127.0.0.1:8000") -> None:
    """Load a running service as configs/load.yaml says; reports go to load/."""
    c.run("mkdir -p load")
    c.run(f"locust -f tests/performance/locustfile.py --headless --host {host} --csv load/run --html load/run.html")


@task
def alarm_policies(c: Context) -> None:
    """Make the alert policies for Google Cloud Monitoring of configs/alarms/rules.yaml."""
    c.run("python -m droneseg.monitoring.alert_policies configs/alarms/rules.yaml configs/alarms/google")


@task
def check(c: Context) -> None:
    """Lint, types, import contracts and documentation."""
    c.run(f"{LINT} && {DOCS} --quiet", env=_QUIET, pty=True)


@task
def build_docs(c: Context) -> None:
    """Build the documentation into site/, and check its links."""
    c.run(f"{DOCS} && linkchecker --no-status --no-warnings site/index.html", env=_QUIET, pty=True)


@task
def serve_docs(c: Context) -> None:
    """Serve the documentation on this machine."""
    c.run("mkdocs serve --dev-addr 127.0.0.1:8001", env=_QUIET, pty=True)


@task
def demo(c: Context, out: str = "demo") -> None:
    """Run the whole flow on generated data."""
    c.run(f'droneseg demo --out "{out}"', pty=True)


@task
def bento_build(c: Context) -> None:
    """Build a bento with the model in it, which DVC fetches if it is not there."""
    from droneseg.model.bundle import read_bundle
    from droneseg.model.store import fetch_model

    champion = Path("nnUNet_results/champion")
    fetch_model(champion, "auto")
    read_bundle(champion)  # or a bento without a model would be built
    c.run("uv build --wheel --clear --out-dir dist")
    c.run("uv export --quiet --extra bento --no-dev --no-emit-project --no-hashes -o dist/bento-requirements.txt")
    c.run("bentoml build", env={"BENTOML_DO_NOT_TRACK": "True"}, pty=True)


@task
def bento_serve(_c: Context) -> None:
    """Serve the model with BentoML on this machine, at port 3000 or PORT."""
    os.environ["BENTOML_DO_NOT_TRACK"] = "True"
    os.execvp("bentoml", ["bentoml", "serve", "droneseg.serving.bentoml_service:DroneSegService"])  # noqa: S606  # as above


IMAGES = ("api", "bento", "inference", "train")
_CHAMPION = "nnUNet_results/champion"
_MOUNTED = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "runs", "data")


@task
def docker_build(c: Context, image: str = "", model: str = "baked") -> None:
    """Build one image, or all four; --model pulled leaves the model out of them."""
    for name in [image] if image else IMAGES:
        if model not in ("baked", "pulled") or name not in IMAGES:
            raise Exit(f"--image is one of {', '.join(IMAGES)}, --model baked or pulled; not {name}, {model}.")
        chosen = "" if name == "train" else f" --build-arg MODEL={model}"
        revision = c.run("git rev-parse --short HEAD", hide=True, warn=True)
        stated = f" --build-arg REVISION={revision.stdout.strip()}" if revision and revision.ok else ""
        c.run(f"{_docker()} build --file {name}.dockerfile --tag droneseg-{name}{chosen}{stated} .", pty=True)


@task
def docker_train(c: Context, args: str = "", build: bool = False) -> None:
    """Train in a container: --args "preset=gpu epochs=200". Preprocesses first if that was not done."""
    _need_image(c, "train", build=build)
    gpu = _has_gpu()
    if not gpu:
        sys.stderr.write("No GPU was found (nvidia-smi): training on the CPU, which takes many times longer.\n")
    run, environment = _run_as_me(gpu=gpu)
    for name in _MOUNTED:
        Path(name).mkdir(exist_ok=True)  # or the engine would make it, as root
        run += ["--volume", f"{Path(name).resolve()}:/work/{name}"]
    if not (Path("nnUNet_preprocessed") / "Dataset101_DroneSeg").is_dir():
        c.run(shlex.join([*run, "droneseg-train", "droneseg", "preprocess"]), env=environment, pty=True)
    overrides = shlex.split(args) or ["preset=gpu" if gpu else "preset=cpu"]
    c.run(shlex.join([*run, "droneseg-train", "droneseg", "train", *overrides]), env=environment, pty=True)


@task
def docker_inference(c: Context, source: str, out: str = "masks", build: bool = False) -> None:
    """Predict a folder of photographs in a container: masks and overlays into another folder."""
    if not Path(source).is_dir():
        raise Exit(f"{source} is not a folder of photographs.")
    _need_image(c, "inference", build=build)
    Path(out).mkdir(parents=True, exist_ok=True)
    volumes = ["--volume", f"{Path(source).resolve()}:/input:ro", "--volume", f"{Path(out).resolve()}:/output"]
    run, environment = _run_as_me(gpu=False)
    c.run(shlex.join([*run, *volumes, "droneseg-inference"]), env=environment, pty=True)


@task
def docker_run_api(c: Context, port: int = 8000, model: str = "", build: bool = False) -> None:
    """Serve with FastAPI in a container, on this machine only: the model in it, or a bundle of yours."""
    _serve(c, "api", port, 8000, model, build=build)


@task
def docker_run_bento(c: Context, port: int = 3000, model: str = "", build: bool = False) -> None:
    """Serve with BentoML in a container, on this machine only: the model in it, or a bundle of yours."""
    _serve(c, "bento", port, 3000, model, build=build)


@task
def smoke_test(c: Context, host: str = "http://127.0.0.1:8000") -> None:
    """Ask a running service of either kind for a prediction and look at the answer."""
    c.run(f'python tests/performance/smoke.py "{host}"', pty=True)


@task
def cloud_deploy(c: Context, service: str = "api", region: str = "europe-west1") -> None:
    """Build in Google Cloud and deploy to Cloud Run: see docs/deploy.md."""
    if service not in ("api", "bento"):
        raise Exit(f"--service is api or bento, not {service}.")
    c.run(
        f"gcloud builds submit --config cloudbuild.yaml "
        f'--substitutions _SERVICE={service},_REGION={region},_REVISION="$(git rev-parse --short HEAD)"',
        pty=True,
    )


@task
def cloud_logs(c: Context, service: str = "api", region: str = "europe-west1", limit: int = 100) -> None:
    """Show the last lines of a service's log in Cloud Run."""
    c.run(f"gcloud run services logs read droneseg-{service} --region {region} --limit {limit}", pty=True)


@task
def cloud_train(c: Context, image: str, region: str = "europe-west1", project: str = "") -> None:
    """Start a training on a GPU in Vertex AI with this train image: see docs/deploy.md."""
    project = project or c.run("gcloud config get-value project", hide=True).stdout.strip()
    if project in ("", "(unset)"):
        raise Exit("Which project? --project NAME, or: gcloud config set project NAME")
    environment = {"PROJECT": project, "REGION": region, "IMAGE": image}
    c.run("bash deploy/render.sh deploy/train.yaml job.yaml", env=environment)
    c.run(f"gcloud ai custom-jobs create --region={region} --display-name=droneseg --config=job.yaml", pty=True)


def _docker() -> str:
    return os.environ.get("DOCKER", "docker")  # podman takes the same


def _need_image(c: Context, name: str, *, build: bool) -> None:
    if build or not c.run(f"{_docker()} image inspect droneseg-{name}", hide=True, warn=True):
        docker_build(c, name)


def _has_gpu() -> bool:
    return shutil.which("nvidia-smi") is not None


def _environment(**ours: str) -> tuple[list[str], dict[str, str]]:
    """Return options that hand over `.env`, and the values, which stand in no list of processes.

    Engines read such files otherwise than programs do: quotes and comments would be part of a value.
    """
    from dotenv import dotenv_values

    # an address, a port or a folder in .env is that of this machine
    values = {name: value for name, value in dotenv_values(".env").items() if value is not None} | ours
    return [part for name in values for part in ("--env", name)], values


def _run_as_me(*, gpu: bool) -> tuple[list[str], dict[str, str]]:
    """Return the command that runs a container, and its environment: what it writes belongs to who started it."""
    run = [_docker(), "run", "--rm", "--init", "--ipc=host"]
    if hasattr(os, "getuid"):
        run += ["--user", f"{os.getuid()}:{os.getgid()}", "--env", "HOME=/tmp"]
    if gpu:
        run += ["--gpus", "all"]
    if Path(_docker()).name == "podman":
        run.append("--userns=keep-id")  # or a folder of ours could not be written to
    folders = {f"nnUNet_{kind}": f"/work/nnUNet_{kind}" for kind in ("raw", "preprocessed", "results")}
    options, values = _environment(DRONESEG_MODEL=_CHAMPION, **folders)
    return run + options, values


def _serve(c: Context, name: str, port: int, inside: int, model: str, *, build: bool) -> None:
    if model and not (Path(model) / "manifest.json").is_file():
        raise Exit(f"{model} is no bundle: it holds no manifest.json. Make one with droneseg export --out {model}")
    _need_image(c, name, build=build)
    folder = "/model" if model else _CHAMPION
    options, values = _environment(DRONESEG_HOST="0.0.0.0", DRONESEG_PORT=str(inside), DRONESEG_MODEL=folder)  # noqa: S104  # in it
    if model:
        options += ["--volume", f"{Path(model).resolve()}:/model:ro"]
    run = [_docker(), "run", "--rm", "--init", "--publish", f"127.0.0.1:{port}:{inside}", *options]
    c.run(shlex.join([*run, f"droneseg-{name}"]), env=values, pty=True)
