"""What the engine costs and gains, in process: CPU-milliseconds per text against the raw loop.

    make bench-batching

The raw loop calls the classifier with one text, or with 32, at a time; the engine gets single
texts, 16 or 64 of them at once, and answers them with a thread per core. Short texts, mixed lengths
(log-normal, median 20 tokens) and long ones (400 tokens). Interleaved in rounds; the figures are
the median round.

Then overload: requests come at three times the rate that the engine managed, whatever is answered.
Of those that it accepts, how many are answered after their deadline?
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.load import ROOT, machine, write_result
from service.inference.capacity import BATCH_TOKENS, Capacity
from service.inference.classifier import Classifier
from service.inference.cores import available_cores
from service.inference.engine import Engine
from service.inference.errors import OverloadedError
from service.inference.jobs import Failed, Outcome

SEED = 0
OVERLOAD = 3
OVERLOAD_SECONDS = 8
DEADLINES = (0.2, 1.0, 10.0)
LONG = 400
SENTENCE = (
    "the parcel that I ordered last week has not arrived and nobody answers when I call about my "
    "money please tell me where it is or send another one to the same address before Friday"
)


def texts_of(lengths: Sequence[int]) -> list[str]:
    """Texts of about so many tokens each: every word here is one token, and two frame the text."""
    generator = np.random.default_rng(SEED)
    words = SENTENCE.split()
    return [" ".join(generator.choice(words, max(1, length - 2))) for length in lengths]


def workloads(most: int) -> dict[str, list[str]]:
    """Texts of each kind; `most` is how many tokens the model reads."""
    generator = np.random.default_rng(SEED)
    mixed = np.clip(generator.lognormal(np.log(20), 0.8, 300), 4, most).astype(int)
    return {
        "short": texts_of([14] * 600),
        "mixed": texts_of(mixed.tolist()),
        "long": texts_of([min(LONG, most)] * 30),
    }


def raw(classifier: Classifier, texts: list[str], batch: int) -> None:
    """Every text, so many at a time, one thread."""
    for start in range(0, len(texts), batch):
        classifier.classify(texts[start : start + batch], batch_size=batch)


class Callers:
    """So many callers, each with one text in the engine at a time."""

    def __init__(self, classifier: Classifier, engine: Engine, texts: list[str]) -> None:
        self._classifier = classifier
        self._engine = engine
        self._texts = iter(texts)
        self._left = len(texts)
        self._lock = threading.Lock()
        self._all_done = threading.Event()

    def run(self, callers: int) -> None:
        """Until every text is answered."""
        for _ in range(callers):
            self._ask()
        self._all_done.wait()

    def _ask(self) -> None:
        with self._lock:
            text = next(self._texts, None)
        if text is not None:
            encoded = self._classifier.encode([text])
            self._engine.submit(encoded, lambda outcome: self._answered(encoded, outcome))

    def _answered(self, encoded: list, outcome: Outcome) -> None:
        if isinstance(outcome, Failed):
            raise SystemExit(f"inference failed: {outcome.error}")
        self._classifier.predictions(encoded, outcome.result)
        self._ask()
        with self._lock:
            self._left -= 1
            if not self._left:
                self._all_done.set()


def overload(engine: Engine, encoded: list, rate: float, deadline: float) -> dict[str, float]:
    """Send requests at `rate` a second, each with `deadline` seconds, and count what came back."""
    generator = np.random.default_rng(SEED)
    took: list[float] = []
    refused = 0
    started = due = time.monotonic()
    index = 0
    while due < started + OVERLOAD_SECONDS:
        time.sleep(max(0.0, due - time.monotonic()))
        asked = time.monotonic()

        jobs = []

        def answered(_outcome: Outcome, asked: float = asked, jobs: list = jobs) -> None:
            took.append(time.monotonic() - asked)
            # It may be done before `submit` returns.
            for job in jobs:
                engine.confirm(job)

        try:
            jobs.append(engine.submit(encoded[index % len(encoded)], answered, seconds=deadline))
        except OverloadedError:
            refused += 1
        index += 1
        due += generator.exponential(1 / rate)
    engine.close()
    late = sum(seconds > deadline for seconds in took)
    return {
        "offered_per_second": round(index / OVERLOAD_SECONDS),
        "accepted": len(took),
        "refused": refused,
        "late": late,
        "late_share_of_accepted": round(late / len(took), 5),
        "answered_per_second": round(len(took) / (time.monotonic() - started)),
        "p50_ms": round(float(np.percentile(took, 50)) * 1000, 1),
        "p99_ms": round(float(np.percentile(took, 99)) * 1000, 1),
    }


def measure(work: Callable[[], object], texts: int) -> tuple[float, float]:
    """CPU and wall milliseconds per text."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    used = time.process_time() - cpu, time.perf_counter() - wall
    return used[0] / texts * 1000, used[1] / texts * 1000


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--package", type=Path, default=ROOT / "runs/bench/package")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/batching.json")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch_tokens", type=int, default=BATCH_TOKENS["cpu"])
    arguments = parser.parse_args()

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    classifier = Classifier.load(arguments.package, threads=1)
    threads = available_cores()
    capacity = Capacity(threads=threads, batch_tokens=arguments.batch_tokens)
    kinds = workloads(classifier.manifest.max_length)
    found: dict[str, dict[str, list[tuple[float, float]]]] = {kind: {} for kind in kinds}
    padding: dict[str, dict[str, float]] = {kind: {} for kind in kinds}

    def engine(kind: str, texts: list[str], callers: int) -> None:
        running = Engine(classifier, capacity)
        name = f"engine, {callers} callers"
        work = Callers(classifier, running, texts)
        found[kind].setdefault(name, []).append(measure(lambda: work.run(callers), len(texts)))
        running.close()
        state = running.state()
        padding[kind][name] = round(1 - state.tokens / state.padded_tokens, 4)

    with tqdm(total=arguments.rounds * len(kinds), desc="rounds", unit="kind") as bar:
        for _ in range(arguments.rounds):
            for kind, texts in kinds.items():
                for batch in (1, 32):
                    times = measure(lambda t=texts, b=batch: raw(classifier, t, b), len(texts))
                    found[kind].setdefault(f"raw loop, {batch} at a time", []).append(times)
                for callers in (16, 64):
                    engine(kind, texts, callers)
                bar.update()

    overloaded: dict[str, dict[str, dict[str, float]]] = {}
    runs = [(kind, deadline) for kind in ("short", "mixed") for deadline in DEADLINES]
    for kind, deadline in tqdm(runs, desc="overload", unit="run"):
        running = Engine(classifier, capacity)
        encoded = [classifier.encode([text]) for text in kinds[kind]]
        for texts in encoded[:50]:
            running.run(texts)
        wall = statistics.median(times[1] for times in found[kind]["engine, 64 callers"])
        rate = OVERLOAD * 1000 / wall
        overloaded.setdefault(kind, {})[f"{deadline:g} s"] = overload(
            running, encoded, rate, deadline
        )

    result = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "model": {
            "name": classifier.manifest.name,
            "version": classifier.manifest.version,
            "precision": classifier.manifest.precision,
        },
        "threads": threads,
        "batch_tokens": arguments.batch_tokens,
        "rounds": arguments.rounds,
        "mean_tokens": {
            kind: round(float(np.mean([len(e.windows[0]) for e in classifier.encode(texts)])), 1)
            for kind, texts in kinds.items()
        },
        "cpu_ms_per_text": _medians(found, 0),
        "wall_ms_per_text": _medians(found, 1),
        "share_of_padding": padding,
        "overload_by_deadline": overloaded,
    }
    print(json.dumps(result, indent=2))
    write_result(arguments.out, result)


def _medians(
    found: dict[str, dict[str, list[tuple[float, float]]]], which: int
) -> dict[str, dict[str, float]]:
    return {
        kind: {
            name: round(statistics.median(times[which] for times in rounds), 3)
            for name, rounds in ways.items()
        }
        for kind, ways in found.items()
    }


if __name__ == "__main__":
    main()
