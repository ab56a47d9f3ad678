"""What the cluster must know before a release begins to work: kinds, and metrics to scale by."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.release.world import FIRST, OVERLAY, SECOND, Captured, World, sentence
from whetstone.main import main

METRICS = "metrics.k8s.io/v1beta1"
SILENT = "Error from server (ServiceUnavailable): the server is currently unable to handle it"


def add_components(world: World, *names: str) -> str:
    """Add components to the overlay; its kustomization then."""
    listed = "".join(f"\n  - ../../components/{name}" for name in names)
    text = world.overlay.replace(
        "  - ../../components/api-keys", f"  - ../../components/api-keys{listed}"
    )
    Path(OVERLAY, "kustomization.yaml").write_text(text, "utf-8")
    return text


def verbs_after(world: World, calls: int) -> set[str]:
    return {call[0] for call in world.state["calls"][calls:]}


def test_an_unknown_kind_is_refused_in_a_sentence_before_the_work(
    deployed: World, capsys: Captured
) -> None:
    overlay = add_components(deployed, "prometheus", "keda")
    deployed.write(deployed.state | {"lacks": {"keda.sh/v1alpha1": None}})
    calls = len(deployed.state["calls"])
    assert deployed.release("second", SECOND) == 1
    said = sentence(capsys)
    assert "does not know ScaledObject (keda.sh/v1alpha1): install what defines it" in said
    assert (deployed.image, deployed.overlay) == (FIRST, overlay)
    assert verbs_after(deployed, calls) <= {"config", "get", "kustomize"}
    record = deployed.records[deployed.version("second")]
    assert (record.outcome, record.verdict) == ("failed", None)
    # The plan says so, too.
    assert main([word for word in deployed.words("second", SECOND) if word != "--apply"]) == 0
    assert "--apply would be refused: the cluster does not know Scaled" in capsys.readouterr().out
    deployed.write(deployed.state | {"lacks": {}})
    assert deployed.release("second", SECOND) == 0


@pytest.mark.parametrize(
    ("components", "version", "kinds"),
    [
        (["gateway"], "gateway.networking.k8s.io/v1", ["HTTPRoute"]),
        (["prometheus"], "monitoring.coreos.com/v1", ["PrometheusRule", "ServiceMonitor"]),
        (["pod-monitor"], "monitoring.coreos.com/v1", ["PodMonitor", "PrometheusRule"]),
    ],
)
def test_every_kind_of_a_component_is_named(
    world: World, components: list[str], version: str, kinds: list[str], capsys: Captured
) -> None:
    add_components(world, *components)
    world.write(world.state | {"lacks": {version: None}})
    assert world.release("first", FIRST, champion="none") == 1
    said = sentence(capsys)
    assert all(f"{kind} ({version})" in said for kind in kinds)
    assert world.state["objects"] == {}


@pytest.mark.parametrize(
    ("answer", "lack"), [(None, "has no metrics"), (SILENT, "does not answer for metrics")]
)
def test_an_autoscaler_without_metrics_is_said_and_released(
    deployed: World, answer: str | None, lack: str, capsys: Captured
) -> None:
    deployed.write(deployed.state | {"lacks": {METRICS: answer}})
    assert deployed.release("second", SECOND) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "adds no pods" in line)
    assert line.startswith("warning: HorizontalPodAutoscaler text-classifier adds no pods")
    assert lack in line and "install metrics-server" in line
    assert deployed.image == SECOND


def test_kedas_cpu_needs_metrics_as_well(deployed: World, capsys: Captured) -> None:
    add_components(deployed, "prometheus", "keda")
    deployed.write(deployed.state | {"lacks": {METRICS: None}})
    assert deployed.release("second", SECOND) == 0
    assert "warning: ScaledObject text-classifier adds no pods" in capsys.readouterr().out


def test_with_metrics_nothing_is_said(deployed: World, capsys: Captured) -> None:
    assert deployed.release("second", SECOND) == 0
    assert "warning: " not in capsys.readouterr().out


def test_what_may_not_be_asked_is_a_warning(deployed: World, capsys: Captured) -> None:
    deployed.faults(raw=["forbidden", "forbidden"])
    assert deployed.release("second", SECOND) == 0
    assert "knows every kind of the overlay is not known" in capsys.readouterr().out


def test_an_overlay_of_argo_rollouts_is_left_to_it(deployed: World, capsys: Captured) -> None:
    add_components(deployed, "prometheus", "argo-rollouts")
    calls = len(deployed.state["calls"])
    assert deployed.release("second", SECOND) == 1
    assert "Argo Rollouts has the pods of Deployment text-classifier" in sentence(capsys)
    assert verbs_after(deployed, calls) <= {"config", "get", "kustomize"}
    assert deployed.image == FIRST
