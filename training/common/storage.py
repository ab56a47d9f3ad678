"""Files and folders that any driver of fsspec reaches, and one sentence for what drivers raise."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from service.capture.store import without_credentials
from service.package.files import PackageError
from training.common.errors import WhetstoneError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

# Errors by name: no driver but fsspec's own need be installed.
NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError")
LONGEST_REASON = 200


@dataclass(frozen=True)
class Place:
    """A file or folder that fsspec reaches: `url` for people, `path` for its file system."""

    fs: AbstractFileSystem
    path: str
    url: str

    def __truediv__(self, name: str) -> Place:
        return Place(self.fs, f"{self.path.rstrip('/')}/{name}", f"{self.url.rstrip('/')}/{name}")


def without_query(url: str) -> str:
    """An address that may be shown: the part after a question mark may be a secret."""
    return url.partition("?")[0] if "://" in url else url


def file_system(url: str, kind: type[WhetstoneError]) -> tuple[AbstractFileSystem, str]:
    """The driver for an address or a path, and the path within it.

    Raises:
        WhetstoneError: of this `kind`, where there is no driver.
    """
    from fsspec.core import url_to_fs
    from fsspec.registry import known_implementations

    protocol, separator, _ = url.partition("://")
    options = {"auto_mkdir": True} if protocol == "file" or not separator else {}
    try:
        # Others may write meanwhile: listings are not cached.
        fs, path = url_to_fs(url, use_listings_cache=False, **options)
    except ImportError:
        driver = known_implementations[protocol]["class"].partition(".")[0]
        raise kind(
            f"{without_query(url)} needs the driver {driver}, which is not installed: "
            f"pip install -c constraints.txt {driver}"
        ) from None
    except ValueError:
        raise kind(f"{without_query(url)}: no driver is known for {protocol}://") from None
    return fs, str(path)


@contextmanager
def one_sentence(url: str, kind: type[WhetstoneError]) -> Iterator[None]:
    """Raise an error of this `kind` for whatever a driver raises, which share only OSError."""
    try:
        yield
    except (WhetstoneError, PackageError):
        raise
    except Exception as error:
        reason = reason_of(error)
        if reason is None:
            raise
        raise kind(f"{without_query(url)}: {reason}") from error


def reason_of(error: Exception) -> str | None:
    """The reason for the user; None for a fault of this project."""
    kind = type(error)
    if kind.__name__ in NO_CREDENTIALS:
        return (
            "there are no credentials for it: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
            "what its driver reads"
        )
    lines = str(error).splitlines() or [kind.__name__]
    message = without_credentials(lines[0])[:LONGEST_REASON]
    if isinstance(error, EOFError):
        return "it breaks off in the middle: was it written to its end?"
    if isinstance(error, FileNotFoundError):
        return "there is no such bucket or folder: make it first"
    if isinstance(error, PermissionError):
        return f"it may not be listed, read or written with the credentials in force ({message})"
    if isinstance(error, FileExistsError | NotADirectoryError | IsADirectoryError):
        return f"something else is in the way ({message})"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "no room is left there: make some, then give the same command again"
    if isinstance(error, OSError) or kind.__module__.partition(".")[0] != "builtins":
        return message
    return None
