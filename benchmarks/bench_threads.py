"""What a training step costs where the container has fewer cores than the host.

    make bench-threads
    docker run --cpus 1 IMAGE python -m benchmarks.bench_threads --quota 0

The same training (the example, the defaults) in a cgroup with a quota of `--quota` cores, which
this makes (as root), or in whatever the container has (`--quota 0`): with one thread, with as many
as the command takes, with as many as there are cores on the host, and as torch has it without the
command, whose threads spin while they wait. In turn, round by round, each in a process of its own.
CPU-seconds a step are the whole process's, from the steps after the first ones.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.load import ROOT, machine, write_result, write_whole
from training.common.threads import limit_threads

EXAMPLE = ROOT / "examples" / "support_tickets" / "train.csv"
CGROUPS = Path("/sys/fs/cgroup")
PERIOD = 100_000
SIDES = {
    "one": "one thread",
    "whetstone": "the command's number",
    "host": "the host's cores",
    "torch": "torch's own number, threads that spin",
}
# What a step of the command may cost, in steps of one thread.
MOST = 1.2
# Steps that count for nothing: memory is allocated, caches are filled.
WARM_UP = 5
PACKAGES = ("torch", "transformers", "accelerate")
# Training alone: no evaluation and no checkpoint between the steps.
KEYS = {
    "name": "bench-threads",
    "train_file": str(EXAMPLE),
    "eval_strategy": "no",
    "save_strategy": "no",
    "load_best_model_at_end": "false",
    "report_to": "none",
    "use_cpu": "true",
}


def one_side(work: Path, steps: int) -> dict[str, Any]:
    """Train so many steps in this process, and what each cost."""
    import torch
    from transformers import TrainerCallback

    from training.finetuning.train import train
    from training.recipe.load import load_recipe

    def now() -> tuple[float, float]:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_utime + usage.ru_stime, time.perf_counter()

    class Meter(TrainerCallback):
        began = ended = (0.0, 0.0)

        def on_step_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
            if state.global_step == WARM_UP:
                self.began = now()
            self.ended = now()

    meter = Meter()
    keys = KEYS | {"output_dir": str(work / "run"), "max_steps": str(WARM_UP + steps)}
    train(load_recipe(None, keys), callbacks=[meter])
    cpu, wall = (after - before for before, after in zip(meter.began, meter.ended, strict=True))
    return {
        "threads": torch.get_num_threads(),
        "cpu_seconds_per_step": cpu / steps,
        "seconds_per_step": wall / steps,
    }


@contextmanager
def cgroup(cores: float) -> Iterator[Path | None]:
    """A cgroup with that quota, version 1 or 2, as the machine has it; none of its own for 0."""
    if not cores:
        yield None
        return
    first = (CGROUPS / "cpu" / "cgroup.procs").exists()
    folder = (CGROUPS / "cpu" if first else CGROUPS) / f"whetstone-bench-{os.getpid()}"
    try:
        folder.mkdir()
        if first:
            (folder / "cpu.cfs_period_us").write_text(str(PERIOD))
            (folder / "cpu.cfs_quota_us").write_text(str(round(cores * PERIOD)))
        else:
            (folder / "cpu.max").write_text(f"{round(cores * PERIOD)} {PERIOD}")
    except OSError as error:
        if folder.is_dir():
            folder.rmdir()
        sys.exit(
            f"bench_threads: no cgroup can be made here ({error}): run it as root, or with "
            "--quota 0 in a container that has a quota"
        )
    try:
        yield folder
    finally:
        folder.rmdir()


def in_a_process(side: str, steps: int, group: Path | None) -> dict[str, Any]:
    """The same in a process of its own, which enters the cgroup before it begins."""
    with tempfile.TemporaryDirectory(prefix="whetstone-bench-") as folder:
        out = Path(folder) / "found.json"
        words = [sys.executable, "-m", "benchmarks.bench_threads", "--side", side]
        words += ["--steps", str(steps), "--out", str(out)]
        if group is not None:
            words = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group / "cgroup.procs"), *words]
        ours = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")
        environment = {name: value for name, value in os.environ.items() if name not in ours}
        if side == "one":
            environment["OMP_NUM_THREADS"] = "1"
        if side == "host":
            environment["OMP_NUM_THREADS"] = str(len(os.sched_getaffinity(0)))
        done = subprocess.run(
            words, cwd=ROOT, env=environment, check=False, capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(f"bench_threads: {side} failed:\n{done.stderr[-2000:]}")
        found: dict[str, Any] = json.loads(out.read_text("utf-8"))
        return found


def measure(rounds: int, steps: int, quota: float) -> dict[str, Any]:
    """The sides in turn; medians over the rounds, and what a step costs beside one thread's."""
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    with cgroup(quota) as group, tqdm(total=rounds * len(SIDES), unit="run") as bar:
        for _ in range(rounds):
            for side in SIDES:
                bar.set_postfix_str(side)
                runs[side].append(in_a_process(side, steps, group))
                bar.update()
    sides = {}
    for side, found in runs.items():
        middle = {
            key: round(statistics.median(run[key] for run in found), 3)
            for key in ("cpu_seconds_per_step", "seconds_per_step")
        }
        times = [
            run["cpu_seconds_per_step"] / one["cpu_seconds_per_step"]
            for run, one in zip(found, runs["one"], strict=True)
        ]
        sides[side] = {
            "threads": found[0]["threads"],
            **middle,
            "times_one_thread": round(statistics.median(times), 2),
            "runs": found,
        }
    return {"sides": sides, "met": sides["whetstone"]["times_one_thread"] <= MOST}


def markdown(result: dict[str, Any]) -> str:
    """The result as a table."""
    where = f"a quota of {result['quota']:g}" if result["quota"] else "the container's quota"
    lines = [
        f"{result['machine']['cores']} cores of {result['machine']['processor']}, {where}; medians "
        f"of {result['rounds']} interleaved rounds of {result['steps']} steps each.",
        "",
        "| | threads | CPU-seconds a step | of one thread's | seconds a step |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {SIDES[side]} | {found['threads']} | {found['cpu_seconds_per_step']:.2f} | "
        f"{found['times_one_thread']:.2f} | {found['seconds_per_step']:.2f} |"
        for side, found in result["sides"].items()
    ]
    met = "met" if result["met"] else "missed"
    lines += ["", f"Target: the command's number costs at most {MOST:g} times one thread: {met}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print the table, write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quota", type=float, default=1, help="cores; 0: no cgroup is made")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20, help="of each side in each round")
    default = ROOT / "benchmarks" / "results" / "threads.json"
    parser.add_argument("--out", type=Path, default=default, help="the JSON file; .md beside it")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.side:
        if parsed.side != "torch":
            limit_threads()
        write_result(parsed.out, one_side(parsed.out.parent, parsed.steps))
        return
    result = {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(PACKAGES),
        "quota": parsed.quota,
        "rounds": parsed.rounds,
        "steps": parsed.steps,
        **measure(parsed.rounds, parsed.steps, parsed.quota),
    }
    write_result(parsed.out, result)
    write_whole(parsed.out.with_suffix(".md"), markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    main()
