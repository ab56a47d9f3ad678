"""What resources say about each other: names, labels, ports, routes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from urllib.parse import urlsplit

from service.http.routes import BENTOML_ROUTES, HEALTH_ROUTE, MODEL_ROUTE, ROUTES
from service.page.page import PATH as UI
from service.settings import SettingsError, read_settings
from tests.k8s.manifests.pods import environment
from tests.k8s.manifests.render import Manifests, Resource, label
from tests.k8s.manifests.values import seconds

NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
# In no manifest: whoever deploys creates them.
SECRETS_OF_YOURS = {"text-classifier-api-keys", "text-classifier-capture", "text-classifier-tls"}
# All annotations together may have 256 KiB, and `kubectl apply` keeps the resource in one.
LARGEST_APPLIED = 256 << 10


def names(manifests: Manifests) -> Iterator[str]:
    """Duplicate or invalid names, and resources outside the namespace."""
    (namespace,) = (found["metadata"]["name"] for found in manifests.of("Namespace"))
    for name, count in Counter(map(label, manifests)).items():
        if count > 1 or not NAME.fullmatch(name.partition("/")[2]):
            yield f"{name} exists {count} times, or is no valid name"
    for resource in manifests:
        where = resource["metadata"].get("namespace")
        if where != (None if resource["kind"] == "Namespace" else namespace):
            yield f"{label(resource)} is in namespace {where}, not in {namespace}"
        if len(str(resource)) > LARGEST_APPLIED:
            yield f"{label(resource)} is too large for kubectl apply"
    enforced = next(manifests.of("Namespace"))["metadata"]["labels"]
    if enforced.get("pod-security.kubernetes.io/enforce") != "restricted":
        yield f"namespace {namespace} does not enforce `restricted`"


def _labels(resource: Resource) -> dict[str, str]:
    found: dict[str, str] = resource["metadata"].get("labels", {})
    return found


def _chosen(selector: dict[str, str], among: list[Resource]) -> list[Resource]:
    return [one for one in among if selector and selector.items() <= _labels(one).items()]


def selectors(manifests: Manifests) -> Iterator[str]:
    """Selectors that match nothing."""
    templates = [template for _, template in manifests.pods()]
    services = list(manifests.of("Service"))
    for resource in manifests:
        spec = resource.get("spec", {})
        among, selector = templates, None
        if resource["kind"] == "Service":
            selector = spec.get("selector", {})
        elif resource["kind"] in ("Deployment", "Rollout", "PodDisruptionBudget"):
            selector = spec.get("selector", {}).get("matchLabels", {})
        elif resource["kind"] == "NetworkPolicy":
            selector = spec.get("podSelector", {}).get("matchLabels", {})
        elif resource["kind"] == "ServiceMonitor":
            among, selector = services, spec.get("selector", {}).get("matchLabels", {})
        if selector is not None and not _chosen(selector, among):
            yield f"{label(resource)} chooses nothing by {selector}"
        if resource["kind"] == "PodMonitor":
            for wanted in spec["selector"]["matchExpressions"]:
                if not any(_labels(one).get(wanted["key"]) in wanted["values"] for one in among):
                    yield f"{label(resource)} chooses nothing by {wanted}"
    for template in templates:
        for spread in template["spec"].get("topologySpreadConstraints", []):
            if not _chosen(spread.get("labelSelector", {}).get("matchLabels", {}), [template]):
                yield f"pods are spread by the labels of others: {spread['topologyKey']}"


def ports(manifests: Manifests) -> Iterator[str]:
    """Ports, by name or number, that do not exist."""
    in_pods: set[object] = set()
    for _, container in manifests.containers():
        for port in container.get("ports", []):
            in_pods |= {port["containerPort"], port.get("name")}
    in_services: dict[str, set[object]] = {}
    for service in manifests.of("Service"):
        known = in_services.setdefault(service["metadata"]["name"], set())
        for port in service["spec"]["ports"]:
            known |= {port["port"], port.get("name")}
            target = port.get("targetPort", port["port"])
            if target not in in_pods:
                yield f"{label(service)} forwards to port {target}, which no pod has"
    for monitor in manifests.of("PodMonitor"):
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            if endpoint["port"] not in in_pods:
                yield f"{label(monitor)} asks port {endpoint['port']}, which no pod has"
    for name, port in _asked(manifests):
        if port not in in_services.get(name, set()):
            yield f"port {port} of Service {name} is asked for and not there"


def _asked(manifests: Manifests) -> Iterator[tuple[str, object]]:
    """Services, and the port on which they are called."""
    for ingress in manifests.of("Ingress"):
        for rule in ingress["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                service = path["backend"]["service"]
                yield service["name"], service["port"].get("name", service["port"].get("number"))
    for route in manifests.of("HTTPRoute"):
        for rule in route["spec"]["rules"]:
            yield from ((backend["name"], backend["port"]) for backend in rule["backendRefs"])
    for monitor in manifests.of("ServiceMonitor"):
        chosen = monitor["spec"]["selector"]["matchLabels"]
        for service in _chosen(chosen, list(manifests.of("Service"))):
            for endpoint in monitor["spec"]["endpoints"]:
                yield service["metadata"]["name"], endpoint["port"]


def references(manifests: Manifests) -> Iterator[str]:
    """Missing ConfigMaps, Secrets and ServiceAccounts; ConfigMaps that no pod reads."""
    read = set()
    for _, template in manifests.pods():
        pod = template["spec"]
        if manifests.find("ServiceAccount", pod.get("serviceAccountName", "default")) is None:
            yield f"there is no ServiceAccount {pod.get('serviceAccountName')}"
        for volume in pod.get("volumes", []):
            if volume.get("secret", {}).get("secretName") not in {None, *SECRETS_OF_YOURS}:
                yield f"there is no Secret {volume['secret']['secretName']}"
    for _, container in manifests.containers():
        for source in container.get("envFrom", []):
            if "secretRef" in source:
                if source["secretRef"]["name"] not in SECRETS_OF_YOURS:
                    yield f"there is no Secret {source['secretRef']['name']}"
                continue
            name = source["configMapRef"]["name"]
            read.add(name)
            if manifests.find("ConfigMap", name) is None:
                yield f"there is no ConfigMap {name}"
    for ingress in manifests.of("Ingress"):
        for tls in ingress["spec"].get("tls", []):
            if tls["secretName"] not in SECRETS_OF_YOURS:
                yield f"there is no Secret {tls['secretName']}"
            if set(tls["hosts"]) != {rule["host"] for rule in ingress["spec"]["rules"]}:
                yield f"{label(ingress)} has a certificate for other hosts"
    for config in manifests.of("ConfigMap"):
        if config["metadata"]["name"] not in read and "grafana_dashboard" not in _labels(config):
            yield f"nobody reads {label(config)}"


def replicas(manifests: Manifests) -> Iterator[str]:
    """Autoscaling, disruption and rollout that contradict each other."""
    scaled = list(manifests.of("HorizontalPodAutoscaler", "ScaledObject"))
    if len(scaled) > 1:
        yield f"several scale the pods: {', '.join(map(label, scaled))}"
    for scaler in scaled:
        target = scaler["spec"]["scaleTargetRef"]
        found = manifests.find(target["kind"], target["name"])
        if found is None or found["apiVersion"] != target["apiVersion"]:
            yield f"{label(scaler)} scales {target['kind']}/{target['name']}, which is not there"
        least, most = _bounds(scaler)
        if not 1 <= least <= most:
            yield f"{label(scaler)} has fewer replicas at most than at least"
    for workload in manifests.of("Deployment"):
        if "replicas" in workload["spec"]:
            yield f"{label(workload)} has replicas: those are the autoscaler's"
        rolling = workload["spec"].get("strategy", {}).get("rollingUpdate", {})
        if rolling.get("maxUnavailable") != 0 or rolling.get("maxSurge") in (None, 0, "0%"):
            yield f"{label(workload)} is not replaced pod by pod: {rolling}"
    least = min((_bounds(scaler)[0] for scaler in scaled), default=1)
    for budget in manifests.of("PodDisruptionBudget"):
        if (
            budget["spec"].get("maxUnavailable") == 0
            or budget["spec"].get("minAvailable", 0) >= least
        ):
            yield f"{label(budget)} keeps every node from being drained"


def _bounds(scaler: Resource) -> tuple[int, int]:
    """The fewest and the most replicas."""
    spec, names = scaler["spec"], ("minReplicas", "maxReplicas")
    if scaler["kind"] == "ScaledObject":
        names = ("minReplicaCount", "maxReplicaCount")
    return spec[names[0]], spec[names[1]]


def network(manifests: Manifests) -> Iterator[str]:
    """Traffic that is allowed and should not be, and traffic that is needed and not allowed."""
    policies = [policy["spec"] for policy in manifests.of("NetworkPolicy")]
    rules = {
        way: [
            rule
            for spec in policies
            if way.capitalize() in spec["policyTypes"]
            for rule in spec.get(way, [])
        ]
        for way in ("ingress", "egress")
    }
    for way, found in rules.items():
        if not all(rule.get("ports") for rule in found):
            yield f"{way} is open on every port"
    ends = {
        way: {(port["protocol"], port["port"]) for rule in found for port in rule.get("ports", [])}
        for way, found in rules.items()
    }
    served = {
        port["targetPort"] for found in manifests.of("Service") for port in found["spec"]["ports"]
    }
    if ends["ingress"] != {("TCP", port) for port in served}:
        yield f"ingress is allowed to {ends['ingress']}, not to the Service's ports"
    wanted = {("UDP", 53), ("TCP", 53)}
    for _, container in manifests.containers():
        variables = environment(manifests, container)
        url = variables.get("WHETSTONE_TRACING_URL")
        if url:
            wanted.add(("TCP", urlsplit(url).port or 80))
        if "://" in variables.get("WHETSTONE_CAPTURE", ""):
            wanted.add(("TCP", 443))
    if ends["egress"] != wanted:
        yield f"egress is allowed to {sorted(ends['egress'])}, needed is {sorted(wanted)}"


def patience(manifests: Manifests) -> Iterator[str]:
    """Gateways that give up before the service does, and so hide its reason."""
    for _, container in manifests.containers():
        try:
            deadline = read_settings(environment(manifests, container)).timeout_ms / 1000
        except SettingsError:
            continue
        for route in manifests.of("HTTPRoute"):
            for rule in route["spec"]["rules"]:
                written = rule.get("timeouts", {}).get("request", "0s")
                if seconds(written) <= deadline:
                    yield f"{label(route)} waits {written}, and an answer may take {deadline:g} s"


# The paths that callers need, and how each is matched. The probe is not for them; the cards of
# models are below their list.
OUTSIDE = {
    (path.removeprefix("POST "), "Exact")
    for path in {*ROUTES, UI} - {HEALTH_ROUTE, MODEL_ROUTE, "/v1/models"}
}


def exposed(manifests: Manifests) -> Iterator[str]:
    """Routes that callers outside should reach and cannot, and the reverse."""
    for ingress in manifests.of("Ingress"):
        paths = [path for rule in ingress["spec"]["rules"] for path in rule["http"]["paths"]]
        found = [(path["path"], path["pathType"]) for path in paths]
        yield from _same(ingress, {*OUTSIDE, ("/v1/models", "Prefix")}, found)
    for route in manifests.of("HTTPRoute"):
        paths = [match["path"] for rule in route["spec"]["rules"] for match in rule["matches"]]
        found = [(path["value"], path["type"]) for path in paths]
        yield from _same(route, {*OUTSIDE, ("/v1/models", "PathPrefix")}, found)
    for monitor in manifests.of("ServiceMonitor", "PodMonitor"):
        spec = monitor["spec"]
        for endpoint in spec.get("endpoints") or spec["podMetricsEndpoints"]:
            if endpoint.get("path", "/metrics") not in BENTOML_ROUTES:
                yield f"{label(monitor)} asks for {endpoint['path']}, which is no route"


def _same(
    resource: Resource, wanted: set[tuple[str, str]], found: list[tuple[str, str]]
) -> Iterator[str]:
    if sorted(found) != sorted(wanted):
        paths = [path for path, _ in found]
        yield f"{label(resource)} exposes {paths}, and the service's own routes are others"
