"""Models with seeded, untrained weights in nnU-Net's form: what speed is measured on."""

import shutil
from pathlib import Path

import torch

from droneseg.core.classes import CLASSES
from droneseg.nnunet.layout import BASE_CONFIGURATION, FINAL_CHECKPOINT, PLANS, Layout, announce
from droneseg.nnunet.output import prints_as_logs
from droneseg.nnunet.plans import read_plans

_TRAINER = "nnUNetTrainer"


def write_untrained_model(
    layout: Layout, *, configuration: str = BASE_CONFIGURATION, folds: int = 1, seed: int = 0
) -> Path:
    """Write a model folder for the planned dataset whose folds have untrained weights.

    Args:
        layout: nnU-Net's folders; the dataset in them is planned.
        configuration: Name in the plans.
        folds: How many.
        seed: Of the first fold's weights; the others follow.

    Returns:
        The model folder, which nnU-Net's own predictor can load.
    """
    plans = read_plans(layout)
    announce(layout)
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    folder = layout.results / layout.raw_dataset.name / f"{_TRAINER}__{PLANS}__{configuration}"
    folder.mkdir(parents=True, exist_ok=True)
    for name, source in (("plans.json", layout.plans_file), ("dataset.json", layout.raw_dataset / "dataset.json")):
        shutil.copyfile(source, folder / name)
    manager = PlansManager(plans)
    for fold in range(folds):
        torch.manual_seed(seed + fold)
        with prints_as_logs():
            network = nnUNetTrainer.build_network_architecture(
                manager, manager.get_configuration(configuration), 3, len(CLASSES), enable_deep_supervision=False
            )
        (folder / f"fold_{fold}").mkdir(exist_ok=True)
        torch.save(
            {
                "network_weights": network.state_dict(),
                "init_args": {"configuration": configuration},
                "trainer_name": _TRAINER,
                "inference_allowed_mirroring_axes": (0, 1),
                "current_epoch": 0,
            },
            folder / f"fold_{fold}" / FINAL_CHECKPOINT,
        )
    return folder


def count_gflop(layout: Layout, *, configuration: str = BASE_CONFIGURATION) -> float:
    """Return the arithmetic of one pass over one tile in 10^9 operations, a multiplication and its addition as two."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
    from torch.utils.flop_counter import FlopCounterMode

    manager = PlansManager(read_plans(layout))
    chosen = manager.get_configuration(configuration)
    with torch.device("meta"):
        network = nnUNetTrainer.build_network_architecture(
            manager, chosen, 3, len(CLASSES), enable_deep_supervision=False
        )
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            network(torch.empty(1, 3, *chosen.patch_size))
    return float(counter.get_total_flops()) / 1e9
