"""Programs that are started for a bento or an image, and their output."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from training.common.errors import ImageError

LAST_LINES = 15
REASON_LINES = 5
LONGEST_REASON = 500


def run_command(
    words: Sequence[str],
    *,
    merged: bool = False,
    timeout: float | None = None,
    folder: Path | None = None,
    environment: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, whatever its status.

    Args:
        merged: whether standard error goes to `stdout`, in the order of writing.
        timeout: in seconds.
    """
    return subprocess.run(  # noqa: S603 - programs and arguments of ours, or of who releases
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if merged else subprocess.PIPE,
        text=True,
        errors="replace",
        check=False,
        timeout=timeout,
        cwd=folder,
        env=environment,
    )


def read_output(words: Sequence[str]) -> str:
    """The standard output of a command.

    Raises:
        ImageError: the command failed.
    """
    done = run_command(words)
    if done.returncode != 0:
        raise ImageError(f"`{' '.join(words[:2])}` failed: {reason_in(done.stderr)}")
    return done.stdout.strip()


def last_lines(output: str, count: int = LAST_LINES) -> str:
    """The last lines of an output that are not empty."""
    return "\n".join(line for line in output.strip().splitlines()[-count:] if line.strip())


def reason_in(output: str) -> str:
    """The end of an output on one line, as the reason of a failure."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return "; ".join(lines[-REASON_LINES:])[-LONGEST_REASON:] or "it gives no reason"
