"""The result of an engine with many workers: a folder of parts, as Spark and Hive write tables.

Each part is written whole under a name that follows from the rows in it, and then its record, which
says that it is there. A worker that is killed leaves a part without a record: whoever reads these
rows next writes the same part again. So no row is lost, and none is there twice.
"""

from __future__ import annotations

import uuid
from contextlib import suppress
from dataclasses import dataclass

from training.common.errors import DataError
from training.common.storage import Place, file_system, one_sentence, without_query
from training.scoring.parts import is_local, names_beginning
from training.scoring.pieces import Piece
from training.scoring.tally import Tally

# The name of Hadoop's for a folder that is complete.
SUCCESS = "_SUCCESS"


@dataclass(frozen=True)
class PartsFolder:
    """A folder that a command claimed; `ending` is that of its parts' names.

    Readers of tables, ours too, leave out names that begin with an underscore, as those of records.
    """

    place: Place
    identity: str
    ending: str

    @classmethod
    def claim(cls, target: str, identity: str, ending: str) -> PartsFolder:
        """Make the folder of a result, or find the one that the same command began.

        Raises:
            DataError: it holds something else, or cannot be written.
        """
        fs, path = file_system(target, DataError)
        shown = without_query(target)
        folder = cls(Place(fs, path.rstrip("/"), shown), identity, ending)
        with one_sentence(target, DataError):
            if fs.isfile(path):
                raise DataError(f"{shown} is a file: with this engine the result is a folder")
            names = folder._names() if fs.exists(path) else []
            if SUCCESS in names:
                raise DataError(
                    f"{shown} is complete already: name another folder, or remove this one"
                )
            if names and folder._records.path.rpartition("/")[2] not in names:
                raise DataError(
                    f"{shown} holds something else, or parts of another command (other files, "
                    "package or options): name another folder, or remove this one"
                )
            fs.makedirs(folder._records.path, exist_ok=True)
            # Refuse before any work a place that cannot be written. Buckets have no empty folders.
            fs.pipe_file((folder._records / ".begun").path, b"")
        return folder

    def written(self, piece: Piece) -> dict[str, Tally]:
        """The parts of a piece that are written already, by name.

        Raises:
            DataError: the folder cannot be read.
        """
        with one_sentence(self.place.url, DataError):
            names = names_beginning(self._records.fs, self._records.path, piece.parts_begin)
            records = ((name, (self._records / name).path) for name in names)
            return {
                name: Tally.from_json(self._records.fs.cat_file(path)) for name, path in records
            }

    def add(self, name: str, content: bytes, tally: Tally) -> None:
        """Write a part, then its record.

        Raises:
            DataError: it cannot be written.
        """
        with one_sentence(self.place.url, DataError):
            _write_whole(self.place / f"{name}{self.ending}", content)
            _write_whole(self._records / name, tally.to_json().encode())

    def finish(self, tally: Tally, empty: bytes) -> None:
        """Say that the folder is complete.

        Args:
            tally: what the workers say that they have written.
            empty: a part without rows, for a result without any.

        Raises:
            DataError: parts are not there, or the folder cannot be written.
        """
        with one_sentence(self.place.url, DataError):
            parts = [name for name in self._names() if name.startswith("part-")]
            if len(parts) != tally.parts:
                raise DataError(
                    f"{self.place.url} holds {len(parts)} of {tally.parts} parts that the workers "
                    "wrote: name a bucket, or a folder that all of them share"
                )
            if not parts:
                _write_whole(self.place / f"part-empty{self.ending}", empty)
            self.place.fs.pipe_file((self.place / SUCCESS).path, b"")
            self.place.fs.rm(self._records.path, recursive=True)
            for name in self._names():
                if name.endswith(".tmp"):
                    self.place.fs.rm((self.place / name).path)

    def discard_empty(self) -> None:
        """Remove the folder where it has no part."""
        with suppress(Exception):
            if self._names() == [self._records.path.rpartition("/")[2]]:
                self.place.fs.rm(self.place.path, recursive=True)

    @property
    def _records(self) -> Place:
        return self.place / f"_whetstone-{self.identity}"

    def _names(self) -> list[str]:
        return names_beginning(self.place.fs, self.place.path, "")


def _write_whole(file: Place, content: bytes) -> None:
    """Write a file whole or not at all: one request, or in a folder by a name of this attempt's."""
    if not is_local(file.fs):
        file.fs.pipe_file(file.path, content)
        return
    folder, _, name = file.path.rpartition("/")
    temporary = f"{folder}/.{name}.{uuid.uuid4().hex}.tmp"
    try:
        file.fs.pipe_file(temporary, content)
        file.fs.mv(temporary, file.path)
    except BaseException:
        with suppress(Exception):
            file.fs.rm(temporary)
        raise
