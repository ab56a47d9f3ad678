"""Scoring by an engine that a cluster already has: it moves pieces, our workers score them.

    whetstone predict PACKAGE s3://bucket/rows/ --out s3://bucket/scored.parquet --engine ray

The rows, the columns and the reasons are those of `training.scoring.predict`.
"""

from __future__ import annotations

import importlib.util
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from service.package.package import verify_package
from training.common.errors import DataError, InterruptedRunError, install_command
from training.common.progress import progress
from training.data.sources import STANDARD_INPUT
from training.recipe.arguments import columns_of
from training.registry.publish import package_at
from training.scoring.job import STANDARD_OUTPUT, ending_of, plan_job
from training.scoring.parts_folder import PartsFolder
from training.scoring.pieces import plan_pieces
from training.scoring.tally import Tally
from training.scoring.worker import PackedPackage, Shipment

if TYPE_CHECKING:
    from service.inference.device import Device

# The package that each engine needs, and the extra of the same name as the engine.
LIBRARIES = {"ray": "ray", "spark": "pyspark"}
# An error of ours in the text of an engine's error, which holds the traceback of a worker.
OWN_ERROR = re.compile(r"^(?:training\.common\.errors|service\.package\.files)\.\w+: (.+)$", re.M)
# What was raised, below the lines of a traceback of Python; and Java's first line of a cause.
PYTHON_ERROR = re.compile(r'^  File ".*\n(?:[ \t].*\n)*(\S.*)', re.M)
JAVA_ERROR = re.compile(r"^: (.+)", re.M)
COLORS = re.compile(r"\x1b\[[0-9;]*m")
LONGEST_CAUSE = 400

Show: TypeAlias = Callable[[Tally], None]


@dataclass(frozen=True)
class EngineOptions:
    """Which engine scores, and where; None is the engine's own choice."""

    engine: Literal["ray", "spark"]
    ray_address: str | None = None
    num_workers: int | None = None
    spark_master: str | None = None
    device: Device = "cpu"


def predict_on(
    options: EngineOptions,
    package: str,
    source: Sequence[str],
    target: str,
    given: dict[str, Any],
    *,
    all_scores: bool = False,
) -> Tally:
    """Score `source` into the folder `target`, with many workers.

    Args:
        package: a folder, a tag or version of the model store, or a published address.
        target: a folder or an address, whose ending says how its parts are written.
        given: keys that say how the files are read; by default those of the package's recipe.

    Raises:
        DataError: the engine, a file, a column, or one of the two formats cannot be used.
        InterruptedRunError: Ctrl-C; the parts that are written stay.
    """
    refuse_missing(options.engine)
    if target == STANDARD_OUTPUT or STANDARD_INPUT in source:
        raise DataError(
            f"--engine {options.engine} reads files and writes a folder: leave out --engine for "
            "standard input and output"
        )
    shipment = _plan(options, package, source, target, given, all_scores)
    with progress(len(shipment.pieces), "predict", "piece") as bar:

        def show(tally: Tally) -> None:
            counts = f"{tally.rows:,} rows, {tally.failures:,} refused"
            bar.set_postfix_str(counts, refresh=False)
            bar.update(tally.pieces - bar.n)

        try:
            tally = _run(shipment, options, show)
        except DataError:
            shipment.folder.discard_empty()
            raise
        except KeyboardInterrupt:
            raise InterruptedRunError(
                f"interrupted: the parts in {target} are kept; the same command goes on behind them"
            ) from None
        show(tally)
    return _finish(shipment, tally)


def refuse_missing(engine: str) -> None:
    """Raise DataError where an engine is not installed."""
    if importlib.util.find_spec(LIBRARIES[engine]) is None:
        raise DataError(
            f"--engine {engine} needs {LIBRARIES[engine]}, which is not installed: "
            f"{install_command(engine)}"
        )


def sentence_in(error: Exception) -> DataError | None:
    """The error of ours that a worker raised, out of the engine's; None for any other."""
    found = OWN_ERROR.findall(str(error))
    return DataError(found[-1]) if found else None


def cause_in(error: Exception) -> str:
    """The line of an engine's error that says why it gave up, or the beginning of all its lines."""
    text = COLORS.sub("", str(error))
    for pattern in (PYTHON_ERROR, JAVA_ERROR):
        if found := pattern.findall(text):
            return str(found[-1])
    return in_one_line(error)[:LONGEST_CAUSE]


def in_one_line(error: Exception) -> str:
    """All that an error says, in one line and without colors."""
    return " ".join(COLORS.sub("", str(error)).split()) or type(error).__name__


def _plan(
    options: EngineOptions,
    package: str,
    source: Sequence[str],
    target: str,
    given: dict[str, Any],
    all_scores: bool,
) -> Shipment:
    """Look at everything before the engine starts."""
    with package_at(package) as folder:
        manifest = verify_package(folder)
        packed = PackedPackage.of(folder, manifest)
    target = target.rstrip("/")
    job = plan_job(manifest, source, target, columns_of(manifest, given), all_scores)
    pieces = plan_pieces(job.sources)
    parts = PartsFolder.claim(target, job.identity(), ending_of(target))
    # Each piece has its source.
    return Shipment(packed, replace(job, sources=[]), pieces, parts, options.device)


def _run(shipment: Shipment, options: EngineOptions, show: Show) -> Tally:
    if not shipment.pieces:
        return Tally()
    if options.engine == "ray":
        from training.scoring.ray import score_pieces
    else:
        from training.scoring.spark import score_pieces
    return score_pieces(shipment, options, show)


def _finish(shipment: Shipment, tally: Tally) -> Tally:
    """Check that everything is there, and say so in the folder."""
    if tally.pieces != len(shipment.pieces):
        raise DataError(
            f"the engine answered {tally.pieces} of {len(shipment.pieces)} pieces: give the same "
            "command again"
        )
    empty = io.BytesIO()
    shipment.job.format.assemble([], empty)
    shipment.folder.finish(tally, empty.getvalue())
    return tally
