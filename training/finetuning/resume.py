"""A run that is continued: which checkpoints are whole, and what must be as before."""

from __future__ import annotations

import json
import secrets
import shutil
import time
from pathlib import Path
from typing import Any

from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import get_last_checkpoint

from service.package.files import file_record, write_text
from training.common.distributed import (
    all_gather,
    barrier,
    is_main_process,
    world_size,
)
from training.common.errors import (
    BaseModelError,
    RunError,
)
from training.common.layout import (
    CHECKPOINT,
    RUN_FILES,
    RUN_FOLDERS,
    TOKENS,
)
from training.finetuning.base_files import WEIGHTS_FILES
from training.finetuning.base_models import resolve_base_model
from training.finetuning.callbacks import StopEarly
from training.finetuning.fine_tuner import FineTuner
from training.finetuning.lock import run_lock
from training.finetuning.record import read_record
from training.recipe.arguments import (
    Recipe,
)

# A client of NFS may know for half a minute that a folder does not exist, which does by now.
APPEAR_SECONDS = 35


def drop_torn_checkpoints(folder: Path) -> None:
    """Delete the newest of the Trainer's own checkpoints in a run folder until one is whole.

    A checkpoint is torn where the process was killed while it wrote or deleted it.
    """
    while (newest := last_checkpoint(folder)) is not None and not is_whole(Path(newest)):
        shutil.rmtree(newest)


def is_whole(checkpoint: Path) -> bool:
    """Whether every file is there that a run continues from.

    The Trainer writes `trainer_state.json` last, but meanwhile its other processes still write
    their own files.
    """
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    # None of the optimizer's files where a recipe keeps weights only.
    parts = [f"_{number}" for number in range(world_size())] if world_size() > 1 else [""]
    states = [checkpoint / f"rng_state{part}.pth" for part in parts]
    with_optimizer = (checkpoint / "optimizer.pt").is_file()
    return any((checkpoint / name).is_file() for name in WEIGHTS_FILES) and (
        not with_optimizer or all(state.is_file() for state in states)
    )


def point_to_best_checkpoint(folder: Path) -> None:
    """Correct the path of the best checkpoint in the newest of the Trainer's own checkpoints.

    It is the path at which the run was begun. After a move, or from another working folder, the
    Trainer would neither keep nor load the best checkpoint, and not say so.
    """
    newest = last_checkpoint(folder)
    if newest is None:
        return
    path = Path(newest) / "trainer_state.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    if state.get("best_model_checkpoint"):
        best = folder / CHECKPOINT / Path(state["best_model_checkpoint"]).name
        write_text(path, json.dumps(state | {"best_model_checkpoint": str(best)}, indent=2) + "\n")


def last_checkpoint(folder: Path) -> str | None:
    """The newest of the Trainer's own checkpoints in a run folder, if there is one."""
    checkpoints = folder / CHECKPOINT
    return get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None


def state_after_early_stop(trainer: FineTuner, checkpoint: str | None) -> TrainerState | None:
    """The state of a run that was killed after it had stopped early; None for any other run.

    Such a run has nothing left to train. Neither has one whose last step is done, but its last
    weights may be those that it keeps: the Trainer loads them, and trains no step.
    """
    callbacks = trainer.callback_handler.callbacks
    stop_early = next((each for each in callbacks if isinstance(each, StopEarly)), None)
    if checkpoint is None or stop_early is None:
        return None
    state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
    is_complete = state.global_step >= state.max_steps
    return state if stop_early.is_time(trainer.args, state) and not is_complete else None


def find_run(folder: Path, identity: str) -> dict[str, Any]:
    """The record of the run with this identity in `folder`; empty where there is no run yet.

    Raises:
        RunError: the folder holds another run.
    """
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file: choose another output_dir")
    record = read_record(folder)
    of_a_run = [folder / name for name in (*RUN_FOLDERS, *RUN_FILES)]
    if record.get("identity") != identity and any(path.exists() for path in of_a_run):
        raise RunError(
            f"{folder} holds a run of another recipe or other data: choose another --output_dir, "
            "or replace it with --overwrite"
        )
    return record


def refuse_other_processes(record: dict[str, Any], folder: Path) -> None:
    """Refuse to continue a run with another number of processes than it was begun with.

    The processes share a batch. With another share, the steps of a checkpoint mean other rows.

    Raises:
        RunError: an unfinished run was started by another number of processes.
    """
    before = record.get("processes", world_size())
    if not record.get("finished") and before != world_size():
        raise RunError(
            f"{folder} was begun by {before} process{'es' if before > 1 else ''}, and this is one "
            f"of {world_size()}: start as many, or begin anew with --overwrite"
        )


def refuse_other_settings(record: dict[str, Any], computed: dict[str, Any], folder: Path) -> None:
    """Refuse to continue a run with other computed settings than it was begun with.

    They may differ on another device, offline, or in another version.

    Raises:
        RunError: an unfinished run was begun with other values, under which its checkpoints and
            steps mean something else.
    """
    before = record.get("settled", {})
    for key, value in computed.items():
        if record and before.get(key) != value:
            raise RunError(
                f"{folder} was begun with {key} {before.get(key, 'of an earlier version')}, and "
                f"{value} is computed here: continue where it was begun, or begin anew with "
                "--overwrite"
            )


def refuse_other_weights(record: dict[str, Any], recipe: Recipe) -> None:
    """Refuse a finished run whose base has other weights by now; the base may be gone.

    Raises:
        RunError: the base that lies on this machine has other weights than the run's.
    """
    before = record.get("base_model", {}).get("sha256")
    try:
        base = resolve_base_model(recipe.model)
        weights = base.files.local_weights()
    except BaseModelError:
        return
    if before and weights and file_record(weights).sha256 != before:
        raise RunError(
            f"{recipe.output_dir} was trained from other weights than those that {base.name} has "
            "now: `whetstone export` ships it as it is; to train from these choose another "
            "--output_dir, or --overwrite"
        )


def refuse_differences(facts: dict[str, Any]) -> None:
    """Refuse to train one model in processes that start differently, such as from other files.

    Args:
        facts: what has to be the same in every process, by name.

    Raises:
        RunError: a fact differs. Every process raises it.
    """
    first, *others = all_gather(facts)
    for number, other in enumerate(others, start=1):
        for key, value in first.items():
            if other[key] != value:
                raise RunError(
                    f"process {number} has {key} {other[key]}, and process 0 {value}: give every "
                    "node the same recipe, files and base model, and one shared run folder"
                )


def refuse_separate_folders(folder: Path) -> None:
    """Refuse nodes that have a run folder each, where one cannot continue from the other's files.

    The main process writes a file there, and all look for it.

    Raises:
        RunError: a process does not see it. Every process raises it.
    """
    if world_size() == 1:
        return
    # One name in all processes; a file that an earlier run has left does not count.
    mark = folder / f".{all_gather(secrets.token_hex(8))[0]}.shared"
    with run_lock(folder):
        if is_main_process():
            mark.touch()
        barrier()
        seen = all_gather(_appears(mark))
        if is_main_process():
            mark.unlink()
    apart = [str(number) for number, sees in enumerate(seen) if not sees]
    if apart:
        raise RunError(
            f"the run folder {folder} of process 0 is not that of process {', '.join(apart)}: give "
            "every node one shared run folder, by --output_dir on a file system that all of them "
            "mount"
        )


def _appears(path: Path) -> bool:
    """Whether a file that another node has written is here, or is so after a while."""
    deadline = time.monotonic() + APPEAR_SECONDS
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.5)
    return path.exists()


def drop_resume_files(folder: Path) -> None:
    """Delete what only an unfinished run needs: the Trainer's own checkpoints, and token ids."""
    for path in (*(folder / CHECKPOINT).glob("checkpoint-*"), folder / TOKENS):
        shutil.rmtree(path, ignore_errors=True)
