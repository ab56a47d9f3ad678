"""A Deployment beside the workload: in no Service, and limited as the workload is."""

from __future__ import annotations

from typing import Any

import pytest

from release.cluster.kubectl import Cluster
from release.cluster.overlay import Workload, dump_manifests, load_manifests, workload_of
from release.cluster.variant import canary_of, refuse_endpoints, takes_one_more_pod, variant_of
from tests.conftest import ROOT
from training.common.errors import ClusterError, ReleaseError


@pytest.fixture(scope="module")
def production() -> tuple[str, Workload]:
    """The render of the production overlay, and its workload."""
    render = Cluster().render(ROOT / "k8s" / "overlays" / "production")
    return render, workload_of(render, "registry.example.com/text-classifier:unreleased")


def selects(selector: dict[str, str], labels: dict[str, str]) -> bool:
    """Whether a selector of the cluster selects a pod."""
    return selector.items() <= labels.items()


def test_nothing_of_the_workload_selects_the_first_pod_but_a_policy_of_its_own(
    production: tuple[str, Workload],
) -> None:
    render, workload = production
    variant = variant_of(render, workload, "first")
    objects = load_manifests(render)
    for resource in objects:
        spec = resource.get("spec") or {}
        if resource["kind"] == "Service":
            assert not selects(spec["selector"], variant.labels)
        if resource["kind"] in ("PodDisruptionBudget", "Deployment"):
            assert not selects(spec["selector"]["matchLabels"], variant.labels)
        if resource["kind"] == "HorizontalPodAutoscaler":
            assert spec["scaleTargetRef"]["name"] != variant.workload.name
    policies = [each for each in objects if each["kind"] == "NetworkPolicy"]
    repeated = [each for each in variant.objects if each["kind"] == "NetworkPolicy"]
    assert len(repeated) == len(policies) == 1
    assert selects(repeated[0]["spec"]["podSelector"]["matchLabels"], variant.labels)
    for part in ("policyTypes", "ingress", "egress"):
        assert repeated[0]["spec"][part] == policies[0]["spec"][part]


def test_the_first_pod_is_made_of_the_same_template(production: tuple[str, Workload]) -> None:
    render, workload = production
    variant = variant_of(render, workload, "first")
    (original,) = (each for each in load_manifests(render) if each["kind"] == "Deployment")
    (copied,) = (each for each in variant.objects if each["kind"] == "Deployment")
    spec = dict(original["spec"]["template"]["spec"])
    spec.pop("topologySpreadConstraints")
    assert copied["spec"]["template"]["spec"] == spec
    assert copied["spec"]["replicas"] == 1
    kinds = [each["kind"] for each in variant.prerequisites]
    assert kinds == ["Namespace", "ServiceAccount", "ConfigMap"]
    # What stays must not be deleted with the variant.
    assert {each["kind"] for each in load_manifests(variant.own_manifests)} == {
        "NetworkPolicy",
        "Deployment",
    }
    assert variant.workload.selector == "app.kubernetes.io/name=text-classifier-first"


class Listing(Cluster):
    """A cluster with some Services, or one that does not show them."""

    def __init__(self, services: list[dict[str, Any]] | None) -> None:
        super().__init__()
        self.services = services

    def get_all(self, *_: str) -> list[dict[str, Any]]:
        if self.services is None:
            raise ClusterError("kubectl get failed: Forbidden")
        return self.services


def service(selector: dict[str, str] | None) -> dict[str, Any]:
    """A Service with this selector."""
    return {"kind": "Service", "metadata": {"name": "s"}, "spec": {"selector": selector}}


def test_a_service_that_selects_the_first_pod_is_refused(production: tuple[str, Workload]) -> None:
    render, workload = production
    variant = variant_of(render, workload, "first")
    # A Service without a selector has endpoints that somebody else writes.
    refuse_endpoints(Listing([service(None), service({"a": "b"})]), variant, render)
    refuse_endpoints(Listing(None), variant, render)
    labels = dict(variant.labels)
    with pytest.raises(ReleaseError, match="Service s selects pods by"):
        refuse_endpoints(Listing([service(labels)]), variant, render)
    with pytest.raises(ReleaseError, match="Service s selects pods by"):
        refuse_endpoints(Listing(None), variant, dump_manifests([service(labels)]))


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (None, True),
        ({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}, True),
        ({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}, False),
        ({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "0%"}}, False),
        ({"type": "Recreate"}, False),
    ],
)
def test_a_strategy_without_room_has_no_first_pod(
    production: tuple[str, Workload], strategy: dict[str, Any] | None, expected: bool
) -> None:
    render, workload = production
    objects = load_manifests(render)
    for resource in objects:
        if resource["kind"] == "Deployment":
            resource["spec"]["strategy"] = strategy
    assert takes_one_more_pod(dump_manifests(objects), workload) is expected


def test_a_name_that_is_too_long_is_refused(production: tuple[str, Workload]) -> None:
    render, workload = production
    with pytest.raises(ReleaseError, match="longer than 63 characters"):
        variant_of(render, workload, "x" * 60)


def test_a_canary_is_selected_by_all_that_selects_the_workload_s_pods(
    production: tuple[str, Workload],
) -> None:
    render, workload = production
    variant = canary_of(render, workload).with_replicas(3)
    objects = load_manifests(render)
    for resource in objects:
        spec = resource.get("spec") or {}
        if resource["kind"] == "Service":
            assert selects(spec["selector"], variant.labels)
        if resource["kind"] == "PodDisruptionBudget":
            assert selects(spec["selector"]["matchLabels"], variant.labels)
        if resource["kind"] == "NetworkPolicy":
            assert selects(spec["podSelector"].get("matchLabels", {}), variant.labels)
        if resource["kind"] == "HorizontalPodAutoscaler":
            assert spec["scaleTargetRef"]["name"] != variant.workload.name
    (deployment,) = variant.objects
    assert deployment["spec"]["replicas"] == 3
    assert deployment["metadata"]["name"] == variant.workload.name == "text-classifier-canary"
    assert selects(deployment["spec"]["selector"]["matchLabels"], variant.labels)
    (original,) = (each for each in objects if each["kind"] == "Deployment")
    assert deployment["spec"]["template"]["spec"] == original["spec"]["template"]["spec"]
    # The release tells the pods of both apart.
    assert variant.workload.selector == "app.kubernetes.io/name=text-classifier,track=canary"
    assert workload.selector == "app.kubernetes.io/name=text-classifier,track!=canary"


def test_a_canary_that_no_service_selects_is_refused(production: tuple[str, Workload]) -> None:
    render, workload = production
    objects = load_manifests(render)
    for resource in objects:
        if resource["kind"] == "Service":
            resource["spec"]["selector"] = {"track": "stable"}
    with pytest.raises(ReleaseError, match="no Service of the overlay selects"):
        canary_of(dump_manifests(objects), workload)
