"""The study of a sweep, as Optuna keeps it: opened or begun, and what it draws from a search space."""

import json
import logging
import re
import warnings
from typing import TYPE_CHECKING, Any, cast

from droneseg.core.errors import ConfigurationError, MissingDependencyError
from droneseg.training.space import Choices, Range, SweepConfig, Value, own_values

if TYPE_CHECKING:
    import optuna

logger = logging.getLogger(__name__)

PRESET = "preset"
"""Marks the trial that is the preset itself."""

_HEARTBEAT_S, _GRACE_S = 2, 8  # a trial not heard of for so long was killed, and is tried again
_RETRIES = 2


def open_study(config: SweepConfig, storage: str, name: str, seed: int) -> "optuna.Study":
    """Open a study, or begin it with the preset itself as its first trial.

    Args:
        config: What is tried.
        storage: URL of its database.
        name: Of the study.
        seed: Of what it draws.

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
                heartbeat_interval=_HEARTBEAT_S,
                grace_period=_GRACE_S,
                heartbeat_stale_trial_callback=module.storages.RetryHeartbeatStaleTrialCallback(
                    _RETRIES, inherit_intermediate_values=True
                ),
            )
    except Exception as error:  # whatever the database's driver raises
        shown = re.sub(r"//[^@/]*@", "//...@", storage)  # without the password
        raise ConfigurationError(f"The study's database {shown} cannot be opened: {error}") from error
    study: optuna.Study = module.create_study(
        study_name=name,
        storage=database,
        load_if_exists=True,
        direction="maximize",
        pruner=module.pruners.MedianPruner(config.pruning.startup_trials, config.pruning.warmup_epochs),
    )
    # gone on with, it must not draw once more what it drew at the beginning
    study.sampler = module.samplers.TPESampler(seed=seed + len(study.trials), n_startup_trials=config.random_trials)
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
