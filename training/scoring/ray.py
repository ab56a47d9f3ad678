"""Ray Data moves the pieces: a pool of actors, each with one package loaded for one core or GPU."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from training.common.errors import DataError
from training.scoring.engines import cause_in, in_one_line, sentence_in
from training.scoring.output import print_page
from training.scoring.tally import Tally
from training.scoring.worker import Worker

if TYPE_CHECKING:
    from training.scoring.engines import EngineOptions, Show
    from training.scoring.worker import Shipment

# Pieces are handed out in so many blocks for each worker: the driver knows of blocks alone, and a
# worker that is done early takes those of others.
BLOCKS_A_WORKER = 64
# The next block waits at the actor meanwhile; more would only be lost with it.
BLOCKS_IN_FLIGHT = 2
CONNECT_SECONDS = 10


class ScoringActor:
    """One worker, whose package Ray sent to the node once."""

    def __init__(self, shipped: list[Any]) -> None:
        import ray

        self._worker = Worker(ray.get(shipped[0]))

    def __call__(self, pieces: dict[str, Any]) -> dict[str, list[str]]:
        """The tallies of some pieces, by number."""
        tallies = (self._worker.score(int(piece)) for piece in pieces["item"])
        return {"tally": [tally.to_json() for tally in tallies]}


def score_pieces(shipment: Shipment, options: EngineOptions, show: Show) -> Tally:
    """Score all pieces on a cluster; an actor that is lost is started again elsewhere.

    Raises:
        DataError: there is no such cluster, or a piece cannot be scored.
    """
    with _connected(options.ray_address):
        import ray
        import ray.data

        workers = _workers(options)
        # Held here until the end: actors that are started later fetch it, too.
        shipped = ray.put(shipment)
        numbers = list(range(len(shipment.pieces)))
        blocks = min(len(numbers), BLOCKS_A_WORKER * workers)
        resources = {"num_gpus": 1} if options.device == "cuda" else {"num_cpus": 1}
        tallies = ray.data.from_items(numbers, override_num_blocks=blocks).map_batches(
            ScoringActor,
            fn_constructor_args=([shipped],),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(
                size=workers, max_tasks_in_flight_per_actor=BLOCKS_IN_FLIGHT
            ),
            **resources,
        )
        total = Tally()
        try:
            for row in tallies.iter_rows():
                total += Tally.from_json(row["tally"])
                show(total)
        except ray.exceptions.RayError as error:
            raise sentence_in(error) or DataError(f"Ray gave up: {cause_in(error)}") from error
        return total


@contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """A connection to a cluster; without an address RAY_ADDRESS, or this machine by itself."""
    if address is not None:
        _refuse_unreachable(address)
    # Ray Data starts lost actors again, which Ray's core thinks worth a line for each.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray
    import ray.data

    # The command has a bar of its own.
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        context = ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as error:
        raise _no_cluster(address or "RAY_ADDRESS", error) from None
    except (RuntimeError, ValueError) as error:
        # As where another version of Ray or of Python started it.
        raise DataError(
            f"the Ray cluster at {address or 'RAY_ADDRESS'} cannot be used: {in_one_line(error)}"
        ) from None
    try:
        if context.dashboard_url:
            print_page("Ray", f"http://{context.dashboard_url}")
        yield
    finally:
        ray.shutdown()


def _refuse_unreachable(address: str) -> None:
    """Raise DataError where nothing listens at HOST:PORT: Ray itself would try for minutes."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        port = parts.port
        if port is not None:
            socket.create_connection((parts.hostname or "", port), CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise _no_cluster(address, error) from None


def _no_cluster(address: str, error: Exception) -> DataError:
    return DataError(
        f"there is no Ray cluster at {address} ({in_one_line(error)}): start one with "
        "`ray start --head`, and name it with --ray_address HOST:PORT"
    )


def _workers(options: EngineOptions) -> int:
    """As many as were asked for, or one for each core or GPU of the cluster.

    Raises:
        DataError: the cluster has none.
    """
    import ray

    kind = "GPU" if options.device == "cuda" else "CPU"
    there = int(ray.cluster_resources().get(kind, 0))
    if not there:
        raise DataError(f"the Ray cluster has no {kind}: add a node that has one")
    return options.num_workers or there
