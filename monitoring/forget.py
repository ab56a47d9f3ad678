"""Delete what was captured of one request."""

from __future__ import annotations

from pathlib import Path

from fsspec.implementations.local import LocalFileSystem
from pydantic import ValidationError

from monitoring.captured import Captured
from service.capture.records import parse_line, plain_id
from service.capture.store import FolderStore
from training.common.errors import DataError
from training.common.progress import progress
from training.common.storage import Place, one_sentence


def forget(captured: Captured, name: str) -> int:
    """Write each part that holds lines of a request again, without them; how many there were.

    A part is replaced as a whole. One that was empty without them is deleted. Unfinished parts,
    which a server left that was killed, are looked at, too.

    Raises:
        DataError: a part cannot be read or written.
    """
    wanted = plain_id(name)
    count = 0
    parts = [*captured.parts, *captured.unfinished]
    with progress(len(parts), "captured", "part") as bar:
        for part in parts:
            with one_sentence(part.url, DataError):
                content: bytes = part.fs.cat_file(part.path)
                lines = content.splitlines(keepends=True)
                left = [line for line in lines if not _is_of(line, wanted)]
                if len(left) < len(lines):
                    count += len(lines) - len(left)
                    _replace(part, b"".join(left))
            bar.update()
    return count


def _is_of(line: bytes, name: str) -> bool:
    # Most lines do not even hold the name.
    if name.encode() not in line:
        return False
    try:
        return parse_line(line).id == name
    except ValidationError:
        # A line that was cut off, and names the request all the same.
        return True


def _replace(part: Place, content: bytes) -> None:
    path = Path(part.path)
    if not content:
        part.fs.rm_file(part.path)
    elif isinstance(part.fs, LocalFileSystem):
        FolderStore(path.parent).write(path.name, content)
    else:
        # An object of a bucket is replaced as a whole.
        part.fs.pipe_file(part.path, content)
