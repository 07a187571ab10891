"""nnU-Net's planning and preprocessing, run in threads and with output to the log."""

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

logger = logging.getLogger(__name__)


@contextmanager
def threads_for_workers() -> Iterator[None]:
    """Replace the process pools of nnU-Net's fingerprint extraction and preprocessing with thread pools.

    Each process would first import nnU-Net and torch. Decoding, normalisation and compression release the GIL, so
    threads use all cores. The result is the same (`benchmarks/preprocess.py` compares both).
    """
    from nnunetv2.experiment_planning.dataset_fingerprint import fingerprint_extractor
    from nnunetv2.preprocessing.preprocessors import default_preprocessor

    modules = (fingerprint_extractor, default_preprocessor)
    originals = [module.multiprocessing for module in modules]
    # both modules call get_context("spawn").Pool(n) and nothing else
    threads = SimpleNamespace(get_context=lambda _method: SimpleNamespace(Pool=ThreadPool))
    try:
        for module in modules:
            module.multiprocessing = threads
        yield
    finally:
        for module, original in zip(modules, originals, strict=True):
            module.multiprocessing = original


class _LogStream(io.TextIOBase):
    """Text stream that logs each complete line at level DEBUG."""

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
    """Log lines printed inside a `with` block at level DEBUG instead of printing them."""
    with redirect_stdout(_LogStream(logging.getLogger("droneseg.nnunet"))):
        yield


@dataclass(frozen=True)
class Preprocessed:
    """Result of preprocessing.

    Attributes:
        folder: Folder with plans and preprocessed data.
        patch_size: Height and width of a patch in nnU-Net's 2d configuration.
        batch_size: Batch size of nnU-Net's 2d configuration.
        normalisation: nnU-Net's normalisation class of each channel.
    """

    folder: Path
    patch_size: tuple[int, int]
    batch_size: int
    normalisation: tuple[str, ...]


def preprocess(paths: NnunetPaths, *, processes: int | None = None, show_progress: bool = True) -> Preprocessed:
    """Plan and preprocess the raw dataset; results of an earlier run are replaced.

    Args:
        paths: nnU-Net's folders.
        processes: Number of threads; default: one per core, at most 8.
        show_progress: Whether nnU-Net shows progress bars.

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
    """Extract the fingerprint of the raw dataset and plan the network; see `preprocess`."""
    if not (paths.raw_dataset / "dataset.json").is_file():
        raise ConfigurationError(f"{paths.raw_dataset} is missing. Run `droneseg data convert` first.")
    export_environment(paths, processes=processes)
    from nnunetv2.configuration import default_num_processes
    from nnunetv2.experiment_planning import plan_and_preprocess_api as api

    paths.preprocessed_dataset.mkdir(parents=True, exist_ok=True)
    # nnU-Net refuses to plan if an older split differs; the split of the raw dataset applies
    (paths.preprocessed_dataset / "splits_final.json").unlink(missing_ok=True)
    with redirect_stdout_to_log(), threads_for_workers():
        logger.info("extracting the fingerprint and planning")
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
