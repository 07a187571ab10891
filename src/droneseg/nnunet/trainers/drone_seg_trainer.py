"""DroneSegTrainer, an nnU-Net trainer with settings for short trainings.

nnU-Net finds it through `nnUNet_extTrainer` and imports every module in this folder, which must not contain others.
"""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from nnunetv2.paths import nnUNet_raw
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from torch import nn
from torch.optim import AdamW

from droneseg.core.class_files import classes_of, has_background
from droneseg.core.classes import Normalisation
from droneseg.core.errors import TrainingError
from droneseg.core.image_files import list_cases
from droneseg.nnunet import optimization, trainer_settings
from droneseg.nnunet.augmentation import cheap_augmentation, repeat_rare
from droneseg.nnunet.callbacks import Reporter, read_epochs
from droneseg.nnunet.case_arrays import FOLDER, CaseArrays, prepare_cases
from droneseg.nnunet.checkpoint import load_teacher
from droneseg.nnunet.data_loading import CaseSampler, CropLoader, in_processes, normalise
from droneseg.nnunet.networks import PretrainedUNet, fine_class_counts, unwrap
from droneseg.nnunet.paths import SETTINGS_NAME
from droneseg.nnunet.plans import merge_configuration, resolve_plan
from droneseg.nnunet.warm_start import FittedWeights, exported_weights, fit_weights, read_weights, require_pretrained

logger = logging.getLogger("droneseg.nnunet.trainer")

_PLOT_INTERVAL_S = 60
_STATISTICS_IMAGES = 8  # enough for the normalisation; the training refines its statistics


class _Finished(Exception):  # noqa: N818  # not an error: leaves nnU-Net's epoch loop
    """Raised to end the training early; the message is the reason."""


class DroneSegTrainer(nnUNetTrainer):
    """nnU-Net trainer with a time budget, early stopping, AdamW, averaged weights, bfloat16 on the CPU and tracking.

    The settings are those in the folder of the fold, where `droneseg train` writes them; nnU-Net's own commands start a
    fold without settings with the defaults, which are nnU-Net's.
    """

    network: nn.Module
    inference_allowed_mirroring_axes: tuple[int, ...] | None

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008  # nnU-Net inspects this signature
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        recorded = trainer_settings.read_settings_file(Path(self.output_folder))
        self.settings = recorded or trainer_settings.TrainerSettings()
        self.print_to_log_file("settings:", SETTINGS_NAME if recorded else "defaults of DroneSegTrainer")
        self.classes = classes_of(dataset_json)
        self.initial_lr = self.settings.learning_rate
        self.weight_decay = self.settings.weight_decay
        self.num_epochs = self.settings.epochs
        self.num_iterations_per_epoch = self.settings.iterations
        self.num_val_iterations_per_epoch = self.settings.val_iterations
        self.enable_deep_supervision = self.settings.deep_supervision
        self.save_every = self.settings.save_every
        self.oversample_foreground_percent = self.settings.oversample
        self.progress = optimization.Progress(self.settings, lambda series: self.logger.get_value(series, step=None))
        self.average: optimization.ExponentialMovingAverage | None = None
        self.reporter = Reporter(
            Path(self.output_folder),
            Path(nnUNet_raw, plans["dataset_name"], "imagesTr"),
            self.classes,
            self.settings,
        )
        self._teacher: nn.Module | None = None
        self._continues = False
        self._trained = False
        self._last_epoch_end: float | None = None
        self._plot = self.logger.plot_progress_png = optimization.RateLimited(
            self.logger.plot_progress_png, _PLOT_INTERVAL_S
        )

    def initialize(self) -> None:
        """Seed the random generators and build the network, the optimiser and the average of the weights."""
        torch.manual_seed(self.settings.seed + self.local_rank)
        np.random.seed(self.settings.seed + self.local_rank)  # noqa: NPY002  # nnU-Net's loaders use the global state
        super().initialize()
        network = unwrap(self.network)
        if isinstance(network, PretrainedUNet):
            network.separates_fine_classes = self.settings.fine_weight > 0
        if not self._continues:
            self._initialise(network)
        if self.settings.channels_last:
            self.network = self.network.to(memory_format=torch.channels_last)
        if self.settings.averaged_weights:
            self.average = optimization.ExponentialMovingAverage(network, self.settings.averaged_weights)

    def _initialise(self, network: nn.Module) -> None:
        """Load the initial weights: those of the pretrained encoder, then those of the file in the settings."""
        if isinstance(network, PretrainedUNet):
            network.load_pretrained()
        if not self.settings.weights:
            return
        file = Path(self.settings.weights)
        fitted = self._fit_weights(file, network)
        network.load_state_dict({**network.state_dict(), **fitted.weights})
        if self.local_rank == 0:
            logger.info("initial weights from %s: %s", file, fitted.describe())

    def _fit_weights(self, file: Path, network: nn.Module) -> FittedWeights:
        """Return the weights of a checkpoint, or of the network of a bundle, that fit the network.

        Raises:
            ModelError: If the weights do not fit.
            TrainingError: If the network of a bundle has another architecture.
        """
        if file.suffix == ".onnx":
            cases = list_cases(Path(nnUNet_raw, self.plans_manager.dataset_name, "imagesTr"))
            images = (case.decode() for case in cases[:_STATISTICS_IMAGES])
            weights = exported_weights(file, require_pretrained(network, file), images)
            checkpoint: dict[str, Any] = {"network_weights": weights}
        else:
            checkpoint = read_weights(file)
        plans = merge_configuration(self.plans_manager.plans, self.configuration_name)
        return fit_weights(network, checkpoint, plans, self.dataset_json)

    def _load_teacher(self, file: Path) -> nn.Module:
        teacher = load_teacher(
            file, labels=self.dataset_json["labels"], normalisation=self._normalisation(), crop=self._crop_size()
        )
        if self.settings.channels_last:
            teacher = teacher.to(memory_format=torch.channels_last)
        return teacher.to(self.device)

    def _normalisation(self) -> Normalisation:
        return resolve_plan(self.plans_manager.plans, self.configuration_name).normalisation

    def _crop_size(self) -> tuple[int, int]:
        height, width = self.settings.crop_size or self.configuration_manager.patch_size
        return height, width

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """Return the optimiser and a learning-rate schedule over epochs or time budget."""
        network = unwrap(self.network)
        if isinstance(network, PretrainedUNet):
            network.encoder.freeze(self.settings.frozen_stages)  # before DDP registers the trained parameters
        optimizer, _ = super().configure_optimizers()
        if self.settings.optimizer == "adamw":
            groups = optimization.parameter_groups(network, self.settings.encoder_rate)
            optimizer = AdamW(groups, self.initial_lr, weight_decay=self.weight_decay, fused=True)
        return optimizer, optimization.BudgetPolyLR(optimizer, self.initial_lr, self.progress)

    def _build_loss(self) -> nn.Module:
        loss = super()._build_loss()
        classes = self.label_manager.num_segmentation_heads
        planned = self.configuration_manager.configuration["architecture"]["arch_kwargs"].get("fine_classes", ())
        fine = planned if self.settings.fine_weight else ()  # otherwise, the network adds them up itself
        if self.settings.crop_scales or fine:
            loss = optimization.with_pixel_targets(
                loss, classes, self.device, fine_classes=fine, fine_weight=self.settings.fine_weight
            )
        weights = trainer_settings.weights_by_id(
            self.settings.class_weights,
            self.classes,
            has_background=has_background(self.dataset_json),
        )
        loss = optimization.adapt_loss(loss, weights, self.device, float32=self._uses_bf16())
        if self.settings.teacher:
            loss = optimization.DistillationLoss(loss, fine_class_counts(fine, classes), self.settings.teacher_weight)
        return loss

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, ...]:  # noqa: N802
        """Return nnU-Net's values with a smaller initial patch size for light and flight augmentation.

        Light augmentation loads only the patch. Flight augmentation loads nnU-Net's larger patch, limited to the size
        of the image, and rotates it.
        """
        rotation, dummy, initial, mirror = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        patch = np.array(self.configuration_manager.patch_size)
        if self.settings.augmentation == "light":
            initial = patch
        elif self.settings.augmentation == "flight":
            image_size = np.array(self.configuration_manager.configuration["median_image_size_in_voxels"])
            initial = np.maximum(patch, np.minimum(initial, image_size.astype(int)))
        return rotation, dummy, initial, mirror

    def get_dataloaders(self) -> tuple[Any, Any]:
        """Return data loaders with patches of the crop size, or of the plan's patch size if no crop size is set."""
        if self.settings.crop_scales:
            return self._crop_loaders()
        plan = self.configuration_manager.configuration
        patch_size = plan["patch_size"]
        try:
            plan["patch_size"] = self.settings.crop_size or patch_size
            return super().get_dataloaders()
        finally:
            plan["patch_size"] = patch_size

    def _crop_loaders(self) -> tuple[Any, Any]:
        """Return the loaders of crops at random scales, in as many processes as nnU-Net would use."""
        training, validation = self.do_split()
        cases = self._prepare_cases(sorted({*training, *validation}))
        if self.settings.repeat_rare:
            training = repeat_rare({name: set(cases[name].classes) - {0} for name in training})
        described = self.dataset_json.get("droneseg", {})
        generated = frozenset(described.get("generated", ()))
        common: dict[str, Any] = {
            "batch_size": self.batch_size,
            "crop": self._crop_size(),
            "gsd_m": described.get("gsd_m", {}),
            "normalisation": self._normalisation(),
            "ignore": self.label_manager.ignore_label,
            "oversample": self.oversample_foreground_percent,
            "strides": self._target_strides(),
        }
        sampler = CaseSampler(training, generated, self.settings.generated_share)
        train = CropLoader(cases, sampler, self.settings, **common)
        sampler = CaseSampler(validation, generated, 0.0)
        validate = CropLoader(cases, sampler, self.settings, **common, training=False)
        processes = get_allowed_n_proc_DA()
        pinned = self.device.type == "cuda"
        return (
            in_processes(train, processes, cached=max(6, processes // 2), pinned=pinned),
            in_processes(validate, (processes + 1) // 2, cached=max(3, processes // 4), pinned=pinned),
        )

    def _prepare_cases(self, names: list[str]) -> dict[str, CaseArrays]:
        """Return the arrays of cases; rank 0 writes them first."""
        raw, folder = (
            Path(nnUNet_raw, self.plans_manager.dataset_name),
            Path(self.preprocessed_dataset_folder_base, FOLDER),
        )
        ignore = self.label_manager.ignore_label
        if self.local_rank == 0:
            cases = prepare_cases(raw, folder, names, ignore=ignore)
        if self.is_ddp:
            dist.barrier()
        return cases if self.local_rank == 0 else prepare_cases(raw, folder, names, ignore=ignore)

    def _target_strides(self) -> list[tuple[int, int]] | None:
        scales = self._get_deep_supervision_scales()
        return [(round(1 / scale[0]), round(1 / scale[1])) for scale in scales] if scales else None

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        """Return the training and validation datasets; with `repeat_rare`, images with rare classes are repeated."""
        training, validation = super().get_tr_and_val_datasets()
        if self.settings.repeat_rare:
            pixels = {name: training.load_case(name)[-1]["class_locations"] for name in training.identifiers}
            training.identifiers = repeat_rare(
                {
                    name: {class_id for class_id, locations in by_class.items() if len(locations)}
                    for name, by_class in pixels.items()
                }
            )
        return training, validation

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> Any:
        """Return nnU-Net's augmentation, or a cheaper one for light and flight."""
        if self.settings.augmentation == "full":
            return nnUNetTrainer.get_training_transforms(*args, **kwargs)
        patch_size, _, scales, mirror_axes, *_ = args
        rest = {key: value for key, value in kwargs.items() if key != "use_mask_for_norm"}
        last = nnUNetTrainer.get_validation_transforms(scales, **rest)
        return cheap_augmentation(self.settings.augmentation, patch_size, mirror_axes, last)

    def _uses_bf16(self) -> bool:
        return self.settings.bf16 and self.device.type == "cpu"

    def _precision(self) -> AbstractContextManager[Any]:
        return torch.autocast("cpu", dtype=torch.bfloat16) if self._uses_bf16() else nullcontext()

    def _averaged(self) -> AbstractContextManager[Any]:
        return self.average.applied() if self.average else nullcontext()

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Take one optimiser step."""
        batch = self._normalised(batch)
        with self._precision(), self.reporter.iteration(), self._taught(batch):
            result = super().train_step(batch)
        if self.average:
            self.average.update()
        return result

    @contextmanager
    def _taught(self, batch: dict[str, Any]) -> Iterator[None]:
        """Give the loss the teacher's probabilities of a batch inside a `with` block, if there is a teacher."""
        if self._teacher is None:
            yield
            return
        loss = cast(optimization.DistillationLoss, self.loss)
        with torch.no_grad():
            loss.probabilities = self._teacher(batch["data"].to(self.device, non_blocking=True)).softmax(1)
        try:
            yield
        finally:
            loss.probabilities = None

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Compute loss and Dice of one validation batch with the averaged weights."""
        batch = self._normalised(batch)
        with self._precision(), self._averaged():
            return super().validation_step(batch)

    def _normalised(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return a batch with the network's input; nnU-Net's own loader has normalised it already."""
        if not self.settings.crop_scales:
            return batch
        return batch | {"data": normalise(batch, self.device, channels_last=self.settings.channels_last)}

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Predict the validation cases with sliding windows, unless the settings skip it at the end of a training."""
        if self.settings.validation != "none" or not self._trained:
            self._validate(save_probabilities)
        self.reporter.end(failed=False)

    def _validate(self, save_probabilities: bool) -> None:
        axes = self.inference_allowed_mirroring_axes
        fast = self.settings.validation == "fast"
        try:
            self.inference_allowed_mirroring_axes = None if fast else axes
            with self._averaged(), self._precision() if fast else nullcontext():
                super().perform_actual_validation(save_probabilities)
        finally:
            self.inference_allowed_mirroring_axes = axes

    def on_epoch_start(self) -> None:
        """Start an epoch, or end the training if rank 0 has a reason to stop."""
        reason = self.progress.reason_to_stop()
        if self.is_ddp:
            shared = [reason]
            dist.broadcast_object_list(shared, src=0)
            reason = shared[0]
        if reason:
            raise _Finished(reason)
        # an epoch starts at the end of the previous one, so that its time includes saving and plotting
        begin = self._last_epoch_end or time.time()
        self.logger.log("epoch_start_timestamps", begin, self.current_epoch)
        self.progress.epoch_started(begin)

    def on_train_start(self) -> None:
        """Start the training; only rank 0 reports."""
        self._trained = True
        if self.settings.teacher:
            self._teacher = self._load_teacher(Path(self.settings.teacher))
        super().on_train_start()
        if self.average:
            self.average.restart()  # nnU-Net loads pretrained weights after `initialize`
        if self.local_rank == 0:
            trainer_settings.write_settings_file(self.settings, Path(self.output_folder))
            self.reporter.begin(self.network, tracked=self.settings.tracked, profile=self.settings.profile)

    def on_train_end(self) -> None:
        """End the training and plot all epochs."""
        if self.local_rank == 0 and self.current_epoch:
            self._plot.call_now(self.output_folder)
        super().on_train_end()

    def run_training(self) -> None:
        """Train until the epochs, the time budget or the patience is exhausted, and write the final checkpoint."""
        try:
            self.on_train_start()
            while self.current_epoch < self.num_epochs:
                self.on_epoch_start()
                self._run_epoch()
                self.on_epoch_end()
            self.on_train_end()
        except _Finished as reason:
            logger.info("finished: %s", reason)
            self.on_train_end()
        except BaseException:
            self.reporter.end(failed=True)
            raise

    def _run_epoch(self) -> None:
        """Train and validate as nnU-Net does, but set the learning rate for each step and keep the time budget."""
        self.on_train_epoch_start()
        outputs = []
        for _ in range(self.num_iterations_per_epoch):
            self.lr_scheduler.set_share(self._from_rank_0(self.progress.share_done(self.current_epoch)))
            outputs.append(self.train_step(next(self.dataloader_train)))
            self.progress.step_ended()
            if self.local_rank == 0:
                self.reporter.step_ended(self.progress, self.current_epoch, float(outputs[-1]["loss"]))
            if self._from_rank_0(self.progress.epoch_is_over()):
                break
        self.on_train_epoch_end(outputs)
        with torch.no_grad():
            self.on_validation_epoch_start()
            batches = (next(self.dataloader_val) for _ in range(self.num_val_iterations_per_epoch))
            self.on_validation_epoch_end([self.validation_step(batch) for batch in batches])

    def _from_rank_0(self, value: Any) -> Any:
        """Return the value of rank 0, whose clock decides; without a time budget, the values of all ranks are equal."""
        if not (self.is_ddp and self.settings.max_minutes):
            return value
        shared = [value]
        dist.broadcast_object_list(shared, src=0)
        return shared[0]

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        """End an epoch of training.

        Raises:
            TrainingError: If the loss is not finite. The last checkpoint is from an earlier epoch.
        """
        super().on_train_epoch_end(train_outputs)
        loss = self.logger.get_value("train_losses", step=-1)
        if not np.isfinite(loss):
            raise TrainingError(
                f"The loss is {loss} in epoch {self.current_epoch}. Resume with a smaller learning_rate."
            )

    def on_epoch_end(self) -> None:
        """End an epoch: save checkpoints, and report the epoch on rank 0."""
        super().on_epoch_end()
        self.progress.epoch_ended()
        self._last_epoch_end = self.logger.get_value("epoch_end_timestamps", -1)
        if self.local_rank == 0:
            epochs = read_epochs(self.classes, lambda series: self.logger.get_value(series, None))
            self.reporter.epoch_ended(epochs, self.progress.share_done(self.current_epoch))

    def save_checkpoint(self, filename: str) -> None:
        """Write a checkpoint atomically: a crash while writing leaves the previous checkpoint intact.

        If weights are averaged, the checkpoint contains the average, and a resumed training starts from it.
        """
        if self.local_rank != 0 or self.disable_checkpointing:
            super().save_checkpoint(filename)
            return
        partial = f"{filename}.part"
        with self._averaged():
            super().save_checkpoint(partial)
        os.replace(partial, filename)

    def load_checkpoint(self, filename_or_checkpoint: dict[str, Any] | str) -> None:
        """Load a checkpoint and restart the average from its weights."""
        self._continues = True
        super().load_checkpoint(filename_or_checkpoint)
        if self.average:
            self.average.restart()

    def print_to_log_file(self, *args: Any, also_print_to_console: bool = True, add_timestamp: bool = True) -> None:
        """Write to nnU-Net's log file, and to droneseg's log at level DEBUG; nnU-Net's own commands print, as usual."""
        stock = not logger.hasHandlers()
        super().print_to_log_file(
            *args, also_print_to_console=also_print_to_console and stock, add_timestamp=add_timestamp
        )
        if also_print_to_console and self.local_rank == 0:
            logger.debug("%s", " ".join(str(arg) for arg in args).strip())

    def plot_network_architecture(self) -> None:
        """Do nothing: nnU-Net would use hiddenlayer, which is no longer maintained."""
