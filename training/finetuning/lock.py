"""One process at a time works in a run folder."""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from training.distributed import is_first
from training.errors import RunError
from training.layout import LOCK_FILE

logger = logging.getLogger(__name__)

# Folders that this process works in: what is locked by a step of the chain is so by all of it.
_locked: set[Path] = set()


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """No other process works in `folder` meanwhile; the lock ends with its owner.

    Of several processes that train together the first one holds it. A folder that was not there
    and got nothing else is removed.

    Raises:
        RunError: another process does.
    """
    place = folder.resolve()
    if not is_first() or place in _locked:
        yield
        return
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / LOCK_FILE
    with lock.open("a") as file:
        try:
            # Not flock: what the data loader forks would inherit it, and outlive a kill.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise RunError(
                f"another process works in {folder}: wait for its end, or choose another "
                "--output_dir"
            ) from None
        except OSError:
            logger.warning("%s has no locks: let no other process work in it", folder)
        _locked.add(place)
        try:
            yield
        finally:
            _locked.remove(place)
            if new and list(folder.iterdir()) == [lock]:
                with suppress(OSError):
                    lock.unlink()
                    folder.rmdir()
