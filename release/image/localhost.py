"""Images that no cluster can pull: those that podman and buildah name after this machine."""

from __future__ import annotations

from release.image_name import LOCALHOST
from training.common.errors import ReleaseError

# The contexts that kind, minikube, k3d and the desktops make. Images get there without a registry.
LOCAL_CONTEXTS = ("kind-", "minikube", "k3d-", "docker-desktop", "rancher-desktop")


def refuse_unpullable(repository: str, push: str | None, context: str | None) -> None:
    """Refuse `localhost/…` unless it is loaded into the cluster, or a local cluster may have it.

    Args:
        push: as of `ReleaseOptions`.
        context: the context of kubectl.

    Raises:
        ReleaseError: no node of the cluster could have the image.
    """
    if not repository.startswith(LOCALHOST) or push:
        return
    if push is None and (context or "").startswith(LOCAL_CONTEXTS):
        return
    raise ReleaseError(
        f"{repository} is podman's name for an image of this machine, and no cluster can pull it: "
        "name a registry with --image_repository and --push, or load the image into a local "
        "cluster with a command, such as --push 'kind load docker-image'"
    )
