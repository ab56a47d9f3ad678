"""One sentence for a full disk, whichever library runs out of room."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from training.common.errors import FullDiskError, WhetstoneError

# An error with less room than this left comes from the lack of room.
FULL_DISK_BYTES = 16 << 20
# The messages of C and Rust, from libraries that pass on no error number.
MESSAGES = ("no space left on device", "disk quota exceeded")


@contextmanager
def full_disk_in_a_sentence(folder: Path, remedy: str) -> Iterator[None]:
    """Raise one error for a lack of room in `folder`, or among the temporary files.

    Each library has an error of its own for it, `tokenizers` a bare `Exception`, and not all of
    them name the cause.

    Args:
        remedy: what to do when there is room again.

    Raises:
        FullDiskError: the disk is full.
    """
    try:
        yield
    except FullDiskError:
        raise
    except Exception as error:
        places = {_existing(folder), Path(tempfile.gettempdir())}
        free = {place: shutil.disk_usage(place).free for place in places}
        fullest = min(free, key=lambda place: free[place])
        unexplained = not isinstance(error, WhetstoneError) and free[fullest] <= FULL_DISK_BYTES
        if not says_full(error) and not unexplained:
            raise
        raise FullDiskError(
            f"no room is left: {fullest} has {free[fullest] / 1e6:.0f} MB free; make room and "
            f"{remedy}"
        ) from error


def says_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says that a disk is full."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(words in str(error).lower() for words in MESSAGES):
            return True
        error = error.__cause__ or error.__context__
    return False


def _existing(folder: Path) -> Path:
    """The folder, or the nearest folder above it that exists."""
    return next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
