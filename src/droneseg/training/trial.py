"""One trial of a sweep: a training in a subprocess that exits when its parent does."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from droneseg.core.errors import DronesegError
from droneseg.nnunet.callbacks import EPOCHS_NAME, EpochMetrics
from droneseg.nnunet.paths import NnunetPaths

logger = logging.getLogger(__name__)

_POLL_S = 0.2
_TERMINATE_S = 30  # time for W&B to upload the end of the run
_LOG_CHARACTERS = 2000  # at the end of the log, searched for the error


@dataclass(frozen=True)
class TrialOutcome:
    """Outcome of a trial.

    Attributes:
        pruned: Whether the trial was stopped early on request.
        error: Last line of the log if the trial failed, else None.
    """

    pruned: bool
    error: str | None


def run_trial(
    overrides: Sequence[str], paths: NnunetPaths, fold: Path, on_epoch: Callable[[EpochMetrics], bool]
) -> TrialOutcome:
    """Train in a subprocess and report each epoch.

    Args:
        overrides: Overrides of the training configuration, each `key=value`.
        paths: nnU-Net's folders.
        fold: Fold folder, in which the checkpoints are written.
        on_epoch: Callback with the metrics of an epoch; returns whether the trial continues.
    """
    fold.mkdir(parents=True, exist_ok=True)
    if not any(fold.glob("checkpoint_*.pth")):
        (fold / EPOCHS_NAME).unlink(missing_ok=True)  # left by a training that cannot be resumed
    folders = [str(paths.raw), str(paths.preprocessed), str(paths.results)]
    command = [sys.executable, "-W", "ignore", "-m", "droneseg.training.trial", str(os.getpid()), *folders, *overrides]
    with (fold / "trial.log").open("wb") as log:
        # in its own process group, so that its data-loading processes can be killed with it
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            completed = _watch(process, fold / EPOCHS_NAME, on_epoch)
        finally:
            _terminate(process)
    if not completed or process.returncode == 0:
        return TrialOutcome(pruned=not completed, error=None)
    log_end = (fold / "trial.log").read_text(encoding="utf-8", errors="replace")[-_LOG_CHARACTERS:]
    lines = log_end.strip().splitlines()
    return TrialOutcome(pruned=False, error=lines[-1] if lines else f"the trial exited with code {process.returncode}")


def _watch(process: subprocess.Popen[bytes], file: Path, on_epoch: Callable[[EpochMetrics], bool]) -> bool:
    """Report epochs until the training ends or is stopped. Return False if it was stopped."""
    reported = 0
    while True:
        ended = process.poll() is not None
        epochs = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
        for epoch in epochs[reported:]:
            reported += 1
            if not on_epoch(EpochMetrics(**epoch)):
                return False
        if ended:
            return True
        time.sleep(_POLL_S)


def _terminate(process: subprocess.Popen[bytes]) -> None:
    """Terminate the training, then kill its process group."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_TERMINATE_S)
        except subprocess.TimeoutExpired:
            logger.debug("the trial did not terminate within %d s; killing it", _TERMINATE_S)
    if sys.platform != "win32":  # Windows has no process groups
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _exit_with_parent(parent: int) -> None:
    """Kill this process and its children once its parent has exited, even by `kill -9`."""

    def watch_parent() -> None:
        while os.getppid() == parent:
            time.sleep(_POLL_S)
        if sys.platform != "win32":
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch_parent, daemon=True).start()


def main() -> None:
    """Train: `python -m droneseg.training.trial PARENT RAW PREPROCESSED RESULTS KEY=VALUE...`.

    An expected error is printed as one line.
    """
    from droneseg.core.logs import configure_logging
    from droneseg.core.settings import load_settings
    from droneseg.training.config import load_config
    from droneseg.training.run import train

    parent, raw, preprocessed, results, *overrides = sys.argv[1:]
    _exit_with_parent(int(parent))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the training as Ctrl-C does
    settings = load_settings()
    configure_logging(settings.log_level, settings.log_format)
    key = settings.wandb_api_key.get_secret_value() if settings.wandb_api_key else None
    try:
        train(load_config(overrides), NnunetPaths(Path(raw), Path(preprocessed), Path(results)), wandb_key=key)
    except DronesegError as error:
        sys.exit(f"{error}")


if __name__ == "__main__":
    main()
