"""Work is never lost: runs that are killed, that find no room, that several processes share."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.conftest import ROOT
from tests.servers import free_port
from training.common.errors import FullDiskError, RunError
from training.common.full_disk import full_disk_in_a_sentence
from training.common.layout import CHECKPOINT, PACKAGE, RECORD

SECONDS = 300
KILLS = 4


def command(recipe: Path, folder: Path, *keys: str) -> list[str]:
    return [*map(str, ("train", recipe, "--output_dir", folder)), *keys]


def start(words: list[str], **more: Any) -> subprocess.Popen[str]:
    """`whetstone` as a process of its own, with every process that it starts in one group."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        **more,
    )


def finish(words: list[str]) -> str:
    """What it printed; it has to end well."""
    process = start(words)
    printed, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, printed
    return printed


def record_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / RECORD).read_text("utf-8"))
    assert found["finished"]
    return found


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_where_one_that_is_not_does(
    tiny_recipe: Path, telling_base: Path, tmp_path: Path
) -> None:
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    # Enough epochs that a fast machine has not ended before the last kill.
    keys = ("--num_train_epochs", "24", "--early_stopping_patience", "0")
    # Its head starts from what the frozen encoder says.
    keys += ("--model_name_or_path", str(telling_base), "--pooling", "mean")
    finish(["-m", "whetstone", *command(tiny_recipe, alone, *keys)])
    chance = random.Random(0)  # noqa: S311 - no secret
    kills = 0
    for number in range(1, KILLS + 1):
        process = start(["-m", "whetstone", *command(tiny_recipe, killed, *keys)])
        deadline = time.monotonic() + SECONDS
        # Every start of the training has a file of its own.
        while len(list(killed.rglob("*.tfevents.*"))) < number and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(chance.uniform(0, 1))
        if process.poll() is None:
            kills += 1
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert kills >= 2
    finish(["-m", "whetstone", *command(tiny_recipe, killed, *keys)])
    expected, found = record_of(alone), record_of(killed)
    assert expected["evaluations"][0]["step"] == 0
    assert found["evaluations"] == expected["evaluations"]
    assert found["kept_step"] == expected["kept_step"]
    weights = "model.safetensors"
    assert (killed / CHECKPOINT / weights).read_bytes() == (
        alone / CHECKPOINT / weights
    ).read_bytes()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder that holds little more than one checkpoint."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1200k", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.slow
def test_a_full_disk_is_one_sentence_and_the_last_checkpoint_is_whole(
    tiny_recipe: Path, small_disk: Path
) -> None:
    words = ["-m", "whetstone", *command(tiny_recipe, small_disk / "run")]
    process = start(words)
    printed, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 1, printed
    assert f"no room is left: {small_disk}" in printed and "Traceback" not in printed
    assert "it continues from the last whole checkpoint" in printed
    subprocess.run(["mount", "-o", "remount,size=50m", small_disk], check=True)
    finish(words)
    assert record_of(small_disk / "run")["kept_step"]


@pytest.mark.slow
def test_an_export_without_room_is_one_sentence(
    tiny_recipe: Path, tiny_run_folder: Path, small_disk: Path
) -> None:
    run = small_disk / "run"
    subprocess.run(["mount", "-o", "remount,size=50m", small_disk], check=True)
    shutil.copytree(tiny_run_folder, run, ignore=shutil.ignore_patterns(PACKAGE))
    used = sum(path.stat().st_size for path in run.rglob("*"))
    size = f"remount,size={(used >> 10) + 200}k"
    subprocess.run(["mount", "-o", size, small_disk], check=True)
    process = start(["-m", "whetstone", "export", str(tiny_recipe), "--output_dir", str(run)])
    printed, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 1, printed
    assert f"no room is left: {run}" in printed and "Traceback" not in printed
    assert not (run / PACKAGE).exists()


def test_a_library_that_says_only_in_words_that_the_disk_is_full(
    tiny_base: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    (tmp_path / "tokenizer.json").symlink_to("/dev/full")
    with pytest.raises(Exception, match="No space left") as error:
        tokenizer.save_pretrained(tmp_path)
    assert type(error.value) is Exception
    with (
        pytest.raises(FullDiskError, match=r"^no room is left: .* make room and ask again$"),
        full_disk_in_a_sentence(tmp_path / "not" / "there", "ask again"),
    ):
        tokenizer.save_pretrained(tmp_path)


@pytest.mark.parametrize("error", [ValueError("no"), OSError(2, "No such file"), RunError("no")])
def test_other_errors_are_not_taken_for_a_full_disk(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as found, full_disk_in_a_sentence(tmp_path, "ask again"):
        raise error
    assert found.value is error


TOGETHER = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


@pytest.mark.slow
def test_two_processes_train_one_model(tiny_recipe: Path, tmp_path: Path) -> None:
    keys = ("--use_cpu", "true", "--num_train_epochs", "3")
    finish(["-m", "whetstone", *command(tiny_recipe, tmp_path / "one", *keys)])
    # The tiny recipe gives what would be shared.
    keys = (*keys, "--per_device_train_batch_size", "8")
    printed = finish([*TOGETHER, "-m", "whetstone", *command(tiny_recipe, tmp_path / "two", *keys)])
    assert len(re.findall(r"^checkpoint: ", printed, re.MULTILINE)) == 1
    assert len(re.findall(r"^epoch 3: ", printed, re.MULTILINE)) == 1
    one, two = record_of(tmp_path / "one"), record_of(tmp_path / "two")
    assert (one["processes"], two["processes"]) == (1, 2)
    # As many rows a step, so as many steps; the metrics are of all validation rows, once each.
    steps = [[evaluation["step"] for evaluation in run["evaluations"]] for run in (one, two)]
    assert steps[0] == steps[1]
    for before, after in zip(one["evaluations"], two["evaluations"], strict=True):
        assert after["loss"] == pytest.approx(before["loss"], abs=0.15)
        assert after["macro_f1"] == pytest.approx(before["macro_f1"], abs=0.15)
    made = [
        sorted(path.name.partition(".tfevents.")[0] for path in (tmp_path / name).rglob("*"))
        for name in ("one", "two")
    ]
    assert made[0] == made[1]


ROWS_SEEN = """
import json, os, sys
from pathlib import Path
import torch
from training.finetuning import train as module, trainer
from training.recipe.load import load_recipe

seen = []
class Watched(trainer.FineTuner):
    def training_step(self, model, inputs, *rest):
        seen.append(inputs["input_ids"].tolist())
        return super().training_step(model, inputs, *rest)
trainer.FineTuner = Watched
recipe = load_recipe(Path(sys.argv[1]), {"output_dir": sys.argv[2], "use_cpu": "true",
    "num_train_epochs": "2", "per_device_train_batch_size": sys.argv[4]})
module.train(recipe)
rows = [[t for t in row if t] for batch in seen for row in batch]
Path(sys.argv[3] + os.environ.get("RANK", "0")).write_text(json.dumps(rows))
"""


@pytest.mark.slow
def test_two_processes_see_every_row_once_an_epoch(tiny_recipe: Path, tmp_path: Path) -> None:
    script = tmp_path / "watch.py"
    script.write_text(ROWS_SEEN, "utf-8")
    for words, name, size in (([], "one", "16"), (TOGETHER, "two", "8")):
        given = (script, tiny_recipe, tmp_path / name, tmp_path / f"{name}-", size)
        finish([*words, *map(str, given)])
    (one,) = (json.loads(path.read_text("utf-8")) for path in tmp_path.glob("one-*"))
    two = [json.loads(path.read_text("utf-8")) for path in sorted(tmp_path.glob("two-*"))]
    assert len(two) == 2
    together = sorted(two[0] + two[1])
    # The last batches of an epoch are filled up, so that both processes have as many rows.
    assert 0 <= len(together) - len(one) < 2 * 16
    rest = list(together)
    for row in sorted(one):
        rest.remove(row)
    assert len(rest) == len(together) - len(one)


@pytest.mark.slow
def test_a_process_that_dies_ends_the_job_with_a_reason(tiny_recipe: Path, tmp_path: Path) -> None:
    keys = ("--use_cpu", "true", "--num_train_epochs", "400", "--early_stopping_patience", "0")
    process = start([*TOGETHER, "-m", "whetstone", *command(tiny_recipe, tmp_path / "run", *keys)])
    import psutil

    deadline = time.monotonic() + SECONDS
    while not list((tmp_path / "run" / CHECKPOINT).glob("checkpoint-*")):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    children = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if child.environ().get("RANK") == "1"
    ]
    os.kill(children[0].pid, signal.SIGKILL)
    printed, _ = process.communicate(timeout=SECONDS)
    assert process.returncode != 0
    assert "Signal 9 (SIGKILL)" in printed


OTHER_ROWS = """
import os, sys
from whetstone.main import main

recipe, folder, *files = sys.argv[1:]
sys.exit(main(["train", recipe, "--use_cpu", "true", "--output_dir", folder, "--train_file",
    files[int(os.environ["RANK"])]]))
"""


@pytest.mark.slow
def test_processes_with_other_rows_do_not_train_one_model(
    tiny_recipe: Path, tmp_path: Path
) -> None:
    whole = tiny_recipe.parent / "train.csv"
    lines = whole.read_text("utf-8").splitlines(keepends=True)
    # As on a node where an older copy lies: rows enough to train on.
    older = tmp_path / f"older{whole.suffix}"
    older.write_text("".join(lines[:-3]), "utf-8")
    script = tmp_path / "nodes.py"
    script.write_text(OTHER_ROWS, "utf-8")
    given = map(str, (script, tiny_recipe, tmp_path / "run", whole, older))
    process = start([*TOGETHER, *given])
    printed, _ = process.communicate(timeout=SECONDS)
    assert process.returncode != 0
    assert "process 1 has rows and recipe" in printed and "one shared run folder" in printed
    assert not (tmp_path / "run").exists()


IMPATIENT = """
import sys
from training.finetuning import resume
resume.APPEAR_SECONDS = 1
from whetstone.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_nodes_with_a_run_folder_each_are_refused_before_the_training(
    tiny_recipe: Path, tmp_path: Path
) -> None:
    """Two of torchrun's nodes; the same relative path is another folder on each."""
    script = tmp_path / "impatient.py"
    script.write_text(IMPATIENT, "utf-8")
    together = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
    together += ["--master_addr", "127.0.0.1", "--master_port", str(free_port())]
    words = [str(script), *command(tiny_recipe, Path("run"))]
    folders = [tmp_path / "first", tmp_path / "second"]
    nodes = []
    for number, folder in enumerate(folders):
        folder.mkdir()
        nodes.append(start([*together, "--node_rank", str(number), *words], cwd=folder))
    for node, folder in zip(nodes, folders, strict=True):
        printed, _ = node.communicate(timeout=SECONDS)
        assert node.returncode != 0
        assert "whetstone: the run folder run of process 0 is not that of process 1" in printed
        assert "give every node one shared run folder" in printed
        assert list(folder.iterdir()) == []
