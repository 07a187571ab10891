"""nnU-Net's own fingerprint, planner and preprocessing, called in this process."""

import logging
from dataclasses import dataclass
from pathlib import Path

from droneseg.core.errors import ConfigurationError
from droneseg.nnunet.layout import BASE_CONFIGURATION, DATASET_ID, Layout, announce
from droneseg.nnunet.output import prints_as_logs
from droneseg.nnunet.plans import read_plans
from droneseg.nnunet.workers import threads_for_workers

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


def preprocess(layout: Layout, *, processes: int | None = None, show_progress: bool = True) -> Preprocessed:
    """Plan and preprocess the raw dataset; what an earlier run left is replaced.

    Args:
        layout: nnU-Net's folders.
        processes: Threads; default one per core, at most 8.
        show_progress: Whether nnU-Net draws its progress bars.

    Raises:
        ConfigurationError: If there is no raw dataset.
    """
    plan = plan_dataset(layout, processes=processes, show_progress=show_progress)
    from nnunetv2.configuration import default_num_processes
    from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess as run

    with prints_as_logs(), threads_for_workers():
        logger.info("preprocessing")
        run(
            [DATASET_ID],
            configurations=[BASE_CONFIGURATION],
            num_processes=[processes or default_num_processes],
            show_progress_bar=show_progress,
        )
    return plan


def plan_dataset(layout: Layout, *, processes: int | None = None, show_progress: bool = True) -> Preprocessed:
    """Let nnU-Net look at the raw dataset and plan its network; see `preprocess`."""
    if not (layout.raw_dataset / "dataset.json").is_file():
        raise ConfigurationError(f"{layout.raw_dataset} is missing. Run `droneseg data convert` first.")
    announce(layout, processes=processes)
    from nnunetv2.configuration import default_num_processes
    from nnunetv2.experiment_planning import plan_and_preprocess_api as api

    layout.preprocessed_dataset.mkdir(parents=True, exist_ok=True)
    # nnU-Net refuses to plan when an older split differs; the raw dataset's is the one that counts
    (layout.preprocessed_dataset / "splits_final.json").unlink(missing_ok=True)
    with prints_as_logs(), threads_for_workers():
        logger.info("fingerprint and plan")
        api.extract_fingerprints(
            [DATASET_ID], num_processes=processes or default_num_processes, show_progress_bar=show_progress
        )
        api.plan_experiments([DATASET_ID])
    plan = read_plans(layout)["configurations"][BASE_CONFIGURATION]
    return Preprocessed(
        folder=layout.preprocessed_dataset,
        patch_size=(plan["patch_size"][0], plan["patch_size"][1]),
        batch_size=plan["batch_size"],
        normalisation=tuple(plan["normalization_schemes"]),
    )
