"""The documentation's walk around the loop: its own commands, in order, and real servers.

Train, serve and capture; callers change and bring a new kind of text; drift says so; texts are
picked and labeled; the model is trained again, wins, and knows the new kind.
"""

from __future__ import annotations

import csv
import json
import os
import random
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from tests.documentation import WALK, WrittenFile, steps
from tests.servers import SERVICE, Server, serving

pytestmark = pytest.mark.slow

# A few words of each kind of message, between words that say nothing.
KINDS = {
    "billing": ("invoice", "charged", "payment", "card"),
    "delivery": ("parcel", "courier", "tracking", "delivered"),
    "account": ("password", "login", "locked", "email"),
}
# What callers bring later: other words for a kind that is known, and a new kind.
NEW = {
    "account, otherwise": ("settings", "address", "number", "code"),
    "praise": ("thank", "great", "love", "wonderful"),
}
FILLER = ("I", "have", "the", "my", "to", "and", "it", "is", "for", "with", "you", "was", "not")


def text_of(kind: str, chance: random.Random) -> str:
    words = [chance.choice(FILLER) for _ in range(chance.randint(5, 12))]
    for word in chance.sample((KINDS | NEW)[kind], 2):
        words.insert(chance.randrange(len(words)), word)
    return " ".join(words)


def rows_of(counts: Mapping[str, int], seed: int) -> list[tuple[str, str]]:
    """So many different texts of each kind, with their labels."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    found: dict[str, str] = {}
    for kind, count in counts.items():
        texts: set[str] = set()
        while len(texts) < count:
            texts.add(text_of(kind, chance))
        found |= dict.fromkeys(sorted(texts), kind.partition(",")[0])
    rows = list(found.items())
    chance.shuffle(rows)
    return rows


def write(path: Path, rows: Sequence[tuple[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([("text", "label"), *rows])
    return path


class Reader:
    """Whoever follows the page: does its next step, in a folder with the files that it asks for."""

    def __init__(self, folder: Path, base: Path) -> None:
        self.folder = folder
        recipe, *self.steps = steps(WALK.read_text("utf-8"))
        assert isinstance(recipe, WrittenFile)
        keys = yaml.safe_load(recipe.content) | {
            "model_name_or_path": str(base),
            "learning_rate": 0.003,
            "num_train_epochs": 6,
            "max_length": 32,
            "precision": "fp32",
            "use_cpu": True,
        }
        (folder / recipe.path).write_text(json.dumps(keys), "utf-8")

    def next(self, command: str) -> list[str]:
        """The words of the page's next command, which must be this one."""
        step = self.steps.pop(0)
        assert isinstance(step, str)
        words = shlex.split(step)
        assert command in words
        return words

    def whetstone(self, command: str, status: int = 0) -> str:
        """Do the next step, which must end with this status; its output."""
        return self.run(self.next(command)[1:], status)

    def run(self, words: Sequence[str], status: int = 0) -> str:
        """Run a command of Whetstone."""
        done = subprocess.run(
            [sys.executable, "-m", "whetstone", *words],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stdout
        return done.stdout

    def serve(self, texts: Sequence[str]) -> list[str]:
        """Start the page's next server, and ask it each text in a request of its own; its labels.

        Its paths are of this folder, and the command's working folder is the project.
        """
        words = self.next("bentoml")
        settings = dict(word.split("=", 1) for word in words[: words.index("bentoml")])
        for name in ("WHETSTONE_PACKAGE", "WHETSTONE_CAPTURE"):
            settings[name] = str(self.folder / settings[name])
        assert words[-1] == SERVICE
        labels = []
        with serving(SERVICE, settings) as address:
            server = Server(address, Path())
            for text in texts:
                status, answer, _ = server.ask("/classify", {"input": text})
                assert status == 200
                labels.append(answer["data"][0]["label"])
        return labels


def label(path: Path, truth: Mapping[str, str]) -> list[dict[str, str]]:
    """Fill in the labels, as people do; the rows."""
    with path.open(newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    for row in rows:
        row["label"] = truth[row["text"]]
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return rows


def test_production_teaches_the_next_model(tiny_base: Path, tmp_path: Path) -> None:
    reader = Reader(tmp_path, tiny_base)
    write(tmp_path / "train.csv", rows_of(dict.fromkeys(KINDS, 200), seed=1))
    write(tmp_path / "test.csv", rows_of(dict.fromkeys(KINDS, 20), seed=4))
    held_out = rows_of(dict.fromkeys([*KINDS, *NEW], 40), seed=2)
    write(tmp_path / "held-out.csv", held_out)
    reader.whetstone("run")

    # Callers write of their accounts now, in other words, too, and some of them thank.
    counts = {"billing": 20, "delivery": 20, "account": 220, "account, otherwise": 100}
    traffic = rows_of(counts | {"praise": 80}, seed=3)
    reader.serve([text for text, _ in traffic])
    said = reader.whetstone("drift", status=3)
    assert "label '" in said and "verdict: drift" in said

    reader.whetstone("collect")
    picked = label(tmp_path / "to-label.csv", dict(traffic))
    assert len(picked) == 120
    assert Counter(row["label"] for row in picked)["praise"] > 20
    reader.whetstone("collect")

    reader.whetstone("run")
    assert "promote: " in reader.whetstone("compare")
    (compared,) = (tmp_path / "comparisons").glob("*/compare.json")
    assert json.loads(compared.read_text("utf-8"))["added_labels"] == ["praise"]

    praise = [text for text, kind in held_out if kind == "praise"]
    known = [row["text"] for row in picked[:20]]
    answers = reader.serve([*praise, *known])
    assert not reader.steps
    assert answers[: len(praise)].count("praise") >= 0.9 * len(praise)
    # What was labeled is not picked again, though callers send it once more.
    reader.run(
        ["collect", "runs/tickets-2/package", "captured", "--rows", "200", "--out", "more.csv"]
    )
    with (tmp_path / "more.csv").open(newline="", encoding="utf-8") as handle:
        texts = {row["text"] for row in csv.DictReader(handle)}
    assert texts & set(praise)
    assert not texts & set(known)
