"""Tasks for people: `invoke --list`. Each is one line around a command that works without invoke, too."""

import os
from pathlib import Path

from invoke.context import Context
from invoke.tasks import task

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
    c.run("python -m droneseg.monitoring.alarms configs/alarms/rules.yaml configs/alarms/google")


@task
def check(c: Context) -> None:
    """Lint, types, import contracts and documentation."""
    c.run(f"{LINT} && mkdocs build --strict --quiet --site-dir site", pty=True)


@task
def build_docs(c: Context) -> None:
    """Build the documentation into site/."""
    c.run("mkdocs build --strict", pty=True)


@task
def serve_docs(c: Context) -> None:
    """Serve the documentation on this machine."""
    c.run("mkdocs serve --dev-addr 127.0.0.1:8001", pty=True)


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
    os.execvp("bentoml", ["bentoml", "serve", "droneseg.serving.bento:DroneSegService"])  # noqa: S606  # as above
