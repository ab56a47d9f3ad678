"""What a text costs over HTTP: the service beside the raw loop and beside other servers.

    make bench-serve

The figure that counts is CPU-milliseconds per text of a server's whole process tree; beside it
texts per second, p50 and p99. At 1, 16 and 64 connections; short texts, mixed lengths and long
ones; the same texts for every server, all of them up at once and asked in turn, round by round.
The others are installed on the first run, each into an environment of its own
(`benchmarks/peers/`); one that cannot be is a line of the table with its reason.

Then the service alone, in overload: requests come at three times the rate that it managed, with a
deadline of a second. And crowds of long texts, with what becomes of bystanders
(`serve_attacks.py`). What was wanted of all that is in the result, and whether it was met.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import cycle, islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tqdm import tqdm

from benchmarks.bench_batching import workloads
from benchmarks.load import (
    HOST,
    ROOT,
    START_SECONDS,
    Load,
    Memory,
    ServerError,
    cpu_seconds,
    drive,
    drive_open,
    end_by_signals,
    free_port,
    machine,
    memory_bytes,
    percentile,
    process_tree,
    server,
    thread_seconds,
    write_result,
    write_whole,
)
from benchmarks.serve_attacks import ATTACKS, attack
from benchmarks.serve_report import OURS, draw, markdown, overload_summary, targets
from benchmarks.serve_servers import (
    PEER_START_SECONDS,
    Contender,
    InstallError,
    contenders,
    last_line,
    programs_of,
    versions_of,
)
from service.inference.classifier import Classifier
from service.package.manifest import read_manifest

# Texts of a run, by kind and connections. Of long ones fewer where they are asked one by one: all
# are of one length.
TEXTS = {
    "short": {1: 300, 16: 300, 64: 300},
    "mixed": {1: 200, 16: 200, 64: 200},
    "long": {1: 12, 16: 48, 64: 96},
}
QUICK_TEXTS = {
    "short": {1: 32, 16: 64},
    "mixed": {1: 16, 16: 32},
    "long": {1: 2, 16: 16},
}
# Of mixed lengths, texts of up to so many tokens are the short ones: the median.
SHORT_TOKENS = 20
# Labels are compared on so many texts of each kind.
COMPARED = {"short": 60, "mixed": 60, "long": 6}
OVERLOAD = 3
DEADLINE_SECONDS = 1.0
PEAK_CONNECTIONS = 64
# There before the overload begins, as a gateway has them: enough for what the service accepts
# within a deadline. Once more without them: what of a caller who has to connect first?
OVERLOAD_CONNECTIONS = 448
PADDING_COUNTERS = ("whetstone_batch_tokens_total", "whetstone_batch_padding_tokens_total")


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    texts: dict[str, dict[int, int]]
    rounds: int
    starts: int
    idle_seconds: float
    peak_seconds: float
    overload_seconds: float
    connecting_seconds: float
    attack_seconds: float
    overload_kinds: tuple[str, ...] = ("short", "mixed")


FULL = Plan(TEXTS, 5, 3, 5, 8, 60, 20, 30)
QUICK = Plan(QUICK_TEXTS, 1, 1, 1, 1, 3, 1, 3, ("short",))


@dataclass
class Cell:
    """One server, one kind of text, so many connections: what the rounds came to."""

    cpu_ms: list[float] = field(default_factory=list)
    generator_cpu_ms: list[float] = field(default_factory=list)
    texts_per_second: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    errors: int = 0
    # Of the service alone: what its threads of each kind used.
    threads_cpu_ms: dict[str, list[float]] = field(default_factory=dict)

    def note(
        self,
        load: Load,
        used: float,
        generator: float,
        threads: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        """Add a round."""
        answers = len(load.latencies)
        self.errors += sum(load.statuses.values()) - answers
        if answers:
            self.cpu_ms.append(used * 1000 / answers)
            self.generator_cpu_ms.append(generator * 1000 / answers)
            self.texts_per_second.append(answers / load.seconds)
            for kind, seconds in threads.items():
                self.threads_cpu_ms.setdefault(kind, []).append(seconds * 1000 / answers)
        self.latencies += load.latencies
        self.places += load.places

    def summary(self) -> dict[str, Any]:
        """Medians of the rounds; latencies of all rounds together."""
        measured = bool(self.latencies)
        return {
            "cpu_ms": round(statistics.median(self.cpu_ms), 3) if measured else None,
            "cpu_ms_rounds": [round(value, 4) for value in self.cpu_ms],
            "texts_per_second": round(statistics.median(self.texts_per_second), 1)
            if measured
            else None,
            "p50_ms": round(percentile(self.latencies, 0.5) * 1000, 2) if measured else None,
            "p99_ms": round(percentile(self.latencies, 0.99) * 1000, 2) if measured else None,
            "generator_cpu_ms": round(statistics.median(self.generator_cpu_ms), 4)
            if measured
            else None,
            "answers": len(self.latencies),
            "errors": self.errors,
            "threads_cpu_ms": {
                kind: round(statistics.median(values), 3)
                for kind, values in self.threads_cpu_ms.items()
            },
        }


@dataclass
class Running:
    """A server that is up; `failed` says why it is not asked any more."""

    contender: Contender
    port: int
    pid: int
    failed: str = ""


@contextmanager
def started(contender: Contender, programs: Path) -> Iterator[tuple[Running, dict[str, float]]]:
    """A server, and what its start cost until it said that it was ready."""
    port = free_port()
    seconds = START_SECONDS if contender.requirements is None else PEER_START_SECONDS
    began = time.perf_counter()
    command = contender.command(programs, port)
    with server(command, port, contender.environment, contender.ready, seconds) as pid:
        wall = time.perf_counter() - began
        cost = {"cpu_seconds": round(cpu_seconds(pid), 2), "wall_seconds": round(wall, 2)}
        yield Running(contender, port, pid), cost


def counters(port: int, names: Sequence[str]) -> list[float] | None:
    """Prometheus counters of a server, each over all labels; None where one is absent."""
    with urllib.request.urlopen(f"http://{HOST}:{port}/metrics", timeout=30) as answer:
        return read_counters(answer.read().decode(), names)


def read_counters(text: str, names: Sequence[str]) -> list[float] | None:
    """Counters in Prometheus' text format."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        name, _, value = line.rpartition(" ")
        name = name.partition("{")[0]
        if name in names:
            found[name] = found.get(name, 0.0) + float(value)
    return [found[name] for name in names] if len(found) == len(names) else None


class Bench:
    """The servers that are up, the texts, and what was found of them."""

    def __init__(self, plan: Plan, package: Path, running: list[Running]) -> None:
        # Only now: the servers have started, and theirs are their defaults.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        self.plan = plan
        self.running = running
        self.classifier = Classifier.load(package, threads=1)
        kinds = workloads(self.classifier.manifest.max_length)
        self.texts = {
            kind: list(islice(cycle(kinds[kind]), max(counts.values())))
            for kind, counts in plan.texts.items()
        }
        self.tokens = {
            kind: [len(encoded.windows[0]) for encoded in self.classifier.encode(texts)]
            for kind, texts in self.texts.items()
        }
        self.cells: dict[tuple[str, int, str], Cell] = {}
        self.raw: dict[str, dict[str, Cell]] = {kind: {} for kind in self.texts}
        self.longest: list[float] = []
        self.tokenize: dict[str, list[float]] = {kind: [] for kind in self.texts}
        # Tokens and padding of mixed lengths.
        self.padding: tuple[float, float] | None = (0.0, 0.0)

    @property
    def ours(self) -> Running:
        """The service."""
        return next(one for one in self.running if one.contender.key == OURS)

    def compare_labels(self) -> dict[str, dict[str, Any]]:
        """Ask everybody the same texts, which warms them up, and count who says what we say."""
        texts = [text for kind, most in COMPARED.items() for text in self.texts[kind][:most]]
        texts = list(dict.fromkeys(texts))
        found: dict[str, dict[str, Any]] = {}
        expected: list[str] = []
        for one in tqdm(self.running, desc="labels and warm-up", unit="server"):
            try:
                labels = one.contender.labels(one.port, texts)
                for kind in self.texts:
                    requests = [one.contender.request(text) for text in self.texts[kind][:64]]
                    drive(one.port, requests, 16)
            except (OSError, ValueError, KeyError, TypeError) as error:
                if one.contender.key == OURS:
                    raise
                one.failed = f"did not answer: {last_line(str(error) or type(error).__name__)}"
                continue
            if one.contender.key == OURS:
                expected = labels
                continue
            same = sum(a == b for a, b in zip(labels, expected, strict=True))
            share = round(same / len(texts), 4)
            found[one.contender.key] = {"share": share, "texts": len(texts)}
        for kind in self.texts:
            self.classifier.classify(self.texts[kind][:32])
        return found

    def idle(self) -> dict[str, float]:
        """CPU of each server while nobody asks, in percent of a core."""
        before = {one.contender.key: cpu_seconds(one.pid) for one in self.running}
        time.sleep(self.plan.idle_seconds)
        found = {}
        for one in self.running:
            used = cpu_seconds(one.pid) - before[one.contender.key]
            found[one.contender.key] = round(100 * used / self.plan.idle_seconds, 2)
        return found

    def rounds(self) -> None:
        """Every server in turn, workload by workload, round by round."""
        runs = sum(len(counts) for counts in self.plan.texts.values()) * len(self.running)
        total = self.plan.rounds * (runs + len(self.texts))
        with tqdm(total=total, desc="rounds", unit="run") as bar:
            for number in range(self.plan.rounds):
                for kind, counts in self.plan.texts.items():
                    self._raw(kind)
                    bar.update()
                    for connections, most in counts.items():
                        # Nobody is always the first, or always after the same one.
                        turn = number % len(self.running)
                        for one in [*self.running[turn:], *self.running[:turn]]:
                            if not one.failed:
                                bar.set_postfix_str(f"{kind}, {connections}, {one.contender.key}")
                                self._run(one, kind, connections, self.texts[kind][:most])
                            bar.update()

    def _run(self, one: Running, kind: str, connections: int, texts: Sequence[str]) -> None:
        requests = [one.contender.request(text) for text in texts]
        counted = one.contender.key == OURS and kind == "mixed" and connections > 1
        tokens = counters(one.port, PADDING_COUNTERS) if counted else None
        is_ours = one.contender.key == OURS
        threads = thread_seconds(one.pid) if is_ours else {}
        before, own = cpu_seconds(one.pid), time.process_time()
        try:
            load = drive(one.port, requests, connections)
        except (OSError, ValueError) as error:
            why = last_line(str(error) or type(error).__name__)
            if is_ours:
                raise SystemExit(f"the service failed at {kind}, {connections}: {why}") from None
            one.failed = f"failed at {kind} texts, {connections} connections: {why}"
            return
        generator = time.process_time() - own
        used = cpu_seconds(one.pid) - before
        after = thread_seconds(one.pid) if is_ours else {}
        threads = {name: after[name] - threads[name] for name in threads}
        key = (kind, connections, one.contender.key)
        self.cells.setdefault(key, Cell()).note(load, used, generator, threads)
        if counted:
            self._count_padding(tokens, counters(one.port, PADDING_COUNTERS))

    def _count_padding(self, before: list[float] | None, after: list[float] | None) -> None:
        if self.padding is None or before is None or after is None:
            self.padding = None
            return
        tokens, padding = (b - a for a, b in zip(before, after, strict=True))
        self.padding = (self.padding[0] + tokens, self.padding[1] + padding)

    def _raw(self, kind: str) -> None:
        """The same texts in a loop, without HTTP, one thread."""
        texts = self.texts[kind]
        # As many long texts as are asked one by one.
        texts = texts[: min(len(texts), 32)] if kind == "long" else texts
        for batch in (1, 32):
            load = Load()
            cpu, began = time.process_time(), time.perf_counter()
            for start in range(0, len(texts), batch):
                asked = time.perf_counter()
                part = texts[start : start + batch]
                self.classifier.classify(part, batch_size=batch)
                load.latencies += [time.perf_counter() - asked] * len(part)
            load.seconds = time.perf_counter() - began
            load.statuses[200] = len(texts)
            used = time.process_time() - cpu
            self.raw[kind].setdefault(str(batch), Cell()).note(load, used, 0.0)
        cpu = time.process_time()
        for text in texts:
            self.classifier.encode([text])
        self.tokenize[kind].append((time.process_time() - cpu) * 1000 / len(texts))
        if kind == "mixed":
            longest = max(range(len(texts)), key=self.tokens[kind].__getitem__)
            for _ in range(3):
                began = time.perf_counter()
                self.classifier.classify([texts[longest]])
                self.longest.append(time.perf_counter() - began)

    def overload(self, kind: str, seconds: float, opened: int) -> dict[str, Any]:
        """Three times what the service can do, with a deadline of a second."""
        one = self.ours
        plain = [one.contender.request(text) for text in self.texts[kind]]
        rate = max(
            statistics.median(cell.texts_per_second)
            for (of, _, key), cell in self.cells.items()
            if of == kind and key == OURS
        )
        peak = closed_loop_rate(one.port, plain, rate, self.plan.peak_seconds)
        headers = {"X-Request-Timeout-Ms": f"{DEADLINE_SECONDS * 1000:.0f}"}
        hurried = [one.contender.request(text, headers) for text in self.texts[kind]]
        memory = Memory(one.pid)
        with tqdm(total=round(seconds), desc=f"overload, {kind}", unit="s") as bar:

            def tick(elapsed: float) -> None:
                memory.sample(elapsed)
                bar.update(round(min(elapsed, seconds)) - bar.n)

            before, own = thread_seconds(one.pid), time.process_time()
            load = drive_open(
                one.port,
                hurried,
                OVERLOAD * peak,
                seconds,
                opened=opened,
                on_tick=tick,
            )
        after = thread_seconds(one.pid)
        cores = {kind: (after[kind] - before[kind]) / load.seconds for kind in before}
        cores["load generator"] = (time.process_time() - own) / load.seconds
        sizes = [size for _, size in memory.samples]
        half = max(1, len(sizes) // 2)
        found = overload_summary(load.arrivals, load.unsent, load.seconds, DEADLINE_SECONDS, peak)
        return {
            "seconds": seconds,
            "deadline_ms": DEADLINE_SECONDS * 1000,
            "times_capacity": OVERLOAD,
            "connections_opened_before": opened,
            "offered_per_second": round(OVERLOAD * peak, 1),
            **found,
            "memory_mb": {
                "before": megabytes(sizes[0]),
                "first_half": megabytes(max(sizes[:half])),
                "second_half": megabytes(max(sizes[half:])),
            },
            # Where the cores went: what is not computing cannot be goodput.
            "cores": {kind: round(used, 2) for kind, used in cores.items()},
            "restarts": memory.restarts,
        }

    def attack(self, name: str, seconds: float) -> dict[str, Any]:
        """A crowd of long texts, and bystanders."""
        words = " ".join(self.texts["mixed"]).split()
        one = self.ours
        return attack(one.contender, one.port, name, words, seconds, DEADLINE_SECONDS)

    def results(self) -> dict[str, Any]:
        """What the rounds came to, by kind, connections and server."""
        found: dict[str, Any] = {}
        for kind, counts in self.plan.texts.items():
            found[kind] = {}
            for connections in counts:
                cells = found[kind][str(connections)] = {}
                for one in self.running:
                    key = one.contender.key
                    cell = self.cells.get((kind, connections, key))
                    if cell is None:
                        continue
                    cells[key] = cell.summary()
                    if kind == "mixed" and key == OURS:
                        cells[key]["short_texts"] = self._short(cell)
        return found

    def _short(self, cell: Cell) -> dict[str, Any]:
        """Of mixed lengths, the latencies of the short ones."""
        lengths = self.tokens["mixed"]
        taken = [
            seconds
            for seconds, place in zip(cell.latencies, cell.places, strict=True)
            if lengths[place] <= SHORT_TOKENS
        ]
        return {
            "most_tokens": SHORT_TOKENS,
            "answers": len(taken),
            "p50_ms": round(percentile(taken, 0.5) * 1000, 2),
            "p99_ms": round(percentile(taken, 0.99) * 1000, 2),
        }

    def raw_results(self) -> dict[str, Any]:
        """The same of the raw loop, by kind and texts at a time."""
        found: dict[str, Any] = {}
        for kind, cells in self.raw.items():
            found[kind] = {batch: cell.summary() for batch, cell in cells.items()}
            found[kind]["tokenize_cpu_ms"] = round(statistics.median(self.tokenize[kind]), 4)
        found["mixed"]["longest_ms"] = round(statistics.median(self.longest) * 1000, 1)
        return found


def closed_loop_rate(port: int, requests: Sequence[bytes], guess: float, seconds: float) -> float:
    """Texts a second that a server answers when there is always work."""
    most = max(PEAK_CONNECTIONS, int(guess * seconds))
    load = drive(port, list(islice(cycle(requests), most)), PEAK_CONNECTIONS)
    if set(load.statuses) != {200}:
        raise SystemExit(f"the service answered {dict(load.statuses)}")
    return len(load.latencies) / load.seconds


def megabytes(count: float) -> float:
    """Bytes as MB, for a result."""
    return round(count / 1e6, 1)


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--package", type=Path, default=ROOT / "runs/bench/package")
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "runs/bench/checkpoint")
    parser.add_argument("--out", type=Path, help="the JSON file; .md and .png go beside it")
    parser.add_argument(
        "--peers", default="bentoml,fastapi,infinity", help="by comma; none for the service alone"
    )
    parser.add_argument("--rounds", type=int, help=f"default {FULL.rounds}, --quick {QUICK.rounds}")
    parser.add_argument("--quick", action="store_true", help="does it run? no figure of it counts")
    arguments = parser.parse_args()
    end_by_signals()
    plan = QUICK if arguments.quick else FULL
    if arguments.rounds:
        plan = Plan(**{**vars(plan), "rounds": arguments.rounds})
    results = ROOT / ("runs/quick" if arguments.quick else "benchmarks/results")
    out: Path = arguments.out or results / "serve.json"

    everybody = contenders(arguments.package, arguments.checkpoint)
    peers = [] if arguments.peers == "none" else arguments.peers.split(",")
    unknown = set(peers) - {one.key for one in everybody}
    if unknown:
        parser.error(f"no peer is called {', '.join(sorted(unknown))}")
    chosen = [one for one in everybody if one.key == OURS or one.key in peers]
    result = measure(plan, arguments.package, chosen)
    result["quick"] = arguments.quick
    print(markdown(result))
    write_result(out, result)
    write_whole(out.with_suffix(".md"), markdown(result))
    draw(result, out.with_suffix(".png"))
    print(f"written: {out.with_suffix('.png')}", file=sys.stderr)


def measure(plan: Plan, package: Path, chosen: Sequence[Contender]) -> dict[str, Any]:
    """Start everybody, measure, stop everybody."""
    manifest = read_manifest(package)
    result: dict[str, Any] = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "model": {
            "name": manifest.name,
            "version": manifest.version,
            "precision": manifest.precision,
            "max_length": manifest.max_length,
        },
        "rounds": plan.rounds,
    }
    servers: dict[str, dict[str, Any]] = {
        one.key: {"title": one.title, "what": one.what} for one in chosen
    }
    with ExitStack() as whole:
        peers = whole.enter_context(ExitStack())
        running: list[Running] = []
        for contender in tqdm(chosen, desc="starting", unit="server"):
            described = servers[contender.key]
            try:
                programs = programs_of(contender)
                described["packages"] = versions_of(contender, programs)
                stack = whole if contender.key == OURS else peers
                costs = []
                for _ in range(plan.starts - 1 if contender.key == OURS else 0):
                    with started(contender, programs) as (_one, cost):
                        costs.append(cost)
                one, cost = stack.enter_context(started(contender, programs))
                costs.append(cost)
            except (InstallError, ServerError) as error:
                if contender.key == OURS:
                    raise SystemExit(str(error)) from None
                described["reason"] = last_line(str(error))
                tqdm.write(f"{contender.title}: {error}", file=sys.stderr)
                continue
            described["start"] = {
                name: statistics.median(cost[name] for cost in costs) for name in cost
            }
            running.append(one)
        bench = Bench(plan, package, running)
        for key, agreement in bench.compare_labels().items():
            servers[key]["agreement"] = agreement
        for key, percent in bench.idle().items():
            servers[key]["idle_cpu_percent"] = percent
        bench.rounds()
        for one in running:
            if one.failed:
                servers[one.contender.key]["reason"] = one.failed
            else:
                memory = megabytes(memory_bytes(process_tree(one.pid)))
                servers[one.contender.key]["memory_mb"] = memory
        # Nothing beside the service from here on.
        peers.close()
        result["workloads"] = {
            kind: {
                "texts": {str(connections): most for connections, most in counts.items()},
                "mean_tokens": round(statistics.mean(bench.tokens[kind]), 1),
                "longest_tokens": max(bench.tokens[kind]),
            }
            for kind, counts in plan.texts.items()
        }
        result["servers"] = servers
        result["raw"] = bench.raw_results()
        result["results"] = bench.results()
        tokens = bench.padding
        share = tokens[1] / sum(tokens) if tokens and sum(tokens) else None
        result["padding"] = {"mixed": None if share is None else round(share, 4)}
        result["overload"] = {
            kind: bench.overload(kind, plan.overload_seconds, OVERLOAD_CONNECTIONS)
            for kind in plan.overload_kinds
        }
        connecting = bench.overload(plan.overload_kinds[0], plan.connecting_seconds, 0)
        result["overload_connecting"] = connecting
        result["attacks"] = {
            name: bench.attack(name, plan.attack_seconds)
            for name in tqdm(ATTACKS, desc="crowds", unit="crowd")
        }
    result["targets"] = targets(result)
    return result


if __name__ == "__main__":
    main()
