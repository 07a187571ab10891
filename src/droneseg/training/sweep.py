"""Hyperparameter sweep with Optuna: trials, pruning and resume."""

from __future__ import annotations

import json
import logging
import os
import socket
import uuid
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from droneseg.core.errors import ConfigurationError, TrainingError, optional_import
from droneseg.core.files import write_text
from droneseg.model.dvc_remote import summarize_error
from droneseg.nnunet.callbacks import EpochMetrics
from droneseg.nnunet.paths import NnunetPaths
from droneseg.training.config import load_config
from droneseg.training.run import check_training
from droneseg.training.search_space import Choices, Range, SweepConfig, Value, as_overrides, preset_values
from droneseg.training.trial import run_trial

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

logger = logging.getLogger(__name__)

RESULT_NAME = "sweep.json"
PRESET = "preset"
"""User attribute of the trial that uses the preset unchanged."""

# A trial without a heartbeat for the grace period was killed and is repeated. A shared database may be unreachable for
# minutes.
_HEARTBEAT_S, _GRACE_S = 2, 8
_SHARED_HEARTBEAT_S, _SHARED_GRACE_S = 30, 300
_RETRIES = 2
_MAX_FAILURES = 3  # consecutive failures are likely to have a common cause
_CHECKPOINTS = "checkpoint_*.pth*"  # includes partially written ones


def open_study(config: SweepConfig, storage: str, name: str, seed: int, *, shared: bool = False) -> optuna.Study:
    """Open a study, or create it with the unchanged preset as the first trial.

    Args:
        config: Configuration of the sweep.
        storage: URL of the study's database.
        name: Name of the study.
        seed: Random seed of the sampler.
        shared: Whether several machines run trials at the same time; each of them then samples different values.

    Raises:
        MissingDependencyError: If Optuna is not installed.
        ConfigurationError: If the database cannot be opened, or contains a study of this name with another
            configuration.
    """
    module = import_optuna()
    module.logging.set_verbosity(module.logging.ERROR)  # hides the traceback of a failed trial
    study = _create_or_load(config, storage, name, shared=shared)
    # a resumed study must not repeat the values it sampled at the beginning
    machine_seed = zlib.crc32(f"{socket.gethostname()} {os.getpid()}".encode()) if shared else 0
    study.sampler = module.samplers.TPESampler(
        seed=(seed + len(study.trials) + machine_seed) % 2**32,
        n_startup_trials=config.random_trials,
        constant_liar=shared,
    )
    description = json.dumps(config.model_dump(mode="json"), sort_keys=True)
    if study.user_attrs.setdefault("config", description) != description:
        raise ConfigurationError(
            f"The study {name!r} has trials of another sweep configuration. Use another --name, or the configuration "
            "it was started with."
        )
    study.set_user_attr("config", description)
    _enqueue_preset(study, config)
    return study


def _create_or_load(config: SweepConfig, storage: str, name: str, *, shared: bool) -> optuna.Study:
    module = import_optuna()
    try:
        with warnings.catch_warnings(action="ignore", category=module.exceptions.ExperimentalWarning):
            database = module.storages.RDBStorage(
                storage,
                heartbeat_interval=_SHARED_HEARTBEAT_S if shared else _HEARTBEAT_S,
                grace_period=_SHARED_GRACE_S if shared else _GRACE_S,
                heartbeat_stale_trial_callback=module.storages.RetryHeartbeatStaleTrialCallback(
                    _RETRIES, inherit_intermediate_values=True
                ),
            )
        study: optuna.Study = module.create_study(
            study_name=name,
            storage=database,
            load_if_exists=True,
            direction="maximize",
            pruner=module.pruners.MedianPruner(config.pruning.startup_trials, config.pruning.warmup_epochs),
        )
    except ImportError as error:
        driver = getattr(error.__cause__ or error.__context__, "name", None) or "the driver that the URL names"
        raise ConfigurationError(f"The database driver is not installed: pip install {driver}") from error
    except Exception as error:  # the database's driver may raise any exception
        raise ConfigurationError(
            f"Cannot open the study's database {_without_password(storage)}: {summarize_error(error)}. "
            "Check --storage and that the database is running."
        ) from error
    return study


def _enqueue_preset(study: optuna.Study, config: SweepConfig) -> None:
    """Add a trial of the unchanged preset, unless the study already has one."""
    values = preset_values(config)
    if values is None:
        logger.warning("preset values are outside the search space; skipping the preset as a trial")
    elif not any(PRESET in trial.user_attrs and trial.state.name != "FAIL" for trial in study.trials):
        study.enqueue_trial(values, user_attrs={PRESET: True})


@contextmanager
def translate_storage_errors(storage: str) -> Iterator[None]:
    """Convert errors of a study's database inside a `with` block to one-line errors.

    Args:
        storage: URL of the database.

    Raises:
        TrainingError: If the database fails.
    """
    from sqlalchemy.exc import SQLAlchemyError

    errors = import_optuna().exceptions
    try:
        yield
    except (errors.StorageInternalError, SQLAlchemyError) as error:
        raise TrainingError(
            f"The study's database {_without_password(storage)} failed: {summarize_error(error)}. "
            "Run the same command to continue."
        ) from error


def _without_password(storage: str) -> str:
    """Return the URL of a database without its password."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(storage).render_as_string(hide_password=True)
    except (ArgumentError, ValueError):
        return "given by --storage"


def suggest(trial: optuna.Trial, key: str, parameter: Range | Choices) -> Value:
    """Sample the value of a parameter for a trial."""
    if not isinstance(parameter, Range):
        value: Any = trial.suggest_categorical(key, parameter.choices)
    elif parameter.is_integer:
        low, high, step = int(parameter.low), int(parameter.high), int(parameter.step or 1)
        value = trial.suggest_int(key, low, high, step=step, log=parameter.log)
    else:
        value = trial.suggest_float(key, parameter.low, parameter.high, step=parameter.step, log=parameter.log)
    return cast("Value", value)


def import_optuna() -> Any:
    """Import Optuna, which is slow to import.

    Raises:
        MissingDependencyError: If Optuna is not installed.
    """
    with optional_import("optuna", "train"):
        import optuna
    return optuna


@dataclass(frozen=True)
class Trial:
    """Result of one trial.

    Attributes:
        number: Optuna's number of the trial.
        state: "complete", "pruned" or "failed".
        dice: Smoothed Dice after the last epoch; None for a failed trial.
        best_dice: Highest smoothed Dice.
        values: Values of the searched keys.
        dices: Smoothed Dice after each epoch.
        seconds: Training time in seconds.
        preset: Whether the trial uses the preset unchanged.
        error: Error message of a failed trial.
    """

    number: int
    state: str
    dice: float | None
    best_dice: float | None
    values: dict[str, Value]
    dices: list[float]
    seconds: float
    preset: bool
    error: str | None


@dataclass(frozen=True)
class SweepResult:
    """Results of a sweep so far.

    Attributes:
        name: Name of the study.
        trials: Complete and pruned trials, best first.
        command: Overrides for `droneseg train` to repeat the best trial; empty if no trial is complete.
        common: Overrides shared by all trials.
    """

    name: str
    trials: list[Trial]
    command: list[str]
    common: list[str]

    @property
    def best(self) -> Trial | None:
        """Best complete trial, or None."""
        return next((trial for trial in self.trials if trial.state == "complete"), None)

    @property
    def preset(self) -> Trial | None:
        """Trial of the unchanged preset, or None."""
        return next((trial for trial in self.trials if trial.preset), None)


def run_sweep(
    config: SweepConfig,
    paths: NnunetPaths,
    out: Path,
    *,
    name: str,
    trials: int,
    storage: str | None = None,
    seed: int = 0,
    on_trial: Callable[[Trial, int], None] = lambda _trial, _done: None,
) -> SweepResult:
    """Run trials until the study has a number of complete and pruned trials, including those of earlier runs.

    Args:
        config: Configuration of the sweep.
        paths: nnU-Net's folders; trainings are written below `out` instead of the results folder.
        out: Folder of the study, its trainings and its result.
        name: Name of the study.
        trials: Number of complete and pruned trials after which the sweep ends.
        storage: URL of a database shared by several machines; None for a file in `out`.
        seed: Random seed of the sampler.
        on_trial: Callback with each finished trial and the number of complete and pruned trials.

    Raises:
        MissingDependencyError: If Optuna is not installed.
        ConfigurationError: If the study was created with a different configuration, or its trainings could not start.
        TrainingError: If several consecutive trials fail, the database fails, or the sweep is interrupted.
    """
    shared = load_config(config.train)
    paths = replace(paths, results=out.resolve() / "trainings").select(shared.dataset, shared.plans)
    check_training(shared, paths)
    out.mkdir(parents=True, exist_ok=True)
    database = storage or f"sqlite:///{(out / 'study.db').resolve()}"
    study = open_study(config, database, name, seed, shared=storage is not None)
    runner = _Runner(config, paths, name)
    failures = 0
    with translate_storage_errors(database):
        while (done := len(_ended(study))) < trials:
            trial = runner.run(study)
            failures = failures + 1 if trial.state == "failed" else 0
            if failures == _MAX_FAILURES:
                raise TrainingError(f"{_MAX_FAILURES} consecutive trials failed. Last error: {trial.error}")
            runner.delete_checkpoints(study)
            on_trial(trial, done + (failures == 0))
            _write(out, _result(study, config))
        result = _result(study, config)
    _write(out, result)
    return result


class _TrialFailedError(Exception):
    """The training of a trial failed; the study continues."""


class _Runner:
    """Runs trials, each as a training with its own nnU-Net configuration."""

    def __init__(self, config: SweepConfig, paths: NnunetPaths, name: str) -> None:
        self._config = config
        self._paths = paths
        self._group = [f"tracking.group={name}"] if "tracking=wandb" in config.train else []
        self._number = -1

    def run(self, study: optuna.Study) -> Trial:
        """Run one trial: a new one, or the continuation of a killed one."""
        before = self._number
        try:
            study.optimize(self._objective, n_trials=1, catch=(_TrialFailedError,))
        except KeyboardInterrupt as error:
            # Optuna marks the trial as failed; enqueue it again so that its training can continue
            if self._number != before:
                trial = study.trials[self._number]
                study.enqueue_trial(trial.params, user_attrs=trial.user_attrs)
            raise TrainingError(
                "Sweep interrupted. Run the same command to continue with the current trial."
            ) from error
        except import_optuna().exceptions.UpdateFinishedTrialError:
            # another machine repeats a trial whose heartbeat stops for the grace period
            logger.warning("another machine took over trial %d", self._number)
        return _trial_of(study.trials[self._number])

    def _objective(self, trial: optuna.Trial) -> float:
        self._number = trial.number
        values = {key: suggest(trial, key, parameter) for key, parameter in self._config.space.items()}
        configuration = _configuration_of(trial)
        epochs, on_epoch = _epoch_reporter(trial)
        overrides = [*self._config.train, *self._group, *as_overrides(values)]
        overrides += [f"configuration={configuration}", "resume=true"]
        outcome = run_trial(overrides, self._paths, self._paths.fold_folder(configuration, 0), on_epoch)
        if outcome.pruned:
            raise import_optuna().TrialPruned
        if outcome.error or not epochs:
            trial.set_user_attr("error", outcome.error or "training ended before the first epoch was complete")
            raise _TrialFailedError
        return epochs[-1].smoothed_dice

    def delete_checkpoints(self, study: optuna.Study) -> None:
        """Delete checkpoints, which would fill the disk, except those of the best trial and of unfinished trials."""
        complete = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
        best = max(complete, key=lambda trial: trial.value or 0.0, default=None)
        # a killed trial and its continuation have the same configuration
        unfinished = [trial for trial in study.trials if not trial.state.is_finished()]
        needed = {trial.user_attrs.get("configuration") for trial in (best, *unfinished) if trial}
        for trial in study.trials:
            configuration = trial.user_attrs.get("configuration")
            if configuration and configuration not in needed:
                for file in self._paths.fold_folder(configuration, 0).glob(_CHECKPOINTS):
                    file.unlink()


def _configuration_of(trial: optuna.Trial) -> str:
    """Return the nnU-Net configuration of a trial; the continuation of a killed trial has the same one."""
    # the name is unique, since another study may have left checkpoints in the same folder
    configuration = trial.user_attrs.get("configuration") or f"2d_trial{trial.number}_{uuid.uuid4().hex[:8]}"
    trial.set_user_attr("configuration", configuration)
    return str(configuration)


def _epoch_reporter(trial: optuna.Trial) -> tuple[list[EpochMetrics], Callable[[EpochMetrics], bool]]:
    """Return a list, and a callback that appends an epoch to it, reports it and returns whether to continue."""
    # the study already contains the epochs that a killed trial reported
    reported = set(trial.study.trials[trial.number].intermediate_values)
    epochs: list[EpochMetrics] = []

    def on_epoch(epoch: EpochMetrics) -> bool:
        epochs.append(epoch)
        if epoch.epoch not in reported:
            trial.report(epoch.smoothed_dice, epoch.epoch)
        trial.set_user_attr("seconds", round(sum(epoch.seconds for epoch in epochs), 1))
        return not trial.should_prune()

    return epochs, on_epoch


def _ended(study: optuna.Study) -> list[FrozenTrial]:
    return [trial for trial in study.trials if trial.state.name in ("COMPLETE", "PRUNED")]


def _trial_of(trial: FrozenTrial) -> Trial:
    dices = [float(trial.intermediate_values[epoch]) for epoch in sorted(trial.intermediate_values)]
    failed = trial.state.name not in ("COMPLETE", "PRUNED")
    return Trial(
        number=trial.number,
        state={"COMPLETE": "complete", "PRUNED": "pruned"}.get(trial.state.name, "failed"),
        dice=None if failed or not dices else dices[-1],
        best_dice=max(dices, default=None),
        values=trial.params,
        dices=dices,
        seconds=float(trial.user_attrs.get("seconds", 0.0)),
        preset=bool(trial.user_attrs.get(PRESET)),
        error=trial.user_attrs.get("error"),
    )


def _result(study: optuna.Study, config: SweepConfig) -> SweepResult:
    ended = [_trial_of(trial) for trial in _ended(study)]
    ended.sort(key=lambda trial: (trial.state != "complete", -(trial.dice or 0.0)))
    best = next((trial for trial in ended if trial.state == "complete"), None)
    command = [*config.train, *as_overrides(best.values)] if best else []
    if command:
        load_config(command)  # validates the command that is printed
    return SweepResult(study.study_name, ended, command, config.train)


def _write(out: Path, result: SweepResult) -> None:
    write_text(out / RESULT_NAME, json.dumps(asdict(result), indent=2) + "\n")
