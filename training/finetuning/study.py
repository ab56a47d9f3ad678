"""Where a search keeps its trials: a file of one process, or a database that machines share.

The database is Optuna's own storage. A process that trains a trial leaves a sign of life there
every `HEARTBEAT_SECONDS`. A trial without one for `STALE_SECONDS` is failed by any other process
and tried again with the same values.
"""

from __future__ import annotations

import logging
import os
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.exceptions import (
    DuplicatedStudyError,
    ExperimentalWarning,
    StorageInternalError,
    UpdateFinishedTrialError,
)
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import create_engine, make_url
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from training.common.errors import RecipeError, RunError, install_command
from training.finetuning.plan import TrainingPlan

logger = logging.getLogger(__name__)

# The driver of each kind of database; the extra of pyproject.toml that brings it has its name.
DRIVERS = {"postgresql": "psycopg", "mysql": "pymysql"}
CONNECT_SECONDS = 10
# Processes that make the tables of an empty database at the same moment get in each other's way.
TABLE_ATTEMPTS = 5
HEARTBEAT_SECONDS = 30
STALE_SECONDS = 120
# A trial that has ended its process so many times and once more is given up.
MOST_RETRIES = 2
# How long the process that made a study may take until it has written whose study it is.
BEGIN_SECONDS = 30
POLL_SECONDS = 1.0
# The number of trials before any is pruned because others were better.
FIRST_TRIALS = 5
# The name of the study in a file, which holds one.
FILE_STUDY = "tuning"
# Attributes of a study and of a trial.
PLAN = "plan"
WORKER = "worker"
# Its own number, as soon as a process has begun to choose its values: one that is tried again has
# the attributes of the trial before.
BEGUN = "begun"


@dataclass(frozen=True)
class StudyPlace:
    """The database of a study, its name there, and how both are shown: without the password."""

    url: URL
    name: str
    shown: str
    is_shared: bool
    # What a user can do where the study is another one's.
    way_out: str = field(repr=False)


def file_place(path: Path) -> StudyPlace:
    """The study in an SQLite file, which one process at a time may use."""
    return StudyPlace(
        URL.create("sqlite", database=str(path)),
        FILE_STUDY,
        str(path),
        is_shared=False,
        way_out="choose another --output_dir, or replace it with --overwrite",
    )


def shared_place(address: str, name: str) -> StudyPlace:
    """The study of that name in the database at `address`.

    Raises:
        RecipeError: the address is not one of PostgreSQL or MySQL.
    """
    try:
        url = make_url(address)
        kind = url.get_backend_name()
    except (ArgumentError, ValueError):
        # Without the error's text: it may repeat the address, and the password with it.
        kind = ""
    if kind not in DRIVERS or not url.database:
        raise RecipeError(
            "--storage is not the address of a database that machines can share: write "
            "postgresql://user:password@host/database, or mysql:// alike"
        )
    port = f":{url.port}" if url.port else ""
    return StudyPlace(
        url.set(drivername=f"{kind}+{DRIVERS[kind]}"),
        name,
        # Put together anew: a password may also stand behind the question mark.
        f"the study {name} in {kind}://{url.host or ''}{port}/{url.database}",
        is_shared=True,
        way_out="choose another --study_name",
    )


class HeartbeatStorage(RDBStorage):
    """Optuna's storage, whose heartbeat outlives a database that is away for a while."""

    def record_heartbeat(self, trial_id: int) -> None:
        """Leave a sign of life, or try again at the next one."""
        try:
            super().record_heartbeat(trial_id)
        except StorageInternalError:
            logger.warning("the study's database does not answer: trying again")


@contextmanager
def open_storage(place: StudyPlace) -> Iterator[RDBStorage]:
    """The database of a study, reached and with its tables; its connections are closed after.

    Raises:
        RunError: it cannot be reached, its driver is missing, or it refuses the tables.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = _shared_storage(place) if place.is_shared else RDBStorage(_with_password(place))
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _with_password(place: StudyPlace) -> str:
    return place.url.render_as_string(hide_password=False)


def _shared_storage(place: StudyPlace) -> RDBStorage:
    # No connection is kept: none is closed by a firewall meanwhile, and many processes have room.
    options: dict[str, Any] = {
        "poolclass": NullPool,
        "connect_args": {"connect_timeout": CONNECT_SECONDS},
    }
    _reach(place, options)
    for attempt in range(1, TABLE_ATTEMPTS + 1):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                return HeartbeatStorage(
                    _with_password(place),
                    engine_kwargs=options,
                    heartbeat_interval=HEARTBEAT_SECONDS,
                    grace_period=STALE_SECONDS,
                    heartbeat_stale_trial_callback=_try_again(),
                )
        except (SQLAlchemyError, StorageInternalError, RuntimeError, AssertionError) as error:
            if attempt == TABLE_ATTEMPTS:
                raise RunError(
                    f"{place.shown} cannot be used: {_reason(error, place.url)}"
                ) from None
            time.sleep(attempt * POLL_SECONDS)
    raise AssertionError("the last attempt returns or raises")


def _reach(place: StudyPlace, options: dict[str, Any]) -> None:
    """Connect once.

    Raises:
        RunError: the driver is missing, or the database does not let this process in.
    """
    kind = place.url.get_backend_name()
    try:
        with create_engine(place.url, **options).connect():
            pass
    except ImportError:
        raise RunError(
            f"{place.shown} needs the package {DRIVERS[kind]}: {install_command(kind)}"
        ) from None
    except (SQLAlchemyError, TypeError, ValueError) as error:
        raise RunError(
            f"{place.shown} cannot be reached: {_reason(error, place.url)}; check the address, "
            "the user and the password"
        ) from None


def _reason(error: Exception, url: URL) -> str:
    """What the database or its driver says, in one line and without the password."""
    said = " ".join(str(getattr(error, "orig", None) or error).split())
    secrets = [url.password, *(v for k, v in url.query.items() if "pass" in k.lower())]
    for secret in secrets:
        if secret:
            said = said.replace(str(secret), "***")
    return said


def open_study(
    storage: RDBStorage, place: StudyPlace, plan: TrainingPlan, first: dict[str, Any]
) -> optuna.Study:
    """The study of this plan; a new one tries the values of `first` first.

    Raises:
        RunError: the study of that name is of another recipe, base or other data.
    """
    options: dict[str, Any] = {"storage": storage, "study_name": place.name}
    # Trials from other weights cannot be compared.
    identity = f"{plan.identity} {plan.base_sha256}"
    try:
        # Of several processes one makes the study.
        study = optuna.create_study(direction=direction(plan), **options)
    except DuplicatedStudyError:
        study = optuna.load_study(**options)
    else:
        study.enqueue_trial(first)
        study.set_user_attr(PLAN, identity)
    if _plan_of(study) != identity:
        raise RunError(
            f"{place.shown} is of another recipe, base model or other data: {place.way_out}"
        )
    study.pruner = optuna.pruners.MedianPruner(n_startup_trials=FIRST_TRIALS, n_warmup_steps=1)
    # In a file the number of trials is the seed: with one seed every call would try the same values
    # again. Processes that begin together have the same number, and so no seed.
    seed = None if place.is_shared else len(study.get_trials(deepcopy=False))
    study.sampler = optuna.samplers.TPESampler(seed=seed)
    return study


def _plan_of(study: optuna.Study) -> str | None:
    """Whose study it is: the process that made it writes so as soon as it has begun it."""
    deadline = time.monotonic() + BEGIN_SECONDS
    while (found := study.user_attrs.get(PLAN)) is None and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS / 4)
    return found


def worker_name() -> str:
    """This process among those that share a study, also for its folder."""
    return f"{socket.gethostname()}-{os.getpid()}"


def direction(plan: TrainingPlan) -> Literal["maximize", "minimize"]:
    """Whether the measure is to be large or small."""
    return "maximize" if plan.arguments.greater_is_better else "minimize"


def finished_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The trials with a result, those among them that were stopped because others were better."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


def complete_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that came to their end."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def running_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that a process trains, or that its process has left behind."""
    return study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))


def _try_again() -> RetryHeartbeatStaleTrialCallback:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return RetryHeartbeatStaleTrialCallback(max_retry=MOST_RETRIES)


def try_again(study: optuna.Study, number: int) -> None:
    """Queue the values of a trial that was interrupted, unless it came to an end all the same."""
    trial = study.get_trials()[number]
    if trial.state == TrialState.RUNNING:
        try:
            study.tell(number, state=TrialState.FAIL)
        except (ValueError, UpdateFinishedTrialError):
            # Another process has done so meanwhile.
            return
    if trial.state in (TrialState.RUNNING, TrialState.FAIL):
        _try_again()(study, trial)


def was_taken_over(study: optuna.Study, number: int) -> bool:
    """Whether another process has taken a trial for dead and queued its values again."""
    retried = RetryHeartbeatStaleTrialCallback.retry_history
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return any(number in retried(trial) for trial in study.get_trials(deepcopy=False))


class Watch:
    """Finds the trials whose processes have died, while this process has nothing to train."""

    def __init__(self, study: optuna.Study) -> None:
        self._study = study
        # When a trial was first seen.
        self._seen: dict[int, float] = {}

    def queue_dead_trials(self) -> None:
        """Queue the values of each trial whose process has left no sign of life for too long."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            optuna.storages.fail_stale_trials(self._study)
        # A process that died before its first sign of life has not begun the trial either. Optuna
        # would wait for it without end.
        for trial in running_trials(self._study):
            since = self._seen.setdefault(trial.number, time.monotonic())
            has_begun = trial.user_attrs.get(BEGUN) == trial.number
            if not has_begun and time.monotonic() - since > STALE_SECONDS:
                try_again(self._study, trial.number)
