"""The record of a run, `training.json`, and the identity of what was trained."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.package.files import write_text
from training.common.distributed import (
    world_size,
)
from training.common.errors import (
    RunError,
)
from training.common.layout import (
    CHECKPOINT,
    HELD_OUT,
    RECORD,
    RUN_FILES,
    RUN_FOLDERS,
)
from training.data.dataset import LabeledData, load_data
from training.data.encoding import (
    TextEncoding,
)
from training.recipe.arguments import (
    FILE_KEYS,
    ExportArguments,
    Recipe,
    recipe_seed,
)

# In the record of a run that trains on all rows next.
FIRST_IS_DONE = "first_training_is_done"
# In the record of a run that has done so.
ALL_ROWS = "all_rows"


@dataclass(frozen=True)
class TrainedRun:
    """A run folder with a finished checkpoint, and the data it was made from."""

    folder: Path
    recipe: Recipe
    data: LabeledData
    record: dict[str, Any]

    @property
    def checkpoint(self) -> Path:
        """The folder for `training.finetuning.pooling.load_checkpoint`."""
        return self.folder / CHECKPOINT

    @property
    def held_out_checkpoint(self) -> Path | None:
        """The checkpoint that has not seen the validation rows, where `checkpoint` has."""
        return self.folder / HELD_OUT if ALL_ROWS in self.record else None

    @property
    def text_encoding(self) -> TextEncoding:
        """How texts were encoded for the checkpoint."""
        stride = self.record["window_stride"]
        aggregation = None if stride is None else self.recipe.model.window_aggregation
        return TextEncoding(self.record["max_length"], stride, aggregation)


def open_run(recipe: Recipe) -> TrainedRun:
    """The finished run in the recipe's output folder.

    Raises:
        RunError: it is not there, not finished, or of other data or another recipe.
    """
    folder = recipe.output_dir
    record = read_record(folder)
    if not record.get("finished"):
        raise RunError(f"{folder} holds no finished training: run `whetstone train` first")
    data = load_data(recipe.data, recipe_seed(recipe))
    if record["identity"] != run_identity(recipe, data):
        raise RunError(
            f"{folder} was trained with another recipe or other data: name its own recipe and "
            "keys, or train again"
        )
    return TrainedRun(folder, recipe, data, record)


def run_identity(recipe: Recipe, data: LabeledData) -> str:
    """SHA-256 of what decides the checkpoint: training data, and the recipe's keys.

    The keys of the export and the names of the files do not count.
    """
    keys = recipe.as_dict()
    for key in (*FILE_KEYS, *(field.name for field in dataclasses.fields(ExportArguments))):
        keys.pop(key, None)
    training_data = data.fingerprint(("train", "validation"))
    content = {"recipe": {k: str(v) for k, v in keys.items()}, "data": training_data}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def claim_folder(folder: Path, facts: dict[str, Any], overwrite: bool) -> None:
    """Write the record of a run that has begun, and remove the run that it replaces."""
    if overwrite:
        remove_run(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_record(folder, {**facts, "finished": False, "processes": world_size()})


def remove_run(folder: Path) -> None:
    """Delete the files of a run, and nothing else that may lie in the folder."""
    # The record first: without it no file that is left counts as finished.
    for name in RUN_FILES:
        (folder / name).unlink(missing_ok=True)
    for name in RUN_FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)


def read_record(folder: Path) -> dict[str, Any]:
    """The content of `training.json`, empty where it cannot be read.

    A run whose checkpoint is gone is not finished.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(record, dict):
        return {}
    needed = [CHECKPOINT, HELD_OUT] if ALL_ROWS in record else [CHECKPOINT]
    is_whole = all((folder / name / "config.json").is_file() for name in needed)
    return record | {"finished": bool(record.get("finished")) and is_whole}


def first_is_done(record: dict[str, Any], folder: Path) -> bool:
    """Whether an unfinished run goes on with all rows; its first checkpoint is there."""
    return bool(record.get(FIRST_IS_DONE)) and (folder / HELD_OUT / "config.json").is_file()


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write `training.json`, complete or not at all."""
    write_text(folder / RECORD, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
