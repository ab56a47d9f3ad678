"""Pushing an image."""

from __future__ import annotations

from pathlib import Path

import pytest

from release.image.push import is_in_registry, push_image
from tests.release.world import program
from training.common.errors import ReleaseError

DIGEST = f"sha256:{'5' * 64}"
# As docker 20.10 prints it, and podman 4.3 with a digest file.
DOCKER = f"""
if [ "$1" = pull ]; then [ "$2" = a@{DIGEST} ]; exit; fi
printf "%s " "$@" > asked
echo "The push refers to repository [docker.io/library/a]"
echo "5f70bf18a086: Pushed"
echo "1: digest: {DIGEST} size: 1573"
"""
PODMAN = f"""
printf "%s " "$@" > asked
echo "Writing manifest to image destination" >&2
for word; do
    case $word in --digestfile=*) printf "{DIGEST}" > "${{word#--digestfile=}}" ;; esac
done
"""


@pytest.fixture
def engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of engines, which becomes the current one; what they are asked is in `asked`."""
    program(tmp_path, "docker", DOCKER)
    program(tmp_path, "podman", PODMAN)
    program(tmp_path, "load", 'printf "%s " "$@" > asked; [ "$2" != fail:1 ] || exit 1')
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_an_engine_pushes_and_says_the_digest_of_the_registry(engines: Path) -> None:
    pushed = push_image("docker", "a:1", "")
    assert (pushed.done, pushed.digest) == ("docker push a:1", DIGEST)
    assert (engines / "asked").read_text("utf-8") == "push a:1 "
    assert is_in_registry("docker", f"a@{DIGEST}")
    assert not is_in_registry("docker", f"b@{DIGEST}")
    pushed = push_image("podman", "a:1", "")
    assert (pushed.done, pushed.digest) == ("podman push a:1", DIGEST)
    # An engine that says none, such as podman under docker's name.
    program(engines, "docker", "exit 0")
    assert push_image("docker", "a:1", "").digest is None


def test_a_command_of_the_user_pushes_and_its_words_are_not_shown(engines: Path) -> None:
    pushed = push_image("docker", "a:1", "load 'two words'")
    # A word that may be a password is not shown. Nobody knows whether there is a registry.
    assert (pushed.done, pushed.digest) == ("load … a:1", None)
    assert (engines / "asked").read_text("utf-8") == "two words a:1 "
    with pytest.raises(ReleaseError, match="`load … fail:1` failed: it gives no reason"):
        push_image("docker", "fail:1", "load x")
    with pytest.raises(ReleaseError, match="--push nothing-there: No such file"):
        push_image("docker", "a:1", "nothing-there")
