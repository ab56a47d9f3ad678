"""Files or a hub data set → rows of text and labels, each usable or with its problem."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from training.common.errors import DataError
from training.data.blocks import BLOCK_ROWS, Block, Problem, TableBlock, shortened
from training.data.findings import Places, Remark, Rows
from training.data.labels import LabelReader, lists_in_text
from training.data.layouts import TOOL_COLUMNS, Layout, Layouts, LeftOut, one_hot
from training.data.readers import ReadingKeys, read_blocks
from training.recipe.arguments import DataArguments

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

# The number of columns that a message shows where one is missing.
SHOWN_COLUMNS = 20
# The ways in which people write a tab.
TABS = {"tab": "\t", "\\t": "\t"}


def keys_of(arguments: DataArguments) -> ReadingKeys:
    """The keys of a recipe that say how its files are written.

    Raises:
        DataError: the delimiter is not one character.
    """
    delimiter = TABS.get(arguments.delimiter or "", arguments.delimiter)
    if delimiter is not None and len(delimiter) != 1:
        raise DataError(f"delimiter is {delimiter!r}: it is one character, such as ';', or tab")
    return ReadingKeys(delimiter, arguments.encoding)


def read_files(
    named: str | Sequence[str],
    arguments: DataArguments,
    columns: Sequence[str] = (),
    optional_columns: Sequence[str] = (),
) -> tuple[Rows, dict[str, list[Any]]]:
    """Every row of files, sound or not, and the values of `columns` beside them.

    Those of `optional_columns` are None where a file does not have them.

    Raises:
        DataError: a file or column cannot be used, or there are no rows.
    """
    wanted = [arguments.text_column, *(arguments.label_columns or [arguments.label_column])]
    optional = (arguments.text_pair_column, arguments.group_column, arguments.time_column)
    wanted += [column for column in optional if column is not None]
    every = [*columns, *optional_columns]
    named = [named] if isinstance(named, str) else named
    where = named[0] if len(named) == 1 else f"{named[0]} and {len(named) - 1} more"
    responses = (
        f"{arguments.label_column}.responses",
        f"{arguments.label_column}.responses.status",
    )
    blocks = read_blocks(
        named, [*wanted, *every, *TOOL_COLUMNS, *responses], keys_of(arguments), looked_for=wanted
    )
    return collect(blocks, where, arguments, columns, optional_columns)


def read_dataset(table: Dataset, where: str, arguments: DataArguments) -> Rows:
    """Every row of a split of a hub data set, sound or not.

    Raises:
        DataError: a column cannot be used, or there are no rows.
    """
    from datasets import ClassLabel

    inner = {name: getattr(feature, "feature", feature) for name, feature in table.features.items()}
    numbered = {
        name: feature.names for name, feature in inner.items() if isinstance(feature, ClassLabel)
    }

    def blocks() -> Iterator[Block]:
        start = 0
        for part in table.with_format("arrow").iter(BLOCK_ROWS):
            yield TableBlock(where, start, part.column_names, table=part, numbered=numbered)
            start += len(part)

    return collect(blocks(), where, arguments)[0]


def collect(
    blocks: Iterator[Block],
    where: str,
    arguments: DataArguments,
    columns: Sequence[str] = (),
    optional_columns: Sequence[str] = (),
) -> tuple[Rows, dict[str, list[Any]]]:
    """Texts and labels of blocks, and the values of `columns` beside them.

    Raises:
        DataError: a column is not there, or there are no rows.
    """
    collector = _Collector(where, arguments, columns, optional_columns)
    for block in blocks:
        collector.add(block)
    if not collector.texts:
        raise DataError(f"{where} holds no rows")
    return collector.rows(), collector.beside


class _Collector:
    """The rows of the blocks so far."""

    def __init__(
        self,
        where: str,
        arguments: DataArguments,
        columns: Sequence[str],
        optional_columns: Sequence[str],
    ) -> None:
        self.where = where
        self.arguments = arguments
        self.texts: list[Any] = []
        self.beside: dict[str, list[Any]] = {column: [] for column in (*columns, *optional_columns)}
        self._needed = columns
        self._split_by: dict[str, list[Any]] = {}
        self._labels: list[Any] = []
        self._columns: list[str] = []
        self._problems: dict[int, Problem] = {}
        self._places = Places()
        self._layouts = Layouts(arguments.text_column, arguments.label_column)
        self._looked_at: set[str] = set()

    def add(self, block: Block) -> None:
        # The header of a table does not show the fields of its objects.
        if not len(block) and isinstance(block, TableBlock):
            return
        if self.arguments.label_columns:
            layout = one_hot(self.arguments.text_column, self.arguments.label_columns)
        else:
            layout = self._layouts.of(block)
        if block.file not in self._looked_at:
            self._refuse_missing(block, layout)
        if not len(block):
            return
        self._looked_at.add(block.file)
        start = len(self.texts)
        self._places.add(block, start)
        self._problems |= {start + place: problem for place, problem in block.problems.items()}
        texts = block.values(layout.text_column)
        if self.arguments.text_pair_column is not None:
            pairs = block.values(self.arguments.text_pair_column)
            texts = list(zip(texts, pairs, strict=True))
        self.texts += texts
        self._labels += layout.labels(block)
        for column, kept in self.beside.items():
            kept += block.values(column)
        self._columns = self._columns or block.columns
        for optional in (self.arguments.group_column, self.arguments.time_column):
            # Whether a split needs them is decided later.
            if optional is not None and block.resolves(optional):
                values = self._split_by.setdefault(optional, [])
                values += [None] * (start - len(values))
                values += block.values(optional)

    def _refuse_missing(self, block: Block, layout: Layout) -> None:
        arguments = self.arguments
        needed: dict[str, Sequence[str | None]] = {
            "text_column": [layout.text_column],
            "text_pair_column": [arguments.text_pair_column],
            "label_columns" if arguments.label_columns else "label_column": layout.columns,
            "--slices": self._needed,
        }
        for key, names in needed.items():
            for name in names:
                if name is not None and not block.resolves(name):
                    raise DataError(no_column(block, name, key))

    def rows(self) -> Rows:
        lists = None
        if self.arguments.label_separator is None and not self.arguments.label_columns:
            lists = lists_in_text(self._labels)
        reader = LabelReader(self.arguments.label_column, self.arguments.label_separator)
        labels: list[tuple[str, ...]] = []
        spaced: list[int] = []
        left_out: dict[int, str] = {}
        for row, value in enumerate(lists or self._labels):
            names = reader.read(value)
            if isinstance(names, Problem):
                self._problems.setdefault(row, names)
                names = ()
            elif isinstance(names, LeftOut):
                if row not in self._problems:
                    left_out[row] = names.reason
                names = ()
            elif reader.is_spaced(value):
                spaced.append(row)
            labels.append(names)
        several = reader.several or bool(self.arguments.label_columns)
        remarks = [*_left_out(left_out), *_spaced(spaced)]
        if lists is not None or reader.choices:
            message = "its labels are a list in one cell: a row may have several"
            remarks.append(Remark("label_lists", message, [0]))
        remarks += self._one_each(labels, several and reader.lists)
        return Rows(
            self.where,
            self.texts,
            labels,
            several,
            self._problems,
            frozenset(left_out),
            remarks,
            self._places,
            self._groups(),
            self._padded(self.arguments.time_column),
            self._columns,
        )

    def _padded(self, column: str | None) -> list[Any] | None:
        """The values of a column, for every row; None where no file has the column."""
        if column is None or column not in self._split_by:
            return None
        values = self._split_by[column]
        return values + [None] * (len(self.texts) - len(values))

    def _groups(self) -> list[str | None] | None:
        values = self._padded(self.arguments.group_column)
        if values is None:
            return None
        return [None if value is None or not str(value).strip() else str(value) for value in values]

    def _one_each(self, labels: Sequence[tuple[str, ...]], lists: bool) -> Iterator[Remark]:
        """Remark that no list has more than one label, as doccano writes them."""
        if lists and all(len(names) <= 1 for names in labels):
            column = self.arguments.label_column
            message = (
                "every row has a list of at most one label, and is taken to allow several, each "
                f"decided by itself: for one label a row set label_column: {column}.0"
            )
            yield Remark("lists_of_one", message, [])


def _left_out(rows: dict[int, str]) -> Iterator[Remark]:
    for reason in dict.fromkeys(rows.values()):
        places = [row for row, why in rows.items() if why == reason]
        yield Remark("left_out", f"it is left out: {reason}", places)


def _spaced(rows: list[int]) -> Iterator[Remark]:
    if rows:
        message = "white space around its label was taken away"
        yield Remark("label_spaces", message, rows)


def shown_columns(columns: Sequence[str]) -> str:
    """The first columns for a message, each cut where it is long."""
    shown = ", ".join(shortened(column) or "''" for column in columns[:SHOWN_COLUMNS])
    more = len(columns) - SHOWN_COLUMNS
    return f"{shown} and {more} more" if more > 0 else shown


def no_column(block: Block, name: str, key: str) -> str:
    """The message where a block lacks the column `name`, which the key `key` names."""
    if not block.columns and block.problems:
        return f"{block.file}, row 1: {block.problems[0].message}"
    columns = block.columns
    problem = f"{block.file} has no column {name!r}, it has {shown_columns(columns)}: "
    if key == "--slices":
        return f"{problem}slice by one of these"
    if key == "label_column" and len(columns) > 2:
        return (
            f"{problem}name the right one with label_column, or with label_columns those that hold "
            "0 and 1"
        )
    header = ", or add a header line" if any(" " in column for column in columns) else ""
    return f"{problem}name the right one with {key}{header}"
