"""One process at a time works in a run folder."""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from training.common.distributed import is_main_process
from training.common.errors import RunError
from training.common.layout import LOCK_FILE

logger = logging.getLogger(__name__)

# The folders that this process works in: the steps of `whetstone run` share one lock.
_locked: set[Path] = set()


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Keep other processes out of `folder`; the lock ends with its process.

    Of several processes that train together the main process holds it. A folder that was made for
    the lock and got no other file is removed.

    Raises:
        RunError: another process works in the folder.
    """
    place = folder.resolve()
    if not is_main_process() or place in _locked:
        yield
        return
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / LOCK_FILE
    with lock.open("a") as file:
        try:
            # Not flock: processes that the data loader forks would inherit it, and survive a kill.
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
