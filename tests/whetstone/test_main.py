"""The command `whetstone`: what it prints, its exit status, and how it refuses."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest

from service.inference.classifier import Classifier
from tests.conftest import ROOT, example_rows, write_csv
from training.common.errors import InterruptedRunError, install_command
from training.recipe.arguments import OWN_ARGUMENTS, Recipe
from whetstone.main import EXIT_ERROR, EXIT_INTERRUPTED, main

Captured = pytest.CaptureFixture[str]

HEAVY = ("torch", "transformers", "datasets", "onnxruntime", "bentoml", "sklearn", "matplotlib")
# Runs one verb, then prints to standard error which modules of HEAVY were imported.
IMPORTS = f"""
import sys
from whetstone.main import main
try:
    main(sys.argv[1:])
finally:
    print(*(name for name in {HEAVY} if name in sys.modules), file=sys.stderr)
"""


def python(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run another Python, as a user would."""
    command = [sys.executable, *(str(word) for word in words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def error_line(capsys: Captured, *words: str | Path) -> str:
    """The only line of output of a command that fails."""
    assert main([str(word) for word in words]) == EXIT_ERROR
    output = capsys.readouterr()
    assert output.out == ""
    (line,) = output.err.splitlines()
    assert line.startswith("whetstone: ")
    return line


def exit_status(*words: str) -> object:
    """The exit status of a command that argparse ends."""
    with pytest.raises(SystemExit) as caught:
        main(list(words))
    return caught.value.code


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe whose data file is missing."""
    path = tmp_path / "recipe.yaml"
    path.write_text("name: tiny\ntrain_file: nowhere.csv\n", encoding="utf-8")
    return path


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """A labeled file with the labels of the tiny package."""
    return write_csv(tmp_path / "labelled.csv", example_rows("test")[:30])


# Help


@pytest.mark.parametrize(
    "words",
    [["--help"], ["run", "--help"], ["train", "-h"], ["evaluate", "-h"], ["predict", "-h"]],
    ids=" ".join,
)
def test_help_needs_no_heavy_import(words: list[str]) -> None:
    done = python("-c", IMPORTS, *words)
    assert (done.returncode, done.stderr) == (0, "\n")
    assert done.stdout.startswith("usage: whetstone")


def test_the_package_runs_as_a_module() -> None:
    done = python("-m", "whetstone", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    listed = re.findall(r"^    (\w+)  ", done.stdout, re.MULTILINE)
    assert listed == [
        *("check", "run", "train", "export", "tune"),
        *("evaluate", "register", "verify", "compare", "predict"),
        *("image", "release", "rollback", "history"),
        *("drift", "collect", "forget"),
    ]


@pytest.mark.parametrize("words", [["--help"], ["recipe.yaml", "--help"], ["r", "--seed", "-h"]])
@pytest.mark.parametrize("verb", ["run", "train", "export"])
def test_help_lists_every_key_of_a_recipe(verb: str, words: list[str], capsys: Captured) -> None:
    assert exit_status(verb, *words) == 0
    shown = capsys.readouterr().out
    listed = re.findall(r"^  (\w+)$", shown, re.MULTILINE)
    known = [key.name for part in OWN_ARGUMENTS for key in dataclasses.fields(part)]
    assert listed == [*known, "output_dir"]
    assert "transformers.TrainingArguments" in shown
    assert "(default: 256)" in shown


# Refusals


@pytest.mark.parametrize("verb", ["run", "train", "export"])
def test_a_missing_recipe_is_one_line(verb: str, tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "nowhere.yaml"
    assert error_line(capsys, verb, path) == f"whetstone: there is no recipe {path}"


def test_a_mistyped_key_is_one_line(recipe: Path, capsys: Captured) -> None:
    line = error_line(capsys, "train", recipe, "--learning_rat", "1e-4")
    assert line.endswith("did you mean 'learning_rate'?")
    with recipe.open("a", encoding="utf-8") as lines:
        lines.write("max_lenght: 32\n")
    assert error_line(capsys, "train", recipe).endswith("did you mean 'max_length'?")


def test_missing_training_data_is_one_line(recipe: Path, capsys: Captured) -> None:
    line = error_line(capsys, "train", recipe, "--output_dir", recipe.parent / "run")
    assert line == f"whetstone: there is no file {recipe.parent / 'nowhere.csv'}"
    assert not (recipe.parent / "run").exists()


@pytest.mark.parametrize(
    "words",
    [["evaluate", "nopackage", "rows.csv"], ["predict", "nopackage", "a.csv", "--out", "b.csv"]],
    ids=lambda words: words[0],
)
def test_a_missing_package_is_one_line(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "nopackage is not a model package" in error_line(capsys, *words)


def test_a_missing_file_is_one_line(tiny_package: Path, tmp_path: Path, capsys: Captured) -> None:
    path, out = tmp_path / "nowhere.csv", tmp_path / "out.csv"
    expected = f"whetstone: there is no file {path}"
    assert error_line(capsys, "evaluate", tiny_package, path) == expected
    assert error_line(capsys, "predict", tiny_package, path, "--out", out) == expected


def test_an_altered_package_is_one_line(package: Path, labelled: Path, capsys: Captured) -> None:
    with (package / "model.onnx").open("ab") as graph:
        graph.write(b"!")
    assert "model.onnx was altered" in error_line(capsys, "evaluate", package, labelled)


def test_a_place_that_cannot_be_written_is_one_line(
    tiny_package: Path, labelled: Path, capsys: Captured
) -> None:
    out = labelled / "out.csv"
    line = error_line(capsys, "predict", tiny_package, labelled, "--out", out)
    assert line.startswith(f"whetstone: {out}: something else is in the way")


def test_a_malformed_file_is_one_line_whatever_the_libraries_log(
    tiny_package: Path, tmp_path: Path
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,label\na,praise\nb,praise,c\n", encoding="utf-8")
    done = python("-m", "whetstone", "evaluate", tiny_package, path)
    assert done.returncode == EXIT_ERROR
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"whetstone: {path}")


def test_a_package_that_is_not_installed_is_one_line(
    tiny_package: Path, labelled: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    out = labelled.with_name("out.parquet")
    line = error_line(capsys, "predict", tiny_package, labelled, "--out", out)
    assert line == f"whetstone: this needs the package pyarrow: {install_command('train')}"
    assert "-e '.[train]'" in line


def test_an_unexpected_error_is_not_hidden(
    monkeypatch: pytest.MonkeyPatch, tiny_package: Path, labelled: Path
) -> None:
    def load(*_: Any) -> NoReturn:
        raise ZeroDivisionError

    monkeypatch.setattr(Classifier, "load", load)
    with pytest.raises(ZeroDivisionError):
        main(["evaluate", str(tiny_package), str(labelled)])


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["sharpen"],
        ["evaluate"],
        ["evaluate", "package", "rows.csv", "--sharp"],
        ["predict", "package", "rows.csv"],
        ["predict", "package", "rows.csv", "--ou", "out.csv"],
        ["train", "--seed", "1", "recipe.yaml"],
    ],
    ids=" ".join,
)
def test_an_impossible_command_line_exits_with_2(words: list[str], capsys: Captured) -> None:
    assert exit_status(*words) == 2
    assert capsys.readouterr().err.startswith("usage: whetstone")


# Interruptions


def test_ctrl_c_exits_with_130(
    monkeypatch: pytest.MonkeyPatch, tiny_package: Path, labelled: Path, capsys: Captured
) -> None:
    def load(*_: Any) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(Classifier, "load", load)
    assert main(["evaluate", str(tiny_package), str(labelled)]) == EXIT_INTERRUPTED == 130
    assert capsys.readouterr().err == "whetstone: interrupted\n"


@pytest.mark.parametrize(
    ("before", "after", "overwrite"),
    [
        ([], [], False),
        (["--overwrite"], [], True),
        ([], ["--overwrite"], True),
        ([], ["--overwrite", "--seed", "1"], True),
        (["--overwrite"], ["--seed", "1"], True),
        ([], ["--seed=1", "--overwrite"], True),
        ([], ["--overwrite=false"], False),
    ],
)
def test_overwrite_may_be_anywhere_and_a_stopped_run_exits_with_130(
    before: list[str],
    after: list[str],
    overwrite: bool,
    recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Captured,
) -> None:
    asked: list[tuple[dict[str, Any], bool]] = []

    def train(recipe: Recipe, *, overwrite: bool) -> NoReturn:
        asked.append((recipe.training, overwrite))
        raise InterruptedRunError("stopped after step 3 of 9")

    monkeypatch.setattr("training.finetuning.train.train", train)
    assert main(["train", *before, str(recipe), *after]) == EXIT_INTERRUPTED
    assert asked == [({"seed": 1} if "1" in " ".join(after) else {}, overwrite)]
    assert capsys.readouterr().err == "whetstone: stopped after step 3 of 9\n"


# Verbs


def test_train_prints_the_next_command(
    tiny_recipe: Path, tiny_run_folder: Path, tmp_path: Path, capsys: Captured
) -> None:
    folder = shutil.copytree(tiny_run_folder, tmp_path / "my run")
    assert main(["train", str(tiny_recipe), "--output_dir", str(folder)]) == 0
    checkpoint, following = capsys.readouterr().out.splitlines()
    assert checkpoint == f"checkpoint: {folder / 'checkpoint'}"
    words = ["whetstone", "export", str(tiny_recipe), "--output_dir", str(folder)]
    assert shlex.split(following.removeprefix("next: ")) == words


def test_evaluate_prints_a_table_and_writes_metrics_and_report(
    tiny_package: Path, labelled: Path, tmp_path: Path, capsys: Captured
) -> None:
    out = tmp_path / "report"
    assert main(["evaluate", str(tiny_package), str(labelled), "--output_dir", str(out)]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^│ praise +│( +\d\.\d{2} │){3} +\d+ │$", shown, re.MULTILINE)
    metrics = json.loads((out / "metrics.json").read_text("utf-8"))
    assert f"30 rows: accuracy {metrics['accuracy']:.2f}" in shown
    assert metrics["rests_on"] == "rows that the package was not made with"
    wanted = "accuracy macro_f1 weighted_f1 micro_f1 per_label confusion"
    assert metrics.keys() >= set(wanted.split())
    assert sum(map(sum, metrics["confusion"])) == metrics["rows"] == 30
    page = (out / "report" / "index.html").read_text("utf-8")
    assert page.startswith("<!doctype html>")
    assert "praise" in page


def test_evaluate_writes_nothing_unless_asked(
    tiny_package: Path, labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(labelled.parent)
    assert main(["evaluate", str(tiny_package), labelled.name]) == 0
    assert list(labelled.parent.iterdir()) == [labelled]


def test_evaluate_reads_the_columns_that_are_named(
    tiny_package: Path, tmp_path: Path, capsys: Captured
) -> None:
    rows = [{"body": row["text"], "kind": row["label"]} for row in example_rows("test")[:5]]
    path = write_csv(tmp_path / "rows.csv", rows)
    words = ["evaluate", str(tiny_package), str(path)]
    assert "has no column 'text', it has body, kind" in error_line(capsys, *words)
    assert main([*words, "--text_column", "body", "--label_column", "kind"]) == 0
    assert "5 rows: accuracy" in capsys.readouterr().out


def test_evaluate_leaves_out_unusable_rows_only_when_asked(
    tiny_package: Path, tmp_path: Path, capsys: Captured
) -> None:
    rows = [{"text": "", "label": "praise"}, *example_rows("test")[:5]]
    path = write_csv(tmp_path / "rows.csv", rows)
    words = ["evaluate", str(tiny_package), str(path)]
    assert "rows.csv, row 1 (line 2): the text is empty" in error_line(capsys, *words)
    assert main([*words, "--drop_invalid"]) == 0
    shown = capsys.readouterr().out
    assert "5 rows: accuracy" in shown
    assert re.search(r"^1 rows? .*left out$", shown, re.MULTILINE)


def test_evaluate_without_a_usable_row_is_one_line(
    tiny_package: Path, tmp_path: Path, capsys: Captured
) -> None:
    path = write_csv(tmp_path / "rows.csv", [{"text": "", "label": "praise"}])
    line = error_line(capsys, "evaluate", tiny_package, path, "--drop_invalid")
    assert str(path) in line


def test_evaluate_reports_how_many_rows_it_left_out(
    tiny_package: Path, tmp_path: Path, capsys: Captured
) -> None:
    rows = [
        {"text": "", "label": "praise"},
        {"text": "sunny", "label": "weather"},
        {"text": "thank you", "label": "praise"},
    ]
    path = write_csv(tmp_path / "rows.csv", rows)
    assert "row 1 (line 2): the text is empty" in error_line(capsys, "evaluate", tiny_package, path)
    assert main(["evaluate", str(tiny_package), str(path), "--drop_invalid"]) == 0
    assert "2 rows could not be used" in capsys.readouterr().out
    path = write_csv(tmp_path / "rows.csv", rows[:2])
    assert "no row is left" in error_line(capsys, "evaluate", tiny_package, path, "--drop_invalid")


def test_predict_writes_the_answers_and_counts_them(
    tiny_package: Path, tmp_path: Path, capsys: Captured
) -> None:
    rows = [{"body": "where is my parcel?"}, {"body": ""}, {"body": "lovely"}]
    path, out = write_csv(tmp_path / "rows.csv", rows), tmp_path / "out.jsonl"
    words = ["predict", str(tiny_package), str(path), "--out", str(out)]
    assert main([*words, "--text_column", "body", "--all_scores"]) == 0
    assert capsys.readouterr().out.startswith("3 rows, 1 of them without an answer")
    written = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    answers = Classifier.load(tiny_package).classify(["where is my parcel?", "lovely"])
    expected = [answers[0].label, None, answers[1].label]
    assert [row["label"] for row in written] == expected
    assert [row["error"] for row in written] == [None, "the text is empty", None]
    assert {"score_delivery", "score_praise", "score_returns"} <= written[0].keys()
