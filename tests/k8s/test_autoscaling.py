"""KEDA in place of the base's autoscaler: it scales by the service's own metrics."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import read_settings
from tests.conftest import ROOT
from tests.k8s.manifests.promql import alert_named, asked_for, evaluated
from tests.k8s.manifests.references import replicas
from tests.k8s.manifests.render import OVERLAYS, Renderer

KEDA = ROOT / "k8s" / "components" / "keda"
WRITTEN = yaml.safe_load((KEDA / "scaledobject.yaml").read_text("utf-8"))["spec"]
CPU, QUEUE, REFUSALS = WRITTEN["triggers"]
BASE = yaml.safe_load((ROOT / "k8s" / "base" / "horizontalpodautoscaler.yaml").read_text("utf-8"))[
    "spec"
]


def of_the_overlay() -> dict[str, Any]:
    """What the component tells the reader to put into the overlay."""
    lines = (KEDA / "kustomization.yaml").read_text("utf-8").splitlines()
    indented = [line[6:] for line in lines if line.startswith("#     ")]
    found: dict[str, Any] = yaml.safe_load("\n".join(indented))
    return found


@pytest.fixture(scope="module")
def render(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    return Renderer(tmp_path_factory.mktemp("keda"))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_gives_its_namespace_and_its_number_of_pods(
    render: Renderer, overlay: str
) -> None:
    manifests = render(overlay, "keda", more=of_the_overlay())
    (scaler,) = manifests.of("ScaledObject")
    (namespace,) = manifests.of("Namespace")
    for trigger in scaler["spec"]["triggers"][1:]:
        query = trigger["metadata"]["query"]
        assert re.findall('namespace="([^"]*)"', query) == [namespace["metadata"]["name"]]
        assert asked_for(query)
    assert (scaler["spec"]["minReplicaCount"], scaler["spec"]["maxReplicaCount"]) == (3, 20)


def test_it_scales_like_the_autoscaler_whose_place_it_takes(render: Renderer) -> None:
    manifests = render("staging", "keda")
    assert not list(manifests.of("HorizontalPodAutoscaler"))
    assert WRITTEN["scaleTargetRef"] == BASE["scaleTargetRef"]
    assert WRITTEN["minReplicaCount"] == BASE["minReplicas"]
    assert WRITTEN["maxReplicaCount"] == BASE["maxReplicas"]
    taken_over = WRITTEN["advanced"]["horizontalPodAutoscalerConfig"]
    assert taken_over["behavior"] == BASE["behavior"]
    (autoscaler,) = render("staging").of("HorizontalPodAutoscaler")
    assert taken_over["name"] == autoscaler["metadata"]["name"]
    (metric,) = BASE["metrics"]
    assert CPU["type"] == metric["resource"]["name"]
    assert int(CPU["metadata"]["value"]) == metric["resource"]["target"]["averageUtilization"]
    # Beside it the base's would set the same number.
    manifests.append(autoscaler)
    assert "several scale the pods" in str(list(replicas(manifests)))


def test_pods_are_added_before_somebody_is_told() -> None:
    seconds = float(QUEUE["metadata"]["threshold"])
    assert seconds < float(alert_named("WhetstoneQueueOld")["expr"].rpartition(" > ")[2])
    assert seconds * 10 <= read_settings({}).timeout_ms / 1000
    share = float(REFUSALS["metadata"]["threshold"])
    assert share < float(alert_named("WhetstoneRefusing")["expr"].rpartition(" > ")[2])


PLACEHOLDER = "of the overlay"


def age(pod: str, namespace: str = PLACEHOLDER) -> str:
    return f'whetstone_queue_age_seconds{{namespace="{namespace}", pod="{pod}"}}'


def requests(route: str = "/classify", namespace: str = PLACEHOLDER) -> str:
    return f'whetstone_requests_total{{namespace="{namespace}", route="{route}", status="200"}}'


def refusals(reason: str, namespace: str = PLACEHOLDER) -> str:
    return f'whetstone_refusals_total{{namespace="{namespace}", reason="{reason}"}}'


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trigger", "series", "wants_more"),
    [
        (QUEUE, {age("a"): "0.5x99", age("b"): "0.9x99"}, False),
        (QUEUE, {age("a"): "0.9x99", age("b"): "1.5x99"}, True),
        (QUEUE, {age("a"): "0.1x99", age("b"): "1.5x99"}, False),
        # Of another namespace, and of nobody.
        (QUEUE, {age("a"): "0x99", age("a", "other"): "9x99"}, False),
        (QUEUE, {"something": "1x99"}, False),
        (REFUSALS, {requests(): "0+1000x99", refusals("deadline"): "0+5x99"}, False),
        (REFUSALS, {requests(): "0+1000x99", refusals("deadline"): "0+15x99"}, True),
        (REFUSALS, {requests("/predict"): "0+1000x99", refusals("queue_full"): "0+15x99"}, True),
        (REFUSALS, {requests(): "0+1000x99", refusals("too_long"): "0+15x99"}, False),
        # Probes are no requests.
        (
            REFUSALS,
            {requests("/livez"): "0+1000x99", requests(): "0+9x99", refusals("deadline"): "0+1x99"},
            True,
        ),
        (
            REFUSALS,
            {
                requests(): "0+1000x99",
                requests(namespace="other"): "0+1000x99",
                refusals("deadline", "other"): "0+500x99",
            },
            False,
        ),
        # No requests: 0 through 0.
        (REFUSALS, {requests(): "5x99", refusals("deadline"): "5x99"}, False),
        (REFUSALS, {"something": "1x99"}, False),
    ],
)
def test_prometheus_asks_for_more_pods_for_their_cause(
    trigger: dict[str, Any], series: dict[str, str], wants_more: bool, tmp_path: Path
) -> None:
    # With a value a minute, a rate needs more of them.
    query = trigger["metadata"]["query"].replace("[1m]", "[5m]")
    wanted = {
        f"({query}) > bool {trigger['metadata']['threshold']}": float(wants_more),
        # One number, not NaN: KEDA refuses an answer of several values.
        f"({query}) == bool ({query})": 1.0,
    }
    evaluated(tmp_path, series, wanted, "1h")
