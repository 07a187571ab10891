"""A sweep: Optuna proposes, short trainings answer, weak ones are ended early; killed, it goes on where it was."""

import json
import logging
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from droneseg.core.errors import TrainingError
from droneseg.core.files import write_text
from droneseg.nnunet.paths import Layout
from droneseg.training.presets import load_config
from droneseg.training.space import SweepConfig, Value, as_overrides
from droneseg.training.study import PRESET, import_optuna, open_study, suggest, told_of_database
from droneseg.training.trial import run_trial

if TYPE_CHECKING:
    import optuna

logger = logging.getLogger(__name__)

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
    layout: Layout,
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
        layout: nnU-Net's folders; trainings go to `out` instead of its results.
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
    runner = _Runner(config, Layout(layout.raw, layout.preprocessed, out.resolve() / "trainings"), name)
    failures = 0
    with told_of_database(database):
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

    def __init__(self, config: SweepConfig, layout: Layout, name: str) -> None:
        self._config = config
        self._layout = layout
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
        ended = run_trial(overrides, self._layout, self._layout.fold_folder(configuration, 0), on_epoch)
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
                for file in self._layout.fold_folder(configuration, 0).glob(_CHECKPOINTS):
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
