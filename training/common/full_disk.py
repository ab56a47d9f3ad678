"""A full disk is one sentence, whichever library has found no room."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from training.errors import FullDiskError, WhetstoneError

# What failed with less than this left failed because of it.
FULL_DISK_BYTES = 16 << 20
# As C and Rust say it, to libraries that pass on no number.
SAID = ("no space left on device", "disk quota exceeded")


@contextmanager
def full_disk_in_a_sentence(folder: Path, remedy: str) -> Iterator[None]:
    """Tell of what found no room in `folder`, or among the temporary files.

    Each library that writes has an error of its own for it, `tokenizers` a bare `Exception`, and
    not all of them say why.

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
        if any(words in str(error).lower() for words in SAID):
            return True
        error = error.__cause__ or error.__context__
    return False


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
