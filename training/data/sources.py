"""Names that a user gives → files: local, at an address, in a folder, from standard input.

find_sources("exports/2024-*.csv.gz")
find_sources(["s3://bucket/tickets/", "more.jsonl"])
"""

from __future__ import annotations

import glob
import gzip
import hashlib
import io
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from training.common.errors import DataError
from training.common.storage import file_system, one_sentence, without_query

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

STANDARD_INPUT, STANDARD_INPUT_NAME = "-", "standard input"
# The ending of a name → the format of the content; `text` may be several formats.
FORMATS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "lines",
    ".ndjson": "lines",
    ".json": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".txt": "text",
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
ENDINGS = ", ".join(FORMATS)
# The bytes by which the format of a file is recognized.
HEAD_BYTES = 1 << 20


class Content(io.RawIOBase):
    """The bytes of a file; `head` are the first of them, and still to be read."""

    def __init__(self, name: str, raw: Any, content: Any, head: bytes) -> None:
        self._name = name
        self._raw = raw
        self._content = content
        self._unread = memoryview(head)
        self.head = head
        self.position = 0

    def readable(self) -> bool:
        """Whether it can be read: always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer; `position` is how much of the stored file was read so far."""
        data = self._unread[: len(buffer)]
        if not data:
            with one_sentence(self._name, DataError):
                data = self._content.read(len(buffer))
        self._unread = self._unread[len(data) :]
        buffer[: len(data)] = data
        self.position = self._raw.tell()
        return len(data)

    def close(self) -> None:
        """Close the stored file, too."""
        if not self.closed:
            self._content.close()
            self._raw.close()
        super().close()

    def as_file(self) -> Any:
        """A file with random access: the file itself, or a copy that is deleted when closed."""
        if self._content is self._raw and self._raw.seekable():
            self._raw.seek(0)
            return self._raw
        copy = tempfile.TemporaryFile(prefix="whetstone-")  # noqa: SIM115 - the caller closes it
        shutil.copyfileobj(io.BufferedReader(self, HEAD_BYTES), copy)
        copy.seek(0)
        return copy


@dataclass(frozen=True)
class Source:
    """One file; `name` is what people call it, and `state` changes when the file does.

    `rows` are those to read, all of them when None; only of Parquet some can be read by themselves.
    """

    name: str
    path: str
    fs: AbstractFileSystem
    state: tuple[Any, ...]
    rows: range | None = None

    @property
    def size(self) -> int | None:
        """The size in bytes, as it is stored; None where it is not known."""
        size = self.state[0]
        return size if isinstance(size, int) else None

    @property
    def compression(self) -> str | None:
        """The compression of the content, by the file's name."""
        endings = _endings(self.path)
        return COMPRESSIONS.get(endings[-1]) if endings else None

    @property
    def format(self) -> str | None:
        """A value of FORMATS, by the file's name; None where the name says nothing.

        A pipe or an address on the web needs no such name.
        """
        is_nameless = self.name == STANDARD_INPUT_NAME or self.name.startswith("http")
        return _format(_endings(self.path)) or ("text" if is_nameless else None)

    @property
    def is_tabbed(self) -> bool:
        """Whether the file's name says that tabs separate its columns."""
        return ".tsv" in _endings(self.path)

    def open(self) -> Content:
        """The content, decompressed.

        Raises:
            DataError: it cannot be opened.
        """
        with one_sentence(self.name, DataError):
            raw: Any = self.fs.open(self.path, "rb")
            content = raw
            if self.compression == "gzip":
                content = gzip.GzipFile(fileobj=raw)
            elif self.compression == "zstd":
                import pyarrow

                content = pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, "r"), "zstd")
            return Content(self.name, raw, content, _read_fully(content, HEAD_BYTES))

    def refuse_change(self) -> None:
        """Raise DataError where the file is no longer what it was when it was found."""
        if _state(self.fs, self.path) != self.state:
            raise DataError(
                f"{self.name} changed while it was read: wait until it is written, then give the "
                "same command again"
            )


def find_sources(named: str | Path | Sequence[str | Path]) -> list[Source]:
    """The files of a name, an address, a folder, a pattern, or a list of these.

    A folder gives the files with an ending of FORMATS and COMPRESSIONS, in the order of their
    names. Names that begin with a dot or an underscore are left out, as Spark's and Hive's own do.

    Raises:
        DataError: there is no such file, or none in the folder.
    """
    if isinstance(named, str | Path):
        return _find(str(named))
    return [source for each in named for source in _find(str(each))]


def sha256_of(named: str | Path) -> str:
    """The SHA-256 of the files' bytes, as they are stored, one file after another.

    Raises:
        DataError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for source in find_sources(named):
        with one_sentence(source.name, DataError), source.fs.open(source.path, "rb") as content:
            while part := content.read(HEAD_BYTES):
                digest.update(part)
    return digest.hexdigest()


def _find(named: str) -> list[Source]:
    if named == STANDARD_INPUT:
        return [_standard_input()]
    shown = without_query(named)
    protocol, separator, rest = named.partition("://")
    if separator and not rest.strip("/"):
        raise DataError(f"{named} names no file: write all of it, as {protocol}://bucket/file.csv")
    path = named if "://" in named else str(Path(named).expanduser())
    fs, path = file_system(path, DataError)
    with one_sentence(named, DataError):
        if fs.isdir(path):
            files = [file for file in sorted(fs.find(path)) if _is_data(file, path)]
            if not files:
                raise DataError(f"{shown} holds no file to read: their names end in {ENDINGS}")
        elif fs.exists(path):
            files = [path]
        elif glob.has_magic(path):
            files = sorted(fs.glob(path))
            if not files:
                raise DataError(f"no file is named like {shown}")
        else:
            raise DataError(f"there is no file {shown}")
        is_named = files == [path]
        sources = [
            Source(shown if is_named else _name(fs, file), file, fs, _state(fs, file))
            for file in files
        ]
        # Spark leaves shards without a row.
        return [source for source in sources if source.size != 0] or sources


def _is_data(path: str, folder: str) -> bool:
    inside = path.removeprefix(folder).strip("/")
    hidden = any(part.startswith((".", "_")) for part in inside.split("/"))
    return not hidden and _format(_endings(path)) is not None


def _endings(path: str) -> list[str]:
    """The endings of a file's name, in lower case: `.csv`, `.gz`."""
    path = urlsplit(path).path if "://" in path else path
    return [ending.lower() for ending in PurePosixPath(path).suffixes]


def _format(endings: list[str]) -> str | None:
    uncompressed = endings[:-1] if endings and endings[-1] in COMPRESSIONS else endings
    return FORMATS.get(uncompressed[-1]) if uncompressed else None


def _standard_input() -> Source:
    """A copy of standard input: a file's head is looked at before the file is read."""
    copy = tempfile.NamedTemporaryFile(prefix="whetstone-")  # noqa: SIM115 - until the end
    _copies.append(copy)
    shutil.copyfileobj(sys.stdin.buffer, copy)
    copy.flush()
    fs, path = file_system(copy.name, DataError)
    return Source(STANDARD_INPUT_NAME, path, fs, _state(fs, path))


# They are deleted when this process ends.
_copies: list[Any] = []


def _name(fs: AbstractFileSystem, path: str) -> str:
    """A file as people would name it."""
    from fsspec.implementations.local import LocalFileSystem

    if not isinstance(fs, LocalFileSystem):
        return str(fs.unstrip_protocol(path))
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return path


def _state(fs: AbstractFileSystem, path: str) -> tuple[Any, ...]:
    """The size in bytes, then everything that the file system says of when it was written."""
    info = fs.info(path)
    marks = (info.get(key) for key in ("mtime", "ETag", "etag", "LastModified", "generation"))
    return (info.get("size"), *(str(mark) for mark in marks if mark is not None))


def _read_fully(stream: Any, size: int) -> bytes:
    """`size` bytes, or all that are left: a pipe gives no more at once than it has."""
    parts = []
    while size > 0 and (part := stream.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
