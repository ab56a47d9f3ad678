"""Argo Rollouts: whether a Rollout, its Deployment, autoscaler and analyses fit together."""

from __future__ import annotations

from collections.abc import Iterator

from tests.k8s.manifests.render import Manifests, Resource, label

# Argo's own deadline, in seconds.
DEADLINE = 600


def rollouts(manifests: Manifests) -> Iterator[str]:
    """Rollouts that contradict the Deployment whose template they take, or lack an analysis."""
    for rollout in manifests.of("Rollout"):
        spec, of = rollout["spec"], rollout["spec"]["workloadRef"]
        workload = manifests.find(of["kind"], of["name"])
        if workload is None:
            yield f"{label(rollout)} takes {of['kind']}/{of['name']}, which is not there"
            continue
        own = workload["spec"]
        if spec["selector"] != own["selector"]:
            yield f"{label(rollout)} selects other pods than {label(workload)}"
        if spec.get("minReadySeconds", 0) != own.get("minReadySeconds", 0):
            yield f"{label(rollout)} has other minReadySeconds than {label(workload)}"
        if spec.get("progressDeadlineSeconds", DEADLINE) < own["progressDeadlineSeconds"]:
            yield f"{label(rollout)} gives up before {label(workload)}"
        if "replicas" in spec:
            yield f"{label(rollout)} has replicas: those are the autoscaler's"
        for scaler in manifests.of("HorizontalPodAutoscaler", "ScaledObject"):
            if scaler["spec"]["scaleTargetRef"]["kind"] != "Rollout":
                yield f"{label(scaler)} scales the pods that {label(rollout)} has taken away"
        yield from _analyses(manifests, rollout)


def _analyses(manifests: Manifests, rollout: Resource) -> Iterator[str]:
    canary = rollout["spec"]["strategy"]["canary"]
    steps = [step["analysis"] for step in canary["steps"] if "analysis" in step]
    for analysis in filter(None, [canary.get("analysis"), *steps]):
        given = {each["name"] for each in analysis.get("args", [])}
        for name in (each["templateName"] for each in analysis["templates"]):
            template = manifests.find("AnalysisTemplate", name)
            if template is None:
                yield f"there is no AnalysisTemplate {name}"
                continue
            args = template["spec"].get("args", [])
            needed = {each["name"] for each in args if "value" not in each}
            if not needed <= given <= {each["name"] for each in args}:
                yield f"AnalysisTemplate {name} needs {sorted(needed)} and gets {sorted(given)}"
