"""Where captured parts go: a folder, or a bucket behind an address that fsspec knows."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Protocol

from service.package.files import write_bytes


class StoreError(Exception):
    """The store cannot be used at all; the message says why and what to do."""


class Store(Protocol):
    """Keeps parts by name, each complete or not there."""

    def write(self, name: str, content: bytes) -> None:
        """Keep `content` as `name`, a path with `/`.

        Raises:
            Exception: whatever the store's driver raises; the part is not there then.
        """


class FolderStore:
    """A folder; its files are for this user alone.

    Raises:
        StoreError: nothing can be written there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StoreError(f"{folder} cannot be made: {error.strerror}") from None
        if not os.access(folder, os.W_OK | os.X_OK):
            raise StoreError(f"{folder} cannot be written to")

    def write(self, name: str, content: bytes) -> None:
        """See `Store`."""
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_bytes(path, content, mode=0o600)


class RemoteStore:
    """A bucket: an object appears when it is whole.

    Raises:
        StoreError: the package that reaches it is not installed.
    """

    def __init__(self, address: str) -> None:
        import fsspec

        try:
            # Whole requests within seconds: the writer tries again, and ends with the server.
            self._files, self._root = fsspec.core.url_to_fs(address, **_limits(address))
        except (ImportError, ValueError) as error:
            shown = without_credentials(address)
            raise StoreError(
                f"{shown} cannot be reached: {without_credentials(str(error))}"
            ) from None

    def write(self, name: str, content: bytes) -> None:
        """See `Store`."""
        self._files.pipe_file(f"{self._root.rstrip('/')}/{name}", content)


def open_store(address: str) -> Store:
    """The store at a folder or address.

    Raises:
        StoreError: it cannot be used.
    """
    if "://" in address and not address.startswith("file://"):
        return RemoteStore(address)
    return FolderStore(Path(address.removeprefix("file://")))


def without_credentials(address: str | None) -> str:
    """An address as it may be logged."""
    return re.sub(r"//[^/@\s]*@", "//", address or "")


def _limits(address: str) -> dict[str, Any]:
    if not address.startswith(("s3://", "s3a://")):
        return {}
    timeouts = {"connect_timeout": 5, "read_timeout": 10, "retries": {"max_attempts": 1}}
    return {"config_kwargs": timeouts}
