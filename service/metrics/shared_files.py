"""The files through which the workers of one server share their metrics.

BentoML sets `PROMETHEUS_MULTIPROC_DIR`, and `prometheus_client` keeps files for each process there.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

import psutil

logger = logging.getLogger("bentoml.service")

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
# Bytes for each file of a worker, by the kinds of files that prometheus_client has. All routes with
# seven statuses took 134 KB of histograms; 200 labels of a hundred characters would take 120 KB of
# counters. BentoML uses `gauge_all` itself.
ROOM = {
    "counter": 1 << 19,
    "histogram": 1 << 19,
    **{f"gauge_{mode}": 1 << 16 for mode in ("all", "livemax", "livemin", "livesum")},
}


def shared_folder() -> Path | None:
    """The folder of these files; None where a single process runs without BentoML."""
    folder = os.environ.get(FOLDER_VARIABLE)
    return Path(folder) if folder else None


def reserve_room() -> None:
    """Allocate this worker's files on disk, before prometheus_client maps them.

    prometheus_client makes sparse files and maps them. A write to a hole of a sparse file on a full
    disk is not an error but a signal, which ends the process.
    """
    folder = shared_folder()
    if folder is None or not hasattr(os, "posix_fallocate"):
        return
    for kind, room in ROOM.items():
        path = folder / f"{kind}_{os.getpid()}.db"
        try:
            with path.open("ab") as file:
                os.posix_fallocate(file.fileno(), 0, room)
        except OSError as error:
            logger.warning("%s has no room reserved: %s", path, error.strerror)


def forget_dead_workers() -> None:
    """Remove the gauges of dead workers from the sums; nobody else does."""
    folder = shared_folder()
    if folder is None:
        return
    from prometheus_client import multiprocess

    pids = {file.stem.rpartition("_")[2] for file in folder.glob("gauge_live*_*.db")}
    for pid in pids:
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            # Another worker may have removed them meanwhile.
            with contextlib.suppress(FileNotFoundError):
                multiprocess.mark_process_dead(int(pid))  # type: ignore[no-untyped-call]
