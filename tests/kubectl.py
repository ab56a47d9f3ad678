#!/usr/bin/env python3
"""A stand-in for kubectl and the cluster behind it, for the tests of releases.

It stands in for `kubectl get | apply | diff | delete | logs | port-forward | config
current-context` of kubectl 1.32, and for what the API server, the Deployment controller and the
kubelets then do. `kustomize` goes to the real kubectl, which is the next in PATH after the folder
of the file below.

It was written without a cluster. The shapes of objects (List, DeploymentStatus and its
conditions, PodStatus, ContainerStateWaiting) are those of the API reference for Kubernetes 1.32;
what kubectl prints ("configured", "Forwarding from 127.0.0.1:PORT -> 3000", "Error from server
(NotFound): …") and exit status 1 of `diff` are those of its sources, k8s.io/kubectl. It does
not merge (an applied object replaces the live one, except what others own: `replicas` and status),
validate, or take time.

`STAND_IN` names a JSON file:

    objects   what is in the cluster, by "kind/namespace/name"
    others    what somebody else has made, by "kind/namespace/name": the keys of its content
    images    by image: "port" of the server on this machine that its pods forward to; "waiting",
              the reason why its containers never start; or "crashes", the exit status with which
              they end each time that the Deployment is looked at; other images are ErrImagePull.
              "log" has the lines that the containers write, and "by_name", by the end of a
              Deployment's name, an entry for the pods of that Deployment alone
    looked    by Deployment, how often it was looked at since it was changed
    was       by Deployment, the image before
    polls     after how many looks at a Deployment its rollout is complete
    scales    after how many looks the autoscaler adds its pods, which are ready two looks later;
              if it is absent, a Deployment has all its pods at once
    full      whether no node takes the pods that the autoscaler adds
    lacks     API versions that the cluster does not have, by version: null where it never heard of
              it, else what it says in place of an answer
    calls     the words of every call so far
    faults    by verb, a list that is used up from its beginning: null for none, "refused" (a
              refused connection), "no context", "forbidden", "kill before" and "kill after" (kill
              -9 of the caller, before or after the work), "half" (an apply of the first objects
              only, then forbidden)
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

STATE = Path(os.environ["STAND_IN"])
CONTAINER = "text-classifier"
SPACELESS = ("Namespace",)
PODS_OF_NO_AUTOSCALER = 1
# What the API versions have that the cluster is asked for.
KINDS = {
    "gateway.networking.k8s.io/v1": ["HTTPRoute"],
    "keda.sh/v1alpha1": ["ScaledObject"],
    "metrics.k8s.io/v1beta1": ["NodeMetrics", "PodMetrics"],
    "monitoring.coreos.com/v1": ["PodMonitor", "PrometheusRule", "ServiceMonitor"],
    "networking.k8s.io/v1": ["Ingress", "NetworkPolicy"],
}
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


@contextlib.contextmanager
def cluster() -> Iterator[dict[str, Any]]:
    with STATE.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        state = json.loads(STATE.read_text("utf-8"))
        yield state
        partial = STATE.with_suffix(".partial")
        partial.write_text(json.dumps(state, indent=1), "utf-8")
        partial.replace(STATE)


def key(resource: dict[str, Any]) -> str:
    space = (
        "" if resource["kind"] in SPACELESS else resource["metadata"].get("namespace", "default")
    )
    return f"{resource['kind'].lower()}/{space}/{resource['metadata']['name']}"


def fail(message: str) -> None:
    print(message, file=sys.stderr)
    raise SystemExit(1)


def read_objects() -> list[dict[str, Any]]:
    # Only here: most calls need no YAML, and every call is a process that would import it.
    import yaml

    return [resource for resource in yaml.safe_load_all(sys.stdin.read()) if resource]


def option(name: str) -> str | None:
    """The value of an option of the command line."""
    values = [word.partition("=")[2] for word in sys.argv if word.startswith(f"--{name}=")]
    return values[0] if values else None


def need_namespace(state: dict[str, Any], resource: dict[str, Any]) -> None:
    space = resource["metadata"].get("namespace")
    if space and f"namespace//{space}" not in state["objects"]:
        fail(f'Error from server (NotFound): namespaces "{space}" not found')


def apply(state: dict[str, Any], objects: list[dict[str, Any]]) -> None:
    for resource in objects:
        need_kind(state, resource)
        need_namespace(state, resource)
        old = state["objects"].get(key(resource))
        result = "created"
        if old is not None:
            same = all(old.get(part) == resource.get(part) for part in ("spec", "data"))
            result = "unchanged" if same else "configured"
        new = json.loads(json.dumps(resource))
        meta = new["metadata"]
        meta.setdefault("annotations", {})[LAST_APPLIED] = json.dumps(resource) + "\n"
        meta["uid"] = old["metadata"]["uid"] if old else f"uid-{len(state['objects'])}"
        meta["resourceVersion"] = str(len(state["calls"]))
        meta["generation"] = (old["metadata"]["generation"] if old else 0) + (result != "unchanged")
        meta["creationTimestamp"] = "2026-01-01T00:00:00Z"
        if resource["kind"] == "Deployment":
            scaled = least_of([*state["objects"].values(), *objects], resource)
            scaled = [] if "scales" in state else scaled
            running = old["spec"]["replicas"] if old else PODS_OF_NO_AUTOSCALER
            applied = (old or new)["metadata"].get("annotations", {}).get(LAST_APPLIED, "{}")
            if old and "replicas" in json.loads(applied)["spec"]:
                running = 1
            new["spec"].setdefault("replicas", max([running, *scaled[-1:]]))
            if old and result == "configured":
                state.setdefault("was", {})[key(resource)] = old["spec"]["template"]["spec"][
                    "containers"
                ][0]["image"]
            if result != "unchanged":
                state["looked"][key(resource)] = 0
            if old and old["spec"].get("paused"):
                # What is not in the manifest, and was not in the one before, stays.
                new["spec"]["paused"] = True
            new["status"] = (old or {}).get("status", {})
        if resource["kind"] == "Service":
            new["spec"]["clusterIP"] = "10.96.0.10"
        state["objects"][key(resource)] = new
        print(f"{resource['kind'].lower()}/{resource['metadata']['name']} {result}")


def least_of(objects: list[dict[str, Any]], deployment: dict[str, Any]) -> list[int]:
    """How many pods the autoscalers of a Deployment want at least."""
    return [
        other["spec"]["minReplicas"]
        for other in objects
        if other["kind"] == "HorizontalPodAutoscaler"
        and other["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    ]


def control(state: dict[str, Any]) -> None:
    """Do what controller and kubelets would: set each Deployment's status, and make its pods."""
    objects = state["objects"]
    for name in [name for name, resource in objects.items() if resource["kind"] == "Pod"]:
        del objects[name]
    for resource in [each for each in objects.values() if each["kind"] == "Deployment"]:
        control_one(state, resource)


def control_one(state: dict[str, Any], resource: dict[str, Any]) -> None:
    image = resource["spec"]["template"]["spec"]["containers"][0]["image"]
    looked = state["looked"].get(key(resource), 0)
    starting = 0
    if looked >= state.get("scales", looked + 1):
        least = least_of(list(state["objects"].values()), resource)
        if looked < state["scales"] + 2 or state.get("full"):
            starting = max(
                0, max(least, default=0) - state.setdefault("before", resource["spec"]["replicas"])
            )
        resource["spec"]["replicas"] = max([resource["spec"]["replicas"], *least])
    wanted, entry = resource["spec"]["replicas"], entry_of(state, resource["metadata"], image)
    was = state.get("was", {}).get(key(resource))
    works, done = "port" in entry, looked >= state["polls"]
    old = wanted if was and not (works and done) else 0
    new = wanted if works and done else 1
    paused = resource["spec"].get("paused")
    if paused and not (works and done):
        # Pods of a template that was applied meanwhile are not started.
        old, new = wanted, 0
    serving = old if "port" in state["images"].get(was, {}) else 0
    late = done and not works and "crashes" not in entry
    reason = "ProgressDeadlineExceeded" if late else "ReplicaSetUpdated"
    resource["status"] = {
        "observedGeneration": resource["metadata"]["generation"],
        "replicas": old + new,
        "updatedReplicas": new,
        "availableReplicas": serving + (new - starting if works and done else 0),
        "unavailableReplicas": starting if works and done else 1,
        "conditions": [
            {
                "type": "Progressing",
                "status": "Unknown" if paused else "False" if "Deadline" in reason else "True",
                "reason": "DeploymentPaused"
                if paused
                else "NewReplicaSetAvailable"
                if works and done
                else reason,
            }
        ],
    }
    for number in range(old):
        add_pod(state, resource, f"{hash_of(was)}-{number}", was, {"running": {}}, {}, True)
    for number in range(new):
        late = works and done and number >= new - starting
        container: dict[str, Any] = {"running": {}}
        if late or not (works and done):
            waiting = "ContainerCreating" if works else entry.get("waiting", "ErrImagePull")
            container = {"waiting": {"reason": waiting, "message": f'image "{image}"'}}
        ended = {}
        if "crashes" in entry and looked:
            container = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}}
            ended = {
                "restartCount": looked,
                "lastState": {"terminated": {"exitCode": entry["crashes"], "reason": "Error"}},
            }
        taken = not (late and state.get("full"))
        add_pod(state, resource, f"{hash_of(image)}-{number}", image, container, ended, taken)


def entry_of(state: dict[str, Any], of: dict[str, Any], image: str) -> dict[str, Any]:
    """What an image does in the pods of a Deployment."""
    entry: dict[str, Any] = state["images"].get(image, {})
    for ending, own in entry.get("by_name", {}).items():
        if of["name"].endswith(ending):
            return dict(own)
    return entry


def hash_of(image: str) -> int:
    return sum(map(ord, image))


def add_pod(
    state: dict[str, Any],
    of: dict[str, Any],
    name: str,
    image: str,
    container: dict[str, Any],
    ended: dict[str, Any],
    taken: bool,
) -> None:
    runs = "running" in container
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{of['metadata']['name']}-{name}",
            "namespace": of["metadata"]["namespace"],
            "labels": of["spec"]["template"]["metadata"]["labels"],
            # In place of the ReplicaSet, which nobody asks for.
            "annotations": {"of": of["metadata"]["name"]},
        },
        "spec": {"containers": [{"name": CONTAINER, "image": image}]},
        "status": {
            "phase": "Running" if runs or ended else "Pending",
            "conditions": [
                {"type": "PodScheduled", "status": "True" if taken else "False"},
                {"type": "Ready", "status": "True" if runs else "False"},
            ],
            "containerStatuses": [
                {"name": CONTAINER, "ready": runs, "restartCount": 0, "state": container, **ended}
            ],
        },
    }
    state["objects"][key(pod)] = pod


def events(state: dict[str, Any], space: str | None) -> list[dict[str, Any]]:
    """What the kubelets report of containers that do not run, as kubectl 1.32 prints it."""
    warnings = []
    for resource in state["objects"].values():
        if resource["kind"] != "Pod" or resource["metadata"]["namespace"] != space:
            continue
        status = resource["status"]["containerStatuses"][0]
        waiting = status["state"].get("waiting")
        if not waiting or waiting["reason"] == "ContainerCreating":
            continue
        name = resource["metadata"]["name"]
        message = f"Error: {waiting['reason']}"
        if status["restartCount"]:
            message = f"Back-off restarting failed container {CONTAINER} in pod {name}_{space}"
        warnings.append(
            {
                "kind": "Event",
                "metadata": {"name": f"{name}.1", "namespace": space},
                "involvedObject": {"kind": "Pod", "name": name, "namespace": space},
                "reason": "BackOff" if status["restartCount"] else "Failed",
                "message": message,
                "type": "Warning",
                "count": 3,
                "lastTimestamp": "2026-01-01T00:00:00Z",
            }
        )
    return warnings


def pod_in(state: dict[str, Any], pod: str) -> dict[str, Any]:
    """A pod as it is now; the command fails if there is none."""
    control(state)
    resource: dict[str, Any] | None = state["objects"].get(f"pod/{option('namespace')}/{pod}")
    if resource is None:
        fail(f'Error from server (NotFound): pods "{pod}" not found')
    return resource


def logs(state: dict[str, Any], pod: str) -> None:
    resource = pod_in(state, pod)
    status = resource["status"]["containerStatuses"][0]
    if "--previous" in sys.argv and not status["restartCount"]:
        fail(
            f'Error from server (BadRequest): previous terminated container "{CONTAINER}" in pod '
            f'"{pod}" not found'
        )
    if "waiting" in status["state"] and not status["restartCount"]:
        fail(
            f'Error from server (BadRequest): container "{CONTAINER}" in pod "{pod}" is waiting to '
            "start: image can't be pulled"
        )
    image = resource["spec"]["containers"][0]["image"]
    lines = state["images"].get(image, {}).get("log", [])
    print("\n".join(lines[-int(option("tail") or len(lines)) :]))


def selected(resource: dict[str, Any]) -> bool:
    """Whether the labels of an object are those of the option `--selector`."""
    labels = resource["metadata"].get("labels", {})
    for word in filter(None, (option("selector") or "").split(",")):
        name, _, value = word.replace("!=", "=").partition("=")
        if (labels.get(name) == value) == ("!=" in word):
            return False
    return True


def need_kind(state: dict[str, Any], resource: dict[str, Any]) -> None:
    version, kind = resource["apiVersion"], resource["kind"]
    if version in state.get("lacks", {}):
        meta = resource["metadata"]
        fail(
            f'error: resource mapping not found for name: "{meta["name"]}" namespace: '
            f'"{meta.get("namespace", "")}" from "STDIN": no matches for kind "{kind}" in version '
            f'"{version}"\nensure CRDs are installed first'
        )


def raw(state: dict[str, Any], version: str) -> None:
    """The document of an API version."""
    if version in state.get("lacks", {}):
        fail(
            state["lacks"][version]
            or "Error from server (NotFound): the server could not find the requested resource"
        )
    kinds = [{"name": kind.lower() + "s", "kind": kind} for kind in KINDS[version]]
    print(json.dumps({"kind": "APIResourceList", "groupVersion": version, "resources": kinds}))


def get(state: dict[str, Any], words: list[str]) -> None:
    if "--raw" in sys.argv:
        raw(state, words[0].removeprefix("/apis/"))
        return
    if option("filename") == "-":
        objects = read_objects()
        for resource in objects:
            need_kind(state, resource)
        names = [key(resource) for resource in objects]
        items = [state["objects"][name] for name in names if name in state["objects"]]
        if items:
            print(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
        return
    space = option("namespace")
    kinds = [kind.rstrip("s") for kind in words[0].split(",")]
    if "deployment" in kinds and len(words) > 1:
        name = f"deployment/{space}/{words[1]}"
        state["looked"][name] = state["looked"].get(name, 0) + 1
    control(state)
    if kinds == ["event"]:
        print(json.dumps({"kind": "List", "items": events(state, space)}))
        return
    if len(words) > 1:
        space = "" if kinds == ["namespace"] else space
        name = f"{kinds[0]}/{space}/{words[1]}"
        resource = state["objects"].get(name)
        if (option("output") or "").startswith("go-template="):
            keys = state["others"].get(name)
            keys = list((resource.get("data") or {}) if resource else []) if keys is None else keys
            print(" ".join([words[1], *keys]) if resource or name in state["others"] else "")
        elif resource:
            print(json.dumps(resource))
        return
    items = [
        resource
        for resource in state["objects"].values()
        if resource["kind"].lower() in kinds
        and resource["metadata"].get("namespace") == space
        and selected(resource)
    ]
    print(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))


def diff(state: dict[str, Any], objects: list[dict[str, Any]]) -> int:
    changed = 0
    for resource in objects:
        need_kind(state, resource)
        need_namespace(state, resource)
        old = state["objects"].get(key(resource), {})
        # What the server or an autoscaler has set is not a difference.
        spec = {
            name: value
            for name, value in (old.get("spec") or {}).items()
            if name in resource.get("spec", {}) or name not in ("clusterIP", "replicas")
        }
        if spec != (resource.get("spec") or {}) or old.get("data") != resource.get("data"):
            name = key(resource).replace("/", ".")
            print(f"diff -u -N /tmp/LIVE-1/{name} /tmp/MERGED-2/{name}")
            print(f"--- /tmp/LIVE-1/{name}\t2026-01-01 00:00:00.0 +0000")
            print(f"+++ /tmp/MERGED-2/{name}\t2026-01-01 00:00:00.0 +0000")
            print("@@ -1 +1 @@")
            changed = 1
    return changed


def port_of(state: dict[str, Any], pod: str) -> int:
    resource = pod_in(state, pod)
    if resource["status"]["phase"] != "Running":
        fail("error: unable to forward port because pod is not running. Current status=Pending")
    image = resource["spec"]["containers"][0]["image"]
    of = {"name": resource["metadata"]["annotations"]["of"]}
    port: int = entry_of(state, of, image)["port"]
    return port


def main() -> int:
    words = [word for word in sys.argv[1:] if not word.startswith("--")]
    verb = words[0]
    if verb == "kustomize":
        own = str(STATE.parent)
        places = [folder for folder in os.environ["PATH"].split(os.pathsep) if folder != own]
        real = shutil.which("kubectl", path=os.pathsep.join(places))
        os.execv(real, [real, *sys.argv[1:]])
    with cluster() as state:
        state["calls"].append(sys.argv[1:])
        # What the cluster has is asked by a way of its own, which the lists do not count.
        waiting = state["faults"].get("raw" if "--raw" in sys.argv else verb, [])
        fault = waiting.pop(0) if waiting else None
    # The owner of a forwarding is the parent of the shell around it.
    owner = os.getppid()
    if fault == "kill before":
        os.kill(owner, signal.SIGKILL)
        return 1
    if fault == "refused":
        fail(
            "The connection to the server 127.0.0.1:6443 was refused - did you specify the right "
            "host or port?"
        )
    if fault == "no context":
        fail("error: current-context is not set")
    if fault == "forbidden":
        fail('Error from server (Forbidden): User "ci" cannot do this')
    status = 0
    with cluster() as state:
        if verb == "config":
            print("stand-in")
        elif verb == "get":
            get(state, words[1:])
        elif verb == "apply":
            objects = read_objects()
            apply(state, objects[: len(objects) // 2] if fault == "half" else objects)
        elif verb == "diff":
            status = diff(state, read_objects())
        elif verb == "delete":
            for resource in read_objects():
                if state["objects"].pop(key(resource), None):
                    print(f'{resource["kind"].lower()} "{resource["metadata"]["name"]}" deleted')
                if resource["kind"] == "Deployment":
                    for part in ("was", "looked"):
                        state.get(part, {}).pop(key(resource), None)
                    control(state)
        elif verb == "logs":
            logs(state, words[1])
        elif verb == "port-forward":
            port = port_of(state, words[1].removeprefix("pod/"))
    if fault == "half":
        fail('Error from server (Forbidden): User "ci" cannot do this')
    if fault == "kill after":
        os.kill(owner, signal.SIGKILL)
    if verb == "port-forward":
        print(f"Forwarding from 127.0.0.1:{port} -> 3000", flush=True)
        time.sleep(600)
    return status


if __name__ == "__main__":
    sys.exit(main())
