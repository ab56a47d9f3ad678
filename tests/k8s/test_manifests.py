"""Every overlay renders with every component, passes Kubernetes' schemas, and fits together."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from release.cluster.overlay import CANARY, dump_manifests, workload_of
from release.cluster.variant import variant_of
from release.first_pod import SUFFIX
from tests.k8s.manifests import pods, references, rollouts, values
from tests.k8s.manifests.render import (
    COMPONENTS,
    K8S,
    OVERLAYS,
    PARTS,
    Manifests,
    Renderer,
    kustomize,
)
from tests.k8s.manifests.schemas import VERSIONS, schemas

CHECKS = (
    schemas,
    values.enumerations,
    values.quantities,
    pods.restricted,
    pods.images,
    pods.volumes,
    pods.settings,
    pods.probes,
    references.names,
    references.selectors,
    references.ports,
    references.references,
    references.replicas,
    rollouts.rollouts,
    references.network,
    references.exposed,
    references.patience,
)
# These take something away: the base's autoscaler or its pods, or the ServiceMonitor. The last one
# has to be the last one.
REPLACING = ("keda", "pod-monitor", "argo-rollouts")
ADDING = tuple(name for name in COMPONENTS if name not in ("gpu", *REPLACING))
# `pod-monitor` has what `prometheus` has.
REPLACED = (*(name for name in ADDING if name != "prometheus"), *REPLACING)
COMBINATIONS = [
    (),
    *((name,) for name in COMPONENTS),
    ADDING,
    ("gpu", *ADDING),
    (*ADDING, "argo-rollouts"),
    REPLACED,
    ("gpu", *REPLACED),
]


def problems(manifests: Manifests) -> list[str]:
    """What every check finds."""
    return [problem for check in CHECKS for problem in check(manifests)]


@pytest.fixture(scope="module")
def render(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    return Renderer(tmp_path_factory.mktemp("manifests"))


@pytest.mark.parametrize("components", COMBINATIONS, ids=lambda names: "+".join(names) or "alone")
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_overlay_is_sound(
    render: Renderer, overlay: str, components: tuple[str, ...]
) -> None:
    assert problems(render(overlay, *components)) == []
    assert len(VERSIONS) == 3


GONE = object()
IN_REPLACED = ("AnalysisTemplate", "PodMonitor", "Rollout", "ScaledObject")
POD = "spec template spec"
CONTAINER = f"{POD} containers 0"
RESOURCES = f"{CONTAINER} resources"
SECURITY = f"{CONTAINER} securityContext"
ROLLING = "spec strategy rollingUpdate"
NAME_LABEL = "app.kubernetes.io/name"
RULE = "spec rules 0"
# A field, what it is changed to, and what some check then says of it.
MISTAKES = [
    # schemas
    ("Deployment", "spec replica", 2, "replica"),
    ("Deployment", f"{CONTAINER} livenessProbe httpGet prot", "http", "prot"),
    ("Deployment", "apiVersion", "apps/v1beta1", "schema"),
    ("HorizontalPodAutoscaler", "apiVersion", "autoscaling/v2beta2", "schema"),
    ("PodDisruptionBudget", "kind", "PodDisruptionBudgets", "schema"),
    ("Service", "spec ports 0 port", "80", "80"),
    ("HTTPRoute", f"{RULE} matches 0 path type", "Prefix", "Prefix"),
    ("HTTPRoute", "spec parentRef", [], "parentRef"),
    ("ServiceMonitor", "spec endpoints 0 interval", "15 s", "15 s"),
    ("PrometheusRule", "spec groups 0 rules 0 expression", "1", "expression"),
    ("PodMonitor", "spec podMetricsEndpoints 0 interval", "15 s", "15 s"),
    ("ScaledObject", "spec triggers 1 metadata threshold", 1, "ScaledObject/text-classifier: $"),
    ("ScaledObject", "spec triggers 1 metadata metricName", "x", "ScaledObject/text-classifier: $"),
    ("ScaledObject", "spec minReplicas", 2, "minReplicas"),
    ("AnalysisTemplate", "spec metrics 0 failureCondition", "result > 1", "result > 1"),
    ("AnalysisTemplate", "spec metrics 0 every", "30s", "every"),
    ("Rollout", "spec template", {}, "template"),
    ("Rollout", "spec strategy canary steps 1 pause duration", "5 m", "5 m"),
    ("Rollout", "spec strategy canary steps 0 setWeight", 101, "101"),
    # values
    ("Deployment", f"{CONTAINER} imagePullPolicy", "IfNotThere", "IfNotThere"),
    ("Deployment", f"{POD} topologySpreadConstraints 0 whenUnsatisfiable", "Anyway", "Anyway"),
    ("Deployment", "spec strategy type", "Rolling", "Rolling"),
    ("HorizontalPodAutoscaler", "spec metrics 0 resource target type", "Percent", "Percent"),
    ("HorizontalPodAutoscaler", "spec metrics 0 type", "Cpu", "Cpu"),
    ("Ingress", f"{RULE} http paths 0 pathType", "Exactly", "Exactly"),
    ("NetworkPolicy", "spec egress 0 ports 0 protocol", "udp", "udp"),
    ("Deployment", f"{RESOURCES} limits memory", "1GB", "1GB"),
    ("Deployment", f"{RESOURCES} requests cpu", "4", "requests more cpu"),
    ("Deployment", f"{POD} volumes tmp emptyDir sizeLimit", "256mb", "256mb"),
    # restricted
    ("Deployment", f"{POD} securityContext runAsNonRoot", GONE, "runAsNonRoot"),
    ("Deployment", f"{POD} securityContext runAsUser", 0, "runAsUser"),
    ("Deployment", f"{POD} securityContext runAsUser", GONE, "runAsUser"),
    ("Deployment", f"{POD} securityContext seccompProfile", GONE, "seccompProfile"),
    ("Deployment", f"{POD} securityContext seccompProfile type", "Unconfined", "seccompProfile"),
    ("Deployment", f"{POD} securityContext sysctls", [], "sysctls"),
    ("Deployment", f"{POD} hostNetwork", True, "hostNetwork"),
    ("Deployment", f"{POD} hostPID", True, "hostPID"),
    ("Deployment", f"{POD} volumes tmp", {"name": "tmp", "hostPath": {"path": "/var"}}, "a type"),
    ("Deployment", f"{CONTAINER} ports 0 hostPort", 3000, "a port of the node's"),
    ("Deployment", f"{SECURITY} privileged", True, "privileged"),
    ("Deployment", f"{SECURITY} allowPrivilegeEscalation", GONE, "allowPrivilegeEscalation"),
    ("Deployment", f"{SECURITY} capabilities drop", ["NET_RAW"], "capabilities"),
    ("Deployment", f"{SECURITY} capabilities add", ["SYS_TIME"], "capabilities"),
    ("Deployment", f"{SECURITY} readOnlyRootFilesystem", False, "readOnlyRootFilesystem"),
    ("Deployment", f"{SECURITY} runAsNonRoot", False, "runAsNonRoot"),
    ("Deployment", f"{POD} automountServiceAccountToken", GONE, "token"),
    ("Deployment", f"{POD} enableServiceLinks", GONE, "enableServiceLinks"),
    ("Namespace", "metadata labels pod-security.kubernetes.io/enforce", "baseline", "restricted"),
    # image, volumes, settings
    ("Deployment", f"{CONTAINER} image", "registry:5000/text-classifier", "no tag"),
    ("Deployment", f"{CONTAINER} image", "text-classifier:latest", "no tag"),
    ("Deployment", f"{CONTAINER} volumeMounts tmp name", "temp", "volume temp is mounted"),
    ("Deployment", f"{CONTAINER} volumeMounts tmp mountPath", "/data", "not writable"),
    ("Deployment", f"{CONTAINER} volumeMounts tmp subPath", "x", "subPath"),
    ("Deployment", f"{CONTAINER} volumeMounts tmp mountPath", "/etc/whetstone", "at one path"),
    ("Deployment", f"{CONTAINER} volumeMounts", [], "volume tmp is not mounted"),
    ("Deployment", f"{CONTAINER} env", [], "BENTOML_HOME"),
    ("Deployment", f"{POD} volumes tmp emptyDir sizeLimit", GONE, "no sizeLimit"),
    ("ConfigMap", "data WHETSTONE_THREDS", "2", "did you mean WHETSTONE_THREADS"),
    ("ConfigMap", "data WHETSTONE_THREADS", "two", "WHETSTONE_THREADS"),
    ("ConfigMap", "data WHETSTONE_THREADS", "4", "the CPU limit"),
    ("ConfigMap", "data WHETSTONE_THREADS", GONE, "the node's cores"),
    ("ConfigMap", "data WHETSTONE_OPEN_ROUTES", "/metric", "/metric"),
    ("ConfigMap", "data WHETSTONE_OPEN_ROUTES", "/metrics", "the probes have no API key"),
    ("ConfigMap", "data WHETSTONE_API_KEYS_FILE", "/etc/whetstone/keys", "no file of a mounted"),
    ("ConfigMap", "data WHETSTONE_DEVICE", "cuda", "GPUs"),
    ("ConfigMap", "data WHETSTONE_TIMEOUT_MS", "30000", "terminationGracePeriodSeconds"),
    ("ConfigMap", "data WHETSTONE_TRACING_URL", "http://collector:4317", "egress"),
    ("Deployment", f"{RESOURCES} limits cpu", "3", "the CPU limit"),
    ("Deployment", f"{RESOURCES} limits memory", "2Gi", "memory is requested"),
    # probes and ending
    ("Deployment", f"{CONTAINER} readinessProbe httpGet port", "web", "asks port web"),
    ("Deployment", f"{CONTAINER} readinessProbe httpGet port", "http", "may be before it"),
    ("Deployment", f"{CONTAINER} ports 1 name", "web", "asks port probes"),
    ("Deployment", f"{CONTAINER} ports 1 containerPort", 3002, "port probes 3002"),
    ("ConfigMap", "data WHETSTONE_PROBE_PORT", GONE, "WHETSTONE_PROBE_PORT is None"),
    ("ConfigMap", "data WHETSTONE_WORKERS", "2", "the CPU limit"),
    ("Deployment", f"{CONTAINER} startupProbe", GONE, "no startupProbe"),
    ("Deployment", f"{CONTAINER} livenessProbe httpGet path", "/readyz", "asks /readyz"),
    ("Deployment", f"{CONTAINER} livenessProbe failureThreshold", 2, "livenessProbe waits 20 s"),
    ("Deployment", f"{CONTAINER} livenessProbe periodSeconds", 5, "livenessProbe waits 15 s"),
    ("ConfigMap", "data WHETSTONE_STALL_MS", "20000", "WHETSTONE_STALL_MS is 20000"),
    ("ConfigMap", "data WHETSTONE_TIMEOUT_MS", "15000", "healthy work may take 30 s"),
    ("Deployment", f"{CONTAINER} startupProbe timeoutSeconds", GONE, "two seconds"),
    ("Deployment", f"{CONTAINER} startupProbe failureThreshold", 60, "a start may take"),
    ("Deployment", "spec progressDeadlineSeconds", GONE, "progressDeadlineSeconds"),
    ("Deployment", f"{CONTAINER} lifecycle", GONE, "preStop"),
    ("Deployment", f"{POD} terminationGracePeriodSeconds", GONE, "terminationGracePeriodSeconds"),
    # references
    ("Service", "metadata namespace", "default", "namespace default"),
    ("Service", "metadata name", "Text_classifier", "no valid name"),
    ("Service", f"spec selector {NAME_LABEL}", "other", "Service/text-classifier chooses"),
    ("Service", "spec selector", GONE, "Service/text-classifier chooses"),
    ("Deployment", f"spec selector matchLabels {NAME_LABEL}", "other", "Deployment/"),
    ("PodDisruptionBudget", f"spec selector matchLabels {NAME_LABEL}", "x", "PodDisruptionBudget/"),
    ("NetworkPolicy", f"spec podSelector matchLabels {NAME_LABEL}", "other", "NetworkPolicy/"),
    ("ServiceMonitor", f"spec selector matchLabels {NAME_LABEL}", "other", "ServiceMonitor/"),
    ("Service", f"metadata labels {NAME_LABEL}", "other", "ServiceMonitor/"),
    (
        "Deployment",
        f"{POD} topologySpreadConstraints 1 labelSelector matchLabels {NAME_LABEL}",
        "other",
        "labels of others",
    ),
    (
        "PodMonitor",
        "spec selector matchExpressions 0 values",
        ["other"],
        "PodMonitor/text-classifier chooses",
    ),
    ("PodMonitor", "spec podMetricsEndpoints 0 port", "metrics", "asks port metrics"),
    ("Service", "spec ports 0 targetPort", "web", "forwards to port web"),
    ("Service", "spec ports 0 name", "web", "port http of Service"),
    ("Service", "spec ports 0 port", 8080, "port 80 of Service"),
    ("Ingress", f"{RULE} http paths 0 backend service name", "other", "of Service other"),
    ("HTTPRoute", f"{RULE} backendRefs 0 port", 3000, "port 3000 of Service"),
    ("ServiceMonitor", "spec endpoints 0 port", "metrics", "port metrics of Service"),
    ("Deployment", f"{CONTAINER} envFrom 0 configMapRef name", "other", "no ConfigMap other"),
    ("ConfigMap", "metadata name", "other", "nobody reads"),
    ("Deployment", f"{POD} serviceAccountName", "other", "no ServiceAccount other"),
    ("Deployment", f"{POD} serviceAccountName", GONE, "no ServiceAccount"),
    ("Deployment", f"{POD} volumes api-keys secret secretName", "other", "no Secret other"),
    ("Ingress", "spec tls 0 secretName", "other", "no Secret other"),
    ("Ingress", f"{RULE} host", "other.example.com", "a certificate for other hosts"),
    # replicas and network
    ("HorizontalPodAutoscaler", "spec scaleTargetRef name", "other", "scales Deployment/other"),
    ("HorizontalPodAutoscaler", "spec scaleTargetRef apiVersion", "v1", "scales Deployment/"),
    ("HorizontalPodAutoscaler", "spec maxReplicas", 2, "fewer replicas at most"),
    ("HorizontalPodAutoscaler", "spec minReplicas", 0, "fewer replicas at most"),
    ("ScaledObject", "spec scaleTargetRef name", "other", "scales Rollout/other"),
    ("ScaledObject", "spec maxReplicaCount", 1, "fewer replicas at most"),
    ("ScaledObject", "spec scaleTargetRef kind", "Deployment", "has taken away"),
    ("Rollout", "spec workloadRef name", "other", "takes Deployment/other"),
    ("Rollout", f"spec selector matchLabels {NAME_LABEL}", "other", "selects other pods"),
    ("Rollout", "spec minReadySeconds", GONE, "minReadySeconds"),
    ("Rollout", "spec progressDeadlineSeconds", 60, "gives up before"),
    (
        "Rollout",
        "spec strategy canary analysis templates 0 templateName",
        "x",
        "no AnalysisTemplate x",
    ),
    ("Rollout", "spec strategy canary steps 2 analysis args", [], "needs ['canary-hash'"),
    ("AnalysisTemplate", "spec args 0 name", "space", "needs ['canary-hash', 'space']"),
    ("Deployment", "spec replicas", 2, "the autoscaler's"),
    ("Deployment", f"{ROLLING} maxSurge", 0, "pod by pod"),
    ("Deployment", f"{ROLLING} maxUnavailable", 1, "pod by pod"),
    ("Deployment", ROLLING, GONE, "pod by pod"),
    ("PodDisruptionBudget", "spec maxUnavailable", 0, "drained"),
    ("NetworkPolicy", "spec policyTypes", ["Ingress"], "egress is allowed"),
    ("NetworkPolicy", "spec ingress 0", {}, "every port"),
    ("NetworkPolicy", "spec ingress 0 ports 0 port", "web", "ingress is allowed"),
    ("NetworkPolicy", "spec egress 0 ports", [{"protocol": "TCP", "port": 443}], "egress is"),
    # routes
    ("Ingress", f"{RULE} http paths 0 path", "/metrics", "exposes"),
    ("Ingress", f"{RULE} http paths 0 pathType", "Prefix", "exposes"),
    ("HTTPRoute", f"{RULE} matches 0 path value", "/", "exposes"),
    ("ServiceMonitor", "spec endpoints 0 path", "/metric", "no route"),
    ("PodMonitor", "spec podMetricsEndpoints 0 path", "/metric", "no route"),
    # how long a gateway waits
    ("HTTPRoute", f"{RULE} timeouts request", "10s", "an answer may take 10 s"),
    ("HTTPRoute", f"{RULE} timeouts", GONE, "HTTPRoute/text-classifier waits 0s"),
    ("HTTPRoute", f"{RULE} timeouts request", "quarter", "quarter"),
    ("ConfigMap", "data WHETSTONE_TIMEOUT_MS", "15000", "HTTPRoute/text-classifier waits 15s"),
]


def change(manifests: Manifests, kind: str, path: str, value: Any) -> None:
    """Set the field at `path` of the first resource of a kind, or remove it.

    A step into a list is an index, or the `name` of what is meant.
    """
    *way, last = path.split()
    place: Any = next(
        found for found in manifests.of(kind) if "dashboard" not in found["metadata"]["name"]
    )
    for step in way:
        place = place[key(place, step)]
    if value is GONE:
        del place[key(place, last)]
    else:
        place[key(place, last)] = value


def key(place: Any, step: str) -> Any:
    """What `step` means in a mapping or a list."""
    if not isinstance(place, list):
        return step
    if step.isdecimal():
        return int(step)
    return next(index for index, item in enumerate(place) if item["name"] == step)


@pytest.mark.parametrize(("kind", "path", "value", "message"), MISTAKES)
def test_each_mistake_is_reported(
    render: Renderer, kind: str, path: str, value: Any, message: str
) -> None:
    manifests = render("production", *(REPLACED if kind in IN_REPLACED else ADDING))
    change(manifests, kind, path, value)
    assert message in str(problems(manifests))


def test_a_tag_and_a_name_in_the_overlay_reach_every_container(tmp_path: Path) -> None:
    tree = Renderer(tmp_path).tree
    for overlay in OVERLAYS:
        file = tree / "overlays" / overlay / "kustomization.yaml"
        written = file.read_text("utf-8")
        name = yaml.safe_load(written)["images"][0].get("newName", "text-classifier")
        # A tag of digits would be a number without the quotes.
        changed, count = re.subn(r'newTag: "[^"]+"', 'newTag: "0123456789"', written)
        assert count == 1
        file.write_text(changed, "utf-8")
        containers = kustomize(file.parent).containers()
        assert [one["image"] for _, one in containers] == [f"{name}:0123456789"]


def sources() -> list[Path]:
    return sorted(path for part in PARTS for path in (K8S / part).rglob("*") if path.is_file())


def test_only_overlays_name_an_image() -> None:
    for path in sources():
        text = path.read_text("utf-8")
        named = [line.strip() for line in text.splitlines() if line.strip().startswith("image: ")]
        assert named == (["image: text-classifier"] if path.parent.name == "base" and named else [])
        assert ("newTag" in text) == ("overlays" in path.parts), path


def test_every_file_is_used() -> None:
    used = set()
    for path in sources():
        if path.name != "kustomization.yaml":
            continue
        used.add(path)
        content = yaml.safe_load(path.read_text("utf-8"))
        listed = [*content.get("resources", []), *content.get("components", [])]
        listed += [patch["path"] for patch in content.get("patches", []) if "path" in patch]
        for generator in content.get("configMapGenerator", []):
            listed += [*generator.get("envs", []), *generator.get("files", [])]
        used |= {(path.parent / name).resolve() for name in listed}
    assert set(sources()) <= used


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_overlay_is_short(overlay: str) -> None:
    lines = [
        line
        for path in (K8S / "overlays" / overlay).rglob("*")
        for line in path.read_text("utf-8").splitlines()
        if line.strip() and not line.strip().startswith("#")
    ]
    assert len(lines) < 20


def test_a_changed_setting_makes_a_new_configmap(render: Renderer) -> None:
    names = {
        render(*how).find("Deployment", "text-classifier")["spec"]["template"]["spec"][
            "containers"
        ][0]["envFrom"][0]["configMapRef"]["name"]
        for how in [("staging",), ("staging", "tracing"), ("staging", "gpu")]
    }
    assert len(names) == 3
    assert all(name.startswith("text-classifier-") for name in names)


def test_the_pod_monitor_sees_the_pods_that_a_release_starts(render: Renderer) -> None:
    """Those of a first pod and of a canary, which no Service of the overlay selects."""
    manifests = render("production", "pod-monitor")
    assert not list(manifests.of("ServiceMonitor"))
    assert list(manifests.of("PrometheusRule"))
    image = next(container["image"] for _, container in manifests.containers())
    content = dump_manifests(manifests)
    workload = workload_of(content, image)
    variants = [variant_of(content, workload, suffix) for suffix in (SUFFIX, CANARY)]
    (deployment,) = manifests.of("Deployment")
    labels = [deployment["spec"]["template"]["metadata"]["labels"]]
    labels += [variant.labels for variant in variants]
    (monitor,) = manifests.of("PodMonitor")
    (wanted,) = monitor["spec"]["selector"]["matchExpressions"]
    assert [each[wanted["key"]] for each in labels] == wanted["values"]
    (service,) = manifests.of("Service")
    selected = [service["spec"]["selector"].items() <= each.items() for each in labels]
    assert selected == [True, False, False]


def test_a_missing_kubectl_is_reported_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(pytest.fail.Exception, match=r"install 1\.28 or newer"):
        kustomize(K8S / "base")
