"""A file as a table: CSV, JSONL, JSON and Parquet, through `datasets`."""

from __future__ import annotations

import codecs
import csv
import glob
import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

FORMATS = {".csv": "csv", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
# Stands for bytes that are not UTF-8 while a file is read: private characters, so that no text
# holds it by itself.
UNDECODABLE = "\U0010fffd\ufffd\U0010fffd"
# Of a JSON file so much is looked at to find where it begins.
BEGINNING_BYTES = 1 << 16


def read_table(path: Path) -> Dataset:
    """One file as a table; bytes that are not UTF-8 become UNDECODABLE.

    Raises:
        DataError: it is absent, of another format, or malformed.
    """
    from datasets import DatasetDict, Features, Value, config, load_dataset
    from datasets.exceptions import DatasetGenerationError

    kind = FORMATS.get(path.suffix.lower())
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    if kind is None:
        raise DataError(f"{path}: files end in {', '.join(FORMATS)}")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty")
    options: dict[str, Any] = {}
    begins = _beginning(path) if kind == "json" else 0
    if kind != "parquet" and (begins or not _is_utf8(path)):
        return _read_copy(path, begins)
    if kind == "csv":
        columns = csv_header(path)
        # All columns as text: `NA` and `null` are words, `007` is not 7. A nameless column is
        # called as pandas will call it.
        names = [column or f"Unnamed: {index}" for index, column in enumerate(columns)]
        options["features"] = Features({name: Value("string") for name in names})
        options["keep_default_na"] = False
        options["encoding"] = "utf-8-sig"
    try:
        # Not what `datasets` keeps: it knows a file by path and time, and another file that was
        # copied there with the same time would be the old one. What is mapped into memory stays
        # when its name is gone.
        kept = Path(config.HF_DATASETS_CACHE)
        kept.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="whetstone-", dir=kept) as cache:
            table = load_dataset(
                kind,
                data_files=glob.escape(str(path)),
                split="train",
                cache_dir=cache,
                **options,
            )
    except (DatasetGenerationError, ValueError, OSError, TypeError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        if "corresponds to no data" in reason:
            raise DataError(f"{path} holds no rows") from None
        raise DataError(f"{path} cannot be read as {kind.upper()}: {reason}") from error
    assert not isinstance(table, DatasetDict)  # noqa: S101 - a split was named
    return table


def plain(value: Any) -> Any:
    """A value of a table as CSV or JSON would have it; bytes that are not UTF-8 are marked."""
    if isinstance(value, bytes):
        return re.sub("[\udc80-\udcff]+", UNDECODABLE, value.decode("utf-8", "surrogateescape"))
    if isinstance(value, list):
        return [plain(part) for part in value]
    return None if value != value else value


def marked(text: object) -> bool:
    """Whether it held bytes that are not UTF-8."""
    return isinstance(text, str) and UNDECODABLE in text


def _is_utf8(path: Path) -> bool:
    with path.open("rb") as handle:
        try:
            for line in handle:
                line.decode("utf-8")
        except UnicodeDecodeError:
            return False
    return True


def _beginning(path: Path) -> int:
    """How many bytes of a JSON file come before its first row: white space, a byte order mark.

    Raises:
        DataError: it does not begin as rows do, at which the reader would crash.
    """
    with path.open("rb") as handle:
        head = handle.read(BEGINNING_BYTES)
    content = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if content[:1] not in (b"{", b"["):
        refuse_undecodable(path)
        raise DataError(f"{path} holds no rows: JSON rows begin with {{, or a list of them with [")
    return len(head) - len(content)


def _read_copy(path: Path, begins: int) -> Dataset:
    """A file by way of a copy, from byte `begins` on, that marks bytes that are not UTF-8.

    Raises:
        DataError: its first line has such bytes, as where it is in another encoding altogether.
    """
    with tempfile.TemporaryDirectory(prefix="whetstone-") as folder:
        copy = Path(folder) / path.name
        with path.open("rb") as source, copy.open("wb") as target:
            source.seek(begins)
            for number, line in enumerate(source, start=1):
                try:
                    line.decode("utf-8")
                except UnicodeDecodeError as error:
                    if number == 1:
                        raise DataError(
                            f"{path}, line 1: byte {error.start + 1} is not UTF-8: save the file "
                            "as UTF-8"
                        ) from None
                    escaped = line.decode("utf-8", "surrogateescape")
                    marked = re.sub("[\udc80-\udcff]+", UNDECODABLE, escaped)
                    target.write(marked.encode())
                else:
                    target.write(line)
        try:
            return read_table(copy)
        except DataError as error:
            raise DataError(str(error).replace(str(copy), str(path))) from error


def csv_header(path: Path) -> list[str]:
    """Column names of a CSV file."""
    csv.field_size_limit(1 << 30)
    with path.open(newline="", encoding="utf-8-sig") as handle:
        reader = csv.reader(handle)
        columns = next(reader, [])
        first = next(filter(None, reader), [])
        if len(first) > len(columns):
            # pandas would take the first column for an index.
            raise DataError(f"{path}, line {reader.line_num}: more cells than columns")
    if not columns:
        raise DataError(f"{path} is empty: it has no header")
    refuse_doubled(path, columns)
    return columns


def refuse_doubled(path: Path, columns: Sequence[str]) -> None:
    """Raise DataError where two columns have one name."""
    doubled = [column for column, count in Counter(columns).items() if count > 1]
    if doubled:
        raise DataError(f"{path} has two columns named {doubled[0]!r}")


def refuse_undecodable(path: Path) -> None:
    """Raise DataError naming the first line of `path` that is not UTF-8."""
    with path.open("rb") as handle:
        for number, line in enumerate(handle, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}, line {number}: byte {error.start + 1} is not UTF-8: "
                    "save the file as UTF-8"
                ) from None
