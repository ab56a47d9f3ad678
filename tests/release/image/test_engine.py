"""Pushing an image."""

from __future__ import annotations

from pathlib import Path

import pytest

from release.image.engine import push_image
from tests.release.world import program
from training.common.errors import ReleaseError


def test_an_image_is_pushed_by_the_engine_or_by_a_given_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = tmp_path / "asked"
    program(tmp_path, "docker", f'printf "%s " "$@" > {asked}')
    program(tmp_path, "load", f'printf "%s " "$@" > {asked}; [ "$2" != fail:1 ] || exit 1')
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert push_image("docker", "a:1", "") == "docker push a:1"
    assert asked.read_text("utf-8") == "push a:1 "
    # A word that may be a password is not shown.
    assert push_image("docker", "a:1", "load 'two words'") == "load … a:1"
    assert asked.read_text("utf-8") == "two words a:1 "
    with pytest.raises(ReleaseError, match="`load … fail:1` failed: it gives no reason"):
        push_image("docker", "fail:1", "load x")
    with pytest.raises(ReleaseError, match="--push nothing-there: No such file"):
        push_image("docker", "a:1", "nothing-there")
