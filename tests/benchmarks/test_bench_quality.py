"""What `bench_quality` makes of runs; the verbs here write what Whetstone's would, but for one."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import bench_quality
from benchmarks.bench_quality import EXAMPLE, SetError, draw_rows, last_words, main, merge, sets_in
from benchmarks.quality_report import AIMS, REFERENCES, draw, summary
from tests.conftest import example_rows, write_csv

MACHINE = {"cores": 2, "processor": "a processor"}


def found(name: str, **more: Any) -> dict[str, Any]:
    """An entry as it is written."""
    return {
        "set": name,
        "task": "single_label",
        "rows": {"train": 9002, "validation": 1001, "test": 3080},
        "device": "cpu",
        "minutes": {"training": 12.34, "in_all": 15.0},
        "resumed": False,
        "shipped": "int8",
        "accuracy": 0.9312,
        "macro_f1": 0.9212,
        "on_validation": {"int8": {"macro_f1": 0.9333}},
        "ece": 0.0123,
        "drawn": None,
        "keys": {},
        "threads": None,
        "machine": MACHINE,
        **more,
    }


class Verbs:
    """Stands for the verbs: notes which were run with what, and writes their files."""

    def __init__(self, refused: str = "") -> None:
        self.run: list[tuple[str, list[str]]] = []
        self.recipes: dict[str, dict[str, Any]] = {}
        self._refused = refused

    def __call__(
        self, verb: str, words: Sequence[str | Path], log: Path, threads: int | None
    ) -> None:
        self.run.append((verb, list(map(str, words))))
        recipe = yaml.safe_load((log.parent / "recipe.yaml").read_text("utf-8"))
        self.recipes[recipe["name"]] = recipe
        if recipe["name"] == self._refused:
            raise SetError(f"{verb} failed: no column 'label'")
        folder = log.parent / "run"
        several = "label_separator" in recipe
        if verb == "train":
            record = {
                "finished": True,
                "seconds": 90,
                "device": "cpu",
                "training_arguments": {
                    "learning_rate": 1e-4,
                    "num_train_epochs": 8,
                    "per_device_train_batch_size": 16,
                    "gradient_accumulation_steps": 2,
                },
                "evaluations": [{"epoch": 1.0}, {"epoch": 2.0}],
            }
            self._write(folder / "training.json", record)
        if verb == "export":
            rows = {"train_rows": 9, "validation_rows": 1, "test_rows": 3}
            graph = {"name": "int8", "verdict": "passed", "accuracy": 0.5, "macro_f1": 0.25}
            manifest = {
                "task": "multi_label" if several else "single_label",
                "labels": ["ham", "spam"],
                "provenance": {"dataset": rows},
                "selection": {"chosen": "int8", "candidates": [graph]},
            }
            self._write(folder / "package" / "manifest.json", manifest)
        if verb == "evaluate":
            scores = {
                "accuracy": 0.75,
                "macro_f1": 0.5,
                "micro_f1": 0.625,
                "per_label": {"spam": {"f1": 0.875}},
                "calibration": {"ece": 0.125},
            }
            self._write(log.parent / "evaluation" / "metrics.json", scores)

    @staticmethod
    def _write(path: Path, content: dict[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content), "utf-8")


def make_set(folder: Path, column: str = "label", *, rows: int = 10) -> Path:
    """A set of some rows, with a text that a CSV reader alone can read."""
    folder.mkdir(parents=True)
    lines = [{"text": f"one, {n}\nand more", column: ("ham", "spam")[n % 2]} for n in range(rows)]
    write_csv(folder / "train.csv", lines)
    write_csv(folder / "test.csv", lines[:3])
    return folder


def bench(tmp_path: Path, *words: str) -> int:
    """Run the command on the sets of `tmp_path`."""
    places = {"data": tmp_path / "data", "work": tmp_path / "work", "out": out_file(tmp_path)}
    return main([*(f"--{name}={path}" for name, path in places.items()), *words])


def out_file(tmp_path: Path) -> Path:
    """Where `bench` writes its result."""
    return tmp_path / "out" / "quality.json"


def entries(tmp_path: Path) -> dict[str, Any]:
    """What `bench` has found."""
    return json.loads(out_file(tmp_path).read_text("utf-8"))["entries"]


def use(monkeypatch: pytest.MonkeyPatch, verbs: Verbs) -> Verbs:
    """Put `verbs` in the place of Whetstone's."""
    monkeypatch.setattr(bench_quality, "whetstone", verbs)
    return verbs


def test_by_default_the_example_and_what_the_folder_has(tmp_path: Path) -> None:
    make_set(tmp_path / "sst2")
    make_set(tmp_path / "sms_spam")
    make_set(tmp_path / "somebody's own")
    assert sets_in(tmp_path) == [EXAMPLE.name, "sms_spam", "sst2"]
    assert sets_in(None) == [EXAMPLE.name]


def test_a_recipe_says_where_the_rows_are_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    verbs = use(monkeypatch, Verbs())
    make_set(tmp_path / "data" / "sms_spam")
    folder = make_set(tmp_path / "data" / "go_emotions", "labels")
    write_csv(folder / "validation.csv", [{"text": "a", "labels": ""}])
    assert bench(tmp_path, "--sets", "sms_spam", "go_emotions") == 0
    files = {"train_file", "test_file", "name", "output_dir"}
    assert set(verbs.recipes["sms_spam"]) == files
    several = {"validation_file", "label_column", "label_separator"}
    assert set(verbs.recipes["go_emotions"]) == files | several
    recipe = str(tmp_path / "work" / "sms_spam" / "recipe.yaml")
    assert verbs.run[:2] == [("train", [recipe]), ("export", [recipe])]
    assert verbs.run[2][0] == "evaluate"


def test_an_entry_has_what_was_resolved_and_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(monkeypatch, Verbs())
    make_set(tmp_path / "data" / "sms_spam")
    make_set(tmp_path / "data" / "go_emotions", "labels")
    bench(tmp_path, "--sets", "sms_spam", "go_emotions")
    one, several = entries(tmp_path)["sms_spam / cpu"], entries(tmp_path)["go_emotions / cpu"]
    expected = {
        "rows": {"train": 9, "validation": 1, "test": 3},
        "learning_rate": 1e-4,
        "epochs": 8,
        "epochs_trained": 2.0,
        "batch_size": 32,
        "shipped": "int8",
        "accuracy": 0.75,
        "macro_f1": 0.5,
        "positive_f1": 0.875,
        "ece": 0.125,
        "drawn": None,
        "keys": {},
    }
    assert {key: one[key] for key in expected} == expected
    assert one["minutes"]["training"] == 1.5
    assert one["on_validation"]["int8"]["macro_f1"] == 0.25
    assert "micro_f1" not in one
    assert several["micro_f1"] == 0.625
    assert out_file(tmp_path).with_suffix(".md").read_text("utf-8").count("\n| `") == 2
    assert out_file(tmp_path).with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_keys_reach_training_and_export_and_are_recorded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    verbs = use(monkeypatch, Verbs())
    make_set(tmp_path / "data" / "sms_spam")
    bench(tmp_path, "--sets", "sms_spam", "--keys", "seed=7", "max_length=32")
    assert [words[1:] for _, words in verbs.run[:2]] == [["--seed=7", "--max_length=32"]] * 2
    (one,) = entries(tmp_path).values()
    assert one["keys"] == {"seed": "7", "max_length": "32"}


def test_what_is_exported_is_not_exported_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    verbs = use(monkeypatch, Verbs())
    make_set(tmp_path / "data" / "sms_spam")
    bench(tmp_path, "--sets", "sms_spam")
    (seconds := tmp_path / "work" / "sms_spam" / "seconds.json").write_text(
        json.dumps({"train": 600, "export": 60, "evaluate": 60}), "utf-8"
    )
    bench(tmp_path, "--sets", "sms_spam")
    # Whether the run is of these rows is for `train` to say.
    assert [verb for verb, _ in verbs.run[3:]] == ["train", "evaluate"]
    # What the second call of `train` took is not training.
    assert json.loads(seconds.read_text("utf-8"))["train"] == 600
    assert entries(tmp_path)["sms_spam / cpu"]["minutes"]["in_all"] == pytest.approx(11, abs=0.1)


def test_a_training_that_goes_on_is_marked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use(monkeypatch, Verbs())
    make_set(tmp_path / "data" / "sms_spam")
    (tmp_path / "work" / "sms_spam" / "run" / "checkpoint" / "checkpoint-5").mkdir(parents=True)
    bench(tmp_path, "--sets", "sms_spam")
    assert "| > 1.5 / > 0.0 |" in summary({"entries": entries(tmp_path)})


def test_a_set_that_fails_costs_the_others_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, Verbs(refused="banking77"))
    for name in ("banking77", "sms_spam"):
        make_set(tmp_path / "data" / name)
    merge(out_file(tmp_path), found("banking77", accuracy=0.5))
    assert bench(tmp_path, "--sets", "sst2", "banking77", "sms_spam") == 1
    said = capsys.readouterr().err
    assert f"sst2: {tmp_path / 'data' / 'sst2' / 'train.csv'} is not there\n" in said
    assert "banking77: train failed: no column 'label'\n" in said
    assert "Traceback" not in said
    assert list(entries(tmp_path)) == ["banking77 / cpu", "sms_spam / cpu"]
    assert entries(tmp_path)["banking77 / cpu"]["accuracy"] == 0.5


def test_a_bad_header_is_one_sentence_of_whetstones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_set(tmp_path / "data" / "sms_spam", "kind")
    assert bench(tmp_path, "--sets", "sms_spam") == 1
    assert "sms_spam: train failed: " in (said := capsys.readouterr().err)
    assert "has no column 'label'" in said
    assert "Traceback" not in said
    assert not out_file(tmp_path).exists()


def test_public_sets_need_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--sets", "sst2", f"--work={tmp_path}", f"--out={out_file(tmp_path)}"]) == 1
    assert "sst2: its files are not in this repository" in capsys.readouterr().err


def test_rows_are_drawn_whole_and_always_the_same(tmp_path: Path) -> None:
    source = make_set(tmp_path / "set") / "train.csv"
    with source.open(newline="", encoding="utf-8") as handle:
        header, *rows = csv.reader(handle)
    drawn = []
    for name in ("a", "b"):
        assert draw_rows(source, tmp_path / name / "train.csv", 4)
        with (tmp_path / name / "train.csv").open(newline="", encoding="utf-8") as handle:
            drawn.append(list(csv.reader(handle)))
    assert drawn[0] == drawn[1]
    assert drawn[0][0] == header
    assert len(drawn[0]) == 5
    assert all(row in rows for row in drawn[0][1:])
    assert drawn[0][1:] != rows[:4]
    assert not draw_rows(source, tmp_path / "c" / "train.csv", 10)
    assert not (tmp_path / "c").exists()


def test_drawn_rows_are_a_run_of_their_own_and_recorded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    verbs = use(monkeypatch, Verbs())
    make_set(tmp_path / "data" / "sms_spam")
    bench(tmp_path, "--sets", "sms_spam", "--rows", "6")
    assert verbs.recipes["sms_spam"]["train_file"] == str(
        tmp_path / "work" / "sms_spam-6" / "train.csv"
    )
    assert entries(tmp_path)["sms_spam / cpu"]["drawn"] == 6
    table = summary({"entries": entries(tmp_path)})
    assert "(6 drawn)" in table
    assert "ours with fewer" in table
    bench(tmp_path, "--sets", "sms_spam", "--rows", "10")
    assert (tmp_path / "work" / "sms_spam" / "run").is_dir()
    assert entries(tmp_path)["sms_spam / cpu"]["drawn"] is None


@pytest.mark.parametrize("word", ["--rows=0", "--threads=-1", "--sets=imdb"])
def test_what_cannot_be_is_refused(word: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main([word])
    assert ended.value.code == 2


def test_an_entry_replaces_that_of_its_set_device_and_keys_alone(tmp_path: Path) -> None:
    out = tmp_path / "quality.json"
    for entry in (
        found("sst2"),
        found("sst2", device="a card"),
        found("banking77"),
        found("sst2", keys={"num_train_epochs": "1"}),
        found("sst2", accuracy=0.25),
    ):
        result = merge(out, entry)
    assert result == json.loads(out.read_text("utf-8"))
    assert {key: one["accuracy"] for key, one in result["entries"].items()} == {
        "banking77 / cpu": 0.9312,
        "sst2 / a card": 0.9312,
        "sst2 / cpu": 0.25,
        "sst2 / cpu / num_train_epochs=1": 0.9312,
    }


def test_the_table_says_what_was_missed() -> None:
    shown = {
        "a": found("banking77"),
        "b": found("sms_spam", positive_f1=0.9689),
        "c": found("cuad_clauses", device="a card"),
        "d": found("sst2", keys={"learning_rate": "1e-3"}, threads=1),
        "e": found("go_emotions", task="multi_label", micro_f1=0.5, macro_f1=0.41),
    }
    lines = summary({"entries": shown}).splitlines()[2:]
    assert lines.pop() == "With several labels a row, accuracy is the share with exactly those."
    assert not lines.pop()
    assert lines[0].startswith(
        "| `banking77`, 2 cores | 9,002 + 1,001 / 3,080 | 12.3 / 15.0 | int8 | 0.931 | 0.921 | "
        "0.933 | - | 0.012 | accuracy ≥ 0.93: met | accuracy 0.937, BERT-large (Casanueva"
    )
    assert "| F1 of spam 0.9689, ≥ 0.97: missed | accuracy 0.993, BERT (" in lines[1]
    assert lines[2].startswith("| `cuad_clauses`, a card |")
    assert lines[2].endswith("| 0.012 | - | - |")
    assert "2 cores, 1 thread(s), **not the defaults**: learning_rate=1e-3 |" in lines[3]
    assert "| 0.500 | 0.012 | macro-F1 ≥ 0.40: met | macro-F1 0.460, BERT-base (" in lines[4]
    assert [line.count(" | ") for line in lines] == [10] * 5


def test_aims_and_references_are_of_known_sets() -> None:
    assert set(AIMS) | set(REFERENCES) <= set(bench_quality.SETS)


def test_the_picture_is_whole(tmp_path: Path) -> None:
    draw({"entries": {"sst2 / cpu": found("sst2"), "x": found(EXAMPLE.name)}}, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_log_without_a_sentence_gives_its_last_line(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    log.write_text("train: 1%\rtrain: 2%\nwhetstone: a sentence\nbye\n\n", "utf-8")
    assert last_words(log) == "a sentence"
    log.write_text("Traceback\nValueError: x\n\n", "utf-8")
    assert last_words(log) == "ValueError: x"
    log.write_text("", "utf-8")
    assert last_words(log) == "it said nothing"


@pytest.mark.slow
def test_a_tiny_set_goes_all_the_way_and_is_not_trained_twice(
    tiny_base: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "data" / "sms_spam"
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        kept = [row for row in example_rows(split) if row["label"] != "praise"]
        named = {"delivery": "ham", "returns": "spam"}
        rows = [{"text": row["text"], "label": named[row["label"]]} for row in kept]
        write_csv(folder / f"{split}.csv", rows)
    words = ("--sets", "sms_spam", "--rows", "120", "--threads", "1", "--keys", "use_cpu=true")
    words += (f"model_name_or_path={tiny_base}", "num_train_epochs=1", "max_length=32")
    assert bench(tmp_path, *words) == 0
    run = tmp_path / "work" / "sms_spam-120" / "run"
    trained = (run / "training.json").stat().st_mtime_ns
    (first,) = entries(tmp_path).values()
    assert first["rows"]["train"] + first["rows"]["validation"] == 120
    assert {"fp32", "int8"} <= set(first["on_validation"])
    assert 0 <= first["positive_f1"] <= 1
    assert 0 < first["minutes"]["training"] < first["minutes"]["in_all"]
    assert bench(tmp_path, *words) == 0
    assert (run / "training.json").stat().st_mtime_ns == trained
    (second,) = entries(tmp_path).values()
    assert second["minutes"]["training"] == first["minutes"]["training"]
    assert second["macro_f1"] == first["macro_f1"]
