"""The study of a sweep, as Optuna keeps it: opened or begun, and what it draws from a search space."""

import json
import logging
import os
import socket
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from droneseg.core.errors import ConfigurationError, MissingDependencyError, TrainingError
from droneseg.model.dvc_remote import short
from droneseg.training.space import Choices, Range, SweepConfig, Value, own_values

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
        raise ConfigurationError(f"The study's database {_shown(storage)} cannot be opened: {short(error)}") from error
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
def told_of_database(storage: str) -> Iterator[None]:
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
            f"The study's database {_shown(storage)} does not answer: {short(error)}. The same command goes on."
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
