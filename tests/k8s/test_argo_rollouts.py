"""The judgements of `whetstone release --canary` as Argo Rollouts makes them, by Prometheus."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from scipy.stats import chi2

from release.cluster import health, judgement
from release.options import CANARY_SECONDS, CANARY_SHIFT
from service.metrics.definitions import CONFIDENCES, COUNTED_LABELS, SECONDS
from tests.conftest import ROOT
from tests.k8s.manifests.promql import asked_for, evaluated
from tests.k8s.manifests.values import seconds
from training.evaluation.significance import NORMAL_QUANTILE

COMPONENT = ROOT / "k8s" / "components" / "argo-rollouts"
HEALTH, PREDICTIONS = yaml.safe_load_all((COMPONENT / "analysis.yaml").read_text("utf-8"))
ROLLOUT = yaml.safe_load((COMPONENT / "rollout.yaml").read_text("utf-8"))["spec"]
RULES = yaml.safe_load((COMPONENT / "rules.yaml").read_text("utf-8"))["spec"]
STEPS = ROLLOUT["strategy"]["canary"]["steps"]
# What the rules record, and by which labels.
RECORDED = {
    rule["record"]: {"hash", "what", "label", "le", "status"}
    for group in RULES["groups"]
    for rule in group["rules"]
}
# Labels with a series of their own, the others, abstentions, and scores.
MOST_COMPARISONS = COUNTED_LABELS + 3


def arguments(template: dict[str, Any], **given: str) -> dict[str, str]:
    """The arguments of an analysis, as Argo Rollouts gives them to the queries."""
    defaults = {one["name"]: one.get("value", "") for one in template["spec"]["args"]}
    return defaults | {name.replace("_", "-"): value for name, value in given.items()}


def test_each_number_is_the_one_of_a_release() -> None:
    health_args, args = arguments(HEALTH), arguments(PREDICTIONS)
    assert float(health_args["most-errors"]) == health.MOST_ERROR_SHARE
    assert float(health_args["most-refusals"]) == health.MOST_REFUSED_INCREASE
    assert float(health_args["chance-hits"]) == health.MOST_ERRORS
    assert float(health_args["least-requests"]) == health.LEAST_FOR_P99
    assert float(health_args["most-times"]) == health.MOST_P99_RATIO
    assert float(health_args["most-seconds"]) == health.MOST_P99_INCREASE_SECONDS
    assert float(health_args["slow-share"]) == health.SLOW_SHARE
    assert float(health_args["normal-quantile"]) == pytest.approx(NORMAL_QUANTILE, rel=1e-3)
    looked = chi2.isf(judgement.SIGNIFICANCE_OF_A_LOOK, 1)
    assert float(health_args["chi-squared"]) == pytest.approx(looked, rel=1e-3)
    assert float(args["most-shift"]) == CANARY_SHIFT
    assert float(args["most-confidence-shift"]) == judgement.MOST_CONFIDENCE_SHIFT
    assert float(args["least-answers"]) == judgement.LEAST_ANSWERS
    looks = sum("analysis" in step for step in STEPS)
    level = judgement.SIGNIFICANCE / looks / MOST_COMPARISONS
    assert float(args["chi-squared"]) == pytest.approx(chi2.isf(level, 1), rel=1e-3)
    # Smirnov 1948; of two samples of n and m, times the root of 1/n + 1/m.
    distance = math.sqrt(-math.log(level / 2) / 2)
    assert float(args["distance"]) == pytest.approx(distance, rel=2e-3)


def test_the_steps_are_those_of_the_documentation() -> None:
    assert [step["setWeight"] for step in STEPS if "setWeight" in step] == [5, 25]
    pauses = [step["pause"]["duration"] for step in STEPS if "pause" in step]
    assert [seconds(pause) for pause in pauses] == [CANARY_SECONDS, CANARY_SECONDS]
    # What is judged is what has happened since the step began.
    for rule in (rule for group in RULES["groups"] for rule in group["rules"]):
        (window,) = re.findall(r"increase(\d+m)$", rule["record"])
        assert seconds(window) == CANARY_SECONDS
        assert set(re.findall(r"\[(\w+)\]", rule["expr"])) <= {window}


def filled(text: str, args: dict[str, str]) -> str:
    """A text with the arguments in their places."""
    return re.sub(r"\{\{args\.([a-z-]+)\}\}", lambda found: args[found[1]], text)


def test_rules_and_analyses_use_metrics_that_exist() -> None:
    asked = set()
    for group in RULES["groups"]:
        for rule in group["rules"]:
            asked |= asked_for(rule["expr"], RECORDED)
    for template in (HEALTH, PREDICTIONS):
        args = arguments(template, namespace="n", canary_hash="h")
        for metric in template["spec"]["metrics"]:
            query = filled(metric["provider"]["prometheus"]["query"], args)
            assert "{{" not in query
            asked |= asked_for(query, RECORDED)
    assert set(RECORDED) <= asked


@dataclass
class Side:
    """What the pods of a version answer in a minute."""

    statuses: dict[int, float] = field(default_factory=lambda: {200: 400})
    # Requests by the upper edge of their duration, and texts by that of their score.
    durations: dict[float, int] = field(default_factory=lambda: {0.02: 390, 0.05: 10})
    scores: dict[float, int] = field(default_factory=lambda: {0.8: 100, 0.95: 300})
    labels: dict[str, int] = field(default_factory=lambda: {"a": 100, "b": 100, "c": 200})
    abstained: int = 20

    def counters(self) -> dict[str, float]:
        """Each counter of a pod by its series without the pod's labels, and its rise a minute."""
        texts = sum(self.labels.values())
        found: dict[str, float] = {
            "whetstone_texts_total": texts,
            "whetstone_abstained_texts_total": self.abstained,
        }
        for status, count in self.statuses.items():
            found[f'whetstone_requests_total{{route="/classify", status="{status}"}}'] = count
            # Probes are no requests.
            found[f'whetstone_requests_total{{route="/livez", status="{status}"}}'] = 100
        for name, count in self.labels.items():
            found[f'whetstone_predictions_total{{label="{name}"}}'] = count
        for metric, edges, counts in (
            ('whetstone_request_duration_seconds_bucket{route="/classify", ', SECONDS, "durations"),
            ("whetstone_confidence_bucket{", CONFIDENCES, "scores"),
        ):
            held = getattr(self, counts)
            for edge in (*edges, math.inf):
                shown = "+Inf" if math.isinf(edge) else f"{edge:g}"
                found[f'{metric}le="{shown}"}}'] = sum(n for e, n in held.items() if e <= edge)
        return found

    def series(self, pod: str) -> dict[str, str]:
        """The series of a pod, for promtool."""
        of = f'namespace="production", job="text-classifier", pod="{pod}"'
        return {
            f"{name.rstrip('}')}{', ' if '{' in name else '{'}{of}}}": f"0+{count}x30"
            for name, count in self.counters().items()
        }

    def sample(self) -> health.Sample:
        """The same of five minutes, as a release reads them."""
        page = "\n".join(f"{name} {5 * count}" for name, count in self.counters().items())
        return health.read_sample(page + "\n")


FINE = Side()
FAILING = Side(statuses={200: 380, 500: 10, 504: 10})
CASES = {
    "alike": (FINE, FINE, None),
    "fails": (FAILING, FINE, "errors"),
    "is late": (Side(statuses={200: 380, 504: 20}), FINE, "errors"),
    "both fail": (FAILING, FAILING, None),
    "fails a little": (Side(statuses={200: 398, 500: 2}), FINE, None),
    "one of twenty fails": (Side(statuses={200: 3.8, 500: 0.2}), FINE, None),
    "refuses": (Side(statuses={200: 320, 429: 80}), FINE, "refusals"),
    "both refuse": (Side(statuses={200: 300, 429: 100}), Side(statuses={200: 301, 429: 99}), None),
    "slow": (Side(durations={0.02: 360, 0.5: 40}), FINE, "latency"),
    "slow, perhaps": (Side(durations={0.02: 395, 0.5: 5}), FINE, None),
    "slow and few": (Side(durations={0.02: 10, 0.5: 8}), FINE, None),
    "another label": (Side(labels={"a": 140, "b": 60, "c": 200}), FINE, "labels"),
    "no label b": (Side(labels={"a": 200, "b": 0, "c": 200}), FINE, "labels"),
    # Each of the others rises by less than two points.
    "less of a label": (
        Side(labels={"a": 76, "b": 83, "c": 83, "d": 83, "e": 75}),
        Side(labels={"a": 100, "b": 77, "c": 77, "d": 77, "e": 69}),
        "labels",
    ),
    "another label, a little": (Side(labels={"a": 104, "b": 96, "c": 200}), FINE, None),
    "another label, too few": (
        Side({200: 30}, {0.02: 30}, {0.8: 8, 0.95: 22}, {"a": 20, "b": 0, "c": 10}, 1),
        FINE,
        None,
    ),
    # Each request has ten texts that are alike.
    "many texts of few requests": (
        Side({200: 41}, {0.02: 41}, {0.8: 100, 0.95: 310}, {"a": 130, "b": 80, "c": 200}, 20),
        FINE,
        None,
    ),
    "abstains": (Side(abstained=80), FINE, "abstentions"),
    "abstains less": (Side(abstained=0), Side(abstained=80), "abstentions"),
    "other scores": (Side(scores={0.5: 200, 0.95: 200}), FINE, "confidence"),
    "other scores, a little": (Side(scores={0.5: 30, 0.8: 70, 0.95: 300}), FINE, None),
    "other scores, by chance": (
        Side({200: 41}, {0.02: 41}, {0.8: 25, 0.95: 16}, {"a": 10, "b": 10, "c": 21}, 2),
        Side(scores={0.8: 200, 0.95: 200}),
        None,
    ),
    "nothing": (Side({}, {}, {}, {}, 0), FINE, None),
}


def test_a_release_judges_the_same() -> None:
    """The cases are those that both ways shall judge alike."""
    for name, (canary, stable, fails) in CASES.items():
        trouble = judgement.judge(canary.sample(), stable.sample(), looks=2).trouble
        assert (trouble is None) == (fails is None), (name, trouble)


@pytest.mark.slow
@pytest.mark.parametrize(("canary", "stable", "fails"), CASES.values(), ids=CASES)
def test_prometheus_judges_each_canary(
    canary: Side, stable: Side, fails: str | None, tmp_path: Path
) -> None:
    series = canary.series("text-classifier-6c9f8d7b5-x2k4q")
    for pod in ("text-classifier-75b4d9c8f-aaaaa", "text-classifier-75b4d9c8f-bbbbb"):
        series |= stable.series(pod)
    # Another namespace is no part of it.
    series |= {
        name.replace("production", "staging"): values
        for name, values in FAILING.series("text-classifier-75b4d9c8f-ccccc").items()
    }
    wanted = {}
    for template in (HEALTH, PREDICTIONS):
        args = arguments(template, namespace="production", canary_hash="6c9f8d7b5")
        for metric in template["spec"]["metrics"]:
            query = filled(metric["provider"]["prometheus"]["query"], args)
            condition = filled(metric["failureCondition"], args)
            sign, most = condition.removeprefix("result[0] ").split()
            wanted[f"({query}) {sign} bool {most}"] = float(metric["name"] == fails)
    evaluated(tmp_path, series, wanted, "20m", RULES)
