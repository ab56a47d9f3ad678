"""The dashboard and the alerts ask for metrics that there are, in PromQL that is sound."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from service.metrics import METRICS
from service.settings import read_settings
from tests.conftest import ROOT
from tests.k8s.manifests.promql import (
    EVERY_RULE,
    OF_THE_CLUSTER,
    RECORDS,
    RULES,
    alert_named,
    asked_for,
    run_promtool,
)

COMPONENTS = ROOT / "k8s" / "components"
DASHBOARD = json.loads((COMPONENTS / "grafana" / "dashboard.json").read_text("utf-8"))
ALERTS = [rule for rule in EVERY_RULE if "alert" in rule]
DEPLOYMENT = yaml.safe_load((ROOT / "k8s" / "base" / "deployment.yaml").read_text("utf-8"))


def panel_expressions() -> list[tuple[str, str]]:
    return [
        (
            panel["title"],
            target["expr"].replace("$__rate_interval", "5m").replace("$__interval", "1m"),
        )
        for panel in DASHBOARD["panels"]
        for target in panel["targets"]
    ]


@pytest.mark.parametrize(("title", "expression"), panel_expressions())
def test_every_panel_uses_exported_metrics(title: str, expression: str) -> None:
    assert asked_for(expression)


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_every_alert_uses_exported_metrics(alert: dict[str, Any]) -> None:
    assert asked_for(alert["expr"])
    assert alert["annotations"]["summary"]
    assert alert["labels"]["severity"] in ("critical", "warning")


@pytest.mark.parametrize("name", OF_THE_CLUSTER)
def test_alerts_count_only_our_pods(name: str) -> None:
    (alert,) = (alert for alert in ALERTS if name in alert["expr"])
    assert any(one.startswith("whetstone_") for one in asked_for(alert["expr"]))
    assert "on (namespace" in alert["expr"]
    (container,) = DEPLOYMENT["spec"]["template"]["spec"]["containers"]
    assert f'container="{container["name"]}"' in alert["expr"]


def test_every_recorded_series_uses_exported_metrics_and_is_asked_for() -> None:
    asked = set().union(*(asked_for(alert["expr"]) for alert in ALERTS))
    for name, expression in RECORDS.items():
        assert asked_for(expression)
        assert name in asked


def test_a_service_whose_series_ended_is_down() -> None:
    """While another namespace serves, `absent` says nothing, and neither does a sum of nothing."""
    either = promql_parser.parse(alert_named("WhetstoneDown")["expr"])
    assert str(either.op) == "or"
    assert either.rhs.prettify() == "absent(whetstone_ready)"
    missing = either.lhs.expr
    assert (str(missing.op), str(missing.modifier.matching)) == ("unless", "on (namespace, job)")
    assert asked_for(missing.lhs.prettify()) == {"whetstone_ready"}
    assert missing.lhs.prettify().count("last_over_time") == 1


def test_a_pod_that_hangs_is_restarted_before_somebody_is_woken() -> None:
    (container,) = DEPLOYMENT["spec"]["template"]["spec"]["containers"]
    probe = container["livenessProbe"]
    noticed = read_settings({}).stall_ms / 1000
    restarted = noticed + probe["periodSeconds"] * probe["failureThreshold"]
    alert = alert_named("WhetstoneStalled")
    minutes = float(alert["for"].removesuffix("m"))
    woken = float(alert["expr"].rpartition(" > ")[2]) + 60 * minutes
    assert restarted + probe["timeoutSeconds"] < woken


PRODUCTION = 'whetstone_ready{namespace="production", job="classifier", pod="%s"}'
STAGING = 'whetstone_ready{namespace="staging", job="classifier", pod="a"}'
IN_PRODUCTION = {"namespace": "production", "job": "classifier"}
MEMORY = 'whetstone_resident_memory_bytes{namespace="production", pod="a"}'
OF_A = 'namespace="production", pod="a", container="text-classifier"'
OF_NEW = 'namespace="production", pod="new", container="text-classifier"'
OF_ANOTHER = 'namespace="elsewhere", pod="other", container="text-classifier"'
LIMIT = f'kube_pod_container_resource_limits{{resource="memory", unit="byte", {OF_A}}}'
CPU_LIMIT = f'kube_pod_container_resource_limits{{resource="cpu", unit="core", {OF_A}}}'
RESTARTS = "kube_pod_container_status_restarts_total{%s}"
POD_A = {"namespace": "production", "pod": "a"}
CONTAINER_A = {**POD_A, "container": "text-classifier"}
REQUESTS = (
    'whetstone_requests_total{namespace="production", job="classifier", route="%s", status="%d"}'
)
REFUSALS = 'whetstone_refusals_total{namespace="production", job="classifier", reason="deadline"}'
DROPPED = "whetstone_capture_dropped_total"
# A hundred requests a minute, and ten times as many probes, which are no share of them.
FINE = {REQUESTS % ("/classify", 200): "0+100x99", REQUESTS % ("/livez", 200): "0+1000x99"}


def of_a(name: str, **labels: str) -> str:
    """A series of pod a, as Prometheus writes it."""
    every = {**IN_PRODUCTION, "pod": "a", **labels}
    inside = ", ".join(f'{key}="{value}"' for key, value in every.items())
    return f"{name}{{{inside}}}"


def labels_of(**texts_a_minute: int) -> dict[str, str]:
    """Answers by label, of a model that gave a and b to half of the validation rows each."""
    answered = {
        of_a("whetstone_predictions_total", label=label): f"0+{texts}x999"
        for label, texts in texts_a_minute.items()
    }
    trained = {of_a("whetstone_training_label_share", label=label): "0.5x999" for label in "ab"}
    total = sum(texts_a_minute.values())
    return answered | trained | {of_a("whetstone_texts_total"): f"0+{total}x999"}


def scores_of(mean: float, texts: int = 10) -> dict[str, str]:
    """Scores of this mean, of a model whose scores on the validation rows were 0.9."""
    return {
        of_a("whetstone_confidence_sum"): f"0+{texts * mean}x999",
        of_a("whetstone_confidence_count"): f"0+{texts}x999",
        of_a("whetstone_texts_total"): f"0+{texts}x999",
        of_a("whetstone_training_confidence", version="v"): "0.9x999",
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "series", "at", "expected"),
    [
        ("WhetstoneErrors", FINE, "1h", []),
        (
            "WhetstoneErrors",
            FINE | {REQUESTS % ("/v1/classify", 500): "0+2x99"},
            "1h",
            [IN_PRODUCTION],
        ),
        ("WhetstoneErrors", FINE | {REQUESTS % ("/predict", 424): "0+2x99"}, "1h", [IN_PRODUCTION]),
        ("WhetstoneErrors", FINE | {REQUESTS % ("/livez", 500): "0+50x99"}, "1h", []),
        ("WhetstoneLate", FINE, "1h", []),
        ("WhetstoneLate", FINE | {REQUESTS % ("/predict", 504): "0+2x99"}, "1h", [IN_PRODUCTION]),
        ("WhetstoneCaptureLoses", {of_a(DROPPED, reason="queue"): "0x99"}, "1h", []),
        (
            "WhetstoneCaptureLoses",
            {of_a(DROPPED, reason="queue"): "0+3x99", of_a(DROPPED, reason="error"): "0x99"},
            "1h",
            [{**IN_PRODUCTION, "reason": "queue"}],
        ),
        ("WhetstoneRefusing", FINE | {REFUSALS: "0+4x99"}, "1h", []),
        ("WhetstoneRefusing", FINE | {REFUSALS: "0+6x99"}, "1h", [IN_PRODUCTION]),
        ("WhetstoneDown", {PRODUCTION % "a": "1x99", STAGING: "1x99"}, "1h", []),
        ("WhetstoneDown", {PRODUCTION % "a": "0x99", STAGING: "1x99"}, "1h", [IN_PRODUCTION]),
        # Gone, or one pod for another.
        ("WhetstoneDown", {PRODUCTION % "a": "1x9 stale", STAGING: "1x99"}, "1h", [IN_PRODUCTION]),
        ("WhetstoneDown", {PRODUCTION % "a": "1x9 stale", PRODUCTION % "b": "1x99"}, "1h", []),
        ("WhetstoneDown", {PRODUCTION % "a": "1x9 stale", STAGING: "1x1999"}, "25h", []),
        ("WhetstoneDown", {"something": "1x99"}, "1h", [{}]),
        ("WhetstoneMemoryNearLimit", {MEMORY: "83x99", LIMIT: "100x99"}, "1h", []),
        ("WhetstoneMemoryNearLimit", {MEMORY: "90x99", LIMIT: "100x99"}, "1h", [POD_A]),
        ("WhetstoneMemoryNearLimit", {MEMORY: "90x99", CPU_LIMIT: "2x99"}, "1h", []),
        ("WhetstoneRestarts", {PRODUCTION % "a": "1x99", RESTARTS % OF_A: "7x99"}, "1h", []),
        # While it starts again nobody asks it for metrics.
        (
            "WhetstoneRestarts",
            {PRODUCTION % "a": "1x49 stale", RESTARTS % OF_A: "0x49 1x49"},
            "1h",
            [CONTAINER_A],
        ),
        # It dies while it loads, beside an older one that serves.
        (
            "WhetstoneRestarts",
            {PRODUCTION % "a": "1x99", RESTARTS % OF_NEW: "0+1x99"},
            "1h",
            [{**CONTAINER_A, "pod": "new"}],
        ),
        (
            "WhetstoneRestarts",
            {PRODUCTION % "a": "1x99", RESTARTS % OF_ANOTHER: "0+1x99"},
            "1h",
            [],
        ),
        ("WhetstoneLabelsUnlikeTraining", labels_of(a=50, b=50), "9h", []),
        ("WhetstoneLabelsUnlikeTraining", labels_of(a=58, b=42), "9h", []),
        ("WhetstoneLabelsUnlikeTraining", labels_of(a=62, b=38), "9h", [IN_PRODUCTION]),
        # What one label gains the other one loses.
        ("WhetstoneLabelsUnlikeTraining", labels_of(a=50, b=30, c=20), "9h", [IN_PRODUCTION]),
        # So few texts are chance.
        ("WhetstoneLabelsUnlikeTraining", labels_of(a=1, b=0), "9h", []),
        ("WhetstoneLessConfidentThanTrained", scores_of(0.85), "9h", []),
        ("WhetstoneLessConfidentThanTrained", scores_of(0.75), "9h", [IN_PRODUCTION]),
        ("WhetstoneLessConfidentThanTrained", scores_of(0.75, texts=1), "9h", []),
    ],
)
def test_prometheus_fires_each_alert_for_its_cause(
    name: str, series: dict[str, str], at: str, expected: list[dict[str, str]], tmp_path: Path
) -> None:
    alert = alert_named(name)
    fires = []
    for labels in expected:
        told = {
            key: text.replace("{{ $labels.pod }}", labels.get("pod", ""))
            for key, text in alert["annotations"].items()
        }
        fires.append({"exp_labels": {**alert["labels"], **labels}, "exp_annotations": told})
    case = {
        "interval": "1m",
        "input_series": [{"series": one, "values": values} for one, values in series.items()],
        "alert_rule_test": [{"eval_time": at, "alertname": name, "exp_alerts": fires}],
    }
    run_promtool(tmp_path, [case], RULES["spec"])


def test_the_parser_refuses_invalid_expressions() -> None:
    with pytest.raises(AssertionError, match="whetstone_nothing"):
        asked_for("sum(rate(whetstone_requests_total[5m])) / max(whetstone_nothing)")
    with pytest.raises(AssertionError):
        asked_for('whetstone_requests_total{colour="red"}')
    with pytest.raises(ValueError, match="paren"):
        asked_for("sum(rate(whetstone_requests_total[5m])")


def test_every_metric_is_used_in_a_panel_or_alert() -> None:
    shown = set().union(*(asked_for(expression) for _, expression in panel_expressions()))
    shown |= set().union(*(asked_for(alert["expr"]) for alert in ALERTS))
    for metric in METRICS:
        assert any(name.startswith(metric.name) for name in shown), metric.name


def test_variables_and_annotations_use_exported_metrics() -> None:
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            asked = variable["query"]["query"].removeprefix("label_values(")
            assert asked_for(asked.rpartition(",")[0]) == {"whetstone_ready"}
    (annotation,) = DASHBOARD["annotations"]["list"]
    assert asked_for(annotation["expr"]) == {"whetstone_model_info"}
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    cells = [(x, y) for at in places for x in range(at["x"], at["x"] + at["w"]) for y in [at["y"]]]
    assert len(cells) == len(set(cells))
    assert all(at["x"] + at["w"] <= 24 for at in places)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(places)
