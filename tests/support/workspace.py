"""Folder in which droneseg commands run, and the overrides of a tiny training."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from support.forking import run_forked

TINY = (
    "preset=smoke", "patch_size=[64,64]", "batch_size=2", "base_features=4", "max_features=8",
    "epochs=2", "iterations=2", "val_iterations=1", "workers=0",
)  # fmt: skip
TINY_CROPS = (
    "patch_size=[128,128]",
    "crop_size=[64,64]",
    "batch_size=2",
    "epochs=1",
    "iterations=2",
    "val_iterations=1",
    "workers=0",
)
"""Overrides of a tiny training of a network with a pretrained encoder."""

DRONESEG = "from droneseg.cli.main import main; main()"
COMMAND = (sys.executable, "-W", "ignore", "-c", DRONESEG)
"""Command that runs `droneseg` of the code under test in a new process."""


@dataclass(frozen=True)
class Workspace:
    """A folder with generated data, converted and preprocessed."""

    root: Path

    def run(
        self, *arguments: str, check: bool = True, code: str = DRONESEG, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a droneseg command in the folder, in a forked process.

        Args:
            *arguments: Arguments of the command.
            check: Whether to fail for an exit code other than 0.
            code: Python code that runs the command.
            **environment: Further environment variables.
        """
        done = run_forked(code, arguments, folder=self.root, environment=self.environment | environment)
        assert not (check and done.returncode), f"{' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}"
        return done

    @property
    def command(self) -> list[str]:
        return list(COMMAND)

    @property
    def environment(self) -> dict[str, str]:
        # without compiled files each process would compile torch and nnU-Net anew
        left_out = ("nnUNet_", "DRONESEG_MODEL", "PYTHONDONTWRITEBYTECODE")
        return {name: value for name, value in os.environ.items() if not name.startswith(left_out)}

    def fold(self, configuration: str = "2d_smoke") -> Path:
        """Return the folder of a training."""
        return self.root / f"nnUNet_results/Dataset101_DroneSeg/DroneSegTrainer__nnUNetPlans__{configuration}/fold_0"
