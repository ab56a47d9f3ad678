"""Captured files → answers and feedback, one by one, wherever the files lie."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from pydantic import ValidationError

from service.capture.records import PART_ENDING, CapturedAnswer, Feedback, parse_line
from training.common.errors import DataError
from training.common.progress import progress
from training.common.storage import Place, file_system, one_sentence

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

Key = tuple[str, int]
AGO = re.compile(r"(\d{1,5})([hd])")
UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1)}
# Younger unfinished files may be those of a server that writes them now.
ABANDONED = timedelta(minutes=1)
# As `service.package.files.write_bytes` names a file that it has not finished.
# A part's folder is the day on which it was written: after its lines, by clocks nearly alike.
DAY = re.compile(r"/(\d{4}-\d{2}-\d{2})/[^/]+$")
CLOCKS_APART = timedelta(hours=1)
# A bucket answers each request after some milliseconds, and there are thousands of parts.
READ_AT_ONCE = 16
UNFINISHED = re.compile(rf"/\.[^/]+{re.escape(PART_ENDING)}\.\d+\.tmp$")


@dataclass
class Reading:
    """What was seen while captured files were read.

    Attributes:
        broken_lines: lines that are none, such as the last one of a part that was cut off.
        other_versions: answers by the versions that were not asked for.
    """

    broken_lines: int = 0
    other_versions: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Captured:
    """Captured files and which of their lines are wanted.

    Attributes:
        parts: the files, those of earlier days first.
        since, until: lines of this time span only; None is no bound.
        version: answers of this version of the model only; None is all.
        unfinished: hidden files of parts that were never finished; their lines are not read.
    """

    parts: tuple[Place, ...]
    since: datetime | None = None
    until: datetime | None = None
    version: str | None = None
    unfinished: tuple[Place, ...] = ()

    def answers(self, reading: Reading | None = None) -> Iterator[CapturedAnswer]:
        """The answers, in the order in which they were written."""
        reading = Reading() if reading is None else reading
        for line in self._lines(reading):
            if not isinstance(line, CapturedAnswer):
                continue
            if self.version is not None and line.version != self.version:
                others = reading.other_versions
                others[line.version] = others.get(line.version, 0) + 1
                continue
            yield line

    def feedback(self) -> dict[Key, Feedback]:
        """What is known of answers, by request and place; of several lines the last counts.

        Feedback may come long after its answer: no end of a time span bounds it.
        """
        whole = Captured(self._recent_parts())
        found: dict[Key, Feedback] = {}
        # Answers are most of the lines: they are not parsed for this.
        for line in whole._lines(Reading(), b'"feedback"'):
            if isinstance(line, Feedback):
                key = line.id, line.index
                if key not in found or found[key].time <= line.time:
                    found[key] = line
        return found

    def _lines(self, reading: Reading, holding: bytes = b"") -> Iterator[CapturedAnswer | Feedback]:
        parts = self._recent_parts()
        with progress(len(parts), "captured", "part") as bar:
            for content in _contents(parts):
                for text in content.split(b"\n"):
                    if not text.strip() or holding not in text:
                        continue
                    try:
                        line = parse_line(text)
                    except ValidationError:
                        reading.broken_lines += 1
                        continue
                    if self._is_wanted(line.time):
                        yield line
                bar.update()

    def _recent_parts(self) -> tuple[Place, ...]:
        """The parts that can hold lines from `since` on."""
        if self.since is None:
            return self.parts
        first = (self.since.astimezone(UTC) - CLOCKS_APART).date().isoformat()
        found = ((DAY.search(part.path), part) for part in self.parts)
        return tuple(part for day, part in found if day is None or day[1] >= first)

    def _is_wanted(self, moment: datetime) -> bool:
        return (self.since is None or moment >= self.since) and (
            self.until is None or moment < self.until
        )


def _contents(parts: Sequence[Place]) -> Iterator[bytes]:
    """What each part holds; several are read at a time."""

    def read(part: Place) -> bytes:
        with one_sentence(part.url, DataError):
            content: bytes = part.fs.cat_file(part.path)
            return content

    with ThreadPoolExecutor(READ_AT_ONCE) as pool:
        for first in range(0, len(parts), READ_AT_ONCE):
            yield from pool.map(read, parts[first : first + READ_AT_ONCE])


def find_captured(
    names: Sequence[str],
    since: datetime | None = None,
    until: datetime | None = None,
    version: str | None = None,
) -> Captured:
    """The captured files that `names` name: folders, addresses of folders, or single parts.

    Raises:
        DataError: a name is not there, or nothing was captured there.
    """
    parts: dict[str, Place] = {}
    unfinished: dict[str, Place] = {}
    for name in names:
        fs, path = file_system(name, DataError)
        with one_sentence(name, DataError):
            if fs.isdir(path):
                files = fs.find(path)
                found = [file for file in files if file.endswith(PART_ENDING)]
                hidden = [file for file in files if UNFINISHED.search(file) and _is_left(fs, file)]
                unfinished |= {file: Place(fs, file, file) for file in hidden}
            elif fs.exists(path):
                found = [path]
            else:
                raise DataError(f"{name}: there is no such file or folder")
        if not found and not unfinished:
            raise DataError(f"{name} holds no captured part (*{PART_ENDING})")
        parts |= {file: Place(fs, file, file) for file in found}
    ordered = sorted(parts.values(), key=lambda part: part.path)
    return Captured(tuple(ordered), since, until, version, tuple(unfinished.values()))


def _is_left(fs: AbstractFileSystem, path: str) -> bool:
    """Whether no server is writing an unfinished file any more."""
    try:
        return bool(datetime.now(UTC) - fs.modified(path) > ABANDONED)
    except FileNotFoundError:
        # It has its proper name by now.
        return False


def parse_moment(text: str) -> datetime:
    """A time as a user writes it, such as 2026-11-28 or 2026-11-28T09:30; UTC if it says none.

    `12h` is twelve hours ago, and `7d` seven days.

    Raises:
        DataError: it is none.
    """
    ago = AGO.fullmatch(text)
    if ago is not None:
        return datetime.now(UTC) - int(ago[1]) * UNITS[ago[2]]
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise DataError(
            f"{text!r} is no time: write it as 2026-11-28, 2026-11-28T09:30 or 7d"
        ) from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
