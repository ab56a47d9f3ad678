"""Scoring that is killed, interrupted or out of room goes on, to the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from fsspec import filesystem

from service.inference.classifier import Classifier
from tests.conftest import ROOT, example_rows, write_csv
from training.common.errors import DataError, InterruptedRunError
from training.recipe.arguments import DataArguments
from training.scoring.parts import Parts
from training.scoring.predict import predict
from whetstone.main import EXIT_ERROR, EXIT_INTERRUPTED, main

TEXTS = [row["text"] for row in example_rows("test")[:20]]
Captured = pytest.CaptureFixture[str]
FILES = 40


@pytest.fixture(scope="module")
def classifier(tiny_package: Path) -> Classifier:
    return Classifier.load(tiny_package, threads=2)


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """A folder of small files, each of which is a part; every fourth has a row without text."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(FILES):
        rows = [{"id": f"{number}-{index}", "text": text} for index, text in enumerate(TEXTS)]
        rows[3]["text"] = "" if number % 4 == 0 else rows[3]["text"]
        write_csv(folder / f"{number:03}.csv", rows)
    return folder


def interrupt_after(monkeypatch: pytest.MonkeyPatch, parts: int, error: BaseException) -> None:
    """Raise where the part after so many would be written."""
    add, count = Parts.add, iter(range(10_000))

    def limited(self: Parts, *arguments: Any) -> None:
        if next(count) >= parts:
            raise error
        add(self, *arguments)

    monkeypatch.setattr(Parts, "add", limited)


@pytest.mark.parametrize("ending", [".csv", ".jsonl.gz", ".json", ".parquet"])
def test_an_interrupted_command_goes_on_and_the_bytes_are_the_same(
    classifier: Classifier,
    many: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ending: str,
) -> None:
    whole, out = tmp_path / f"whole{ending}", tmp_path / f"out{ending}"
    assert predict(classifier, many, whole, DataArguments()) == (20 * FILES, FILES // 4)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 7, KeyboardInterrupt())
        with pytest.raises(InterruptedRunError, match="140 rows are kept"):
            predict(classifier, many, out, DataArguments())
    assert not out.exists()
    # What is answered already is not answered again.
    asked: list[int] = []
    encode = classifier.encode

    def counted(texts: Any, *options: Any) -> Any:
        asked.append(len(texts))
        return encode(texts, *options)

    with monkeypatch.context() as patch:
        patch.setattr(classifier, "encode", counted)
        assert predict(classifier, many, out, DataArguments()) == (20 * FILES, FILES // 4)
    assert len(asked) == FILES - 7
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["in", out.name, whole.name])


def test_parts_of_another_input_are_not_reused(
    classifier: Classifier, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, whole = tmp_path / "out.csv", tmp_path / "whole.csv"
    with monkeypatch.context() as patch:
        interrupt_after(patch, 7, KeyboardInterrupt())
        with pytest.raises(InterruptedRunError):
            predict(classifier, many, out, DataArguments())
    write_csv(many / "000.csv", [{"id": "new", "text": "where is it?"}])
    predict(classifier, many, out, DataArguments())
    predict(classifier, many, whole, DataArguments())
    assert out.read_bytes() == whole.read_bytes()
    assert "new,where is it?" in out.read_text("utf-8")


def command(package: Path, source: str, out: str) -> list[str]:
    """`whetstone predict` in a process of its own."""
    return [sys.executable, "-m", "whetstone", "predict", str(package), source, "--out", out]


def kill_and_go_on(words: list[str], count: Any, times: int) -> int:
    """Kill the command whenever it has written another part, so many times; how often it was."""
    killed = 0
    for _ in range(times):
        child = subprocess.Popen(
            words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        before = count()
        end = time.monotonic() + 120
        while child.poll() is None and count() <= before and time.monotonic() < end:
            time.sleep(0.005)
        if child.poll() is None:
            child.send_signal(signal.SIGKILL)
            killed += 1
        child.wait()
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return killed


@pytest.mark.slow
def test_killed_ten_times_the_result_is_the_same_bytes(
    classifier: Classifier, tiny_package: Path, many: Path, tmp_path: Path
) -> None:
    out, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"

    def count() -> int:
        return len(list(tmp_path.glob(".out.jsonl.*.parts/part-*")))

    assert kill_and_go_on(command(tiny_package, str(many), str(out)), count, 10) >= 5
    predict(classifier, many, whole, DataArguments())
    assert out.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob(".out*"))


def test_a_command_reads_writes_and_continues_in_a_bucket(
    classifier: Classifier, tiny_package: Path, many: Path, tmp_path: Path, s3: str
) -> None:
    fs = filesystem("s3")
    fs.put(f"{many}/", f"{s3}/in/", recursive=True)
    folder = f"{s3.removeprefix('s3://')}"

    def count() -> int:
        return len(fs.glob(f"{folder}/.out.parquet.*.parts/part-*", refresh=True))

    words = command(tiny_package, f"{s3}/in/*.csv", f"{s3}/out.parquet")
    kill_and_go_on(words, lambda: (fs.invalidate_cache(), count())[1], 1)
    predict(classifier, many, tmp_path / "whole.parquet", DataArguments())
    fs.invalidate_cache()
    assert fs.cat(f"{s3}/out.parquet") == (tmp_path / "whole.parquet").read_bytes()
    assert [name.rpartition("/")[2] for name in fs.ls(s3)] == ["in", "out.parquet"]


def test_standard_input_to_standard_output(tiny_package: Path, classifier: Classifier) -> None:
    rows = "id,text\n1,my parcel is late\n2,\n3,lovely shoes\n"
    done = subprocess.run(
        command(tiny_package, "-", "-"),
        cwd=ROOT,
        input=rows,
        capture_output=True,
        text=True,
        check=True,
    )
    first, third = classifier.classify(["my parcel is late", "lovely shoes"])
    lines = done.stdout.splitlines()
    assert lines[0] == "id,text,label,score,error"
    assert lines[1].startswith(f"1,my parcel is late,{first.label},")
    assert lines[2] == "2,,,,the text is empty"
    assert lines[3].startswith(f"3,lovely shoes,{third.label},")
    assert "3 rows, 1 of them without an answer" in done.stderr


@contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """A file system of a few pages at `folder`."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_full_disk_is_one_sentence_and_loses_no_part(
    classifier: Classifier, many: Path, tmp_path: Path, capsys: Captured, tiny_package: Path
) -> None:
    small = tmp_path / "small"
    with full_disk(small):
        words = ["predict", str(tiny_package), str(many), "--out", str(small / "out.csv")]
        assert main(words) == EXIT_ERROR
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.endswith("no room is left there: make some, then give the same command again")
        kept = list(small.glob(".out.csv.*.parts/part-*"))
        assert kept
        subprocess.run(["mount", "-o", "remount,size=16m", small], check=True)
        assert main(words) == 0
        predict(classifier, many, tmp_path / "whole.csv", DataArguments())
        assert (small / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_an_unexpected_error_is_not_hidden(
    classifier: Classifier, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(classifier, "logits", broken)
    with pytest.raises(ZeroDivisionError):
        predict(classifier, many, tmp_path / "out.csv", DataArguments())


def test_ctrl_c_says_how_many_rows_are_kept(
    tiny_package: Path,
    many: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Captured,
) -> None:
    interrupt_after(monkeypatch, 2, KeyboardInterrupt())
    words = ["predict", str(tiny_package), str(many), "--out", str(tmp_path / "out.csv")]
    assert main(words) == EXIT_INTERRUPTED
    (folder,) = tmp_path.glob(".out.csv.*.parts")
    said = f"40 rows are kept in {folder}; the same command goes on behind them"
    assert said in capsys.readouterr().err


def test_ctrl_c_while_parts_are_assembled_says_that_they_are_kept(
    classifier: Classifier, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("training.scoring.tables.TableFormat.assemble", interrupted)
    with pytest.raises(InterruptedRunError, match=f"{20 * FILES} rows are kept in "):
        predict(classifier, many, tmp_path / "out.csv", DataArguments())


@pytest.mark.parametrize("written", [0, 2])
def test_ctrl_c_while_standard_output_is_written_says_what_was(
    tiny_package: Path,
    many: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Captured,
    written: int,
) -> None:
    count = iter(range(FILES))

    def limited(_: bytes) -> None:
        if next(count) >= written:
            raise KeyboardInterrupt

    monkeypatch.setattr("training.scoring.predict.write_out", limited)
    assert main(["predict", str(tiny_package), str(many), "--out", "-"]) == EXIT_INTERRUPTED
    said = capsys.readouterr().err
    assert f"{20 * written} rows or more were written to standard output" in said
    assert "the same command begins anew, with --out FILE it would go on" in said


def abandon(classifier: Classifier, source: str, target: str) -> None:
    """Interrupt a command behind its first part."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(InterruptedRunError):
        interrupt_after(patch, 1, KeyboardInterrupt())
        predict(classifier, source, target, DataArguments())


@pytest.mark.parametrize("where", ["folder", "bucket"])
def test_parts_of_abandoned_commands_are_named_and_kept(
    classifier: Classifier, many: Path, tmp_path: Path, s3: str, where: str, caplog: Any
) -> None:
    place = str(tmp_path / "[odd] names") if where == "folder" else s3
    fs = filesystem("file" if where == "folder" else "s3")
    target = f"{place}/out.csv"
    abandon(classifier, str(many), target)
    # What belongs to another result is none of this one's.
    abandon(classifier, str(many), f"{place}/out.csv.csv")
    fs.invalidate_cache()
    (folder,) = {
        name
        for name in fs.ls(place, detail=False)
        if ".out.csv." in name and ".out.csv.csv." not in name
    }
    caplog.clear()
    predict(classifier, many / "001.csv", target, DataArguments())
    (said,) = [record.getMessage() for record in caplog.records]
    shown = folder if where == "folder" else f"s3://{folder}"
    assert said.startswith(f"{shown}: parts of another command for the same result")
    caplog.clear()
    assert predict(classifier, many, target, DataArguments()) == (20 * FILES, FILES // 4)
    assert caplog.records == []
    fs.invalidate_cache()
    assert folder not in fs.ls(place, detail=False)


def test_a_file_that_changes_meanwhile_is_refused(
    classifier: Classifier, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = Parts.add

    def adding(self: Parts, index: int, *arguments: Any) -> None:
        if index == 0:
            with (many / "039.csv").open("a", encoding="utf-8") as handle:
                handle.write("late,one more\n")
        add(self, index, *arguments)

    monkeypatch.setattr(Parts, "add", adding)
    with pytest.raises(DataError, match=r"039\.csv changed while it was read"):
        predict(classifier, many, tmp_path / "out.csv", DataArguments())
    assert not (tmp_path / "out.csv").exists()


def test_a_folder_of_the_results_name_is_refused_before_the_work(
    tiny_package: Path, many: Path, tmp_path: Path, capsys: Captured
) -> None:
    out = tmp_path / "out.csv"
    out.mkdir()
    words = ["predict", str(tiny_package), str(many), "--out", str(out)]
    assert main(words) == EXIT_ERROR
    assert f"{out} is a folder: name a file, or remove the folder" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.rglob("*") if path.parent != many) == [
        "in",
        "out.csv",
    ]


def test_a_folder_that_is_made_meanwhile_gets_no_result_in_it(
    classifier: Classifier, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, finish = tmp_path / "out.csv", Parts.finish

    def finishing(self: Parts, *arguments: Any) -> None:
        out.mkdir()
        finish(self, *arguments)

    monkeypatch.setattr(Parts, "finish", finishing)
    with pytest.raises(DataError, match="something else is in the way"):
        predict(classifier, many, out, DataArguments())
    assert list(out.iterdir()) == []
    assert len(list(tmp_path.glob(".out.csv.*.parts/part-*"))) == FILES


def test_the_same_command_twice_at_once_does_not_write_into_one_file(tmp_path: Path) -> None:
    """The other one ends while this one puts its result together."""
    out = tmp_path / "out.csv"
    this, other = (Parts(str(out), "0" * 12) for _ in range(2))
    this.add(0, b"a part", 1, 0)

    def assemble(_: Iterator[BinaryIO], target: BinaryIO) -> None:
        target.write(b"this")
        target.flush()
        other.finish(lambda _, file: file.write(b"the other's"))
        target.write(b" and more")

    with pytest.raises(DataError) as caught:
        this.finish(assemble)
    assert out.read_bytes() == b"the other's"
    assert f"parts are gone, as where the same command ended meanwhile: if {out}" in str(
        caught.value
    )
