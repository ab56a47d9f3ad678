"""API keys: who may ask, by a file of hashes that is read again when it changes.

A line is `sha256:<64 hexadecimal digits>` and, after a space, whatever tells its owner; empty
lines and those that begin with `#` are passed over. Several lines let a new
key in before an old one goes:

    KEY=$(openssl rand -hex 32)
    echo "sha256:$(printf %s "$KEY" | sha256sum | cut -d' ' -f1) checkout team" >> keys

A key must be random and long, as that one is: a plain hash protects no password.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
from pathlib import Path
from time import monotonic

logger = logging.getLogger("bentoml.service")

LINE = re.compile(r"sha256:([0-9a-fA-F]{64})(?:\s|$)")
# A change of the file counts after at most this time.
SECONDS_BETWEEN_LOOKS = 1.0


class ApiKeysError(Exception):
    """The file cannot be used; the message names it and the line."""


class ApiKeys:
    """The keys of one file.

    Raises:
        ApiKeysError: the file cannot be read, holds a malformed line, or no key at all.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        # Before it is read: what changes meanwhile is a change.
        self._seen = _identity(path)
        self._hashes = read_hashes(path)
        self._next_look = monotonic() + SECONDS_BETWEEN_LOOKS
        # Why the file could not be used when it was last read; None where it could.
        self._problem: str | None = None

    def __len__(self) -> int:
        """How many keys are accepted."""
        return len(self._hashes)

    def accept(self, authorization: bytes | None) -> bool:
        """Whether the value of an `Authorization` header names one of the keys.

        Every hash is compared, and each in constant time, so the time taken tells nothing.
        """
        self._look_again()
        scheme, _, key = (authorization or b"").strip().partition(b" ")
        digest = hashlib.sha256(key.strip()).digest()
        found = False
        for expected in self._hashes:
            found |= hmac.compare_digest(digest, expected)
        # No key is no key, though the line of one that was never set stands in the file.
        return found and scheme.lower() == b"bearer" and bool(key.strip())

    def _look_again(self) -> None:
        """Read the file again where it changed; one that cannot be used changes nothing."""
        now = monotonic()
        if now < self._next_look:
            return
        self._next_look = now + SECONDS_BETWEEN_LOOKS
        seen = _identity(self._path)
        # What mends a file that could not be used, such as other permissions, need not show.
        if seen == self._seen and self._problem is None:
            return
        self._seen = seen
        try:
            self._hashes = read_hashes(self._path)
        except ApiKeysError as error:
            if str(error) != self._problem:
                logger.error("the API keys stay as they were: %s", error)
            self._problem = str(error)
        else:
            self._problem = None
            logger.info("%s was read again: %d keys", self._path, len(self))


def read_hashes(path: Path) -> tuple[bytes, ...]:
    """The hashes of a file.

    Raises:
        ApiKeysError: as `ApiKeys`.
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
            # Not the line itself: somebody may have written the key there.
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
    """What changes when the file does, also when a symbolic link is pointed elsewhere."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
