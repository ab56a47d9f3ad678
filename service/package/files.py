"""The files of a package: their hashes, and writes that either complete or change nothing."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class PackageError(Exception):
    """A folder is not a package that can be trusted; the message says which file and why."""


class PackageFileError(PackageError):
    """A file of the package is missing, altered or unreadable."""


class PackageFormatError(PackageError):
    """The manifest is not one that this version of Whetstone can read."""


class Strict(BaseModel):
    """An immutable model that refuses unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FileRecord(Strict):
    """The hash and the size in bytes that a file must have."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)


def file_record(path: Path) -> FileRecord:
    """SHA-256 and size in bytes of `path`."""
    with path.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256")
    return FileRecord(sha256=digest.hexdigest(), size=path.stat().st_size)


def write_text(path: Path, content: str) -> None:
    """`write_bytes` of a text, as UTF-8."""
    write_bytes(path, content.encode("utf-8"))


def write_bytes(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Write `content` to a temporary file and rename it, so that no reader sees half a file.

    The content is on the disk before the name is: after a loss of power the file is whole, too.

    Args:
        mode: who may read the file, from its first byte on; the process's umask takes away from it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """An empty folder that replaces `target` when the block succeeds; otherwise nothing changes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        old = temporary.with_name(temporary.name + ".old")
        if target.exists():
            target.rename(old)
        try:
            temporary.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
