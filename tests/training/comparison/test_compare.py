"""Champion against challenger, by real packages: what is measured, said, written and returned."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from sklearn.metrics import f1_score

from service.inference.classifier import Classifier
from service.package.manifest import read_manifest
from service.package.package import seal_package
from tests.browsers import browsing
from tests.conftest import TINY_LABELS, example_rows, write_csv
from tests.training.evaluation.test_report import ATTACK, WIDTHS, Page
from training.common.errors import CompareError
from training.common.exit_status import EXIT_ERROR, EXIT_OF_VERDICT
from training.comparison.compare import compare
from training.comparison.output import as_json, changed_most, write_comparison
from training.comparison.page import write_comparison_page
from training.comparison.result import Comparison
from training.data.leakage import fingerprint
from training.data.readers import read_blocks
from whetstone.main import main

Captured = pytest.CaptureFixture[str]


def variant(package: Path, target: Path, **fields: Any) -> Path:
    """A copy of a package that behaves otherwise, with a version of its own."""
    shutil.copytree(package, target)
    manifest = read_manifest(package)
    seal_package(target, manifest.model_copy(update=fields))
    return target


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's test rows of the three labels."""
    return write_csv(tmp_path_factory.mktemp("data") / "test.csv", example_rows("test"))


@pytest.fixture(scope="module")
def confused(tiny_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny package with its labels' names moved on: it is nearly always wrong."""
    first, *others = read_manifest(tiny_package).labels
    return variant(
        tiny_package, tmp_path_factory.mktemp("confused") / "package", labels=(*others, first)
    )


@pytest.fixture(scope="module")
def warmer(tiny_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny package with other probabilities and the same answers."""
    temperature = read_manifest(tiny_package).temperature * 1.5
    return variant(
        tiny_package, tmp_path_factory.mktemp("warmer") / "package", temperature=temperature
    )


def some_rows(data: Path, target: Path, count: int) -> Path:
    with data.open(newline="", encoding="utf-8") as handle:
        return write_csv(target, list(csv.DictReader(handle))[:count])


def test_a_package_against_itself_is_promoted_however_few_the_rows(
    tiny_package: Path, data: Path, tmp_path: Path
) -> None:
    few = some_rows(data, tmp_path / "few.csv", 10)
    found = compare(str(tiny_package), str(tiny_package), few)
    assert found.outcome == "promote"
    assert "both are version" in found.sentence
    assert found.paired is not None
    assert (found.paired.flips, found.paired.p_value) == ([], 1)


def test_a_challenger_that_answers_wrongly_is_refused(
    tiny_package: Path, confused: Path, data: Path
) -> None:
    found = compare(str(tiny_package), str(confused), data)
    assert found.outcome == "refuse"
    assert set(found.reasons) == {"significance", "label", "drop"}
    assert found.sentence.startswith("refuse: macro-F1 is significantly lower: -0.")
    assert found.paired is not None
    difference = found.paired.differences["accuracy"]
    assert found.champion is not None
    assert difference.before == pytest.approx(found.champion.metrics["accuracy"])
    assert difference.after == pytest.approx(found.challenger.metrics["accuracy"])
    lost = (found.paired.gained - found.paired.lost) / len(found.rows.split)
    assert difference.point == pytest.approx(lost)
    assert found.paired.p_value < 1e-6
    assert {one.label for one in found.paired.per_label if one.worse < 0.05} == set(TINY_LABELS)


def test_a_challenger_that_answers_better_is_promoted(
    tiny_package: Path, confused: Path, data: Path
) -> None:
    found = compare(str(confused), str(tiny_package), data)
    assert found.outcome == "promote"
    assert found.paired is not None
    assert found.paired.differences["macro_f1"].low > 0
    assert all(one.better < 0.05 for one in changed_most(found.paired.per_label))


def test_too_few_rows_are_inconclusive(tiny_package: Path, warmer: Path, data: Path) -> None:
    found = compare(str(tiny_package), str(warmer), data)
    assert len(found.rows.split) < 150
    assert found.outcome == "inconclusive"
    assert "about 150 rows" in found.sentence
    wide = compare(str(tiny_package), str(warmer), data, bounds={"max_half_width": "0.2"})
    assert wide.outcome == "promote"


def test_without_a_champion_floors_decide(tiny_package: Path, confused: Path, data: Path) -> None:
    found = compare("none", str(confused), data)
    assert (found.outcome, found.champion, found.paired) == ("promote", None, None)
    assert any("nothing is asked" in warning for warning in found.warnings)
    good = compare("none", str(tiny_package), data)
    measured = [comparison.measurement.floors for comparison in (found, good)]
    floors = {
        "min_macro_f1": sum(one.macro_f1 for one in measured) / 2,
        "max_ece": sum(one.ece for one in measured) / 2,
    }
    refused = compare("none", str(confused), data, bounds=floors)
    assert refused.outcome == "refuse"
    assert set(refused.reasons) == {"min_macro_f1", "max_ece"}
    good = compare("none", str(tiny_package), data, bounds=floors)
    assert good.outcome == "promote"
    assert not any("nothing is asked" in warning for warning in good.warnings)


def test_floors_are_asked_with_a_champion_too(tiny_package: Path, data: Path) -> None:
    found = compare(str(tiny_package), str(tiny_package), data, bounds={"min_macro_f1": 0.999})
    assert (found.outcome, set(found.reasons)) == ("refuse", {"min_macro_f1"})


def test_the_recipe_of_the_challenger_has_the_bounds_and_options_win(
    tiny_package: Path, data: Path, tmp_path: Path
) -> None:
    provenance = read_manifest(tiny_package).provenance
    recipe = provenance["recipe"] | {"compare": '{"min_macro_f1": 0.999, "max_ece": 0.9}'}
    strict = variant(tiny_package, tmp_path / "strict", provenance=provenance | {"recipe": recipe})
    assert compare("none", str(strict), data).outcome == "refuse"
    loose = compare("none", str(strict), data, bounds={"min_macro_f1": "0.1", "max_ece": None})
    assert loose.outcome == "promote"
    assert (loose.bounds.min_macro_f1, loose.bounds.max_ece) == (0.1, 0.9)


def test_changed_labels_are_refused_and_if_allowed_the_shared_rows_are_compared(
    tiny_package: Path, data: Path, tmp_path: Path
) -> None:
    old, *others = read_manifest(tiny_package).labels
    renamed = variant(tiny_package, tmp_path / "renamed", labels=("renamed", *others))
    found = compare(str(tiny_package), str(renamed), data)
    assert found.outcome == "refuse"
    assert (found.removed_labels, found.added_labels) == ([old], ["renamed"])
    assert f"without {old!r} and with new 'renamed'" in found.sentence
    rows = example_rows("test")
    allowed = compare(str(tiny_package), str(renamed), data, allow_label_change=True)
    assert "labels" not in allowed.reasons
    assert allowed.rows.left_out == sum(row["label"] == old for row in rows)
    assert len(allowed.rows.split) == len(rows) - allowed.rows.left_out
    # Wherever the champion said the label that goes, both are wrong: nothing is lost or gained.
    assert allowed.paired is not None
    assert (allowed.paired.lost, allowed.paired.gained) == (0, 0)
    # The floor is of the challenger's own labels: those rows are not in its file.
    new_rows = [row | {"label": "renamed" if row["label"] == old else row["label"]} for row in rows]
    file = write_csv(tmp_path / "new.csv", new_rows)
    whole = compare(
        str(tiny_package), str(renamed), file, allow_label_change=True, bounds={"min_macro_f1": 0.5}
    )
    same = compare(str(tiny_package), str(tiny_package), data)
    own = write_comparison(whole, tmp_path / "whole")
    content = json.loads(own[0].read_text(encoding="utf-8"))
    assert content["floors_measured_on"] == asdict(same.measurement.floors)
    assert same.measurement.floors.rows == len(rows)
    assert same.measurement.floors.macro_f1 == same.challenger.metrics["macro_f1"]


def test_no_shared_row_is_an_error(tiny_package: Path, data: Path, tmp_path: Path) -> None:
    others = variant(tiny_package, tmp_path / "others", labels=("x", "y", "z"))
    with pytest.raises(CompareError, match="no row has labels that both packages know"):
        compare(str(others), str(tiny_package), data, allow_label_change=True)


def several(package: Path, target: Path) -> Path:
    """The tiny package as one that gives any number of labels."""
    labels = read_manifest(package).labels
    thresholds = dict.fromkeys(labels, 0.5)
    return variant(package, target, task="multi_label", thresholds=thresholds, temperature=1.0)


def test_other_tasks_are_an_error(tiny_package: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(CompareError, match=r"gives one label a row.*any number of labels"):
        compare(str(tiny_package), str(several(tiny_package, tmp_path / "several")), data)
    pairs = variant(tiny_package, tmp_path / "pairs", text_columns=("text", "text_pair"))
    with pytest.raises(CompareError, match=r"reads pairs of texts.*single texts"):
        compare(str(pairs), str(tiny_package), data)


def test_several_labels_a_row(tiny_package: Path, confused: Path, tmp_path: Path) -> None:
    rows = [
        row | {"label": "delivery|praise" if place % 5 == 0 else row["label"]}
        for place, row in enumerate(example_rows("test"))
    ]
    rows[1]["label"] = ""
    file = write_csv(tmp_path / "several.csv", rows)
    old = several(tiny_package, tmp_path / "old")
    new = several(confused, tmp_path / "new")
    found = compare(str(old), str(new), file, columns={"label_separator": "|"})
    assert found.outcome == "refuse"
    assert found.paired is not None
    assert set(found.paired.differences) == {"micro_f1", "macro_f1"}
    assert found.champion is not None
    micro = found.paired.differences["micro_f1"]
    assert micro.before == pytest.approx(found.champion.metrics["micro_f1"], abs=1e-6)
    assert micro.after == pytest.approx(found.challenger.metrics["micro_f1"], abs=1e-6)
    written = write_comparison(found, tmp_path / "out")
    with written[1].open(newline="", encoding="utf-8") as handle:
        flips = list(csv.DictReader(handle))
    assert len(flips) == len(found.paired.flips)
    assert any("|" in flip["label"] for flip in flips)
    write_comparison_page(tmp_path / "out" / "index.html", found)
    Page((tmp_path / "out" / "index.html").read_text(encoding="utf-8"))


def test_a_file_that_was_trained_on_is_warned_of(
    tiny_package: Path, warmer: Path, data: Path, tmp_path: Path
) -> None:
    seen, unseen = example_rows("train")[:20], example_rows("test")[:20]
    file = write_csv(tmp_path / "mixed.csv", [*seen, *unseen])
    warnings = compare(str(warmer), str(tiny_package), file).warnings
    assert len(warnings) == 2
    assert "20 of 40 rows" in warnings[0]
    assert "challenger was trained or tuned on" in warnings[0]
    assert "champion was trained or tuned on" in warnings[1]
    assert compare(str(warmer), str(tiny_package), data).warnings == []
    older = variant(tiny_package, tmp_path / "older", provenance={})
    (warning,) = compare(str(warmer), str(older), data).warnings
    assert "does not say which texts" in warning


def test_flips_are_all_there_and_the_worst_come_first(
    tiny_package: Path, confused: Path, data: Path, tmp_path: Path
) -> None:
    found = compare(str(tiny_package), str(confused), data)
    _, file = write_comparison(found, tmp_path)
    with file.open(newline="", encoding="utf-8") as handle:
        flips = list(csv.DictReader(handle))
    assert found.paired is not None
    rows = example_rows("test")
    assert (
        len(flips) == (found.paired.answers.before != found.paired.answers.after).any(axis=1).sum()
    )
    kinds = [flip["change"] for flip in flips]
    assert kinds == sorted(kinds, key=["lost", "still wrong", "gained"].index)
    assert kinds.count("lost") == found.paired.lost
    assert kinds.count("gained") == found.paired.gained
    lost = [float(flip["challenger_score"]) for flip in flips if flip["change"] == "lost"]
    assert lost == sorted(lost, reverse=True)
    for flip in flips:
        row = rows[int(flip["row"]) - 1]
        assert (flip["text"], flip["label"]) == (row["text"], row["label"])
        assert (flip["champion"] == flip["label"]) == (flip["change"] == "lost")
        assert (flip["challenger"] == flip["label"]) == (flip["change"] == "gained")


def test_the_json_holds_numbers_and_no_text(tiny_package: Path, confused: Path, data: Path) -> None:
    found = compare(str(tiny_package), str(confused), data)
    content = json.loads(json.dumps(as_json(found)))
    assert content["verdict"] == "refuse"
    assert content["champion"]["version"] == read_manifest(tiny_package).version
    assert content["challenger"]["cpu_ms_per_text"].keys() == {"16", "32"}
    assert content["challenger"]["model_bytes"] == (confused / "model.onnx").stat().st_size
    assert content["mcnemar"]["only_champion_right"] == found.paired.lost if found.paired else 0
    assert content["data"]["rows"] == len(found.rows.split)
    assert not [text for text in found.rows.split.texts if str(text) in json.dumps(content)]


def main_of(*words: str | Path) -> int:
    return main(["compare", *map(str, words)])


def test_the_command_says_shows_and_returns_the_verdict(
    tiny_package: Path,
    confused: Path,
    warmer: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Captured,
) -> None:
    monkeypatch.chdir(tmp_path)
    for challenger, verdict in (
        (tiny_package, "promote"),
        (confused, "refuse"),
        (warmer, "inconclusive"),
    ):
        status = main_of(tiny_package, challenger, "--data", data)
        said = capsys.readouterr().out
        assert status == EXIT_OF_VERDICT[verdict]
        assert f"\n{verdict}: " in said
        versions = [read_manifest(side).version for side in (tiny_package, challenger)]
        assert all(version in said for version in versions)
        digest = hashlib.sha256(data.read_bytes()).hexdigest()[:8]
        folder = Path("comparisons") / "-".join([*versions, digest])
        assert {file.name for file in folder.iterdir()} == {
            "compare.json",
            "flips.csv",
            "index.html",
        }
        assert json.loads((folder / "compare.json").read_text())["verdict"] == verdict
    # Into a folder that held another one, whose flips would be taken for its own.
    assert main_of("none", tiny_package, "--data", data, "--output_dir", folder) == 0
    assert {file.name for file in folder.iterdir()} == {"compare.json", "index.html"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--max_ece", "two"), "max_ece is 'two', which is no number"),
        (("--min_macro_f1", "1.5"), "between 0 and 1"),
        (("--max_half_width", "0"), "no number of rows reaches"),
        (("--label_column", "team"), "has no column 'team'"),
        (("--output_dir", "taken"), "cannot use"),
    ],
)
def test_impossible_options_are_refused_in_one_sentence(
    words: tuple[str, str],
    said: str,
    tiny_package: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Captured,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken").touch()
    assert main_of(tiny_package, tiny_package, "--data", data, *words) == EXIT_ERROR
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.out == ""
    assert {path.name for path in tmp_path.iterdir()} == {"taken"}
    assert Path("taken").read_bytes() == b""


def cells_of(content: str, section: str) -> dict[str, list[str]]:
    """The cells of a section's first table by its line's heading, without markup."""
    table = content.split(f'<section id="{section}">')[1].split("</table>")[0]
    found = {}
    for line in table.split("<tr>")[2:]:
        cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line)
        texts = [re.sub("<[^>]*>", "", cell) for cell in cells]
        found[texts[0].split(" ")[0]] = texts[1:]
    return found


def test_no_output_mixes_up_champion_and_challenger(
    tiny_package: Path, data: Path, tmp_path: Path, capsys: Captured
) -> None:
    """Two that differ in everything: labels, answers, abstention, size, cost; and odd rows."""
    gone, *others = read_manifest(tiny_package).labels
    fields = {"labels": (*others, gone), "abstain_threshold": 0.6, "temperature": 1.5}
    old = variant(tiny_package, tmp_path / "old", **fields)
    shutil.copytree(tiny_package, tmp_path / "new")
    with (tmp_path / "new" / "model.onnx").open("ab") as graph:
        # A field that protobuf skips: the same graph, larger.
        graph.write(b"\x9a\x3f\x05aaaaa")
    manifest = read_manifest(tiny_package)
    fields = {"labels": ("come", *others), "abstain_threshold": 0.4}
    new = tmp_path / "new"
    seal_package(new, manifest.model_copy(update=fields))
    rows = [{"text": "", "label": others[0]}, {"text": "x", "label": "unknown"}]
    rows += [{"text": "which", "label": "come"}, *example_rows("test")]
    file = write_csv(tmp_path / "rows.csv", rows)
    words = ["--data", file, "--drop_invalid", "--allow_label_change", "--output_dir", tmp_path]
    assert main_of(old, new, *words) == 0
    said = capsys.readouterr().out
    content = json.loads((tmp_path / "compare.json").read_text("utf-8"))
    page = (tmp_path / "index.html").read_text("utf-8")
    assert content["data"]["dropped_rows"] == 2
    shared = [row for row in rows[3:] if row["label"] in others]
    assert content["data"]["rows"] == len(shared)
    left_out = 1 + sum(row["label"] == gone for row in rows)
    assert content["data"]["rows_with_labels_of_one_side"] == left_out
    assert f"only one of the two knows: {left_out} rows" in said
    sides = [content["champion"], content["challenger"]]
    assert sides[0]["model_bytes"] == (old / "model.onnx").stat().st_size
    assert sides[1]["model_bytes"] == sides[0]["model_bytes"] + 8
    # The labels of the challenger stand where the graph has them, the champion's do not.
    difference = content["differences"]["macro_f1"]
    assert difference["before"] < difference["after"]
    # Macro-F1 is over the labels that both know.
    assert difference["after"] == pytest.approx(_macro_f1(new, shared, others))
    coverage = [side["metrics"]["abstention"]["coverage"] for side in sides]
    assert coverage[0] < coverage[1]
    expected = {
        "macro-F1": [difference["before"], difference["after"]],
        "answered": coverage,
    }
    numbers = cells_of(page, "numbers")
    for name, values in expected.items():
        # So few rows carry two digits.
        written = [f"{value:.2f}" for value in values]
        (line,) = [line for line in said.splitlines() if line.startswith(f"│ {name}")]
        assert re.findall(r"\d\.\d{2}\b", line)[:2] == written
        assert numbers[name.split(" ")[0]][:2] == written
    lost, gained = (content["mcnemar"][f"only_{side}_right"] for side in ("champion", "challenger"))
    assert lost < gained
    assert f"only the champion is right in {lost}, only the challenger in {gained} " in said
    assert f"{lost} rows only the champion gets right" in page or lost == 1
    per_label = cells_of(page, "labels")
    for label in others:
        found = content["per_label"][label]
        written = [f"{found[side]:.2f}" for side in ("before", "after")]
        assert per_label[label][1:3] == written
    with (tmp_path / "flips.csv").open(newline="", encoding="utf-8") as handle:
        flips = list(csv.DictReader(handle))
    classifiers = [Classifier.load(side, threads=1) for side in (old, new)]
    for flip in flips:
        row = rows[int(flip["row"]) - 1]
        assert (flip["text"], flip["label"]) == (row["text"], row["label"])
        for side, classifier in zip(("champion", "challenger"), classifiers, strict=True):
            (answer,) = classifier.classify([row["text"]])
            assert flip[side] == answer.label
            assert float(flip[f"{side}_score"]) == pytest.approx(answer.score, abs=1e-4)
    for flip, text in zip(flips, re.findall(r"row (\d+) · ([\w ]+)<", page), strict=False):
        kind = {"lost": "only the champion is right", "gained": "only the challenger is right"}
        assert text == (flip["row"], kind.get(flip["change"], "both are wrong"))
    # The drop that is allowed lies left of zero.
    strip = page.split("Differences with their intervals")[1]
    zero, bound = (
        float(re.findall(rf'x1="([\d.]+)"[^>]*class="{kind}"', strip)[0])
        for kind in ("axis", "ideal")
    )
    assert bound < zero


def _macro_f1(package: Path, rows: list[dict[str, str]], labels: list[str]) -> float:
    answers = Classifier.load(package, threads=1).classify([row["text"] for row in rows])
    truth, given = [row["label"] for row in rows], [answer.label for answer in answers]
    return float(f1_score(truth, given, labels=labels, average="macro"))


def test_each_side_has_its_own_latency(
    tiny_package: Path, warmer: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def costs(classifiers: dict[str, Classifier]) -> dict[str, dict[str, float]]:
        return {
            name: {"16": classifier.manifest.temperature}
            for name, classifier in classifiers.items()
        }

    monkeypatch.setattr("training.comparison.compare.cpu_milliseconds", costs)
    content = as_json(compare(str(tiny_package), str(warmer), data))
    for side, package in (("champion", tiny_package), ("challenger", warmer)):
        assert content[side]["cpu_ms_per_text"] == {"16": read_manifest(package).temperature}
    assert content["rows_needed"] == 150


@pytest.mark.parametrize(
    "recipe", [None, "text", [], {"compare": 5}, {"compare": "{max_ece: 7}"}, {"text_column": 3}]
)
def test_a_manifest_with_an_odd_recipe_is_no_traceback(
    recipe: object, tiny_package: Path, data: Path, tmp_path: Path
) -> None:
    """No hash vouches for a manifest's provenance."""
    odd = variant(tiny_package, tmp_path / "odd", provenance={"recipe": recipe})
    status = main_of(tiny_package, odd, "--data", data, "--output_dir", tmp_path / "out")
    assert status in (EXIT_ERROR, EXIT_OF_VERDICT["promote"])
    assert status == EXIT_ERROR or not isinstance(recipe, dict)


def test_the_same_package_under_two_names_is_warned_of(tiny_package: Path, data: Path) -> None:
    (warning,) = compare(str(tiny_package), str(tiny_package), data).warnings
    assert "nothing was compared" in warning


def test_rows_that_cannot_be_looked_up_are_warned_of(
    tiny_package: Path, warmer: Path, data: Path, tmp_path: Path
) -> None:
    texts = fingerprint([f"text {number}" for number in range(5000)], most=50)
    sampled = variant(tiny_package, tmp_path / "sampled", provenance={"texts": texts})
    (warning,) = compare(str(warmer), str(sampled), data).warnings
    assert re.match(r"only \d of \d+ rows could be looked up", warning)


def test_a_text_with_a_carriage_return_is_one_line_of_the_csv(
    tiny_package: Path, confused: Path, tmp_path: Path
) -> None:
    rows = [row | {"text": f"{row['text']}\rsecond = line"} for row in example_rows("test")]
    found = compare(str(tiny_package), str(confused), write_csv(tmp_path / "rows.csv", rows))
    _, file = write_comparison(found, tmp_path)
    assert found.paired is not None
    rows = sum(len(block) for block in read_blocks(str(file), None))
    assert rows == len(found.paired.flips)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"text": "a", "label": ""}], "no row has a label"),
        ([{"text": "a", "label": "gone"}], "labels that both packages know"),
    ],
)
def test_nothing_to_measure_is_an_error(
    rows: list[dict[str, str]], said: str, tiny_package: Path, tmp_path: Path
) -> None:
    new = several(tiny_package, tmp_path / "new")
    labels = ("gone", *read_manifest(new).labels[1:])
    thresholds = dict.fromkeys(labels, 0.5)
    old = variant(new, tmp_path / "old", labels=labels, thresholds=thresholds)
    file = write_csv(tmp_path / "rows.csv", rows)
    with pytest.raises(CompareError, match=said):
        compare(str(old), str(new), file, allow_label_change=True)


def test_a_package_that_is_not_there_is_an_error(
    tiny_package: Path, data: Path, capsys: Captured
) -> None:
    assert main_of("text-classifier:aaaaaaaaaaaa", tiny_package, "--data", data) == EXIT_ERROR
    assert "there is no text-classifier:aaaaaaaaaaaa" in capsys.readouterr().err
    assert main_of("http://localhost:3000", tiny_package, "--data", data) == EXIT_ERROR
    assert "is the address of a service: name a folder" in capsys.readouterr().err
    assert main_of(tiny_package, "nowhere", "--data", data) == EXIT_ERROR
    assert "nowhere is not a model package" in capsys.readouterr().err


def hostile(package: Path, folder: Path) -> Comparison:
    """A comparison with markup in labels and texts."""
    first, *others = read_manifest(package).labels
    attacking = {first: ATTACK}
    rows = [
        {"text": f"{row['text']} {ATTACK}", "label": attacking.get(row["label"], row["label"])}
        for row in example_rows("test")
    ]
    old = variant(package, folder / "old", labels=(ATTACK, *others), name="tickets")
    new = variant(package, folder / "new", labels=(*others, ATTACK), name="tickets")
    return compare(str(old), str(new), write_csv(folder / "rows.csv", rows))


def test_the_page_is_well_formed_and_what_the_user_wrote_is_no_markup(
    tiny_package: Path, tmp_path: Path
) -> None:
    found = hostile(tiny_package, tmp_path)
    write_comparison_page(tmp_path / "index.html", found)
    content = (tmp_path / "index.html").read_text(encoding="utf-8")
    page = Page(content)
    assert content.count("<script>") == 1
    assert ATTACK not in content
    assert any(ATTACK in text for _, text in page.texts)
    assert not [value for value in page.values("src") + page.values("href") if value[0] != "#"]
    assert "refuse" in page.inside("span")
    ids = page.values("id")
    assert ids == ["verdict", "numbers", "labels", "flips"]


def test_the_page_of_a_first_release_has_no_comparison(
    tiny_package: Path, data: Path, tmp_path: Path
) -> None:
    found = compare("none", str(tiny_package), data, bounds={"min_macro_f1": 0.2})
    write_comparison_page(tmp_path / "index.html", found)
    page = Page((tmp_path / "index.html").read_text(encoding="utf-8"))
    assert page.values("id") == ["verdict", "numbers"]
    assert any("macro-F1 is at least 0.2" in text for text in page.inside("p"))


SORTED = """
const heads = [...document.querySelectorAll("#labels th")];
const head = heads.find((h) => h.innerText.startsWith("Lost"));
head.querySelector("button").click();
return [...document.querySelectorAll("#labels tbody tr")].map(
  (row) => parseFloat(row.cells[head.cellIndex].dataset.v));
"""


@pytest.mark.slow
def test_a_browser_shows_the_page_without_a_complaint(tiny_package: Path, tmp_path: Path) -> None:
    found = hostile(tiny_package, tmp_path)
    write_comparison_page(tmp_path / "index.html", found)
    assert found.paired is not None
    with browsing() as browser:
        browser.open((tmp_path / "index.html").as_uri())
        assert browser.run(SORTED) == sorted(one.lost for one in found.paired.per_label)
        for width in (1280, 390):
            browser.show(width, "dark")
            page, window = browser.run(WIDTHS)
            assert page <= window == width
        assert browser.console() == []
