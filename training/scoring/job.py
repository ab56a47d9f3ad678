"""What a scoring command reads and how it writes the result, decided before any row is scored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from service.package.manifest import Manifest
from training.common.errors import DataError
from training.common.storage import file_system
from training.data.layouts import Layouts
from training.data.rows import keys_of
from training.data.sources import COMPRESSIONS, Source, find_sources
from training.recipe.arguments import DataArguments
from training.scoring.arrow_tables import refuse_unwritable
from training.scoring.columns import ScoringColumns, added_columns, arrow_type, text_columns
from training.scoring.survey import Survey, survey
from training.scoring.tables import TableFormat

# Between the labels of a row of a CSV file, unless the package's own data had another.
DEFAULT_SEPARATOR = "|"
STANDARD_OUTPUT = "-"
# The ending of a result's name → its format.
KINDS = {
    **{".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json"},
    **{".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow"},
}
# Parts that an earlier version wrote in another format are not reused.
PARTS_FORMAT = 2


@dataclass(frozen=True)
class ScoringJob:
    """A scoring command, which is sent to workers as it is.

    `manifest` is that of the package that answers. `text_columns` are a survey's: whoever reads
    some rows of a file looks for the text where all others do.
    """

    manifest: Manifest
    sources: list[Source]
    arguments: DataArguments
    columns: ScoringColumns
    format: TableFormat
    text_columns: dict[str, str]

    def identity(self) -> str:
        """Twelve digits that change with everything that the result depends on."""
        content = {
            "format": PARTS_FORMAT,
            "package": self.manifest.version,
            "sources": [(source.path, source.state) for source in self.sources],
            "arguments": asdict(self.arguments),
            "columns": [self.columns.text, self.columns.added, list(self.format.columns)],
            "kind": [self.format.kind, self.format.compression, str(self.format.schema)],
        }
        return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()[:12]


def plan_job(
    manifest: Manifest,
    source: str | Path | Sequence[str],
    target: str,
    arguments: DataArguments,
    all_scores: bool,
) -> ScoringJob:
    """Look at the files, and decide how the result is written.

    Raises:
        DataError: a file, a column or one of the two formats cannot be used.
    """
    sources = _input_sources(source, target)
    read = text_columns(manifest, arguments)
    kind, compression = _format_of(target)
    layouts = Layouts(arguments.text_column, arguments.label_column)
    surveyed = survey(sources, kind, keys_of(arguments), read, layouts)
    if target == STANDARD_OUTPUT and surveyed.is_csv:
        kind = "csv"
    added = added_columns(surveyed.columns, manifest, all_scores)
    schema = _schema(surveyed, added, kind) if kind in ("parquet", "arrow") else None
    format_ = TableFormat(kind, compression, surveyed.columns, list(added.values()), schema)
    separator = None if format_.has_lists else arguments.label_separator or DEFAULT_SEPARATOR
    columns = ScoringColumns(read, added, separator)
    return ScoringJob(manifest, sources, arguments, columns, format_, surveyed.text_columns)


def _input_sources(source: str | Path | Sequence[str], target: str) -> list[Source]:
    """The files to score; the result of an earlier command in the same folder is none."""
    sources = find_sources(source)
    if len(sources) > 1 and target != STANDARD_OUTPUT:
        target_path = file_system(target, DataError)[1]
        # Of a cluster the result is a folder.
        own = f"{target_path}/"
        sources = [file for file in sources if not f"{file.path}/".startswith(own)]
    return sources


def _schema(surveyed: Survey, added: dict[str, str], kind: str) -> object:
    """The Arrow schema of the result."""
    import pyarrow

    fields = [pyarrow.field(name, arrow_type(key)) for key, name in added.items()]
    schema = pyarrow.schema([*surveyed.fields, *fields], metadata=surveyed.metadata)
    refuse_unwritable(schema, kind)
    return schema


def ending_of(target: str) -> str:
    """The ending of a result's name that says its format, with that of the compression."""
    endings = PurePosixPath(target).suffixes
    return "".join(endings[-2:] if endings[-1].lower() in COMPRESSIONS else endings[-1:])


def _format_of(target: str) -> tuple[str, str | None]:
    """The format and the compression of a result, by its name; standard output is JSON lines.

    Raises:
        DataError: the name has no known ending.
    """
    if target == STANDARD_OUTPUT:
        return "jsonl", None
    endings = [ending.lower() for ending in PurePosixPath(target).suffixes]
    compression = COMPRESSIONS.get(endings[-1]) if endings else None
    endings = endings[:-1] if compression else endings
    kind = KINDS.get(endings[-1]) if endings else None
    if kind is None or (compression and kind in ("parquet", "arrow")):
        raise DataError(
            f"{target}: the result must end in {', '.join(KINDS)}; those of text may end in "
            "another .gz or .zst"
        )
    return kind, compression
