"""What pods refer to, looked up before it is applied."""

from __future__ import annotations

from typing import Any

import pytest

from release.cluster.kubectl import Cluster
from release.cluster.overlay import dump_manifests
from release.cluster.references import check_references
from training.common.errors import ClusterError, ReleaseError

POD: dict[str, Any] = {
    "serviceAccountName": "runner",
    "imagePullSecrets": [{"name": "registry"}],
    "volumes": [
        {"name": "keys", "secret": {"secretName": "keys", "items": [{"key": "a", "path": "a"}]}},
        {"name": "maybe", "secret": {"secretName": "absent", "optional": True}},
        {"name": "all", "projected": {"sources": [{"configMap": {"name": "settings"}}]}},
        {"name": "tmp", "emptyDir": {}},
    ],
    "containers": [
        {
            "name": "c",
            "envFrom": [{"configMapRef": {"name": "own"}}],
            "env": [
                {"name": "PLAIN", "value": "1"},
                {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "more", "key": "b"}}},
            ],
        }
    ],
}
RENDER = dump_manifests(
    [
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "d", "namespace": "space"},
            "spec": {"template": {"spec": POD}},
        },
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "own", "namespace": "space"},
            "data": {},
        },
    ]
)
COMPLETE: dict[tuple[str, str], set[str]] = {
    ("serviceaccount", "runner"): set(),
    ("secret", "registry"): {".dockerconfigjson"},
    ("secret", "keys"): {"a"},
    ("secret", "more"): {"b"},
    ("configmap", "settings"): set(),
}


class Holding(Cluster):
    """A cluster that holds some objects."""

    def __init__(self, objects: dict[tuple[str, str], set[str]], *, hides: str = "") -> None:
        super().__init__()
        self.objects, self.hides = objects, hides

    def keys_of(self, kind: str, name: str, namespace: str) -> set[str] | None:
        assert namespace == "space"
        if kind == self.hides:
            raise ClusterError("kubectl get failed: Forbidden")
        return self.objects.get((kind, name))


def test_what_exists_is_in_the_render_or_is_optional_is_not_missed() -> None:
    assert check_references(Holding(COMPLETE), RENDER) == []


@pytest.mark.parametrize("missing", COMPLETE)
def test_everything_that_a_pod_needs_is_looked_up(missing: tuple[str, str]) -> None:
    objects = {name: keys for name, keys in COMPLETE.items() if name != missing}
    with pytest.raises(ReleaseError, match=f"kubectl create {missing[0]}") as caught:
        check_references(Holding(objects), RENDER)
    assert missing[1] in str(caught.value) and str(caught.value).count("(") == 2


def test_a_secret_without_the_key_that_is_named_is_missed() -> None:
    with pytest.raises(ReleaseError, match=r"key a of Secret keys \(volume keys\)"):
        check_references(Holding(COMPLETE | {("secret", "keys"): {"other"}}), RENDER)


def test_what_may_not_be_read_is_a_warning() -> None:
    warnings = check_references(Holding(COMPLETE, hides="secret"), RENDER)
    assert len(warnings) == 3 and "may not be read" in warnings[0]
