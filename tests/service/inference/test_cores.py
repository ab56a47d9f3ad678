"""Processes use the cores that they may use, not all cores of the host."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.inference.cores import available_cores
from tests.conftest import ROOT
from training.common.threads import own_cores
from whetstone.main import main


@pytest.fixture
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with 64 cores, on all of which this process may be scheduled."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return root


V1 = "5:cpuacct:/\n4:cpu,cpuacct:/docker/4f\n1:name=systemd:/docker/4f\n"


@pytest.mark.usefixtures("many_cores")
@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 64),
        ({"proc/self/cgroup": "0::/\n"}, 64),
        # In a container with cgroup v2, its own group is the topmost.
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "400000 100000\n"}, 4),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 64),
        # A fraction of a core counts as one core.
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        # Outside containers, the path leads to the group, and a parent group may have the quota.
        (
            {
                "proc/self/cgroup": "0::/a.slice/b.scope\n",
                "sys/fs/cgroup/a.slice/cpu.max": "300000 100000\n",
                "sys/fs/cgroup/a.slice/b.scope/cpu.max": "max 100000\n",
            },
            3,
        ),
        # cgroup v1: seen from the host, and from a container, where the path leads nowhere.
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu/docker/4f/cpu.cfs_quota_us": "200000\n",
                "sys/fs/cgroup/cpu/docker/4f/cpu.cfs_period_us": "100000\n",
            },
            2,
        ),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "500000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            5,
        ),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            64,
        ),
    ],
)
def test_the_quota_of_every_parent_group_counts(
    tmp_path: Path, files: dict[str, str], cores: int
) -> None:
    assert available_cores(write(tmp_path, files)) == cores


@pytest.mark.usefixtures("many_cores")
def test_processes_of_one_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.common.threads.available_cores", lambda: 6)
    for together, cores in (("1", 6), ("4", 1), ("8", 1), ("2", 3)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", together)
        assert own_cores() == cores


@pytest.mark.parametrize(("given", "threads"), [(None, "3"), ("2", "2")])
def test_an_explicit_number_of_threads_wins(
    monkeypatch: pytest.MonkeyPatch, given: str | None, threads: str
) -> None:
    monkeypatch.setattr("training.common.threads.available_cores", lambda: 3)
    monkeypatch.setenv("OMP_NUM_THREADS", given or "")
    if given is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    assert main(["check", "missing.yaml"]) == 1
    assert os.environ["OMP_NUM_THREADS"] == threads


# Runs the command in a process that may use one core, and prints torch's threads.
THREADS = """
import sys
import training.common.threads
training.common.threads.available_cores = lambda: 1
from whetstone.main import main
assert not {"torch", "numpy"} & set(sys.modules), "imported before the threads are set"
main(["check", "missing.yaml"])
import torch
print(torch.get_num_threads())
"""


def test_torch_has_as_many_threads_as_there_are_cores() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", THREADS]
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.split() == ["1"]
