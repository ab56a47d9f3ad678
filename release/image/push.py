"""An image, pushed to where the cluster finds it, and the digest by which the registry knows it."""

from __future__ import annotations

import re
import shlex
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from release.image.commands import reason_in, run_command
from release.image_name import DIGEST
from training.common.errors import ReleaseError

# The last line of `docker push`, which may be followed by a note about the platform.
DOCKER_DIGEST = re.compile(rf"^\S+: digest: ({DIGEST.pattern}) size: \d+$", re.MULTILINE)


@dataclass(frozen=True)
class Pushed:
    """What was done, for the record, in how many seconds, and the image's digest in the registry.

    The digest is None if a command of the user's did it: perhaps there is no registry at all.
    """

    done: str
    digest: str | None
    seconds: float


def push_image(engine: str, image: str, command: str) -> Pushed:
    """Push an image to where the cluster finds it.

    Args:
        command: a command that gets the image's name as its last word; empty for the engine's push.

    Raises:
        ReleaseError: the push failed.
    """
    began = time.monotonic()
    if command:
        words = [*shlex.split(command), image]
        # The words between may be credentials.
        done, digest = f"{words[0]} … {image}", None
        _run(words, done)
    else:
        done = f"{engine} push {image}"
        digest = _push_with(engine, image, done)
    return Pushed(done, digest, round(time.monotonic() - began, 1))


def _push_with(engine: str, image: str, shown: str) -> str | None:
    """Push with the engine's own command; the digest, if the engine says one."""
    if engine == "docker":
        printed = DOCKER_DIGEST.findall(_run([engine, "push", image], shown))
        return printed[-1] if printed else None
    with tempfile.TemporaryDirectory(prefix="whetstone-push-") as folder:
        file = Path(folder) / "digest"
        _run([engine, "push", f"--digestfile={file}", image], shown)
        digest = file.read_text(encoding="utf-8").strip() if file.exists() else ""
    return digest if DIGEST.fullmatch(digest) else None


def is_in_registry(engine: str, reference: str) -> bool:
    """Whether the engine gets an image from its registry.

    A pull asks only for the manifest if the engine has the layers. podman 4 has no other question:
    its `manifest inspect` refuses an image that is no list of images.
    """
    return run_command([engine, "pull", reference]).returncode == 0


def _run(words: list[str], shown: str) -> str:
    """The standard output of a push."""
    try:
        done = run_command(words)
    except OSError as error:
        raise ReleaseError(f"--push {words[0]}: {error.strerror}") from None
    if done.returncode != 0:
        raise ReleaseError(f"`{shown}` failed: {reason_in(done.stderr or done.stdout)}")
    return done.stdout
