"""nnU-Net's planning and preprocessing, run in threads and with output to the log."""

import importlib
import io
import logging
import pkgutil
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace

from droneseg.core.class_files import DESCRIPTION_NAME
from droneseg.core.errors import ConfigurationError
from droneseg.core.files import read_json
from droneseg.nnunet.paths import FINGERPRINT_NAME, SPLITS_NAME, NnunetPaths, dataset_number, export_environment
from droneseg.nnunet.plans import base_configuration, preprocessed_configurations, read_plans

logger = logging.getLogger(__name__)

DEFAULT_PLANNER = "ExperimentPlanner"


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
        plans: Name of the plans.
        patch_size: Height and width of a patch in nnU-Net's 2d configuration.
        batch_size: Batch size of nnU-Net's 2d configuration.
        normalisation: nnU-Net's normalisation class of each channel.
    """

    folder: Path
    plans: str
    patch_size: tuple[int, int]
    batch_size: int
    normalisation: tuple[str, ...]


def preprocess(
    paths: NnunetPaths,
    *,
    planner: str | None = DEFAULT_PLANNER,
    plans: str | None = None,
    processes: int | None = None,
    show_progress: bool = True,
) -> Preprocessed:
    """Plan and preprocess the raw dataset; results of an earlier run with the same plans are replaced.

    Args:
        paths: nnU-Net's folders.
        planner: Class name of nnU-Net's planner; None uses existing plans as they are.
        plans: Name of the plans; None for the planner's own name for them.
        processes: Number of threads; default: one per core, at most 8.
        show_progress: Whether nnU-Net shows progress bars.

    Raises:
        ConfigurationError: If there is no raw dataset, no such planner, or no such plans.
    """
    if planner:
        plan = plan_dataset(paths, planner=planner, plans=plans, processes=processes, show_progress=show_progress)
    else:
        plan = _use_plans(paths.select(plans=plans), processes=processes, show_progress=show_progress)
    from nnunetv2.configuration import default_num_processes
    from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess as run

    with redirect_stdout_to_log(), threads_for_workers():
        logger.info("preprocessing")
        run(
            [dataset_number(paths.dataset)],
            plans_identifier=plan.plans,
            configurations=preprocessed_configurations(read_plans(paths.select(plans=plan.plans))),
            num_processes=[processes or default_num_processes],
            show_progress_bar=show_progress,
        )
    return plan


def plan_dataset(
    paths: NnunetPaths,
    *,
    planner: str = DEFAULT_PLANNER,
    plans: str | None = None,
    processes: int | None = None,
    show_progress: bool = True,
) -> Preprocessed:
    """Extract the fingerprint of the raw dataset and plan the network; see `preprocess`."""
    _prepare(paths, processes=processes)
    from nnunetv2.configuration import default_num_processes
    from nnunetv2.experiment_planning import plan_and_preprocess_api as api

    _require_planner(planner)
    _require_one_split(paths)
    number = dataset_number(paths.dataset)
    with redirect_stdout_to_log(), threads_for_workers():
        logger.info("extracting the fingerprint and planning")
        api.extract_fingerprints(
            [number], num_processes=processes or default_num_processes, show_progress_bar=show_progress
        )
        name = api.plan_experiments([number], planner, overwrite_plans_name=plans)
    return _describe(paths.select(plans=name))


def _use_plans(paths: NnunetPaths, *, processes: int | None, show_progress: bool) -> Preprocessed:
    """Return existing plans; write the dataset.json that a training copies, and the fingerprint if it is missing."""
    result = _describe(paths)
    _prepare(paths, processes=processes)
    from nnunetv2.configuration import default_num_processes
    from nnunetv2.experiment_planning import plan_and_preprocess_api as api

    shutil.copyfile(paths.raw_dataset / DESCRIPTION_NAME, paths.preprocessed_dataset / DESCRIPTION_NAME)
    if not (paths.preprocessed_dataset / FINGERPRINT_NAME).is_file():
        with redirect_stdout_to_log(), threads_for_workers():
            logger.info("extracting the fingerprint")
            api.extract_fingerprints(
                [dataset_number(paths.dataset)],
                num_processes=processes or default_num_processes,
                show_progress_bar=show_progress,
            )
    return result


def _prepare(paths: NnunetPaths, *, processes: int | None) -> None:
    """Set nnU-Net's environment and create the folder of the plans.

    Raises:
        ConfigurationError: If there is no raw dataset, or another one has the same number.
    """
    if not (paths.raw_dataset / DESCRIPTION_NAME).is_file():
        raise ConfigurationError(f"{paths.raw_dataset} is missing. Run `droneseg data convert` first.")
    number = dataset_number(paths.dataset)
    same = [name for name in paths.datasets() if dataset_number(name) == number]
    if same != [paths.dataset]:
        raise ConfigurationError(
            f"{' and '.join(same)} have the same number, and nnU-Net selects datasets by number. Rename or move one."
        )
    export_environment(paths, processes=processes)
    paths.preprocessed_dataset.mkdir(parents=True, exist_ok=True)


def _require_planner(name: str) -> None:
    """Raise ConfigurationError if nnU-Net has no planner of this name; the message lists all."""
    import nnunetv2.experiment_planning.experiment_planners as package
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
    found, pending = {ExperimentPlanner.__name__}, [ExperimentPlanner]
    while pending:
        subclasses = pending.pop().__subclasses__()
        pending += subclasses
        found |= {subclass.__name__ for subclass in subclasses}
    if name not in found:
        raise ConfigurationError(f"nnU-Net has no planner {name}. Choose one of {', '.join(sorted(found))}.")


def _require_one_split(paths: NnunetPaths) -> None:
    """Make sure that the split of the raw dataset, if any, applies: nnU-Net refuses to plan if an older one differs.

    Folds of droneseg's own datasets are made by the conversion. A split of another dataset may exist nowhere else, so
    it is never deleted.

    Raises:
        ConfigurationError: If such a split differs from that of the raw dataset.
    """
    used, given = paths.preprocessed_dataset / SPLITS_NAME, paths.raw_dataset / SPLITS_NAME
    expected = "Expected a file of nnU-Net."
    if "droneseg" in read_json(paths.raw_dataset / DESCRIPTION_NAME, expected=expected):
        used.unlink(missing_ok=True)
        return
    both = used.is_file() and given.is_file()
    if both and read_json(used, expected=expected) != read_json(given, expected=expected):
        raise ConfigurationError(f"{used} differs from {given}. Delete the one that does not apply.")


def _describe(paths: NnunetPaths) -> Preprocessed:
    plan = base_configuration(read_plans(paths))
    return Preprocessed(
        folder=paths.preprocessed_dataset,
        plans=paths.plans,
        patch_size=(plan["patch_size"][0], plan["patch_size"][1]),
        batch_size=plan["batch_size"],
        normalisation=tuple(plan["normalization_schemes"]),
    )
