"""`droneseg doctor`: what is installed, what the machine can do, what is where."""

import platform
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from droneseg.cli import environment, output

if TYPE_CHECKING:
    from droneseg.core.settings import Settings

_EXTRAS = {
    "": ("numpy", "pillow", "openvino", "onnxruntime"),
    "train": ("torch", "nnunetv2", "hydra-core", "wandb", "kaggle"),
    "store": ("dvc",),
    "serve": ("fastapi",),
    "bento": ("bentoml",),
    "drift": ("evidently",),
}


def doctor(json: Annotated[bool, typer.Option("--json", help="Write JSON to stdout.")] = False) -> None:
    """Show what is installed, what is where, and what is missing."""
    from droneseg.core.system import usable_cores

    settings = environment.settings()
    findings = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": str(usable_cores()),
        **_packages(),
        **_devices(),
        **_folders(settings),
    }
    if json:
        output.show_json(findings)
        return
    width = max(map(len, findings))
    for name, finding in findings.items():
        output.out().print(f"{name:<{width}}  {finding}", markup=False)


def _packages() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for extra, packages in _EXTRAS.items():
        for package in packages:
            try:
                found[package] = version(package)
            except PackageNotFoundError:
                found[package] = f"not installed; uv sync --extra {extra}" if extra else "not installed"
    return found


def _devices() -> dict[str, str]:
    from importlib.util import find_spec

    if find_spec("torch") is None:
        return {"training device": "none: torch is not installed"}
    from droneseg.nnunet.paths import choose_device, cpu_has_bf16

    return {
        "training device": choose_device("auto").type,
        "bfloat16 on the CPU": "in hardware" if cpu_has_bf16() else "not in hardware; float32 is used",
    }


def _folders(settings: "Settings") -> dict[str, str]:
    from droneseg.nnunet.paths import Layout, trained_folders

    layout = Layout.from_settings(settings)
    free_gb = shutil.disk_usage(Path.cwd()).free / 1e9
    return {
        "nnUNet_raw": _state(layout.raw_dataset, "run `droneseg data convert`"),
        "nnUNet_preprocessed": _state(layout.plans_file, "run `droneseg preprocess`"),
        "nnUNet_results": f"{len(trained_folders(layout.results))} trained model(s) in {layout.results}",
        "DRONESEG_MODEL": _state(settings.model, "name a model with --model"),
        "free disk": f"{free_gb:.0f} GB",
    }


def _state(path: Path, remedy: str) -> str:
    return str(path) if path.exists() else f"{path} is not there; {remedy}"
