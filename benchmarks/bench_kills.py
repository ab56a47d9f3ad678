"""A large file with bad bytes, scored from S3 to S3 and killed ten times on the way.

    make bench-kills

A CSV of that size, one bad byte in every 10,000th row, lies on an S3 server of this machine (moto).
`whetstone predict` scores it with a package that neither tokenizes nor computes, as a real one
would take this machine days, and is killed with SIGKILL each time it has written another eleventh
of the parts; the same command goes on. Then every byte of the result is compared with what it has
to be: all rows in order, bad ones as they were, with the reason and no label. Most of its time is
the server's, which copies a whole object for each range of it that is read.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from benchmarks.bench_predict import PACKAGE, example_texts
from benchmarks.load import ROOT, free_port, machine, write_result
from training.data.blocks import BLOCK_ROWS

PACKAGES = ("pyarrow", "tokenizers", "s3fs", "fsspec", "moto")
BUCKET, SOURCE, TARGET = "s3://large", "in.csv", "out.csv"
BAD_EVERY = 10_000
BAD_BYTE = b"\xff"
REASON = "the text holds bytes that cannot be decoded: save the file as UTF-8, or name its encoding"
# Texts of the example that make one of the file.
JOINED = 16


class Run(NamedTuple):
    """One start of the command: parts there were when it ended, and what it took."""

    parts: int
    was_killed: bool
    seconds: float
    cpu_seconds: float
    most_mb: float


def rows() -> Iterator[bytes]:
    """Lines of the file, without their ends, for ever: the same at each call."""
    texts = [text.replace('"', "'").encode() for text in example_texts()]
    draw = random.Random(0)  # noqa: S311 - rows to measure by
    number = 0
    while True:
        number += 1
        bad = BAD_BYTE if number % BAD_EVERY == 0 else b""
        yield b'%d,"%s%s"' % (number, bad, b" ".join(draw.choices(texts, k=JOINED)))


def put(fs: Any, place: str, size: int, bar: tqdm[Any]) -> int:
    """Write the file into the bucket; how many rows it has."""
    written = count = 0
    with fs.open(f"{place}/{SOURCE}", "wb") as file:
        file.write(b"id,text\n")
        for line in rows():
            written += file.write(line + b"\n")
            count += 1
            if count % BLOCK_ROWS == 0:
                bar.update(written - bar.n)
            if written >= size:
                return count
    return count


def score(place: str) -> None:
    """`whetstone predict` with a package that reads no token and answers zeros."""
    from service.inference.classifier import Classifier
    from service.inference.tokenizing import EncodedText
    from training.recipe.arguments import DataArguments
    from training.scoring.predict import predict

    classifier = Classifier.load(PACKAGE)
    labels = len(classifier.manifest.labels)
    one = EncodedText(classifier.encode(["one"])[0].windows, truncated=False)
    classifier.encode = lambda texts: [one] * len(texts)  # type: ignore[assignment, method-assign]
    classifier.logits = lambda windows: np.zeros((len(windows), labels), np.float32)  # type: ignore[method-assign]
    print(predict(classifier, f"{place}/{SOURCE}", f"{place}/{TARGET}", DataArguments()))


def start(fs: Any, place: str, until: int | None) -> Run:
    """One start of the command; killed as soon as there are so many parts."""
    began = time.monotonic()
    child = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.bench_kills", "--score", place],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    was_killed = False
    while True:
        # Of a process that was killed the kernel still tells how much memory it held.
        ended, status, usage = os.wait4(child.pid, os.WNOHANG)
        if ended:
            break
        if until is not None and not was_killed and parts_of(fs, place) >= until:
            child.send_signal(signal.SIGKILL)
            was_killed = True
        time.sleep(0.2)
    child.returncode = os.waitstatus_to_exitcode(status)
    if not was_killed and child.returncode:
        raise SystemExit(f"bench_kills: the command ended with {child.returncode}")
    cpu = usage.ru_utime + usage.ru_stime
    seconds = time.monotonic() - began
    return Run(parts_of(fs, place), was_killed, seconds, cpu, usage.ru_maxrss / 1024)


def parts_of(fs: Any, place: str) -> int:
    """How many parts are written so far."""
    folders = [name for name in fs.ls(place, detail=False, refresh=True) if ".parts" in name]
    return sum("part-" in name for folder in folders for name in fs.ls(folder, refresh=True))


def verify(fs: Any, place: str, count: int) -> int:
    """Compare every line of the result; how many rows were refused."""
    refused = 0
    # A driver's own way of finding the end of a line is slow.
    with io.BufferedReader(fs.open(f"{place}/{TARGET}", "rb"), 1 << 20) as file:
        if file.readline() != b"id,text,label,score,error\n":
            raise SystemExit("bench_kills: the header is not what it should be")
        answer = b""
        for number, line in zip(range(1, count + 1), rows(), strict=False):
            found = file.readline()
            is_bad = number % BAD_EVERY == 0
            refused += is_bad
            # A cell is quoted where it has to be; these have commas, or they have not.
            cell, _, text = line.partition(b",")
            plain = b"%s,%s" % (cell, text if b"," in text else text[1:-1])
            answer = answer or found.removeprefix(plain)
            expected = plain + (b',,,"%s"\n' % REASON.encode() if is_bad else answer)
            if found != expected:
                raise SystemExit(f"bench_kills: row {number} is {found!r}, not {expected!r}")
        if file.readline():
            raise SystemExit("bench_kills: there are more rows than there should be")
    return refused


@contextmanager
def bucket(folder: Path) -> Iterator[tuple[Any, str]]:
    """An empty bucket on an S3 server of its own, which keeps on disk what is large."""
    port = free_port()
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"TMPDIR": str(folder)},
        )
    # Read as soon as fsspec is imported: the server takes its time with parts of so much.
    os.environ["FSSPEC_S3"] = json.dumps({"config_kwargs": {"read_timeout": 600}})
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "whetstone",
        "AWS_SECRET_ACCESS_KEY": "hush-hush",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1",
    }
    from fsspec import filesystem

    try:
        fs = filesystem("s3", use_listings_cache=False)
        end = time.monotonic() + 60
        while True:
            try:
                fs.mkdir(BUCKET)
                break
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)
        yield fs, BUCKET
    finally:
        server.kill()
        server.wait()


def sentence(result: dict[str, Any]) -> str:
    """The result for the README."""
    return (
        f"A CSV of {result['bytes'] / 1e9:g} GB ({result['rows']:,} rows) from and to "
        f"{result['place']}, killed {result['killed']} times: every byte of the result is right, "
        f"{result['refused']} rows have a reason and no label, {result['folders_left']} folders of "
        f"parts are left, the most memory was {result['most_mb']:.0f} MB."
    )


def main() -> None:
    """Write the file, score it, kill that again and again, look at the result."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--score", metavar="PLACE", help=argparse.SUPPRESS)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--folder", type=Path, help="where there is room for four times as much")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "kills.json")
    given = parser.parse_args()
    if given.score:
        score(given.score)
        return
    size = int(given.gigabytes * 1e9)
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory(dir=given.folder) as folder,
        bucket(Path(folder)) as (fs, place),
    ):
        with tqdm(total=size, desc="put", unit="B", unit_scale=True) as bar:
            count = put(fs, place, size, bar)
        parts = -(-count // BLOCK_ROWS)
        runs = []
        for kill in tqdm(range(1, given.kills + 1), desc="kill"):
            runs.append(start(fs, place, max(kill, kill * parts // (given.kills + 1))))
        runs.append(start(fs, place, None))
        refused = verify(fs, place, count)
        left = [name for name in fs.ls(place, detail=False, refresh=True) if ".parts" in name]
    result = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(PACKAGES),
        "place": "S3 (moto)",
        "bytes": size,
        "rows": count,
        "parts": parts,
        "killed": sum(run.was_killed for run in runs),
        "refused": refused,
        "folders_left": len(left),
        "most_mb": max(run.most_mb for run in runs),
        "cpu_seconds": sum(run.cpu_seconds for run in runs),
        "seconds": time.monotonic() - began,
        "runs": [run._asdict() for run in runs],
    }
    write_result(given.out, result)
    print(sentence(result))
    print(f"written: {given.out}")


if __name__ == "__main__":
    main()
