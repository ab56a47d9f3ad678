"""Pieces, workers and the folder of parts: what every engine relies on, without an engine."""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pyarrow
import pytest
from pyarrow import dataset, parquet

from service.inference.classifier import Classifier
from service.package.files import PackageError
from tests.conftest import ROOT, example_rows, write_csv
from training.common.errors import DataError
from training.data.blocks import BLOCK_ROWS
from training.data.readers import ReadingKeys, read_sources
from training.data.sources import find_sources
from training.recipe.arguments import DataArguments
from training.scoring import engines, ray
from training.scoring.engines import EngineOptions, cause_in, sentence_in
from training.scoring.pieces import MOST_BLOCKS, WANTED_PIECES, plan_pieces
from training.scoring.predict import predict
from training.scoring.tally import MOST_REASONS, OTHER_REASONS, Tally, count_reasons
from training.scoring.worker import Shipment, Worker
from whetstone.main import EXIT_ERROR, main

TEXTS = [row["text"] for row in example_rows("test")[:20]]
Captured = pytest.CaptureFixture[str]
RAY = EngineOptions("ray")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files of Parquet with groups of uneven sizes, one of CSV, one of JSON; some bad rows."""
    place = tmp_path / "in"
    place.mkdir()
    for number, rows in enumerate((4500, 40)):
        texts = [TEXTS[row % 20] if row % 100 != 7 else None for row in range(rows)]
        ids = [f"{number}-{row}" for row in range(rows)]
        table = pyarrow.table({"id": ids, "text": texts})
        parquet.write_table(table, place / f"{number}.parquet", row_group_size=1700)
    write_csv(
        place / "2.csv",
        [{"id": f"2-{row}", "text": " " * (row == 3) or "hello"} for row in range(50)],
    )
    with (place / "3.jsonl").open("w", encoding="utf-8") as handle:
        for row in range(50):
            handle.write(json.dumps({"id": f"3-{row}", "text": TEXTS[row % 20]}) + "\n")
    return place


def plan(package: Path, source: Path, target: Path, **options: Any) -> Shipment:
    return engines._plan(RAY, str(package), [str(source)], str(target), {}, False, **options)


def score(shipment: Shipment) -> Tally:
    """All pieces, by one worker in this process."""
    worker = Worker(shipment)
    return sum(map(worker.score, range(len(shipment.pieces))), Tally())


def rows_of(path: Path, format_: str) -> list[dict[str, Any]]:
    """All rows of a table or of a folder of tables, in the order of their ids."""
    table = dataset.dataset(path, format=format_).to_table()
    return sorted(table.to_pylist(), key=lambda row: row["id"])


@pytest.mark.parametrize("ending", [".parquet", ".arrow", ".csv", ".tsv.zst", ".jsonl.gz", ".json"])
def test_the_parts_have_the_rows_and_columns_of_the_local_engine(
    tiny_package: Path, folder: Path, tmp_path: Path, ending: str
) -> None:
    out, local = tmp_path / f"out{ending}", tmp_path / f"local{ending}"
    shipment = plan(tiny_package, folder, out)
    tally = engines._finish(shipment, score(shipment))
    expected = predict(Classifier.load(tiny_package), folder, local, DataArguments())
    assert (tally.rows, tally.failures) == expected == (4640, 47)
    assert tally.refused == {"the text is missing": 46, "the text is empty": 1}
    assert tally.cpu_seconds > 0
    parts = sorted(path.name for path in out.iterdir())
    assert parts.pop(0) == "_SUCCESS"
    assert all(name.endswith(ending) for name in parts)

    def read(path: Path) -> list[dict[str, Any]]:
        blocks = read_sources(find_sources(path), None, ReadingKeys(), looked_for=["id", "text"])
        return sorted((row for block in blocks for row in block.records()), key=lambda r: r["id"])

    assert read(out) == read(local)


def test_pieces_of_parquet_have_every_row_once(folder: Path) -> None:
    sources = find_sources(folder)
    pieces = plan_pieces(sources)
    assert [piece.source.rows for piece in pieces] == [
        *(range(0, 4096), range(4096, 4500), range(0, 40)),
        None,
        None,
    ]

    def ids(files: Any) -> list[str]:
        blocks = read_sources(files, None, ReadingKeys(), looked_for=["text"])
        return [row["id"] for block in blocks for row in block.records()]

    assert ids([piece.source for piece in pieces]) == ids(sources)
    # Rows of one group, which begins and ends within it.
    some = dataclasses.replace(sources[0], rows=range(3300, 4300))
    assert ids([some]) == [f"0-{row}" for row in range(3300, 4300)]


def test_pieces_grow_with_the_input_up_to_a_bound(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for rows, blocks in ((WANTED_PIECES * BLOCK_ROWS * 3, 3), (10**9, MOST_BLOCKS)):
        monkeypatch.setattr("training.scoring.pieces._rows_of", lambda _, rows=rows: rows)
        pieces = plan_pieces(find_sources(folder / "0.parquet"))
        assert pieces[0].source.rows == range(blocks * BLOCK_ROWS)
        assert sum(len(piece.source.rows or ()) for piece in pieces) == rows


def test_a_worker_writes_again_what_has_no_record_and_nothing_else(
    tiny_package: Path, folder: Path, tmp_path: Path
) -> None:
    """As after a worker that was killed between a part and its record."""
    out = tmp_path / "out.parquet"
    whole = score(plan(tiny_package, folder, out))
    records = next(out.glob("_whetstone-*"))
    lost = records / "part-000000-000000004096-000000"
    lost.unlink()
    changed = {path: path.stat().st_ino for path in out.glob("part-*")}
    shipment = plan(tiny_package, folder, out)
    again = score(shipment)
    assert dataclasses.replace(again, cpu_seconds=0) == dataclasses.replace(whole, cpu_seconds=0)
    assert [path.stem for path, inode in changed.items() if path.stat().st_ino != inode] == [
        lost.name
    ]
    engines._finish(shipment, again)
    ids = Counter(row["id"] for row in rows_of(out, "parquet"))
    assert (len(ids), set(ids.values())) == (4640, {1})


def test_a_file_with_other_rows_than_planned_is_refused(
    tiny_package: Path, folder: Path, tmp_path: Path
) -> None:
    shipment = plan(tiny_package, folder, tmp_path / "out.csv")
    parquet.write_table(pyarrow.table({"id": ["x"], "text": ["hello"]}), folder / "0.parquet")
    with pytest.raises(DataError, match=r"0\.parquet changed while it was read"):
        Worker(shipment).score(0)


def test_a_package_that_is_altered_on_its_way_is_refused(
    tiny_package: Path, folder: Path, tmp_path: Path
) -> None:
    shipment = plan(tiny_package, folder, tmp_path / "out.csv")
    packed = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(shipment.package.content)) as sent,
        zipfile.ZipFile(packed, "w") as arrived,
    ):
        for name in sent.namelist():
            arrived.writestr(name, sent.read(name) + b" " * (name == "tokenizer.json"))
    spoiled = dataclasses.replace(shipment.package, content=packed.getvalue())
    with pytest.raises(PackageError, match=r"tokenizer\.json was altered"):
        Worker(dataclasses.replace(shipment, package=spoiled))
    other = dataclasses.replace(shipment.package, version="000000000000")
    with pytest.raises(DataError, match="arrived instead of 000000000000"):
        Worker(dataclasses.replace(shipment, package=other))


def label_studio(rows: int, annotated: int) -> list[dict[str, Any]]:
    """Rows of which the first are annotated, and none has a column `text`."""
    annotation = {"result": [{"from_name": "label", "value": {"choices": ["praise"]}}]}
    return [
        {
            "id": row,
            "data": {"text": TEXTS[row % 20]},
            "annotations": [annotation] if row < annotated else None,
        }
        for row in range(rows)
    ]


def test_a_piece_has_its_text_where_the_file_has_it(tiny_package: Path, tmp_path: Path) -> None:
    """Whatever the rows of the piece look like by themselves."""
    source, out = tmp_path / "in.parquet", tmp_path / "out.parquet"
    rows = label_studio(BLOCK_ROWS + 20, annotated=100)
    parquet.write_table(pyarrow.Table.from_pylist(rows), source)
    shipment = plan(tiny_package, source, out)
    assert len(shipment.pieces) == 2
    # As an engine sends it.
    tally = score(pickle.loads(pickle.dumps(shipment)))  # noqa: S301 - our own
    assert (tally.rows, tally.refused) == (len(rows), {})


def test_a_killed_file_goes_on_with_its_text_where_it_was(
    tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.scoring.pieces.MOST_BLOCKS", 1)
    monkeypatch.setattr("training.data.json_files.BLOCK_ROWS", 20)
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = (json.dumps(row) for row in label_studio(60, annotated=20))
    source.write_text("\n".join(lines), encoding="utf-8")
    assert score(plan(tiny_package, source, out)).parts == 3
    for record in sorted(next(out.glob("_whetstone-*")).glob("part-*"))[1:]:
        record.unlink()
    tally = score(plan(tiny_package, source, out))
    assert (tally.rows, tally.parts, tally.refused) == (60, 3, {})


def test_a_result_without_rows_has_the_columns(tiny_package: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "in.parquet", tmp_path / "out.parquet"
    parquet.write_table(
        pyarrow.table(
            {"id": pyarrow.array([], pyarrow.int64()), "text": pyarrow.array([], "string")}
        ),
        source,
    )
    shipment = plan(tiny_package, source, out)
    # The engine is not even started.
    tally = engines._run(shipment, EngineOptions("ray", ray_address="nowhere"), lambda _: None)
    assert engines._finish(shipment, tally).rows == 0
    assert dataset.dataset(out).schema.names == ["id", "text", "label", "score", "error"]


def test_a_folder_of_something_else_is_refused_before_any_work(
    tiny_package: Path, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.csv"
    shipment = plan(tiny_package, folder, out)
    (folder / "2.csv").write_text("id,text\n1,other\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"out\.csv holds something else, or parts of another"):
        plan(tiny_package, folder, out)
    other = tmp_path / "other.csv"
    other.write_text("", encoding="utf-8")
    with pytest.raises(DataError, match=r"other\.csv is a file: with this engine the result is"):
        plan(tiny_package, folder, other)
    tally = Tally(pieces=len(shipment.pieces), parts=1)
    with pytest.raises(DataError, match=r"holds 0 of 1 parts .* a folder that all of them"):
        engines._finish(shipment, tally)
    with pytest.raises(DataError, match=r"answered 0 of \d pieces"):
        engines._finish(shipment, Tally())
    assert not (out / "_SUCCESS").exists()
    engines._finish(shipment, dataclasses.replace(tally, parts=0))
    with pytest.raises(DataError, match="is complete already"):
        plan(tiny_package, folder, out)


def test_the_result_in_the_folder_of_the_input_is_no_input(
    tiny_package: Path, folder: Path
) -> None:
    out = folder / "out.csv"
    score(plan(tiny_package, folder, out))
    assert len(plan(tiny_package, folder, out).pieces) == 5


def test_reasons_are_counted_up_to_a_bound() -> None:
    reasons = [f"reason {number}" for number in range(3 * MOST_REASONS)]
    first = Tally(refused=count_reasons(reasons))
    both = first + Tally(refused=count_reasons([*reversed(reasons), None]))
    assert len(both.refused) == MOST_REASONS + 1
    assert both.failures == 2 * len(reasons)
    assert both.refused[OTHER_REASONS] > 0
    assert Tally.from_json(both.to_json()) == both


def test_the_sentence_of_a_worker_is_found_in_the_engines_error() -> None:
    text = (
        'ray::MapWorker(MapBatches(ScoringActor)).submit()\n  File "worker.py"\n'
        "training.common.errors.DataError: in.csv changed while it was read: wait\n\nmore"
    )
    assert str(sentence_in(ValueError(text))) == "in.csv changed while it was read: wait"
    assert sentence_in(ValueError("worker.py: KeyError: 'x'")) is None


def test_the_cause_is_found_in_the_engines_error() -> None:
    """As Ray 2.60 and Spark 4.3 write it."""
    ray_task = (
        "\x1b[36mray::MapWorker(MapBatches(ScoringActor)).submit()\x1b[39m (pid=1)\n"
        '  File "worker.py", line 8, in score\n    raise KeyError("x")\n    ^^^^^^\n'
        "KeyError: 'x'\n\n"
        "The above exception was the direct cause of the following exception:\n\n"
        "\x1b[36mray::MapWorker(MapBatches(ScoringActor)).submit()\x1b[39m (pid=1)\n"
        "ray.exceptions.UserCodeException: UDF failed to process a data block.\n"
        "To change retry attempts, configure `ray.data.DataContext.get_current()`."
    )
    actor = "The actor died.\n\tpid: 1\nIts worker exits: \x1b[31mSYSTEM_ERROR\x1b[39m " + "x" * 999
    spark = (
        "An error occurred while calling z:org.apache.spark.api.python.PythonRDD.collect.\n"
        ": org.apache.spark.SparkException: Job aborted: an executor is lost\n"
        "\tat org.apache.spark.Runner.run(Runner.scala:1)\nCaused by: java.io.EOFException\n"
        "\t... 22 more\n\nDriver stacktrace:\n\tat java.base/java.lang.Thread.run(Thread.java)\n"
    )
    spark_worker = (
        "\n  An exception was thrown from the Python worker:\nTraceback (most recent call last):\n"
        '  File "worker.py", line 8, in score\n    cast()\n'
        "pyarrow.lib.ArrowInvalid: not so\nand more"
    )
    assert cause_in(ValueError(ray_task)) == "KeyError: 'x'"
    assert cause_in(ValueError(spark)).startswith("org.apache.spark.SparkException: Job aborted")
    assert cause_in(ValueError(spark_worker)) == "pyarrow.lib.ArrowInvalid: not so"
    beginning = "The actor died. pid: 1 Its worker exits: SYSTEM_ERROR xxx"
    assert cause_in(ValueError(actor)).startswith(beginning)
    assert len(cause_in(ValueError(actor))) < 500
    assert cause_in(ValueError()) == "ValueError"


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.9\n"),
            "the Ray cluster at host cannot be used: Version mismatch: The cluster was started "
            "with: Ray: 2.9",
        ),
        (
            ConnectionError("nobody\nanswers"),
            "there is no Ray cluster at host (nobody answers)",
        ),
    ],
)
def test_a_cluster_that_refuses_is_not_one_that_is_not_there(
    error: Exception, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = MagicMock()
    library.init.side_effect = error
    monkeypatch.setenv("RAY_BACKEND_LOG_LEVEL", "fatal")
    monkeypatch.setitem(sys.modules, "ray", library)
    monkeypatch.setitem(sys.modules, "ray.data", library.data)
    with pytest.raises(DataError) as caught, ray._connected("host"):
        pass
    assert str(caught.value).startswith(sentence)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--ray_address", "auto"], "--ray_address is for --engine ray"),
        (["--engine", "spark", "--num_workers", "2"], "--num_workers is for --engine ray"),
        (["--engine", "ray", "--spark_master", "local"], "--spark_master is for --engine spark"),
        (["--engine", "ray", "--num_workers", "none"], "none is no whole number of at least 1"),
    ],
)
def test_options_of_another_engine_are_refused(
    options: list[str], sentence: str, capsys: Captured
) -> None:
    with pytest.raises(SystemExit):
        main(["predict", "package", "in.csv", "--out", "out.csv", *options])
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("engine", ["ray", "spark"])
def test_an_engine_that_is_not_installed_is_one_sentence(
    engine: str, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(engines.LIBRARIES, engine, "not_installed")
    words = ["predict", "package", "in.csv", "--out", "out.csv", "--engine", engine]
    assert main(words) == EXIT_ERROR
    said = capsys.readouterr().err
    assert "needs not_installed, which is not installed: pip install -c constraints.txt" in said
    assert f"-e '.[{engine}]'" in said


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:none"])
def test_a_cluster_that_is_not_there_is_one_sentence_and_leaves_no_folder(
    tiny_package: Path,
    folder: Path,
    tmp_path: Path,
    address: str,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(engines.LIBRARIES, "ray", "json")
    out = tmp_path / "out.csv"
    words = ["predict", str(tiny_package), str(folder), "--out", str(out), "--engine", "ray"]
    assert main([*words, "--ray_address", address]) == EXIT_ERROR
    assert f"there is no Ray cluster at {address} (" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(("source", "target"), [("-", "out.csv"), ("in.csv", "-")])
def test_standard_input_and_output_are_for_the_local_engine(
    source: str, target: str, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(engines.LIBRARIES, "ray", "json")
    words = ["predict", "package", source, "--out", target, "--engine", "ray"]
    assert main(words) == EXIT_ERROR
    assert "reads files and writes a folder: leave out --engine" in capsys.readouterr().err


def test_the_local_engine_loads_nothing_of_the_others(tiny_package: Path, tmp_path: Path) -> None:
    source = write_csv(tmp_path / "in.csv", [{"text": "hello"}])
    words = ["predict", str(tiny_package), str(source), "--out", str(tmp_path / "out.csv")]
    code = (
        f"import sys; from whetstone.main import main; main({words}); "
        "print([name for name in sys.modules if name.partition('.')[0] in ('ray', 'pyspark') or "
        "name.startswith(('training.scoring.engines', 'training.scoring.worker'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
