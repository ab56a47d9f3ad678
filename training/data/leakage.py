"""Which texts a package was made with, as hashes: whether a file holds any of them can be checked.

    provenance["texts"] = fingerprint(texts)
    found = overlap(manifest, texts)

Of the hashes of all texts the smallest are kept (a bottom-k sketch: Broder 1997, "On the
resemblance and containment of documents"). Up to MOST_HASHES different texts that is all of them;
of more, a sample that any file is sampled alike for, since equal texts have equal hashes.

The hashes keep no text, but who guesses a text can find out whether it was there.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from service.model_package import Manifest, Text

KEY = "texts"
# Two different texts of a million and a thousand collide with probability 0.001.
HASH_BYTES = 5
# 100 kB of hashes, 133 kB in the manifest.
MOST_HASHES = 20_000
HASH = f"sha256, first {HASH_BYTES} bytes"


@dataclass(frozen=True)
class Overlap:
    """`found` of the `looked_at` rows were there; `rows` are their 0-based places.

    `looked_at` is fewer than all rows where the package keeps a sample of its hashes only.
    """

    rows: tuple[int, ...]
    looked_at: int

    @property
    def share(self) -> float:
        """About the share of the file's rows that were there."""
        return len(self.rows) / self.looked_at if self.looked_at else 0.0


def fingerprint(texts: Iterable[Text], most: int = MOST_HASHES) -> dict[str, Any]:
    """The hashes of different texts, smallest first, at most so many of them."""
    hashes = sorted({_hash(text) for text in texts})
    packed = base64.b64encode(b"".join(hashes[:most])).decode()
    return {"different": len(hashes), "hash": HASH, "hashes": packed}


def overlap(manifest: Manifest, texts: Sequence[Text]) -> Overlap | None:
    """Which of `texts` a package was made with; None where it does not say, as older ones."""
    kept = manifest.provenance.get(KEY)
    known = _unpacked(kept)
    if known is None:
        return None
    known_set = set(known)
    hashes = [_hash(text) for text in texts]
    looked_at = hashes
    if kept["different"] > len(known):
        looked_at = [one for one in hashes if one <= known[-1]]
    rows = tuple(row for row, one in enumerate(hashes) if one in known_set)
    return Overlap(rows, len(looked_at))


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
