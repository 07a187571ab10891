"""One trial in a subprocess."""

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
from typing import Any

from droneseg.core.errors import DronesegError
from droneseg.nnunet.callbacks import EPOCHS_NAME
from droneseg.nnunet.paths import NnunetPaths

logger = logging.getLogger(__name__)

_LOOK_S = 0.2
_END_S = 30  # W&B is told of the end meanwhile
_SAID = 2000  # last characters of what a failed trial said


@dataclass(frozen=True)
class TrialOutcome:
    """How a trial ended.

    Attributes:
        cut_short: Whether it was ended early, as asked.
        error: What it said last if it failed.
    """

    cut_short: bool
    error: str | None


def run_trial(
    overrides: Sequence[str], paths: NnunetPaths, fold: Path, on_epoch: Callable[[dict[str, Any]], bool]
) -> TrialOutcome:
    """Train, and tell of each epoch.

    Args:
        overrides: Of the training.
        paths: nnU-Net's folders.
        fold: Folder of the training: there it tells of its epochs.
        on_epoch: Told of an epoch's figures; says whether the trial shall go on.

    Returns:
        How it ended.
    """
    fold.mkdir(parents=True, exist_ok=True)
    if not any(fold.glob("checkpoint_*.pth")):
        (fold / EPOCHS_NAME).unlink(missing_ok=True)  # of a training that cannot be gone on with
    folders = [str(paths.raw), str(paths.preprocessed), str(paths.results)]
    command = [sys.executable, "-W", "ignore", "-m", "droneseg.training.trial", str(os.getpid()), *folders, *overrides]
    with (fold / "trial.log").open("wb") as log:
        # a group of its own: the processes that load for it end with it
        running = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            goes_on = _watch(running, fold / EPOCHS_NAME, on_epoch)
        finally:
            _end(running)
    if not goes_on or running.returncode == 0:
        return TrialOutcome(cut_short=not goes_on, error=None)
    said = (fold / "trial.log").read_text(encoding="utf-8", errors="replace")[-_SAID:].strip().splitlines()
    return TrialOutcome(cut_short=False, error=said[-1] if said else f"ended with {running.returncode}")


def _watch(running: "subprocess.Popen[bytes]", file: Path, on_epoch: Callable[[dict[str, Any]], bool]) -> bool:
    """Pass on the epochs until the training ends or shall; return whether it was let go on."""
    told = 0
    while True:
        ended = running.poll() is not None
        epochs = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
        for epoch in epochs[told:]:
            told += 1
            if not on_epoch(epoch):
                return False
        if ended:
            return True
        time.sleep(_LOOK_S)


def _end(running: "subprocess.Popen[bytes]") -> None:
    if running.poll() is None:
        running.terminate()
        try:
            running.wait(_END_S)
        except subprocess.TimeoutExpired:
            logger.debug("the trial did not end by itself within %d s", _END_S)
    if sys.platform != "win32":  # which has no groups
        with suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)  # what it started
    running.wait()


def _end_with_parent(parent: int) -> None:
    """End this process and what it started when the one that watches it is gone, even by kill -9."""

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_S)
        if sys.platform != "win32":
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()


def main() -> None:
    """Train: `python -m droneseg.training.trial PARENT RAW PREPROCESSED RESULTS KEY=VALUE...`; an error is one line."""
    from droneseg.core.logs import configure_logging
    from droneseg.core.settings import load_settings
    from droneseg.training.config import load_config
    from droneseg.training.run import train

    parent, raw, preprocessed, results, *overrides = sys.argv[1:]
    _end_with_parent(int(parent))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C ends a training
    settings = load_settings()
    configure_logging(settings.log_level, settings.log_format)
    key = settings.wandb_api_key.get_secret_value() if settings.wandb_api_key else None
    try:
        train(load_config(overrides), NnunetPaths(Path(raw), Path(preprocessed), Path(results)), wandb_key=key)
    except DronesegError as error:
        sys.exit(f"{error}")


if __name__ == "__main__":
    main()
