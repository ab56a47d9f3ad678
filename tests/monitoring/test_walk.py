"""The loop, once around, by commands and real servers.

Train, serve and capture; callers change and bring a new kind of text; drift says so; texts are
picked and labeled; the model is trained again, wins, and knows the new kind.
"""

from __future__ import annotations

import csv
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.conftest import ROOT
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


class Team:
    """Whoever runs the commands: a folder, a recipe, and what the commands print."""

    def __init__(self, folder: Path, base: Path) -> None:
        self.folder = folder
        self.recipe = folder / "recipe.yaml"
        keys = {
            "name": "walk",
            "model_name_or_path": str(base),
            "train_file": "train.csv",
            "test_file": "test.csv",
            "learning_rate": 0.003,
            "num_train_epochs": 6,
            "max_length": 32,
            "precision": "fp32",
            "use_cpu": True,
        }
        self.recipe.write_text(json.dumps(keys), "utf-8")

    def whetstone(self, *words: object, status: int = 0) -> str:
        """Run a command, which must end with this status; its output."""
        done = subprocess.run(
            [sys.executable, "-m", "whetstone", *map(str, words)],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stdout
        return done.stdout

    def train(self, name: str) -> Path:
        """A package, and never the test file's rows in it."""
        self.whetstone("run", self.recipe, "--output_dir", self.folder / name)
        return self.folder / name / "package"


def ask(package: Path, texts: Sequence[str], captured: Path | None = None) -> list[str]:
    """The labels that a server answers, each text in a request of its own."""
    environment = {"WHETSTONE_PACKAGE": str(package)}
    if captured is not None:
        environment |= {"WHETSTONE_CAPTURE": str(captured), "WHETSTONE_CAPTURE_TEXT": "1"}
    labels = []
    with serving(SERVICE, environment) as address:
        server = Server(address, Path())
        for text in texts:
            status, answer, _ = server.ask("/classify", {"input": text})
            assert status == 200
            labels.append(answer["data"][0]["label"])
    return labels


def test_production_teaches_the_next_model(tiny_base: Path, tmp_path: Path) -> None:
    team, captured = Team(tmp_path, tiny_base), tmp_path / "captured"
    train_file = write(tmp_path / "train.csv", rows_of(dict.fromkeys(KINDS, 200), seed=1))
    held_out = rows_of(dict.fromkeys([*KINDS, *NEW], 40), seed=2)
    write(tmp_path / "test.csv", rows_of(dict.fromkeys(KINDS, 20), seed=4))
    first = team.train("first")

    # Callers write of their accounts now, in other words, too, and some of them thank.
    counts = {"billing": 20, "delivery": 20, "account": 220, "account, otherwise": 100}
    traffic = rows_of(counts | {"praise": 80}, seed=3)
    ask(first, [text for text, _ in traffic], captured)
    said = team.whetstone("drift", first, captured, status=3)
    assert "label '" in said and "verdict: drift" in said

    picks = tmp_path / "picks.csv"
    team.whetstone("collect", first, captured, "--rows", 120, "--out", picks)
    with picks.open(newline="", encoding="utf-8") as handle:
        picked = list(csv.DictReader(handle))
    assert len(picked) == 120
    # People label them.
    truth = dict(traffic)
    for row in picked:
        row["label"] = truth[row["text"]]
    with picks.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, picked[0].keys())
        writer.writeheader()
        writer.writerows(picked)
    team.whetstone("collect", first, captured, "--labeled", picks, "--into", train_file)
    assert Counter(row["label"] for row in picked)["praise"] > 20

    second = team.train("second")
    write(tmp_path / "held_out.csv", held_out)
    words = ["compare", first, second, "--data", tmp_path / "held_out.csv"]
    bounds = ["--max_half_width", "0.1", "--allow_label_change"]
    assert "promote: " in team.whetstone(*words, *bounds)
    (compared,) = (tmp_path / "comparisons").glob("*/compare.json")
    assert json.loads(compared.read_text("utf-8"))["added_labels"] == ["praise"]

    praise = [text for text, kind in held_out if kind == "praise"]
    known = [row["text"] for row in picked[:20]]
    answers = ask(second, [*praise, *known], captured)
    assert answers[: len(praise)].count("praise") >= 0.9 * len(praise)
    # What was labeled is not picked again, though callers send it once more.
    more = tmp_path / "more.csv"
    team.whetstone("collect", second, captured, "--rows", 200, "--out", more)
    with more.open(newline="", encoding="utf-8") as handle:
        texts = {row["text"] for row in csv.DictReader(handle)}
    assert texts & set(praise)
    assert not texts & set(known)
