"""The texts that a package was made with, as hashes, by which a file can be checked for them.

    provenance["texts"] = fingerprint(texts)
    leakage = find_leakage(manifest, texts)

The smallest of all hashes are kept (a bottom-k sketch: Broder 1997, "On the resemblance and
containment of documents"). Up to MOST_HASHES different texts these are all hashes. Of more texts
they are a sample, and every file is sampled in the same way, since equal texts have equal hashes.

The hashes keep no text, but whoever guesses a text can find out whether it was there.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from service.package.manifest import Manifest, Text

KEY = "texts"
# Two different texts of a million and a thousand collide with probability 0.001.
HASH_BYTES = 5
# 100 kB of hashes, 133 kB in the manifest.
MOST_HASHES = 20_000
HASH = f"sha256, first {HASH_BYTES} bytes"


@dataclass(frozen=True)
class Leakage:
    """The 0-based `rows` of a file that the package was made with, among `looked_at` rows.

    `looked_at` is less than the number of rows where the package keeps a sample of its hashes only.
    """

    rows: tuple[int, ...]
    looked_at: int

    @property
    def share(self) -> float:
        """An estimate of the share of the file's rows that the package was made with."""
        return len(self.rows) / self.looked_at if self.looked_at else 0.0


def fingerprint(texts: Iterable[Text], most: int = MOST_HASHES) -> dict[str, Any]:
    """The hashes of different texts, smallest first, at most `most` of them."""
    hashes = sorted({_hash(text) for text in texts})
    packed = base64.b64encode(b"".join(hashes[:most])).decode()
    return {"different": len(hashes), "hash": HASH, "hashes": packed}


def find_leakage(manifest: Manifest, texts: Sequence[Text]) -> Leakage | None:
    """Which of `texts` a package was made with; None where its manifest does not say it."""
    kept: Any = manifest.provenance.get(KEY)
    known = _unpacked(kept)
    if known is None:
        return None
    known_set = set(known)
    hashes = [_hash(text) for text in texts]
    looked_at = hashes
    if kept["different"] > len(known):
        looked_at = [each for each in hashes if each <= known[-1]]
    rows = tuple(row for row, each in enumerate(hashes) if each in known_set)
    return Leakage(rows, len(looked_at))


def known_share(manifest: Manifest) -> float:
    """The share of a package's own texts that it has hashes of; 0 where it has none."""
    kept: Any = manifest.provenance.get(KEY)
    known = _unpacked(kept)
    return 0.0 if known is None else len(known) / max(kept["different"], len(known))


def _unpacked(kept: Any) -> list[bytes] | None:
    """The hashes of a manifest; None where they are not what `fingerprint` makes.

    No hash vouches for a manifest's provenance, so anything may stand there.
    """
    try:
        if kept["hash"] != HASH or not isinstance(kept["different"], int):
            return None
        packed = base64.b64decode(kept["hashes"], validate=True)
    except (KeyError, TypeError, ValueError):
        return None
    known = [packed[at : at + HASH_BYTES] for at in range(0, len(packed), HASH_BYTES)]
    whole = len(packed) % HASH_BYTES == 0 and known == sorted(known)
    return known if known and whole else None


def _hash(text: Text) -> bytes:
    content = json.dumps(text, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return hashlib.sha256(content).digest()[:HASH_BYTES]
