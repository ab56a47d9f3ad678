"""Quantities and enumerations, which are plain strings in Kubernetes' schemas."""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from tests.k8s.manifests.render import Manifests, label

# https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/
QUANTITY = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(?:(m|k|Ki|[MGTPE]i?)|[eE]([+-]?\d+))?")
FACTORS = {"m": Decimal("0.001"), "k": Decimal(1000), "Ki": Decimal(1024)} | {
    unit + i: Decimal(base) ** power
    for power, unit in enumerate("MGTPE", start=2)
    for i, base in (("", 1000), ("i", 1024))
}
SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}
# Fields with the same meaning everywhere; then fields named `type`, by their parent.
ENUMS = {
    "effect": {"NoSchedule", "PreferNoSchedule", "NoExecute"},
    "metricType": {"Utilization", "Value", "AverageValue"},
    "imagePullPolicy": {"Always", "IfNotPresent", "Never"},
    "operator": {"Exists", "Equal", "In", "NotIn", "DoesNotExist"},
    "pathType": {"Exact", "Prefix", "ImplementationSpecific"},
    "policyTypes": {"Ingress", "Egress"},
    "protocol": {"TCP", "UDP", "SCTP"},
    "restartPolicy": {"Always", "OnFailure", "Never"},
    "scheme": {"HTTP", "HTTPS"},
    "selectPolicy": {"Max", "Min", "Disabled"},
    "unhealthyPodEvictionPolicy": {"AlwaysAllow", "IfHealthyBudget"},
    "whenUnsatisfiable": {"DoNotSchedule", "ScheduleAnyway"},
}
TYPES = {
    "metrics": {"Resource", "ContainerResource", "Pods", "Object", "External"},
    "policies": {"Pods", "Percent"},
    "seccompProfile": {"RuntimeDefault", "Localhost", "Unconfined"},
    "spec": {"ClusterIP", "NodePort", "LoadBalancer", "ExternalName"},
    "strategy": {"RollingUpdate", "Recreate"},
    "target": {"Utilization", "Value", "AverageValue"},
}


def quantity(value: object) -> Decimal:
    """A quantity as a number.

    Raises:
        ValueError: it is not a quantity.
    """
    match = QUANTITY.fullmatch(str(value))
    if match is None:
        raise ValueError(f"{value!r} is not a quantity")
    number, unit, exponent = match.groups()
    return Decimal(number) * FACTORS.get(unit, 1) * Decimal(10) ** int(exponent or 0)


def seconds(duration: str) -> float:
    """A duration such as `1m30s` in seconds; 0 if it is none."""
    parts = re.findall(r"(\d+)(ms|[smh])", duration)
    return sum(int(number) * SECONDS[unit] for number, unit in parts)


def fields(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every scalar, with the keys that lead to it; items of a list have the keys of the list."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from fields(inner, (*path, key))
    elif isinstance(value, list):
        for inner in value:
            yield from fields(inner, path)
    else:
        yield path, value


def enumerations(manifests: Manifests) -> Iterator[str]:
    """Values that an enumeration does not have."""
    for resource in manifests:
        for path, value in fields(resource):
            known = TYPES.get(path[-2]) if path[-1] == "type" else ENUMS.get(path[-1])
            if known is not None and value not in known and "data" not in path:
                yield f"{label(resource)} {'.'.join(path)}: {value} is not one of {sorted(known)}"


def quantities(manifests: Manifests) -> Iterator[str]:
    """Invalid quantities, and requests above their limits."""
    for resource in manifests:
        for path, value in fields(resource):
            if path[-1] == "sizeLimit" or path[-2:-1] in (("requests",), ("limits",)):
                try:
                    quantity(value)
                except ValueError as error:
                    yield f"{label(resource)} {'.'.join(path)}: {error}"
    for _, container in manifests.containers():
        limits = container.get("resources", {}).get("limits", {})
        for name, value in container.get("resources", {}).get("requests", {}).items():
            try:
                if name in limits and quantity(value) > quantity(limits[name]):
                    yield f"container {container['name']} requests more {name} than its limit"
            except ValueError:
                continue
