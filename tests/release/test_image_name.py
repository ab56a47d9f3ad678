"""Names of images, and those that no cluster can pull."""

from __future__ import annotations

import pytest

from release.image.engine import stored_name
from release.image.localhost import refuse_unpullable
from release.image_name import ImageName
from training.common.errors import ReleaseError

DIGEST = f"sha256:{'5' * 64}"


@pytest.mark.parametrize(
    ("text", "reference", "shown"),
    [
        ("host:5000/team/name:1", "host:5000/team/name:1", "host:5000/team/name:1"),
        (f"host:5000/name@{DIGEST}", f"host:5000/name@{DIGEST}", "host:5000/name@555555555555"),
        (f"name:1@{DIGEST}", f"name@{DIGEST}", "name:1@555555555555"),
    ],
)
def test_a_name_is_read_and_written(text: str, reference: str, shown: str) -> None:
    name = ImageName.parse(text)
    assert (str(name), name.reference, name.shown) == (text, reference, shown)


@pytest.mark.parametrize("text", ["name", "host:5000/name", "name@sha256:00", "name:1@"])
def test_a_name_without_tag_or_digest_is_refused(text: str) -> None:
    with pytest.raises(ReleaseError, match=r"has no (tag|digest)"):
        ImageName.parse(text)


@pytest.mark.parametrize(
    ("engine", "repository", "stored"),
    [
        # What `podman images` shows after a build, and what docker shows.
        ("podman", "text-classifier", "localhost/text-classifier"),
        ("podman", "team/text-classifier", "localhost/team/text-classifier"),
        ("podman", "localhost/text-classifier", "localhost/text-classifier"),
        ("podman", "localhost:5000/text-classifier", "localhost:5000/text-classifier"),
        ("podman", "registry.example/text-classifier", "registry.example/text-classifier"),
        ("docker", "text-classifier", "text-classifier"),
    ],
)
def test_podman_completes_short_names(engine: str, repository: str, stored: str) -> None:
    assert stored_name(engine, repository) == stored


@pytest.mark.parametrize(
    ("repository", "push", "context", "good"),
    [
        ("registry.example/a", None, "production", True),
        # A registry on this machine.
        ("localhost:5000/a", "", "kind-kind", True),
        ("localhost/a", None, "production", False),
        ("localhost/a", None, None, False),
        # Loaded by hand before, or by the command.
        ("localhost/a", None, "kind-kind", True),
        ("localhost/a", "minikube image load", "work", True),
        # podman would look for a registry of that name.
        ("localhost/a", "", "kind-kind", False),
    ],
)
def test_an_image_of_this_machine_is_refused_unless_it_is_loaded(
    repository: str, push: str | None, context: str | None, good: bool
) -> None:
    if good:
        refuse_unpullable(repository, push, context)
        return
    with pytest.raises(ReleaseError, match="no cluster can pull it: name a registry with"):
        refuse_unpullable(repository, push, context)
