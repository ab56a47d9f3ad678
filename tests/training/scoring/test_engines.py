"""Real engines with a real S3 server: nodes and executors that are killed, the same answers."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from fsspec import filesystem
from pyarrow import parquet

from service.inference.classifier import Classifier
from tests.clusters import (
    executors_of,
    own_environment,  # noqa: F401 - a fixture
    ray_cluster,
    running,
    wait_while_running,
)
from tests.conftest import ROOT, example_rows, write_csv
from tests.test_project import PYPROJECT, pins
from training.registry.publish import publish
from training.scoring.predict import predict

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_environment")]

TEXTS = [row["text"] for row in example_rows("test")[:20]]
FILES, ROWS = 24, 3000
EXECUTORS = "local-cluster[2,1,1024]"


@pytest.fixture
def published(tiny_package: Path, s3: str) -> str:
    return publish(tiny_package, s3)[0]


@pytest.fixture
def many_rows(tmp_path: Path, s3: str) -> str:
    """Enough of them to kill something meanwhile."""
    return write_rows(tmp_path / "in", s3, FILES, ROWS)


def write_rows(folder: Path, bucket: str, files: int, count: int) -> str:
    """A folder of Parquet in a bucket; some rows have no text, and each an id of its own."""
    folder.mkdir()
    for number in range(files):
        ids = [number * count + row for row in range(count)]
        texts = [TEXTS[row % 20] * 3 if row % 50 else (None, "")[row % 100 > 0] for row in ids]
        parquet.write_table(pyarrow.table({"id": ids, "text": texts}), folder / f"{number}.parquet")
    filesystem("s3").put(f"{folder}/", f"{bucket}/in/", recursive=True)
    return f"{bucket}/in/"


def command(package: str, source: str, target: str, *options: str) -> list[str]:
    words = ["predict", package, source, "--out", target, *options]
    return [sys.executable, "-m", "whetstone", *words]


def table_at(address: str) -> Any:
    """All rows of a folder of Parquet in a bucket, in the order of their ids."""
    fs = filesystem("s3", use_listings_cache=False)
    return parquet.read_table(address.removeprefix("s3://"), filesystem=fs).sort_by("id")


def count_parts(address: str) -> int:
    fs = filesystem("s3", use_listings_cache=False)
    return len(fs.glob(f"{address}/part-*"))


def expect_every_row_once(package: Path, source: Path, address: str, said: str) -> None:
    """The rows of the folder are those of the local engine, and the command says how many."""
    local = source.parent / "local.parquet"
    rows, failures = predict(Classifier.load(package), source, local)
    found, expected = table_at(address), parquet.read_table(local).sort_by("id")
    assert found["id"].to_pylist() == list(range(rows))
    for name in expected.column_names:
        if name != "score":
            assert found[name].to_pylist() == expected[name].to_pylist(), name
    pairs = zip(found["score"].to_pylist(), expected["score"].to_pylist(), strict=True)
    assert all(one == other or abs(one - other) <= 1e-5 for one, other in pairs)
    assert f"{rows} rows, {failures} of them without an answer (column error): {address}" in said
    assert f"{failures // 2} the text is missing" in said
    assert f"{failures // 2} the text is empty" in said
    assert re.search(r"cost: 0\.0\d+ core-hours", said)


def killed_in_the_middle(
    words: list[str], target: str, log: Path, kill: Callable[[Any], bool]
) -> str:
    """Run a command, kill something when a few parts are written; what the command said."""
    with running(words, log) as process:
        wait_while_running(process, log, lambda: count_parts(target) >= 3 and kill(process))
        before = count_parts(target)
        assert before < FILES, "it was done before anything was killed"
        status = process.wait(timeout=400)
    said = log.read_text("utf-8")
    assert status == 0, said[-3000:]
    return said


def test_a_node_of_ray_that_is_killed_loses_no_row_and_doubles_none(
    tiny_package: Path, published: str, many_rows: str, tmp_path: Path, s3: str
) -> None:
    target = f"{s3}/scored.parquet"
    with ray_cluster() as cluster:
        options = ["--engine", "ray", "--ray_address", cluster.address]

        def kill(_: Any) -> bool:
            if not (cluster.workers_of(cluster.node) and cluster.workers_of(cluster.head)):
                return False
            cluster.kill(cluster.node)
            return True

        words = command(published, many_rows, target, *options)
        said = killed_in_the_middle(words, target, tmp_path / "log", kill)
    expect_every_row_once(tiny_package, tmp_path / "in", target, said)


def test_an_executor_of_spark_that_is_killed_loses_no_row_and_doubles_none(
    tiny_package: Path,
    published: str,
    many_rows: str,
    tmp_path: Path,
    s3: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = f"{s3}/scored.parquet"

    def kill(process: subprocess.Popen[str]) -> bool:
        executors = executors_of(process)
        if len(executors) < 2:
            return False
        for child in executors[0].children(recursive=True):
            child.kill()
        executors[0].kill()
        return True

    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    submit = str(Path(sys.executable).with_name("spark-submit"))
    words = [submit, "--master", EXECUTORS, "examples/spark_predict.py"]
    words += [published, many_rows, "--out", target]
    said = killed_in_the_middle(words, target, tmp_path / "log", kill)
    assert "Spark shows the work at http://" in said
    expect_every_row_once(tiny_package, tmp_path / "in", target, said)


# What a user's own job of Spark's does with the function. Before any of it, what only training
# needs cannot be imported, neither here nor in the executors' processes, which read this, too.
OWN_JOB = """
import sys
from pyspark.sql import SparkSession
from training.scoring.spark import score

package, source, target = sys.argv[1:]
spark = SparkSession.builder.master("local-cluster[2,1,1024]").getOrCreate()
rows = spark.read.option("header", True).csv(source)
try:
    score(rows, package, text_column="body")
except Exception as error:
    print(type(error).__name__, error)
scored = score(rows, package, all_scores=True)
scored.write.parquet(target)
print(scored.columns)
spark.stop()
"""
HIDE_TRAINING = """
import sys
from importlib.machinery import PathFinder

find = PathFinder.find_spec

def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in {hidden} else find(name, path, target)

PathFinder.find_spec = staticmethod(find_spec)
with open({log!r}, "a") as log:
    log.write(" ".join(sys.orig_argv) + "\\n")
"""


def modules_of_training() -> set[str]:
    """What the extra `train` brings, and neither the base dependencies nor the extra `spark`."""
    extras = PYPROJECT["project"]["optional-dependencies"]
    names = {re.split(r"[\[]", name)[0] for name in extras["train"]} - set(extras["spark"])
    names -= {name.lower() for name in pins(ROOT / "service" / "requirements.txt")}
    found = {
        module
        for module, distributions in packages_distributions().items()
        if names & {re.sub(r"[-_.]+", "-", name).lower() for name in distributions}
    }
    assert {"torch", "transformers", "datasets", "sklearn"} <= found
    return found


def test_a_dataframe_is_scored_by_executors_without_what_only_training_needs(
    tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, log, out = tmp_path / "site", tmp_path / "started", tmp_path / "scored"
    place.mkdir()
    hide = HIDE_TRAINING.format(hidden=sorted(modules_of_training()), log=str(log))
    (place / "sitecustomize.py").write_text(hide, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{place}:{ROOT}")
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    job, source = tmp_path / "job.py", tmp_path / "in.csv"
    job.write_text(OWN_JOB, encoding="utf-8")
    rows = [{"id": str(row), "text": text} for row, text in enumerate([*TEXTS, " ", ""])]
    write_csv(source, rows)
    words = [sys.executable, str(job), str(tiny_package), str(source), str(out)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "DataError the dataframe has no column 'body', it has id, text" in done.stdout
    assert "pyspark.daemon" in log.read_text("utf-8")
    scored = sorted(parquet.read_table(out).to_pylist(), key=lambda row: int(row["id"]))
    answers = Classifier.load(tiny_package).classify(TEXTS)
    for row, answer in zip(scored, answers, strict=False):
        assert (row["label"], row["error"]) == (answer.label, None)
        assert row["score"] == pytest.approx(answer.score, abs=1e-5)
        assert row["score_praise"] == pytest.approx(float(answer.probs[1]), abs=1e-5)
    assert [row["label"] for row in scored[20:]] == [None, None]
    assert [row["error"] for row in scored[20:]] == ["the text is empty", "the text is missing"]


def walk_through() -> list[str]:
    """The commands of the guide's walk-through."""
    page = (ROOT / "docs" / "guides" / "scoring.md").read_text("utf-8")
    (section,) = re.findall(r"^## From a bucket.*?(?=^## )", page, re.MULTILINE | re.DOTALL)
    blocks = re.findall(r"^```bash\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    return " ".join(blocks).replace("\\\n", " ").splitlines()


def test_the_walk_through_of_the_guide(
    tiny_package: Path, published: str, tmp_path: Path, s3: str
) -> None:
    """Its commands as they stand there; only names are others: bucket, package, addresses."""
    lines = [line.strip() for line in walk_through()]
    scoring = [line for line in lines if line.startswith("whetstone predict")]
    starts = [line.split() for line in lines if line.startswith("ray start")]
    assert [words[2] for words in starts] == ["--head", "--address"]
    names = {
        "s3://models/whetstone/support_tickets/<version>": published,
        "s3://rows/messages/": write_rows(tmp_path / "in", s3, 3, 400),
        "s3://rows/scored": f"{s3}/scored",
        "spark://<master>:7077": EXECUTORS,
    }
    with ray_cluster() as cluster:
        names["<head>:6379"] = cluster.address
        for line in scoring:
            for name, ours in names.items():
                line = line.replace(name, ours)
            assert "<" not in line
            words = line.split()[1:]
            done = subprocess.run(
                [sys.executable, "-m", "whetstone", *words],
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=False,
                timeout=400,
            )
            assert done.returncode == 0, done.stderr[-3000:]
            target = words[words.index("--out") + 1]
            expect_every_row_once(tiny_package, tmp_path / "in", target, done.stdout)
    assert len(scoring) == 2
