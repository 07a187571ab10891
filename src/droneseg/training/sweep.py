"""Optuna study: trials, pruning, resume."""

import json
import logging
import os
import socket
import uuid
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from droneseg.core.errors import ConfigurationError, MissingDependencyError, TrainingError
from droneseg.core.files import write_text
from droneseg.model.dvc_remote import summarize_error
from droneseg.nnunet.paths import NnunetPaths
from droneseg.training.config import load_config
from droneseg.training.search_space import Choices, Range, SweepConfig, Value, as_overrides, own_values
from droneseg.training.trial import run_trial

if TYPE_CHECKING:
    import optuna

logger = logging.getLogger(__name__)

PRESET = "preset"
"""Marks the trial that is the preset itself."""

# a trial not heard of for so long was killed, and is tried again; a shared database may be away for minutes
_HEARTBEAT_S, _GRACE_S = 2, 8
_SHARED_HEARTBEAT_S, _SHARED_GRACE_S = 30, 300
_RETRIES = 2


def open_study(config: SweepConfig, storage: str, name: str, seed: int, *, shared: bool = False) -> "optuna.Study":
    """Open a study, or begin it with the preset itself as its first trial.

    Args:
        config: What is tried.
        storage: URL of its database.
        name: Of the study.
        seed: Of what it draws.
        shared: Whether several machines try at the same time: each draws something else then.

    Raises:
        MissingDependencyError: If Optuna is not installed.
        ConfigurationError: If the database cannot be opened, or has a study of this name that tries something else.
    """
    module = import_optuna()
    module.logging.set_verbosity(module.logging.ERROR)  # of a trial that fails it would show a traceback
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
        driver = getattr(error.__cause__ or error.__context__, "name", None) or "the one it names"
        raise ConfigurationError(f"The database's driver is not installed: pip install {driver}") from error
    except Exception as error:  # whatever the database's driver raises
        raise ConfigurationError(
            f"The study's database {_shown(storage)} cannot be opened: {summarize_error(error)}"
        ) from error
    # gone on with, it must not draw once more what it drew at the beginning
    own_seed = zlib.crc32(f"{socket.gethostname()} {os.getpid()}".encode()) if shared else 0
    study.sampler = module.samplers.TPESampler(
        seed=(seed + len(study.trials) + own_seed) % 2**32, n_startup_trials=config.random_trials, constant_liar=shared
    )
    about = json.dumps(config.model_dump(mode="json"), sort_keys=True)
    if study.user_attrs.setdefault("config", about) != about:
        raise ConfigurationError(
            f"The study {name!r} has trials of another sweep; take another --name, or its configuration."
        )
    study.set_user_attr("config", about)
    own = own_values(config)
    if own is None:
        logger.warning("what the preset itself has lies outside the space searched, so it is not among the trials")
    elif not any(PRESET in trial.user_attrs and trial.state.name != "FAIL" for trial in study.trials):
        study.enqueue_trial(own, user_attrs={PRESET: True})
    return study


@contextmanager
def translate_storage_errors(storage: str) -> Iterator[None]:
    """Say in a line what is wrong with a study's database, should it go away in the middle.

    Raises:
        TrainingError: If it does.
    """
    from sqlalchemy.exc import SQLAlchemyError

    errors = import_optuna().exceptions
    try:
        yield
    except (errors.StorageInternalError, SQLAlchemyError) as error:
        raise TrainingError(
            f"The study's database {_shown(storage)} does not answer: {summarize_error(error)}. "
            "The same command goes on."
        ) from error


def _shown(storage: str) -> str:
    """Return a database's URL without its password."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(storage).render_as_string(hide_password=True)
    except (ArgumentError, ValueError):
        return "of --storage"


def suggest(trial: "optuna.Trial", key: str, part: Range | Choices) -> Value:
    """Draw a value."""
    if not isinstance(part, Range):
        value: Any = trial.suggest_categorical(key, part.choices)
    elif part.whole:
        value = trial.suggest_int(key, int(part.low), int(part.high), step=int(part.step or 1), log=part.log)
    else:
        value = trial.suggest_float(key, part.low, part.high, step=part.step, log=part.log)
    return cast("Value", value)


def import_optuna() -> Any:
    """Import Optuna, which takes a moment, or say how to install it."""
    try:
        import optuna
    except ImportError as error:
        raise MissingDependencyError("optuna", "train") from error
    return optuna


RESULT_NAME = "sweep.json"
_FAILURES = 3  # in a row: then something is wrong with all of them
_CHECKPOINTS = "checkpoint_*.pth*"  # those half written, too


@dataclass(frozen=True)
class Trial:
    """One trial.

    Attributes:
        number: As Optuna counts; one that was killed and tried again counts once.
        state: "complete", "pruned" or "failed".
        dice: Running Dice at its end; None for a failed one.
        best_dice: The highest it had.
        values: What was tried.
        dices: Running Dice after each epoch.
        seconds: Spent training.
        preset: Whether it is the preset itself.
        error: Of a failed one.
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
    """What a sweep found so far.

    Attributes:
        name: Of the study.
        trials: All that have ended, the best first.
        command: The best one, as arguments of `droneseg train`; empty if none is complete.
        common: What all trials have in common.
    """

    name: str
    trials: list[Trial]
    command: list[str]
    common: list[str]

    @property
    def best(self) -> Trial | None:
        """The best complete trial."""
        return next((trial for trial in self.trials if trial.state == "complete"), None)

    @property
    def preset(self) -> Trial | None:
        """The preset itself."""
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
    """Try configurations until so many trials have ended, those of earlier runs of the same study included.

    Args:
        config: What to try.
        paths: nnU-Net's folders; trainings go to `out` instead of its results.
        out: Folder of the study, its trainings and its result.
        name: Of the study.
        trials: How many shall have ended, complete or pruned.
        storage: URL of a database that several machines share; None for a file in `out`.
        seed: Of the proposals.
        on_trial: Told of each trial that ended, and how many have.

    Raises:
        MissingDependencyError: If Optuna is not installed.
        ConfigurationError: If the study is one on another space.
        TrainingError: If trials fail one after the other, the database goes away, or at Ctrl-C.
    """
    out.mkdir(parents=True, exist_ok=True)
    database = storage or f"sqlite:///{(out / 'study.db').resolve()}"
    study = open_study(config, database, name, seed, shared=storage is not None)
    runner = _Runner(config, NnunetPaths(paths.raw, paths.preprocessed, out.resolve() / "trainings"), name)
    failures = 0
    with translate_storage_errors(database):
        while (done := len(_ended(study))) < trials:
            found = runner.run(study)
            failures = failures + 1 if found.state == "failed" else 0
            if failures == _FAILURES:
                raise TrainingError(f"{_FAILURES} trials failed one after the other; the last one: {found.error}")
            runner.forget_weak(study)
            on_trial(found, done + (failures == 0))
            _write(out, _result(study, config))
        result = _result(study, config)
    _write(out, result)
    return result


class _TrialFailedError(Exception):
    """A trial's training ended with an error; the study goes on."""


class _Runner:
    """Runs trials, each as a training with a plan of its own."""

    def __init__(self, config: SweepConfig, paths: NnunetPaths, name: str) -> None:
        self._config = config
        self._paths = paths
        self._group = [f"tracking.group={name}"] if "tracking=wandb" in config.train else []
        self._number = -1

    def run(self, study: "optuna.Study") -> Trial:
        """Run one trial: a new one, or one that was killed."""
        before = self._number
        try:
            study.optimize(self._objective, n_trials=1, catch=(_TrialFailedError,))
        except KeyboardInterrupt as error:
            # Optuna takes it for failed; it is tried again, and goes on with its training
            if self._number != before:
                trial = study.trials[self._number]
                study.enqueue_trial(trial.params, user_attrs=trial.user_attrs)
            raise TrainingError("Interrupted. The same command goes on with the trial it was at.") from error
        except import_optuna().exceptions.UpdateFinishedTrialError:
            # this machine was not heard of for so long that another one took the trial over
            logger.warning("trial %d was taken over by another machine meanwhile", self._number)
        return _trial_of(study.trials[self._number])

    def _objective(self, trial: "optuna.Trial") -> float:
        self._number = trial.number
        values = {key: suggest(trial, key, part) for key, part in self._config.space.items()}
        # one that was killed goes on with the training it had, and the study knows some of its epochs
        configuration = trial.user_attrs.get("configuration")
        # another study may have had the same folder, and left checkpoints there
        configuration = configuration or f"2d_trial{trial.number}_{uuid.uuid4().hex[:8]}"
        trial.set_user_attr("configuration", configuration)
        known = set(trial.study.trials[trial.number].intermediate_values)
        seen: list[dict[str, Any]] = []

        def on_epoch(epoch: dict[str, Any]) -> bool:
            seen.append(epoch)
            if epoch["epoch"] not in known:
                trial.report(epoch["smoothed_dice"], epoch["epoch"])
            trial.set_user_attr("seconds", round(sum(each["seconds"] for each in seen), 1))
            return not trial.should_prune()

        overrides = [
            *self._config.train, *self._group, *as_overrides(values), f"configuration={configuration}", "resume=true",
        ]  # fmt: skip
        ended = run_trial(overrides, self._paths, self._paths.fold_folder(configuration, 0), on_epoch)
        if ended.cut_short:
            raise import_optuna().TrialPruned
        if ended.error or not seen:
            trial.set_user_attr("error", ended.error or "it ended without an epoch")
            raise _TrialFailedError
        return float(seen[-1]["smoothed_dice"])

    def forget_weak(self, study: "optuna.Study") -> None:
        """Delete the checkpoints of all trials but the best and those that go on: a sweep would fill the disk."""
        complete = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
        best = max(complete, key=lambda trial: trial.value or 0.0, default=None)
        # one that was killed and the one that goes on with it have the same training
        going_on = [trial for trial in study.trials if not trial.state.is_finished()]
        kept = {trial.user_attrs.get("configuration") for trial in (best, *going_on) if trial}
        for trial in study.trials:
            configuration = trial.user_attrs.get("configuration")
            if configuration and configuration not in kept:
                for file in self._paths.fold_folder(configuration, 0).glob(_CHECKPOINTS):
                    file.unlink()


def _ended(study: "optuna.Study") -> list[Any]:
    return [trial for trial in study.trials if trial.state.name in ("COMPLETE", "PRUNED")]


def _trial_of(trial: Any) -> Trial:
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


def _result(study: "optuna.Study", config: SweepConfig) -> SweepResult:
    ended = [_trial_of(trial) for trial in _ended(study)]
    ended.sort(key=lambda trial: (trial.state != "complete", -(trial.dice or 0.0)))
    best = next((trial for trial in ended if trial.state == "complete"), None)
    command = [*config.train, *as_overrides(best.values)] if best else []
    if command:
        load_config(command)  # what is printed works
    return SweepResult(study.study_name, ended, command, config.train)


def _write(out: Path, result: SweepResult) -> None:
    write_text(out / RESULT_NAME, json.dumps(asdict(result), indent=2) + "\n")
