"""Planning and preprocessing, in threads; stdout to logging."""

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace

from droneseg.core.errors import ConfigurationError
from droneseg.nnunet.paths import BASE_CONFIGURATION, DATASET_ID, NnunetPaths, export_environment
from droneseg.nnunet.plans import read_plans

# nnU-Net's preprocessing on threads: each worker process it would spawn imports nnU-Net and torch for itself, first.
#
# Decoding, normalising and compressing leave Python's lock, so threads use every core; the arrays written are the same
# (`benchmarks/preprocess.py` compares both). Nothing here knows what is computed.


@contextmanager
def threads_for_workers() -> Iterator[None]:
    """Give nnU-Net's fingerprint extraction and preprocessing thread pools while the block runs."""
    from nnunetv2.experiment_planning.dataset_fingerprint import fingerprint_extractor
    from nnunetv2.preprocessing.preprocessors import default_preprocessor

    modules = (fingerprint_extractor, default_preprocessor)
    originals = [module.multiprocessing for module in modules]
    # both modules ask for get_context("spawn").Pool(n) and nothing else
    threads = SimpleNamespace(get_context=lambda _method: SimpleNamespace(Pool=ThreadPool))
    try:
        for module in modules:
            module.multiprocessing = threads
        yield
    finally:
        for module, original in zip(modules, originals, strict=True):
            module.multiprocessing = original


class _LogStream(io.TextIOBase):
    """A stream whose complete lines are logged."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._rest = ""

    def write(self, text: str, /) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in filter(None, map(str.strip, lines)):
            self._logger.debug(line)
        return len(text)


@contextmanager
def redirect_stdout_to_log() -> Iterator[None]:
    """Turn what is printed into debug records while the block runs."""
    with redirect_stdout(_LogStream(logging.getLogger("droneseg.nnunet"))):
        yield


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preprocessed:
    """What preprocessing decided.

    Attributes:
        folder: Plans and data.
        patch_size: Height and width of nnU-Net's own 2d plan.
        batch_size: Of that plan.
        normalisation: Of the channels.
    """

    folder: Path
    patch_size: tuple[int, int]
    batch_size: int
    normalisation: tuple[str, ...]


def preprocess(paths: NnunetPaths, *, processes: int | None = None, show_progress: bool = True) -> Preprocessed:
    """Plan and preprocess the raw dataset; what an earlier run left is replaced.

    Args:
        paths: nnU-Net's folders.
        processes: Threads; default one per core, at most 8.
        show_progress: Whether nnU-Net draws its progress bars.

    Raises:
        ConfigurationError: If there is no raw dataset.
    """
    plan = plan_dataset(paths, processes=processes, show_progress=show_progress)
    from nnunetv2.configuration import default_num_processes
    from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess as run

    with redirect_stdout_to_log(), threads_for_workers():
        logger.info("preprocessing")
        run(
            [DATASET_ID],
            configurations=[BASE_CONFIGURATION],
            num_processes=[processes or default_num_processes],
            show_progress_bar=show_progress,
        )
    return plan


def plan_dataset(paths: NnunetPaths, *, processes: int | None = None, show_progress: bool = True) -> Preprocessed:
    """Let nnU-Net look at the raw dataset and plan its network; see `preprocess`."""
    if not (paths.raw_dataset / "dataset.json").is_file():
        raise ConfigurationError(f"{paths.raw_dataset} is missing. Run `droneseg data convert` first.")
    export_environment(paths, processes=processes)
    from nnunetv2.configuration import default_num_processes
    from nnunetv2.experiment_planning import plan_and_preprocess_api as api

    paths.preprocessed_dataset.mkdir(parents=True, exist_ok=True)
    # nnU-Net refuses to plan when an older split differs; the raw dataset's is the one that counts
    (paths.preprocessed_dataset / "splits_final.json").unlink(missing_ok=True)
    with redirect_stdout_to_log(), threads_for_workers():
        logger.info("fingerprint and plan")
        api.extract_fingerprints(
            [DATASET_ID], num_processes=processes or default_num_processes, show_progress_bar=show_progress
        )
        api.plan_experiments([DATASET_ID])
    plan = read_plans(paths)["configurations"][BASE_CONFIGURATION]
    return Preprocessed(
        folder=paths.preprocessed_dataset,
        patch_size=(plan["patch_size"][0], plan["patch_size"][1]),
        batch_size=plan["batch_size"],
        normalisation=tuple(plan["normalization_schemes"]),
    )
