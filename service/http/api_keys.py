"""API keys: a file of hashes says who may ask. It is read again when it changes.

A line is `sha256:<64 hexadecimal digits>` and, after a space, a note such as its owner. Empty lines
and lines that begin with `#` are ignored. With several lines, a new key can be added before an old
one is removed:

    KEY=$(openssl rand -hex 32)
    echo "sha256:$(printf %s "$KEY" | sha256sum | cut -d' ' -f1) checkout team" >> keys

A key must be long and random, like this one: a plain hash does not protect a password.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
from collections.abc import Callable
from pathlib import Path
from time import monotonic

logger = logging.getLogger("bentoml.service")

LINE = re.compile(r"sha256:([0-9a-fA-F]{64})(?:\s|$)")
# A change of the file takes effect after this time at most.
CHECK_SECONDS = 1.0


class ApiKeysError(Exception):
    """The file cannot be used; the message names the file and the line."""


class ApiKeys:
    """The keys of one file.

    Args:
        path: the file.
        clock: seconds; it never goes back.

    Raises:
        ApiKeysError: the file cannot be read, has a malformed line, or has no key.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = monotonic) -> None:
        self._path = path
        self._clock = clock
        # Before it is read, so that a change meanwhile is noticed.
        self._identity = _identity(path)
        self._hashes = read_hashes(path)
        self._next_check = clock() + CHECK_SECONDS
        # Why the file could not be used the last time; None where it could.
        self._problem: str | None = None

    def __len__(self) -> int:
        """The number of accepted keys."""
        return len(self._hashes)

    def accept(self, authorization: bytes | None) -> bool:
        """Whether the value of an `Authorization` header holds one of the keys.

        Every hash is compared in constant time, so the duration reveals nothing.
        """
        self._check_file()
        scheme, _, key = (authorization or b"").strip().partition(b" ")
        digest = hashlib.sha256(key.strip()).digest()
        matches = False
        for expected in self._hashes:
            matches |= hmac.compare_digest(digest, expected)
        # An empty key is refused, even if the file has its hash: somebody hashed an unset variable.
        return matches and scheme.lower() == b"bearer" and bool(key.strip())

    def _check_file(self) -> None:
        """Read the file again where it changed; an unusable file changes nothing."""
        now = self._clock()
        if now < self._next_check:
            return
        self._next_check = now + CHECK_SECONDS
        identity = _identity(self._path)
        # A repair of an unusable file, such as other permissions, may not change its identity.
        if identity == self._identity and self._problem is None:
            return
        self._identity = identity
        try:
            self._hashes = read_hashes(self._path)
        except ApiKeysError as error:
            if str(error) != self._problem:
                logger.error("the API keys did not change: %s", error)
            self._problem = str(error)
        else:
            self._problem = None
            logger.info("%s was read again: %d keys", self._path, len(self))


def read_hashes(path: Path) -> tuple[bytes, ...]:
    """The hashes of a file.

    Raises:
        ApiKeysError: the file cannot be read, has a malformed line, or has no key.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ApiKeysError(f"the file of API keys {path} cannot be read: {reason}") from None
    hashes = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = LINE.match(line.strip())
        if match is None:
            # Without the line itself: it may hold the key.
            raise ApiKeysError(
                f"line {number} of {path} is not `sha256:` and 64 hexadecimal digits: write the "
                "hash of the key there, not the key"
            )
        hashes.append(bytes.fromhex(match[1]))
    if not hashes:
        raise ApiKeysError(
            f"{path} holds no API key: add one, or unset WHETSTONE_API_KEYS_FILE to serve without"
        )
    return tuple(hashes)


def _identity(path: Path) -> tuple[int, int, int] | None:
    """A value that changes with the file, and also when a symbolic link gets another target."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
