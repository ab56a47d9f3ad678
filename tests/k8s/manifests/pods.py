"""The pods: their permissions, volumes and settings, their probes, and their end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from service.http.routes import BENTOML_ROUTES, Routes
from service.settings import PREFIX, Settings, SettingsError, read_settings
from tests.k8s.manifests.render import Manifests, Resource

# The user of the image.
USER = 1034
# Pod Security Standards, `restricted`:
# https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
HOST_FIELDS = ("hostNetwork", "hostPID", "hostIPC")
# The volume types in use, all of which it allows.
VOLUME_TYPES = {"configMap", "emptyDir", "persistentVolumeClaim", "projected", "secret"}
# Fields that the profile restricts, and that nothing here needs.
UNUSED = ("appArmorProfile", "procMount", "seLinuxOptions", "sysctls", "windowsOptions")


def restricted(manifests: Manifests) -> Iterator[str]:
    """Violations of the profile `restricted`, and of our own stricter rules."""
    for _, template in manifests.pods():
        pod = template["spec"]
        security = pod.get("securityContext", {})
        yield from (f"{field} is set" for field in HOST_FIELDS if pod.get(field))
        yield from (f"securityContext.{field} is set" for field in UNUSED if field in security)
        for volume in pod.get("volumes", []):
            if not set(volume) - {"name"} <= VOLUME_TYPES:
                yield f"volume {volume['name']} is of a type that is not allowed"
        if pod.get("automountServiceAccountToken") is not False:
            yield "the pod gets a token of its ServiceAccount"
        if pod.get("enableServiceLinks") is not False:
            yield "enableServiceLinks is not false"
        if pod.get("ephemeralContainers"):
            yield "the pod has ephemeral containers"
    for pod, container in manifests.containers():
        for problem in _container(pod.get("securityContext", {}), container):
            yield f"container {container['name']}: {problem}"


def _container(pod: Resource, container: Resource) -> Iterator[str]:
    own = container.get("securityContext", {})
    both = pod | own
    yield from (f"securityContext.{field} is set" for field in UNUSED if field in own)
    if own.get("privileged"):
        yield "privileged"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation is not false"
    if own.get("capabilities") != {"drop": ["ALL"]}:
        yield "capabilities are not all dropped"
    if own.get("readOnlyRootFilesystem") is not True:
        yield "readOnlyRootFilesystem is not true"
    if both.get("runAsNonRoot") is not True:
        yield "runAsNonRoot is not true"
    if both.get("runAsUser") != USER or both.get("runAsGroup") != USER:
        yield f"runAsUser and runAsGroup are not {USER}"
    if both.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
        yield "no seccompProfile"
    if any("hostPort" in port for port in container.get("ports", [])):
        yield "a port of the node's is taken"


def images(manifests: Manifests) -> Iterator[str]:
    """Images without a tag, or with a tag that moves."""
    for _, container in manifests.containers():
        name, _, tag = container["image"].rpartition("/")[2].partition(":")
        if not tag or tag == "latest":
            yield f"image {name} has no tag of its own"


def volumes(manifests: Manifests) -> Iterator[str]:
    """Mounts of missing volumes, and volumes that are not mounted or have no size limit."""
    for _, template in manifests.pods():
        pod = template["spec"]
        declared = {volume["name"]: volume for volume in pod.get("volumes", [])}
        mounts = [m for container in pod["containers"] for m in container.get("volumeMounts", [])]
        mounted = {mount["name"] for mount in mounts}
        yield from (f"volume {name} is mounted and not there" for name in mounted - set(declared))
        yield from (f"volume {name} is not mounted" for name in set(declared) - mounted)
        yield from (
            f"{m['mountPath']} is a subPath: it never changes" for m in mounts if "subPath" in m
        )
        for name, volume in declared.items():
            if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
                yield f"emptyDir {name} has no sizeLimit"
        paths = [mount["mountPath"] for mount in mounts]
        if len(set(paths)) < len(paths):
            yield "two volumes are mounted at one path"


def environment(manifests: Manifests, container: Resource) -> dict[str, str]:
    """The variables of a container that the manifests define."""
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        config = manifests.find("ConfigMap", source.get("configMapRef", {}).get("name", ""))
        found |= (config or {}).get("data", {})
    return found | {one["name"]: one["value"] for one in container.get("env", []) if "value" in one}


def settings(manifests: Manifests) -> Iterator[str]:
    """Variables that the service refuses, or that contradict the pod."""
    for pod, container in manifests.containers():
        variables = environment(manifests, container)
        if not any(name.startswith(PREFIX) for name in variables):
            yield f"container {container['name']} has no {PREFIX} variable"
        home = PurePosixPath(variables.get("BENTOML_HOME", "/home/bentoml"))
        if not any(home.is_relative_to(path) for path in _mounts(pod, container, "emptyDir")):
            yield f"BENTOML_HOME {home} is not writable"
        try:
            read = read_settings(variables)
            Routes(read)
        except SettingsError as error:
            yield str(error)
        else:
            yield from _fit(read, pod, container)


def _fit(read: Settings, pod: Resource, container: Resource) -> Iterator[str]:
    limits = container["resources"]["limits"]
    requests = container["resources"]["requests"]
    if read.threads is None:
        yield "WHETSTONE_THREADS is not set: it would be the node's cores"
    elif read.device == "cpu" and str(read.threads * read.workers) != str(limits["cpu"]):
        yield f"WHETSTONE_THREADS is {read.threads}, and the CPU limit {limits['cpu']}"
    named = {port.get("name"): port["containerPort"] for port in container.get("ports", [])}
    if named.get("probes") != read.probe_port:
        yield f"WHETSTONE_PROBE_PORT is {read.probe_port}, and port probes {named.get('probes')}"
    if requests["memory"] != limits["memory"]:
        yield "memory is requested and limited differently"
    if (read.device == "cuda") != ("nvidia.com/gpu" in limits):
        yield f"WHETSTONE_DEVICE is {read.device}, and the GPUs {limits.get('nvidia.com/gpu', 0)}"
    if read.api_keys_file is not None:
        if not {"/livez", "/readyz"} <= set(read.open_routes):
            yield "the probes have no API key"
        keys = PurePosixPath(read.api_keys_file)
        secret = _mounts(pod, container, "secret").get(str(keys.parent), {})
        if keys.name not in [item["path"] for item in secret.get("items", [])]:
            yield f"{keys} is no file of a mounted Secret"
    # What began just before its deadline takes as long again at the very most.
    slowest = 2 * read.timeout_ms / 1000
    if read.stall_ms / 1000 <= slowest:
        yield f"WHETSTONE_STALL_MS is {read.stall_ms}, and healthy work may take {slowest:g} s"
    alive = container.get("livenessProbe", {})
    patience = alive.get("periodSeconds", 10) * alive.get("failureThreshold", 3)
    if patience <= slowest:
        yield f"livenessProbe waits {patience} s, and healthy work may take {slowest:g} s"
    grace = pod.get("terminationGracePeriodSeconds", 30)
    needed = _pause(container) + (read.drain_ms + 2 * read.timeout_ms) / 1000
    if grace <= needed:
        yield f"terminationGracePeriodSeconds is {grace}, and ending may take {needed:g}"


def _mounts(pod: Resource, container: Resource, kind: str) -> dict[str, Resource]:
    """The volumes of a kind, by their path in a container."""
    declared = {volume["name"]: volume[kind] for volume in pod.get("volumes", []) if kind in volume}
    return {
        mount["mountPath"]: declared[mount["name"]]
        for mount in container.get("volumeMounts", [])
        if mount["name"] in declared
    }


def _pause(container: Resource) -> int:
    """Seconds of `preStop: exec: [sleep, N]`; 0 where there is none."""
    hook = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])
    return int(hook[1]) if hook[:1] == ["sleep"] else 0


def probes(manifests: Manifests) -> Iterator[str]:
    """Probes that are missing, call the wrong path, or allow too little or too much time."""
    wanted = {"startupProbe": "/readyz", "readinessProbe": "/readyz", "livenessProbe": "/livez"}
    for resource, template in manifests.pods():
        for container in template["spec"]["containers"]:
            ports = [port["name"] for port in container.get("ports", []) if "name" in port]
            for name, path in wanted.items():
                asked = container.get(name, {}).get("httpGet")
                if asked is None:
                    yield f"there is no {name}"
                    continue
                if asked["port"] != "probes":
                    yield f"{name} asks port {asked['port']}, where requests may be before it"
                if asked["port"] not in ports:
                    yield f"{name} asks port {asked['port']}, which no container has by that name"
                if asked["path"] != path or path not in BENTOML_ROUTES:
                    yield f"{name} asks {asked['path']}, not {path}"
                if container[name].get("timeoutSeconds", 1) < 2:
                    yield f"{name} waits less than two seconds"
            if not 3 <= _pause(container) <= 15:
                yield "preStop does not sleep for some seconds"
            start = container.get("startupProbe", {})
            tries = max(start.get("periodSeconds", 10), start.get("timeoutSeconds", 1))
            allowed = start.get("failureThreshold", 3) * tries
            deadline = resource["spec"].get("progressDeadlineSeconds", 0)
            if not allowed + resource["spec"].get("minReadySeconds", 0) < deadline <= 600:
                yield f"progressDeadlineSeconds is {deadline}, and a start may take {allowed}"
