"""A real server captures; the verbs read what it kept: drift, collect, forget."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from service.capture.records import CapturedAnswer, Feedback, parse_line
from service.package.manifest import read_manifest
from tests.conftest import ROOT, example_rows
from tests.servers import SERVICE, Server, get, serving_process
from training.data.rows import read_files
from training.recipe.arguments import DataArguments
from whetstone.main import main

SECRET = "a secret of sixteen bytes or more\n"  # noqa: S105 - of this test alone
TEXTS = [row["text"] for row in example_rows("test")][:40]


@contextmanager
def capturing(package: Path, folder: Path, **more: str) -> Iterator[tuple[Server, Any]]:
    environment = {
        "WHETSTONE_PACKAGE": str(package),
        "WHETSTONE_CAPTURE": str(folder / "captured"),
        **{f"WHETSTONE_CAPTURE_{name.upper()}": value for name, value in more.items()},
    }
    log = folder / "log"
    with serving_process(SERVICE, environment, log=log) as (address, process):
        yield Server(address, log), process


def lines_of(folder: Path) -> list[CapturedAnswer | Feedback]:
    parts = sorted((folder / "captured").rglob("*.jsonl"))
    return [parse_line(line) for part in parts for line in part.read_bytes().splitlines()]


def label_of(package: Path) -> str:
    labels = json.loads((package / "manifest.json").read_text("utf-8"))["labels"]
    return str(labels[0])


@pytest.fixture(scope="module")
def captured(tiny_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a server that was asked, told what was right, and ended while it had work."""
    folder = tmp_path_factory.mktemp("production")
    key = folder / "key"
    key.write_text(SECRET)
    label = label_of(tiny_package)
    with capturing(tiny_package, folder, text="1", key_file=str(key)) as (server, process):
        for number, text in enumerate(TEXTS):
            headers = {"X-Request-Id": f"r{number}", "X-Whetstone-Group": f"g{number % 2}"}
            assert server.ask("/classify", {"input": text}, headers=headers)[0] == 200
        status, answer, headers = server.ask("/predict", {"inputs": [["one text"], ["another"]]})
        assert status == 200
        # What a feedback may say, and what it may not.
        for body, expected in (
            ({"id": "classify-r0", "label": label, "note": "he said so"}, 202),
            ({"id": headers["x-request-id"], "index": 1, "label": label}, 202),
            ({"id": "r1", "label": label}, 202),
            ({"id": "r1", "label": "no such label"}, 422),
            ({"id": "r1", "label": "no such label", "version": "f" * 12}, 202),
            ({"id": "r1", "label": "x" * 201, "version": "f" * 12}, 422),
            ({"id": "r1", "version": "f" * 12}, 422),
            ({"id": "r1", "label": label, "version": "latest"}, 422),
            ({"id": "r1"}, 422),
            ({"id": "r1", "labels": [label]}, 422),
            ({"id": "r1", "label": label, "index": 1_000_000}, 422),
            ({"id": "two words", "label": label}, 422),
            ({"id": "r1", "label": label, "more": 1}, 422),
            ([], 422),
        ):
            status, answer, _ = server.ask("/feedback", body)
            assert status == expected, (body, answer)
            assert status == 202 or "error" in answer
        assert json.loads(get(server.address, "/info")[1])["capture"] == {
            "rate": 1.0,
            "abstained": False,
            "text": True,
        }
        assert "/feedback" in json.loads(get(server.address, "/docs.json")[1])["paths"]
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
    return folder


def test_every_answer_is_written_also_when_the_server_ends(captured: Path) -> None:
    lines = lines_of(captured)
    answers = [line for line in lines if isinstance(line, CapturedAnswer)]
    assert [line.id for line in answers[: len(TEXTS)]] == [f"r{n}" for n in range(len(TEXTS))]
    assert [line.text for line in answers] == [*TEXTS, "one text", "another"]
    assert [line.index for line in answers[-2:]] == [0, 1]
    assert {line.group for line in answers} == {"g0", "g1", None}
    assert len({line.text_key for line in answers}) == len({line.text for line in answers})
    feedback = [line for line in lines if isinstance(line, Feedback)]
    assert (feedback[0].id, feedback[0].index, feedback[0].note) == ("r0", 0, "he said so")
    assert feedback[-1].version == "f" * 12
    assert len(lines) == len(TEXTS) + 2 + 4


def test_the_start_says_that_texts_are_kept_and_the_log_holds_none(captured: Path) -> None:
    log = (captured / "log").read_text("utf-8")
    assert f"capturing to {captured / 'captured'}: 1 of the requests, WITH THEIR TEXTS" in log
    assert not [text for text in TEXTS if text in log]


def test_without_the_switch_for_texts_none_is_on_the_disk(
    tiny_package: Path, tmp_path: Path
) -> None:
    with capturing(tiny_package, tmp_path, rate="0.5") as (server, _):
        for number, text in enumerate(TEXTS):
            server.ask("/classify", {"input": text}, headers={"X-Request-Id": f"r{number}"})
        body = {"id": "r1", "label": label_of(tiny_package), "note": "a note"}
        status, answer, _ = server.ask("/feedback", body)
        assert status == 422
        assert "notes are not kept here" in answer["error"]["message"]
    lines = lines_of(tmp_path)
    assert 5 < len(lines) < 35
    content = b"".join(path.read_bytes() for path in (tmp_path / "captured").rglob("*.jsonl"))
    assert not [text for text in TEXTS if text.encode() in content]


def test_drift_reads_what_the_server_kept(
    captured: Path, tiny_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "drift.json"
    words = ["drift", str(tiny_package), str(captured / "captured"), "--json", str(file)]
    assert main([*words, "--allow_too_few"]) == 0
    assert "verdict: too few rows" in capsys.readouterr().out
    assert main(words) == 4
    shown = capsys.readouterr().out
    assert "42 captured answers" in shown
    assert "expected accuracy" in shown
    assert "of 3 answers with feedback" in shown
    assert "verdict: too few rows" in shown
    found = json.loads(file.read_text("utf-8"))
    assert (found["verdict"], found["rows"]) == ("too few rows", 42)
    assert found["accuracy"]["measured"]["rows"] == 3
    # The profile of the package has their shares.
    names = {check["name"] for check in found["checks"]}
    assert {"truncated", "unknown tokens", "continuation pieces"} <= names
    assert {group["rows"] for group in found["groups"].values()} == {20}
    assert not [text for text in TEXTS if text in file.read_text("utf-8")]


def test_drift_writes_a_page(
    captured: Path, tiny_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "made" / "drift.html"
    words = ["drift", str(tiny_package), str(captured / "captured"), "--html", str(page)]
    main(words)
    assert f"written: {page}" in capsys.readouterr().out
    content = page.read_text("utf-8")
    assert "too few rows" in content and "captured answers" not in content
    for title in ("Verdict", "Checks", "Labels", "Scores", "Tokens", "Groups"):
        assert f"<h2>{title}</h2>" in content
    assert not [text for text in TEXTS if text in content]
    for name in read_manifest(tiny_package).labels:
        assert name in content


def test_drift_of_nothing_is_one_sentence(
    captured: Path, tiny_package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["drift", str(tiny_package), str(captured / "captured"), "--until", "2020-01-01"]
    assert main(words) == 1
    assert "nothing was captured of" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["csv", "label-studio", "argilla"])
def test_collect_writes_texts_with_suggestions(
    captured: Path, tiny_package: Path, tmp_path: Path, kind: str
) -> None:
    out = tmp_path / ("picks.csv" if kind == "csv" else "picks.json")
    words = ["collect", str(tiny_package), str(captured / "captured"), "--rows", "10"]
    assert main([*words, "--out", str(out), "--format", kind]) == 0
    content = out.read_text("utf-8")
    if kind == "csv":
        header, *rows = content.splitlines()
        assert header.startswith('"text","label","suggestion","score","reason"')
        assert len(rows) == 10
        return
    found = json.loads(content)
    assert len(found) == 10
    if kind == "label-studio":
        assert found[0]["data"]["text"] in [*TEXTS, "one text", "another"]
        assert found[0]["predictions"][0]["result"][0]["value"]["choices"]
    else:
        assert found[0]["suggestions"]["label"]["value"]


def test_labeled_picks_come_back_into_the_training_file(
    captured: Path, tiny_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, into = tmp_path / "picks.csv", tmp_path / "train.csv"
    words = ["collect", str(tiny_package), str(captured / "captured")]
    assert main([*words, "--rows", "10", "--out", str(out)]) == 0
    with out.open(newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    for row in rows[:6]:
        row["label"] = row["suggestion"]
    with out.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    capsys.readouterr()
    merging = [*words, "--labeled", str(out), "--into", str(into)]
    assert main(merging) == 0
    shown = capsys.readouterr().out
    assert "6 labeled rows were added" in shown and "left out: 4 rows without a label" in shown
    assert f"written: {into}" in shown
    assert main(merging) == 0
    assert "left out: 6 rows that the file has already" in capsys.readouterr().out
    # The file is one to train on, and its rows are not picked again.
    data = read_files(str(into), DataArguments())[0]
    assert len(data) == 6
    # Nor is the file written over in which people have entered labels.
    again = [*words, "--rows", "40", "--exclude", str(into), "--out"]
    before = out.read_bytes()
    assert main([*again, str(out)]) == 1
    assert "is there already, and may hold labels" in capsys.readouterr().err
    assert out.read_bytes() == before
    second = tmp_path / "second.csv"
    assert main([*again, str(second)]) == 0
    assert not [text for text in data.texts if text in second.read_text("utf-8")]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "--rows and --out"),
        (["--rows", "3"], "--rows and --out"),
        (["--labeled", "picks.csv"], "--labeled needs --into"),
        (["--into", "train.csv"], "--into needs --labeled"),
        (["--labeled", "a.csv", "--into", "t.csv", "--rows", "3"], "give one of both"),
        (["--labeled", "a.csv", "--into", "t.csv", "--out", "o.csv"], "give one of both"),
        (["--labeled", "nowhere.csv", "--into", "train.csv"], "nowhere.csv"),
    ],
)
def test_collect_says_what_it_needs(
    captured: Path,
    tiny_package: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    message: str,
) -> None:
    assert main(["collect", str(tiny_package), str(captured / "captured"), *more]) == 1
    assert message in capsys.readouterr().err


def test_what_is_labeled_already_is_not_collected_again(
    captured: Path, tiny_package: Path, tmp_path: Path
) -> None:
    known = tmp_path / "known.csv"
    known.write_text("text,label\n" + "".join(f'"{text}",\n' for text in TEXTS[:30]), "utf-8")
    out = tmp_path / "picks.csv"
    words = ["collect", str(tiny_package), str(captured / "captured"), "--rows", "40"]
    assert main([*words, "--out", str(out), "--exclude", str(known)]) == 0
    content = out.read_text("utf-8")
    assert not [text for text in TEXTS[:30] if text in content]
    assert "one text" in content


def test_unfinished_parts_are_forgotten_too(captured: Path, tmp_path: Path) -> None:
    (part, *_) = sorted((captured / "captured").rglob("*.jsonl"))
    left = tmp_path / ".part.jsonl.17.tmp"
    left.write_bytes(part.read_bytes()[:-10])
    # One that is being written is left alone.
    assert main(["forget", "r0", str(tmp_path)]) == 1
    os.utime(left, (0, 0))
    assert main(["forget", "r0", str(tmp_path)]) == 0
    assert b'"r0"' not in left.read_bytes()
    assert b'"r1"' in left.read_bytes()


def test_what_was_captured_of_one_request_can_be_deleted(
    captured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "captured"
    before = lines_of(captured)
    subprocess.run(["cp", "-r", captured / "captured", folder], check=True)
    assert main(["forget", "classify-r0", str(folder)]) == 0
    assert "2 lines of classify-r0 were deleted" in capsys.readouterr().out
    left = lines_of(tmp_path)
    assert left == [line for line in before if line.id != "r0"]
    assert {path.stat().st_mode & 0o777 for path in folder.rglob("*.jsonl")} == {0o600}


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"RATE": "0.5"}, "WHETSTONE_CAPTURE_RATE needs WHETSTONE_CAPTURE"),
        ({"": "/proc/nothing/here"}, "WHETSTONE_CAPTURE: /proc/nothing/here cannot be made"),
        ({"": "{folder}", "KEY_FILE": "/none"}, "WHETSTONE_CAPTURE_KEY_FILE: /none cannot be read"),
        ({"": "{folder}", "REDACT": "a:b"}, "WHETSTONE_CAPTURE_REDACT needs"),
        (
            {"": "{folder}", "TEXT": "1", "REDACT": "none:b"},
            "WHETSTONE_CAPTURE_REDACT: none:b cannot be used: ModuleNotFoundError",
        ),
    ],
)
def test_a_setting_that_cannot_be_is_refused_before_the_start(
    variables: dict[str, str], sentence: str, tiny_package: Path, tmp_path: Path
) -> None:
    environment = {
        f"WHETSTONE_CAPTURE{'_' * bool(name)}{name}": value.format(folder=tmp_path)
        for name, value in variables.items()
    }
    done = subprocess.run(
        [sys.executable, "-c", "import service.service"],
        cwd=ROOT,
        env={**os.environ, "WHETSTONE_PACKAGE": str(tiny_package), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert sentence in done.stderr
