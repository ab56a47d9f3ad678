"""PromQL in the manifests: parsed, compared with our metrics, and evaluated by promtool."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import promql_parser
import yaml

from service.metrics import METRICS
from tests.conftest import ROOT

RULES = yaml.safe_load(
    (ROOT / "k8s" / "components" / "prometheus" / "alerts.yaml").read_text("utf-8")
)
EVERY_RULE = [rule for group in RULES["spec"]["groups"] for rule in group["rules"]]
RECORDS = {rule["record"]: rule["expr"] for rule in EVERY_RULE if "record" in rule}
# What Prometheus adds to each series when it asks a pod.
TARGET_LABELS = {"namespace", "pod"}


def exported() -> dict[str, set[str]]:
    """The labels of every series, by its name."""
    found: dict[str, set[str]] = {}
    for metric in METRICS:
        labels = set(metric.labels)
        if metric.kind == "histogram":
            found |= {f"{metric.name}_{part}": labels for part in ("sum", "count")}
            found[f"{metric.name}_bucket"] = labels | {"le"}
        else:
            found[metric.name] = labels
    return found


# What kube-state-metrics says of containers; see docs/metrics/workload/pod-metrics.md there.
OF_THE_CLUSTER = {
    "kube_pod_container_resource_limits": {"container", "resource", "unit", "node", "uid"},
    "kube_pod_container_status_restarts_total": {"container", "uid"},
}
SERIES = exported() | OF_THE_CLUSTER | {name: {"label"} for name in RECORDS}


def selectors(expression: Any) -> list[Any]:
    """The vector selectors in a parsed expression."""
    if isinstance(expression, promql_parser.VectorSelector):
        return [expression]
    inside = []
    for name in ("expr", "lhs", "rhs", "vector_selector", "param"):
        part = getattr(expression, name, None)
        if part is not None:
            inside += selectors(part)
    for argument in getattr(expression, "args", None) or []:
        inside += selectors(argument)
    return inside


def asked_for(written: str, recorded: dict[str, set[str]] | None = None) -> set[str]:
    """The metrics that an expression names; each is exported, with the labels it is chosen by.

    Args:
        recorded: the labels of further series, which other rules record.
    """
    names = set()
    known = SERIES | (recorded or {})
    for selector in selectors(promql_parser.parse(written)):
        assert selector.name in known, f"{selector.name} in {written}"
        chosen = {matcher.name for matcher in selector.matchers.matchers}
        assert chosen <= known[selector.name] | TARGET_LABELS, written
        names.add(selector.name)
    assert names, written
    return names


def alert_named(name: str) -> dict[str, Any]:
    """An alert of the component `prometheus`."""
    found: dict[str, Any] = next(rule for rule in EVERY_RULE if rule.get("alert") == name)
    return found


def run_promtool(
    folder: Path, cases: list[dict[str, Any]], rules: dict[str, Any] | None = None
) -> None:
    """Run cases of `promtool test rules`; what fails in them fails the test.

    `make test-promtool-setup` puts promtool beside the interpreter.
    """
    files = {"rules.yaml": rules or {"groups": []}}
    files["cases.yaml"] = {"rule_files": ["rules.yaml"], "tests": cases}
    for name, content in files.items():
        (folder / name).write_text(yaml.safe_dump(content), "utf-8")
    beside = Path(sys.executable).with_name("promtool")
    words = [shutil.which("promtool") or beside, "test", "rules", "cases.yaml"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def evaluated(
    folder: Path,
    series: dict[str, str],
    results: dict[str, float],
    at: str,
    rules: dict[str, Any] | None = None,
) -> None:
    """Check what expressions are at a time, by promtool: one number each, without labels.

    Args:
        series: what Prometheus has seen, a value a minute.
    """
    tests = [
        {"expr": each, "eval_time": at, "exp_samples": [{"labels": "{}", "value": result}]}
        for each, result in results.items()
    ]
    shown = [{"series": name, "values": values} for name, values in series.items()]
    case = {"interval": "1m", "input_series": shown, "promql_expr_test": tests}
    run_promtool(folder, [case], rules)
