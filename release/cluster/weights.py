"""A share of the requests by weight: the Gateway API's HTTPRoute sends it to the canary's Service.

The weights of an HTTPRoute are exact, whatever the number of pods
(https://gateway-api.sigs.k8s.io/guides/traffic-splitting/). Only requests that come through the
gateway are split: the canary's pods are in no other Service.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from release.cluster.kubectl import Cluster
from release.cluster.overlay import CANARY, Workload, dump_manifests, load_manifests
from release.cluster.restore import as_applied
from release.cluster.variant import Variant, service_of, variant_of

# Of all requests: a share can have one digit after the point.
TOTAL_WEIGHT = 1000


@dataclass(frozen=True)
class Weights:
    """The HTTPRoutes of a workload that run in the cluster, and the canary behind them.

    Attributes:
        routes: the routes as they were before.
        service: the name of the workload's Service; the canary's is `<name>-canary`.
        variant: the canary, of one pod.
    """

    routes: list[dict[str, Any]]
    service: str
    variant: Variant

    @classmethod
    def find(cls, cluster: Cluster, render: str, workload: Workload) -> Weights | None:
        """The weights of a workload; None if no HTTPRoute in the cluster leads to its Service.

        Raises:
            ReleaseError: a name would be too long.
            ClusterError: the cluster cannot be asked.
        """
        service = service_of(render, workload)
        routes = [each for each in load_manifests(render) if each["kind"] == "HTTPRoute"]
        if service is None or not routes:
            return None
        name = service["metadata"]["name"]
        live = [
            as_applied(route, states_replicas=False)
            for route in cluster.live(dump_manifests(routes))
            if any(ref["name"] == name for ref in _references(route))
        ]
        if not live:
            return None
        variant = variant_of(render, workload, CANARY)
        own = copy.deepcopy(service)
        own["metadata"]["name"] = f"{name}-{CANARY}"
        own["spec"]["selector"] = variant.selector
        return cls(live, name, variant.with_object(own))

    def split(self, share: float) -> str:
        """The routes that send this share of the Service's requests to the canary."""
        canary = max(1, round(share * TOTAL_WEIGHT))
        routes = copy.deepcopy(self.routes)
        for route in routes:
            for rule in route["spec"]["rules"]:
                rule["backendRefs"] = [
                    new for ref in rule.get("backendRefs") or [] for new in self._split(ref, canary)
                ]
        return dump_manifests(routes)

    def _split(self, ref: dict[str, Any], canary: int) -> list[dict[str, Any]]:
        """A backend in two. A weight that it had among other backends is divided."""
        weight = ref.get("weight", 1)
        if ref["name"] != self.service:
            return [{**ref, "weight": weight * TOTAL_WEIGHT}]
        return [
            {**ref, "weight": weight * (TOTAL_WEIGHT - canary)},
            {**ref, "name": f"{self.service}-{CANARY}", "weight": weight * canary},
        ]

    @property
    def whole(self) -> str:
        """The routes as they were before."""
        return dump_manifests(self.routes)


def _references(route: dict[str, Any]) -> list[dict[str, Any]]:
    """The backends of a route."""
    return [ref for rule in route["spec"].get("rules", []) for ref in rule.get("backendRefs") or []]
