"""An HTTPRoute that sends a share of the requests to a canary."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from release.cluster.kubectl import Cluster
from release.cluster.overlay import Workload, load_manifests, workload_of
from release.cluster.weights import Weights
from tests.conftest import ROOT


class Holding(Cluster):
    """A cluster that holds some objects, whatever it is asked for."""

    def __init__(self, objects: list[dict[str, Any]]) -> None:
        super().__init__()
        self.objects = objects

    def live(self, manifests: str) -> list[dict[str, Any]]:
        names = {each["metadata"]["name"] for each in load_manifests(manifests)}
        return [each for each in self.objects if each["metadata"]["name"] in names]


@pytest.fixture(scope="module")
def routed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Workload]:
    """The render of the production overlay with the gateway, and its workload."""
    k8s = Path(shutil.copytree(ROOT / "k8s", tmp_path_factory.mktemp("weights") / "k8s"))
    file = k8s / "overlays" / "production" / "kustomization.yaml"
    content = file.read_text("utf-8")
    assert "components:" in content
    file.write_text(content.replace("components:", "components:\n  - ../../components/gateway"))
    render = Cluster().render(file.parent)
    return render, workload_of(render, "registry.example.com/text-classifier:unreleased")


def found(routed: tuple[str, Workload], change: dict[str, Any] | None = None) -> Weights:
    render, workload = routed
    (route,) = (each for each in load_manifests(render) if each["kind"] == "HTTPRoute")
    route["metadata"]["uid"] = "1"
    route["spec"]["rules"][0].update(change or {})
    weights = Weights.find(Holding([route]), render, workload)
    assert weights is not None
    return weights


def backends(weights: Weights, share: float) -> list[dict[str, Any]]:
    (route,) = load_manifests(weights.split(share))
    refs: list[dict[str, Any]] = route["spec"]["rules"][0]["backendRefs"]
    return refs


def test_a_backend_is_divided_by_weight(routed: tuple[str, Workload]) -> None:
    weights = found(routed)
    assert backends(weights, 0.05) == [
        {"name": "text-classifier", "port": 80, "weight": 950},
        {"name": "text-classifier-canary", "port": 80, "weight": 50},
    ]
    # What the server has added is not applied again.
    (whole,) = load_manifests(weights.whole)
    assert "uid" not in whole["metadata"]
    assert whole["spec"]["rules"][0]["backendRefs"] == [{"name": "text-classifier", "port": 80}]


def test_other_backends_keep_their_share(routed: tuple[str, Workload]) -> None:
    refs = [
        {"name": "text-classifier", "port": 80, "weight": 3},
        {"name": "other", "port": 80, "weight": 1},
    ]
    divided = backends(found(routed, {"backendRefs": refs}), 0.25)
    assert [(each["name"], each["weight"]) for each in divided] == [
        ("text-classifier", 2250),
        ("text-classifier-canary", 750),
        ("other", 1000),
    ]


def test_the_canary_has_a_service_of_its_own_and_is_in_no_other(
    routed: tuple[str, Workload],
) -> None:
    variant = found(routed).variant
    (own,) = (each for each in variant.objects if each["kind"] == "Service")
    assert own["metadata"]["name"] == "text-classifier-canary"
    assert own["spec"]["selector"].items() <= variant.labels.items()
    (service,) = (each for each in load_manifests(routed[0]) if each["kind"] == "Service")
    assert not service["spec"]["selector"].items() <= variant.labels.items()
    assert own["spec"]["ports"] == service["spec"]["ports"]
    # It is deleted with the canary.
    assert "Service" in [each["kind"] for each in load_manifests(variant.own_manifests)]


def test_without_a_route_in_the_cluster_there_are_no_weights(
    routed: tuple[str, Workload],
) -> None:
    render, workload = routed
    assert Weights.find(Holding([]), render, workload) is None
    (route,) = (each for each in load_manifests(render) if each["kind"] == "HTTPRoute")
    route["spec"]["rules"][0]["backendRefs"] = [{"name": "other", "port": 80}]
    assert Weights.find(Holding([route]), render, workload) is None
