"""What git knows about a checkout."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path


def run_git(*arguments: str, folder: Path | None = None) -> str:
    """The output of a git command; empty where there is no git or no checkout.

    Args:
        folder: the checkout; the working folder by default.
    """
    git = shutil.which("git")
    if git is None:
        return ""
    place = [] if folder is None else ["-C", str(folder)]
    done = subprocess.run(  # noqa: S603 - fixed arguments
        [git, *place, *arguments], capture_output=True, text=True, errors="replace", check=False
    )
    return done.stdout.strip() if done.returncode == 0 else ""


def git_commit(folder: Path | None = None, *, mark_changes: bool = False) -> str | None:
    """The commit that is checked out; None where it is not known.

    Args:
        folder: the checkout; the working folder by default, as a team keeps its recipes and
            overlays in a repository.
        mark_changes: append a plus where tracked files differ from the commit.
    """
    commit = run_git("rev-parse", "HEAD", folder=folder)
    if commit and mark_changes and run_git("status", "--porcelain", "-uno", folder=folder):
        commit += "+"
    return commit or None
