"""Parts of a result: each is written whole, so a killed command can continue after the last."""

from __future__ import annotations

import glob
import logging
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from training.common.errors import DataError
from training.common.storage import file_system, one_sentence, without_query

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

logger = logging.getLogger(__name__)

# Protocols that can list names by their beginning.
BUCKETS = ("s3", "s3a", "gs", "gcs")
PART = re.compile(r"part-(\d{6,})\.(\d+)\.(\d+)")


@dataclass(frozen=True)
class Part:
    """A written part: how many rows it has, and how many of them have no answer."""

    path: str
    rows: int
    failures: int


class Parts:
    """The folder of parts beside a result, `.NAME.IDENTITY.parts`.

    The identity is a digest of the command and everything it reads. Another command has another
    folder, so its parts are never mixed with these.
    """

    def __init__(self, target: str, identity: str) -> None:
        """Raises DataError where there is no driver for the place, or it cannot be used.

        A folder of that name is refused here, before the work.
        """
        self._target = target
        self._fs, self._path = file_system(target, DataError)
        folder, _, name = self._path.rpartition("/")
        begin = f"{folder}/.{name}." if folder else f".{name}."
        self._folder = f"{begin}{identity}.parts"
        with self._sentence():
            if self._fs.isdir(self._path):
                raise DataError(
                    f"{without_query(target)} is a folder: name a file, or remove the folder"
                )
            self._warn_of_others(begin)
            self._fs.makedirs(self._folder, exist_ok=True)
            # Refuse before any work a place that cannot be written. Buckets have no empty folders.
            self._fs.pipe_file(f"{self._folder}/.begun", b"")
            names = self._fs.ls(self._folder, detail=False, refresh=True)
        self.written = {part[0]: part[1] for part in map(_part, names) if part is not None}

    @property
    def place(self) -> str:
        """The folder, as people name it."""
        return self._display_name(self._folder)

    def add(self, index: int, content: bytes, rows: int, failures: int) -> None:
        """Write one part, whole or not at all.

        Raises:
            DataError: it cannot be written; those before it stay.
        """
        path = f"{self._folder}/part-{index:06}.{rows}.{failures}"
        with self._sentence():
            self._write(path, lambda file: file.write(content))
        self.written[index] = Part(path, rows, failures)

    def finish(self, assemble: Callable[[Iterator[BinaryIO], BinaryIO], object]) -> None:
        """Make the result of all parts, and remove them.

        Args:
            assemble: called with an iterator of the open parts and the file to write.

        Raises:
            DataError: it cannot be written, and the parts stay; or they are not there any more.
        """
        with self._sentence():
            try:
                self._write(self._path, lambda file: assemble(self._open(), file))
            except FileNotFoundError:
                raise DataError(
                    f"{self.place}: parts are gone, as where the same command ended meanwhile: if "
                    f"{without_query(self._target)} is not there, give the command again"
                ) from None
            with suppress(FileNotFoundError):
                self._fs.rm(self._folder, recursive=True)

    def discard_empty(self) -> None:
        """Remove the folder where it has no part."""
        if not self.written:
            with suppress(Exception):
                self._fs.rm(self._folder, recursive=True)

    def _warn_of_others(self, begin: str) -> None:
        """Log where parts of other commands with the same result lie.

        They are not removed: a user may want to continue the earlier command.
        """
        if is_local(self._fs):
            names = self._fs.glob(f"{glob.escape(begin)}*.parts")
        elif set(BUCKETS).intersection(_protocols(self._fs)):
            # By their beginning, which lists nothing else.
            folder, _, name = begin.rpartition("/")
            names = self._fs.find(folder, prefix=name)
        else:
            return
        pattern = re.compile(f"({re.escape(begin)}[0-9a-f]{{12}}\\.parts)(?:/.*)?")
        folders = {match[1] for match in map(pattern.fullmatch, names) if match}
        for folder in sorted(folders - {self._folder}):
            logger.warning(
                "%s: parts of another command for the same result (other files, package or "
                "options): remove it, unless that command is to go on",
                self._display_name(folder),
            )

    def _display_name(self, path: str) -> str:
        return path if is_local(self._fs) else str(self._fs.unstrip_protocol(path))

    def _open(self) -> Iterator[BinaryIO]:
        for index in sorted(self.written):
            with self._fs.open(self.written[index].path, "rb") as file:
                yield file

    def _write(self, path: str, write: Callable[[BinaryIO], object]) -> None:
        """Write a file whole or not at all; on a disk by a name that no other command uses.

        That name is in the folder of parts, which is removed with what a killed command left.
        """
        temporary = f"{self._folder}/.{uuid.uuid4().hex}.tmp" if is_local(self._fs) else path
        file = self._fs.open(temporary, "wb")
        try:
            write(file)
            file.close()
            if temporary != path:
                # Unlike a move it never lands in a folder of that name.
                Path(temporary).replace(path)
        except BaseException:
            with suppress(Exception):
                # Closing would keep in a bucket what was written so far.
                file.close() if temporary != path else file.discard()
            if temporary != path:
                with suppress(Exception):
                    self._fs.rm(temporary)
            raise

    @contextmanager
    def _sentence(self) -> Iterator[None]:
        with one_sentence(self._target, DataError):
            yield


def names_beginning(fs: AbstractFileSystem, folder: str, begin: str) -> list[str]:
    """The names in a folder that begin so; of a bucket nothing else is listed."""
    if begin and set(BUCKETS).intersection(_protocols(fs)):
        paths = fs.find(folder, prefix=begin)
    else:
        paths = fs.ls(folder, detail=False, refresh=True)
    names = (path.rstrip("/").rpartition("/")[2] for path in paths)
    return [name for name in names if name.startswith(begin)]


def is_local(fs: AbstractFileSystem) -> bool:
    """Whether files lie on a disk of this machine, or look so."""
    from fsspec.implementations.local import LocalFileSystem

    return isinstance(fs, LocalFileSystem)


def _protocols(fs: AbstractFileSystem) -> Sequence[str]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol


def _part(path: str) -> tuple[int, Part] | None:
    """The index and the part of a path; None where it is no part."""
    match = PART.fullmatch(path.rpartition("/")[2])
    if match is None:
        return None
    return int(match[1]), Part(path, int(match[2]), int(match[3]))
