"""Spark moves the pieces of files to its executors, or scores the rows of a user's own job.

    from training.scoring.spark import score
    score(spark.table("tickets"), "runs/support_tickets/package").write.parquet("scored")

Executors need the base dependencies and the extra `spark`, neither torch nor transformers.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from operator import add
from typing import TYPE_CHECKING, Any

from service.inference.classifier import Classifier
from service.package.package import verify_package
from training.common.errors import DataError
from training.data.blocks import TableBlock
from training.recipe.arguments import columns_of
from training.registry.publish import package_at
from training.scoring.columns import ScoringColumns, added_columns, arrow_type, text_columns
from training.scoring.engines import cause_in, refuse_missing, sentence_in
from training.scoring.output import print_page
from training.scoring.rows import score_blocks
from training.scoring.tally import Tally
from training.scoring.worker import PackedPackage, Worker

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from training.scoring.engines import EngineOptions, Show
    from training.scoring.worker import Shipment

SHOWN_EVERY_SECONDS = 0.5
# What a process of an executor has loaded: tasks come one after the other. By a key, as the process
# may outlive the job.
_loaded: dict[str, Any] = {}


def score(
    dataframe: DataFrame, package: str, *, all_scores: bool = False, **given: Any
) -> DataFrame:
    """The rows of a dataframe with the columns that `whetstone predict` adds, in the same order.

    Nothing is computed before an action of Spark's. A row that cannot be classified has nulls and
    the reason in `error`.

    Args:
        package: a folder, a tag or version of the model store, or a published address; it is read
            here, and sent to each executor once.
        all_scores: add a column `score_<label>` for every label.
        given: keys of a recipe that say where the text is, such as `text_column`; by default those
            of the package's recipe.

    Raises:
        DataError: the dataframe has no such column, or has a column that would be added.
        PackageError: the package does not verify.
    """
    with package_at(package) as folder:
        manifest = verify_package(folder)
        packed = PackedPackage.of(folder, manifest)
    arguments = columns_of(manifest, given)
    read = text_columns(manifest, arguments)
    for column in read:
        if column.partition(".")[0] not in dataframe.columns and column not in dataframe.columns:
            raise DataError(
                f"the dataframe has no column {column!r}, it has {', '.join(dataframe.columns)}"
            )
    columns = ScoringColumns(read, added_columns(dataframe.columns, manifest, all_scores))
    shipped = dataframe.sparkSession.sparkContext.broadcast(packed)

    def scored(batches: Iterable[Any]) -> Iterator[Any]:
        classifier = _once(shipped.value.version, lambda: shipped.value.load())
        return _scored_batches(classifier, columns, batches)

    return dataframe.mapInArrow(scored, _schema(dataframe, columns))


def score_pieces(shipment: Shipment, options: EngineOptions, show: Show) -> Tally:
    """Score all pieces on a cluster; a task that is lost with its executor runs again.

    Raises:
        DataError: Spark cannot be started, or a piece cannot be scored.
    """
    session = _session(options.spark_master)
    try:
        context = session.sparkContext
        if context.uiWebUrl:
            print_page("Spark", context.uiWebUrl)
        shipped = context.broadcast(shipment)
        # For the bar alone: it counts a task twice that was done twice.
        seen = context.accumulator(Tally(), _Tallies())

        def score_piece(piece: int) -> Tally:
            worker: Worker = _once(shipped.value.identity, lambda: Worker(shipped.value))
            tally = worker.score(piece)
            seen.add(tally)
            return tally

        count = len(shipment.pieces)
        tallies = context.parallelize(range(count), count).map(score_piece)
        with ThreadPoolExecutor(1) as pool:
            total: Future[Tally] = pool.submit(tallies.reduce, add)
            try:
                return _watch(total, lambda: show(seen.value))
            except KeyboardInterrupt:
                context.cancelAllJobs()
                raise
    finally:
        session.stop()


class _Tallies:
    """How Spark adds tallies up: its own base class is not needed, and not there everywhere."""

    def zero(self, _: Tally) -> Tally:
        return Tally()

    def addInPlace(self, one: Tally, other: Tally) -> Tally:  # noqa: N802 - Spark's name
        return one + other


def _watch(total: Future[Tally], show: Any) -> Tally:
    """Wait for the end of a job, and show meanwhile how far it is."""
    from pyspark.errors import PySparkException

    while True:
        try:
            return total.result(timeout=SHOWN_EVERY_SECONDS)
        except TimeoutError:
            show()
        except Exception as error:
            if isinstance(error, PySparkException) or "Py4J" in type(error).__name__:
                raise sentence_in(error) or DataError(
                    f"Spark gave up: {cause_in(error)}"
                ) from error
            raise


def _session(master: str | None) -> SparkSession:
    """The session of `spark-submit`, or a new one.

    Raises:
        DataError: there is no Java, or no such master.
    """
    refuse_missing("spark")
    from pyspark.errors import PySparkException
    from pyspark.sql import SparkSession

    if master is not None and master.startswith("local"):
        # Executors on this machine have this environment.
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    logging.getLogger("py4j").setLevel(logging.ERROR)
    builder = SparkSession.builder.appName("whetstone predict")
    builder = builder.config("spark.ui.showConsoleProgress", "false")
    try:
        return (builder.master(master) if master else builder).getOrCreate()
    except (PySparkException, OSError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"Spark did not start ({reason}): it needs Java 17 (java in PATH, or JAVA_HOME), and a "
            "master such as local[2] or spark://host:7077"
        ) from None


def _once(key: str, load: Any) -> Any:
    """What this process loaded under a key; anything else that it holds is let go."""
    if key not in _loaded:
        _loaded.clear()
        _loaded[key] = load()
    return _loaded[key]


def _schema(dataframe: DataFrame, columns: ScoringColumns) -> Any:
    from pyspark.sql.pandas.types import from_arrow_type
    from pyspark.sql.types import StructField, StructType

    added = [
        StructField(name, from_arrow_type(arrow_type(key))) for key, name in columns.added.items()
    ]
    return StructType([*dataframe.schema.fields, *added])


def _scored_batches(
    classifier: Classifier, columns: ScoringColumns, batches: Iterable[Any]
) -> Iterator[Any]:
    """Batches of Arrow with the added columns."""
    import pyarrow

    def blocks() -> Iterator[tuple[Any, TableBlock]]:
        start = 0
        for batch in batches:
            table = pyarrow.Table.from_batches([batch])
            yield batch, TableBlock("the dataframe", start, table.column_names, table=table)
            start += len(table)

    for scored in score_blocks(classifier, columns, {}, blocks()):
        batch = scored.key
        for key, name in columns.added.items():
            values = pyarrow.array([row[name] for row in scored.rows], arrow_type(key))
            batch = batch.append_column(name, values)
        yield batch
