"""Several processes search one study in a real PostgreSQL."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, cast

import optuna
import pytest
import yaml
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from tests.conftest import ROOT
from tests.postgresql import (
    PASSWORD,
    PASSWORD_IN_URL,
    drop_database,
    make_database,  # noqa: F401 - a fixture
)
from tests.servers import free_port
from tests.test_project import PYPROJECT
from tests.training.finetuning.test_resume import SECONDS
from tests.training.finetuning.test_tune import FAST, open_recipe, words  # noqa: F401 - a fixture
from training.common.errors import InterruptedRunError, RecipeError, RunError
from training.common.exit_status import EXIT_ERROR
from training.finetuning.search import BestOfTrial, Search
from training.finetuning.study import (
    BEGUN,
    DRIVERS,
    FILE_STUDY,
    WORKER,
    StudyPlace,
    Watch,
    open_storage,
    shared_place,
    try_again,
)
from training.finetuning.tune import FOLDER, STUDY, tune
from training.recipe.arguments import Recipe
from training.recipe.load import load_recipe
from whetstone.main import main

MakeDatabase = Callable[[], str]

# The command, whose signs of life come faster.
WORKER_CODE = """
import sys
from training.finetuning import study
study.HEARTBEAT_SECONDS, study.STALE_SECONDS, study.POLL_SECONDS = 1, 8, 0.2
from whetstone.main import main
sys.exit(main(sys.argv[1:]))
"""
TRIALS = 9
# What each trial of `open_recipe` chooses.
CHOSEN = {"learning_rate", "weight_decay"}
BY_LOSS = {"metric_for_best_model": "loss", "greater_is_better": "false"}


@contextmanager
def searching(
    command: list[str], address: str, folders: list[Path]
) -> Iterator[list[subprocess.Popen[str]]]:
    """A process for each working folder; none is left behind."""
    processes = []
    try:
        for folder in folders:
            folder.mkdir()
            processes.append(begin(command, address, folder))
        yield processes
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.communicate()


def begin(command: list[str], address: str, folder: Path) -> subprocess.Popen[str]:
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "OPTUNA_STORAGE": address,
    }
    return subprocess.Popen(
        [sys.executable, "-c", WORKER_CODE, *command],
        env=environment,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def open_there(address: str) -> AbstractContextManager[optuna.Study]:
    """The study of the tiny recipe, as anybody with the address sees it."""
    place = shared_place(address, "tiny")
    return optuna_study(place.url.render_as_string(hide_password=False), place.name)


@contextmanager
def optuna_study(address: str, name: str) -> Iterator[optuna.Study]:
    storage = RDBStorage(address)
    try:
        yield optuna.load_study(storage=storage, study_name=name)
    finally:
        storage.remove_session()
        storage.engine.dispose()


def trials_of(address: str) -> list[FrozenTrial]:
    """All trials; none before the study is begun."""
    try:
        with open_there(address) as study:
            return study.get_trials(deepcopy=False)
    except KeyError:
        return []


def trial_under_way(address: str, process: subprocess.Popen[str]) -> FrozenTrial | None:
    """The trial that a process has chosen every value for and trains."""
    for trial in trials_of(address):
        is_its = str(trial.user_attrs.get(WORKER)).endswith(f"-{process.pid}")
        # A process writes its values one after another: one killed in between has left some open.
        if is_its and trial.state == TrialState.RUNNING and trial.params.keys() >= CHOSEN:
            return trial
    return None


@pytest.fixture
def recipe(open_recipe: Path) -> Recipe:  # noqa: F811
    """One epoch a trial, judged by the loss, which differs wherever the values do."""
    keys = {"num_train_epochs": "1", "per_device_train_batch_size": "16"}
    return load_recipe(open_recipe, {**keys, **BY_LOSS})


def at(recipe: Recipe, folder: Path) -> Recipe:
    return dataclasses.replace(recipe, output_dir=folder)


def states(trials: list[FrozenTrial]) -> list[TrialState]:
    return [trial.state for trial in trials]


# Refusals


@pytest.mark.parametrize(
    "address",
    [
        "sqlite:///study.db",
        "oracle://user:hidden@host/database",
        "postgresql://user:hidden@host",
        "postgresql://user:hidden@host:port/database",
        "hidden",
        "",
    ],
)
def test_an_address_of_no_shared_database_is_refused_without_its_password(address: str) -> None:
    with pytest.raises(
        RecipeError, match=r"^--storage is not the address of a database"
    ) as refused:
        shared_place(address, "study")
    assert "hidden" not in str(refused.value)


@pytest.mark.parametrize("kind", DRIVERS)
def test_a_database_that_cannot_be_reached_is_one_sentence_before_the_work(
    kind: str,
    tiny_recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    address = f"{kind}://user:hidden@127.0.0.1:{free_port()}/studies?password=hidden"
    monkeypatch.setattr("training.finetuning.tune.load_data", None)
    command = ["tune", str(tiny_recipe), "--output_dir", str(tmp_path / "run"), "--trials", "1"]
    # On the command line, before and after the recipe.
    for line in ([*command, "--storage", address], ["tune", "--storage", address, *command[1:]]):
        assert main(line) == EXIT_ERROR
        output = capsys.readouterr()
        assert output.out == "" and output.err.count("\n") == 1
        assert f"study tiny in {kind}://127.0.0.1:" in output.err
        assert "cannot be reached" in output.err and "hidden" not in output.err
    assert not (tmp_path / "run").exists()
    # Without the driver.
    monkeypatch.setenv("OPTUNA_STORAGE", address)
    monkeypatch.setitem(sys.modules, DRIVERS[kind], None)
    assert main(command) == EXIT_ERROR
    said = capsys.readouterr().err
    assert (
        f"needs the package {DRIVERS[kind]}: pip install -c constraints.txt -e '.[{kind}]'" in said
    )
    assert kind in PYPROJECT["project"]["optional-dependencies"]


def test_the_trials_of_others_are_not_overwritten(recipe: Recipe) -> None:
    with pytest.raises(RecipeError, match="choose another --study_name"):
        tune(recipe, 1, storage="postgresql://host/database", overwrite=True)


def test_a_name_without_a_database_is_refused(
    tiny_recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["tune", str(tiny_recipe), "--trials", "1", "--study_name", "mine"])
    assert "add --storage URL" in capsys.readouterr().err


@pytest.mark.slow
def test_a_study_of_another_recipe_is_refused(
    recipe: Recipe,
    tmp_path: Path,
    make_database: MakeDatabase,  # noqa: F811
) -> None:
    address = make_database()
    first = tune(at(recipe, tmp_path / "one"), 1, storage=address)
    # Another folder, and another place of the same rows, are no other recipe.
    assert len(tune(at(recipe, tmp_path / "two"), 1, storage=address).trials) == 1
    other = at(recipe, tmp_path / "three")
    other = dataclasses.replace(other, training=other.training | {"seed": 7})
    with pytest.raises(
        RunError, match=r"of another recipe.*: choose another --study_name$"
    ) as said:
        tune(other, 1, storage=address)
    assert PASSWORD not in str(said.value) and PASSWORD_IN_URL not in str(said.value)
    assert len(tune(other, 1, storage=address, study_name="other").trials) == 1
    wrong = address.replace(PASSWORD_IN_URL, "wrong")
    with pytest.raises(RunError, match="password authentication failed"):
        tune(other, 1, storage=wrong)
    # The password is nowhere in what was written.
    assert first.recipe.is_file()
    for path in tmp_path.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert PASSWORD.encode() not in content and PASSWORD_IN_URL.encode() not in content


# Trials that are interrupted


def test_the_values_of_an_interrupted_trial_are_tried_again(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> float:
        raise KeyboardInterrupt

    recipe = at(recipe, tmp_path / "run")
    tune(recipe, 1)
    with monkeypatch.context() as patch:
        patch.setattr(BestOfTrial, "__call__", interrupt)
        with pytest.raises(InterruptedRunError, match="stopped after 1 of 2 trials"):
            tune(recipe, 2)
    tuned = tune(recipe, 2)
    assert [trial.number for trial in tuned.trials] == [0, 2]
    with optuna_study(f"sqlite:///{tuned.folder / STUDY}", FILE_STUDY) as study:
        assert study.trials[1].state == TrialState.FAIL
        assert study.trials[1].params == study.trials[2].params != study.trials[0].params


def test_an_error_in_a_trial_ends_the_search(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in the first trial, when the library has no best one to tell of."""

    def fail(*_: object) -> float:
        raise ValueError("a fault")

    monkeypatch.setattr(BestOfTrial, "__call__", fail)
    with pytest.raises(ValueError, match="a fault"):
        tune(at(recipe, tmp_path / "run"), 1)


@pytest.fixture
def study_of_two(tmp_path: Path) -> Iterator[optuna.Study]:
    """A study whose first trial was begun, left behind and taken over, by a process that died."""
    storage = RDBStorage(f"sqlite:///{tmp_path / 'study.db'}")
    study = optuna.create_study(storage=storage)
    trial = study.ask()
    trial.set_user_attr(BEGUN, trial.number)
    trial.suggest_float("learning_rate", 1e-5, 1e-3)
    try_again(study, trial.number)
    assert study.ask().number == 1
    yield study
    storage.remove_session()
    storage.engine.dispose()


def test_a_second_attempt_that_never_began_is_not_waited_for(
    study_of_two: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the values and the attributes of the first attempt from the start."""
    watch = Watch(study_of_two)
    watch.queue_dead_trials()
    assert states(study_of_two.trials) == [TrialState.FAIL, TrialState.RUNNING]
    monkeypatch.setattr("training.finetuning.study.STALE_SECONDS", -1)
    watch.queue_dead_trials()
    again = [TrialState.FAIL, TrialState.FAIL, TrialState.WAITING]
    assert states(study_of_two.trials) == again
    # One that has begun is known by its signs of life.
    place, unused = shared_place("postgresql://host/database", "study"), cast(Any, None)
    search = Search(unused, {}, place, unused, study_of_two, 2)
    search._choose(study_of_two.ask())
    watch.queue_dead_trials()
    assert states(study_of_two.trials) == [*again[:2], TrialState.RUNNING]


@pytest.mark.parametrize("is_taken_over", [True, False])
def test_ctrl_c_ends_also_a_process_whose_trial_was_taken_over(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_taken_over: bool
) -> None:
    recipe = at(recipe, tmp_path / "run")
    address = f"sqlite:///{tmp_path / 'run' / FOLDER / STUDY}"

    def interrupt(*_: object) -> float:
        if is_taken_over:
            with optuna_study(address, FILE_STUDY) as study:
                try_again(study, 0)
        raise KeyboardInterrupt

    monkeypatch.setattr(BestOfTrial, "__call__", interrupt)
    with pytest.raises(InterruptedRunError, match="stopped after 0 of 2 trials"):
        tune(recipe, 2)
    with optuna_study(address, FILE_STUDY) as study:
        # Queued once, by whoever took it over.
        assert states(study.trials) == [TrialState.FAIL, TrialState.WAITING]


@pytest.mark.slow
def test_a_process_that_was_taken_for_dead_goes_on(
    recipe: Recipe,
    tmp_path: Path,
    make_database: MakeDatabase,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address = make_database()
    measure, calls = BestOfTrial.__call__, []

    def measured(self: BestOfTrial, metrics: dict[str, float]) -> float:
        calls.append(metrics)
        if len(calls) == 1:
            with open_there(address) as study:
                try_again(study, 0)
        return measure(self, metrics)

    monkeypatch.setattr(BestOfTrial, "__call__", measured)
    tuned = tune(at(recipe, tmp_path / "run"), 2, storage=address)
    assert [trial.number for trial in tuned.trials] == [1, 2]
    trials = trials_of(address)
    assert states(trials)[0] == TrialState.FAIL
    assert trials[0].params == trials[1].params


@pytest.mark.slow
def test_a_process_that_died_before_its_first_sign_of_life_is_not_waited_for(
    recipe: Recipe,
    tmp_path: Path,
    make_database: MakeDatabase,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address = make_database()
    recipe = at(recipe, tmp_path / "run")
    tune(recipe, 1, storage=address)
    with open_there(address) as study:
        study.ask()
    monkeypatch.setattr("training.finetuning.study.STALE_SECONDS", 1)
    tuned = tune(recipe, 2, storage=address)
    assert [trial.number for trial in tuned.trials] == [0, 2]
    assert states(trials_of(address))[1] == TrialState.FAIL


@pytest.mark.slow
def test_a_database_that_goes_away_is_one_sentence(
    recipe: Recipe,
    tmp_path: Path,
    make_database: MakeDatabase,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    address = make_database()
    measure = BestOfTrial.__call__

    def measured(self: BestOfTrial, metrics: dict[str, float]) -> float:
        drop_database(address)
        # The signs of life go on, and say so, until there is something to write down.
        deadline = time.monotonic() + SECONDS
        while "does not answer: trying again" not in caplog.text:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        return measure(self, metrics)

    monkeypatch.setattr(BestOfTrial, "__call__", measured)
    monkeypatch.setattr("training.finetuning.study.HEARTBEAT_SECONDS", 1)
    with pytest.raises(RunError, match=r"does not answer any more.*give the same command") as said:
        tune(at(recipe, tmp_path / "run"), 2, storage=address)
    assert PASSWORD not in str(said.value) and PASSWORD not in caplog.text


@pytest.mark.slow
def test_processes_make_the_tables_of_an_empty_database_together(
    make_database: MakeDatabase,  # noqa: F811
) -> None:
    def open_and_close(place: StudyPlace) -> int:
        with open_storage(place) as storage:
            return len(storage.get_all_studies())

    for _ in range(5):
        place = shared_place(make_database(), "study")
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(open_and_close, [place] * 8)) == [0] * 8


@pytest.mark.slow
def test_a_killed_process_loses_no_trial(
    open_recipe: Path,  # noqa: F811
    tmp_path: Path,
    make_database: MakeDatabase,  # noqa: F811
) -> None:
    address = make_database()
    folders = [tmp_path / name for name in ("one", "two", "three")]
    by_loss = [word for key, value in BY_LOSS.items() for word in (f"--{key}", value)]
    command = [*words(open_recipe, Path("run"), TRIALS), *by_loss]
    printed = []
    with searching(command, address, folders) as (victim, *others):
        deadline = time.monotonic() + SECONDS
        while (lost := trial_under_way(address, victim)) is None:
            assert victim.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        victim.send_signal(signal.SIGKILL)
        for process in others:
            said, _ = process.communicate(timeout=SECONDS)
            assert process.returncode == 0, said
            printed.append(said)
    trials = trials_of(address)
    # None is lost: what was killed has been tried again, and nothing else failed.
    (failed,) = (trial for trial in trials if trial.state == TrialState.FAIL)
    assert failed.number == lost.number
    retried = optuna.storages.RetryHeartbeatStaleTrialCallback.retry_history
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        (again,) = (trial for trial in trials if retried(trial) == [failed.number])
    assert again.params == failed.params
    assert again.user_attrs[WORKER] != failed.user_attrs[WORKER]
    assert all(trial.user_attrs[BEGUN] == trial.number for trial in trials)
    finished = [t for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    assert again in finished and len(finished) + 1 == len(trials)
    # Two that begin their last trial at the same moment make one more.
    assert TRIALS <= len(finished) <= TRIALS + 1
    # All have searched, and all say the same of it.
    assert len({trial.user_attrs[WORKER] for trial in finished}) >= 2
    best = {re.search(r"^best: .*", said, re.MULTILINE)[0] for said in printed}  # type: ignore[index]
    assert len(best) == 1
    for folder, process, said in zip(folders[1:], others, printed, strict=True):
        assert PASSWORD not in said and PASSWORD_IN_URL not in said and "Traceback" not in said
        content = yaml.safe_load(
            next(folder.glob(f"run/tuning/*-{process.pid}/recipe.yaml")).read_text("utf-8")
        )
        assert content["output_dir"] == str(folder / "run")
    # A trial that is worse than those of the other processes is stopped: the pruner sees them all.
    with open_there(address) as study:
        study.enqueue_trial({"learning_rate": min(t.params["learning_rate"] for t in finished) / 9})
    recipe = load_recipe(open_recipe, {"output_dir": str(tmp_path / "four"), **FAST, **BY_LOSS})
    with pytest.warns(UserWarning, match="learning_rate .* is out of range"):
        tuned = tune(recipe, len(finished) + 1, storage=address)
    assert tuned.trials[-1].state == TrialState.PRUNED
