"""The name of an image: its repository, a tag for people, and the digest that says which bytes."""

from __future__ import annotations

import re
from dataclasses import dataclass

from training.common.errors import ReleaseError

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
# What podman and buildah put before a name without a registry. No cluster can pull from there.
LOCALHOST = "localhost/"
# Of a digest, so much is shown where people read it.
SHORT_DIGEST = 12


@dataclass(frozen=True)
class ImageName:
    """`NAME:TAG`, `NAME@sha256:…` or `NAME:TAG@sha256:…`.

    A tag can be pushed again with other bytes. A digest cannot, so it is what a cluster is told
    where it is known; then the tag is for people.
    """

    repository: str
    tag: str | None = None
    digest: str | None = None

    @classmethod
    def parse(cls, text: str) -> ImageName:
        """Read a name.

        Raises:
            ReleaseError: it has neither a tag nor a digest, or the digest is none.
        """
        name, separator, digest = text.partition("@")
        if separator and not DIGEST.fullmatch(digest):
            raise ReleaseError(f"{text} has no digest after the @: it is sha256: and 64 digits")
        repository, colon, tag = name.rpartition(":")
        if not colon or "/" in tag:
            # The colon is that of a port.
            repository, tag = name, ""
        if not tag and not digest:
            raise ReleaseError(f"{text} has no tag: name an image as NAME:TAG")
        return cls(repository, tag or None, digest or None)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.repository}{tag}{digest}"

    @property
    def reference(self) -> str:
        """The name as manifests have it: by digest where it is known, else by tag."""
        if self.digest:
            return f"{self.repository}@{self.digest}"
        return f"{self.repository}:{self.tag}"

    @property
    def shown(self) -> str:
        """The name for a table: with tag, and the beginning of the digest."""
        tag = f":{self.tag}" if self.tag else ""
        start = self.digest.partition(":")[2][:SHORT_DIGEST] if self.digest else ""
        return f"{self.repository}{tag}{f'@{start}' if start else ''}"
