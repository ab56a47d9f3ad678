"""What explanations cost a server, and the plain requests beside them."""

from __future__ import annotations

import csv
import json
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.load import drive, percentile, post, whetstone_server
from service.inference.cores import available_cores

WORDS = 20
EXPLANATIONS = 60
PLAIN = 2000
ROUNDS = 3
CONNECTIONS = 8
EXPLAINERS = 2


def serve_costs(package: Path, test_file: Path) -> dict[str, Any]:
    """Milliseconds of explanations alone, and of plain requests with and without them.

    The rounds with and without explanations alternate.

    Raises:
        ServerError: the server ended, or did not get ready in time.
    """
    texts = _texts(test_file)
    explain = [_body("/explain", text) for text in texts]
    plain = [_body("/classify", texts[place % len(texts)]) for place in range(PLAIN)]
    alone: list[float] = []
    beside: list[float] = []
    with (
        tempfile.TemporaryDirectory() as home,
        whetstone_server(package, Path(home), {"WHETSTONE_EXPLAIN": "1"}) as (port, _),
    ):
        drive(port, plain[:200], CONNECTIONS)
        explained = drive(port, explain, 1)
        for _ in range(ROUNDS):
            alone += drive(port, plain, CONNECTIONS).latencies
            with _explaining(port, explain):
                beside += drive(port, plain, CONNECTIONS).latencies
    return {
        "words": WORDS,
        "cores": available_cores(),
        "connections": CONNECTIONS,
        "explanations": len(explained.latencies),
        "explain_p50_ms": explained.percentile(0.5) * 1000,
        "explain_p99_ms": explained.percentile(0.99) * 1000,
        "plain_p50_ms": percentile(alone, 0.5) * 1000,
        "plain_p99_ms": percentile(alone, 0.99) * 1000,
        "beside_p50_ms": percentile(beside, 0.5) * 1000,
        "beside_p99_ms": percentile(beside, 0.99) * 1000,
    }


def _texts(test_file: Path) -> list[str]:
    """Test texts, each cut to `WORDS` words."""
    with test_file.open(newline="", encoding="utf-8") as handle:
        words = (row["text"].split() for row in csv.DictReader(handle))
        long = (" ".join(each[:WORDS]) for each in words if len(each) >= WORDS)
        return list(islice(long, EXPLANATIONS))


def _body(path: str, text: str) -> bytes:
    return post(path, json.dumps({"input": text}).encode())


@contextmanager
def _explaining(port: int, requests: Sequence[bytes]) -> Iterator[None]:
    """Ask for explanations until the block ends, in a thread of its own."""
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            drive(port, requests[:EXPLAINERS], EXPLAINERS)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
