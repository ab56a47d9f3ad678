#!/usr/bin/env python3
"""A stand-in for kubectl and the cluster behind it, for the tests of releases.

It stands in for `kubectl get | apply | diff | delete | port-forward | config current-context` of
kubectl 1.32, and for what the API server, the Deployment controller and the kubelets then do.
`kustomize` is handed to the real kubectl, the next in PATH after the folder of the file below.

No cluster was at hand where this was written. The shapes of objects (List, DeploymentStatus and its
conditions, PodStatus, ContainerStateWaiting) are those of the API reference for Kubernetes 1.32;
what kubectl prints ("configured", "Forwarding from 127.0.0.1:PORT -> 3000", "Error from server
(NotFound): …") and exit status 1 of `diff` are those of its sources, k8s.io/kubectl. What it does
not do: merge (an applied object replaces the live one, but for what others own: `replicas`,
status), validate, take time.

`STAND_IN` names a JSON file:

    objects   what is in the cluster, by "kind/namespace/name"
    images    by image: "port" of a server on this machine that its pods answer by, or "waiting",
              the reason for which its containers never start; others are ErrImagePull
    polls     how often a Deployment is looked at until its rollout is complete
    scales    how often until the autoscaler has its way; the pods that it starts are ready two
              looks later. Absent: a Deployment has its pods at once
    full      whether no node takes the pods that the autoscaler starts
    calls     the words of every call so far
    faults    by verb, a list used up from its beginning: null for none, "refused" (the connection
              is), "no context" (is current), "forbidden", "kill before" and "kill after" (kill -9
              of the caller, then or when it is done), "half" (of an apply: the first objects only,
              then forbidden)
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

import yaml

STATE = Path(os.environ["STAND_IN"])
SPACELESS = ("Namespace",)
PODS_OF_NO_AUTOSCALER = 1
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


def key(one: dict[str, Any]) -> str:
    space = "" if one["kind"] in SPACELESS else one["metadata"].get("namespace", "default")
    return f"{one['kind'].lower()}/{space}/{one['metadata']['name']}"


def fail(message: str) -> None:
    print(message, file=sys.stderr)
    raise SystemExit(1)


def given() -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all(sys.stdin.read()) if one]


def option(name: str) -> str | None:
    found = [word.partition("=")[2] for word in sys.argv if word.startswith(f"--{name}=")]
    return found[0] if found else None


def need_namespace(state: dict[str, Any], one: dict[str, Any]) -> None:
    space = one["metadata"].get("namespace")
    if space and f"namespace//{space}" not in state["objects"]:
        fail(f'Error from server (NotFound): namespaces "{space}" not found')


def apply(state: dict[str, Any], found: list[dict[str, Any]]) -> None:
    for one in found:
        need_namespace(state, one)
        old = state["objects"].get(key(one))
        what = "created"
        if old is not None:
            same = all(old.get(part) == one.get(part) for part in ("spec", "data"))
            what = "unchanged" if same else "configured"
        new = json.loads(json.dumps(one))
        meta = new["metadata"]
        meta.setdefault("annotations", {})[LAST_APPLIED] = json.dumps(one) + "\n"
        meta["uid"] = old["metadata"]["uid"] if old else f"uid-{len(state['objects'])}"
        meta["resourceVersion"] = str(len(state["calls"]))
        meta["generation"] = (old["metadata"]["generation"] if old else 0) + (what != "unchanged")
        meta["creationTimestamp"] = "2026-01-01T00:00:00Z"
        if one["kind"] == "Deployment":
            scaled = [
                other["spec"]["minReplicas"]
                for other in [*state["objects"].values(), *found]
                if other["kind"] == "HorizontalPodAutoscaler"
            ]
            scaled = [] if "scales" in state else scaled
            running = old["spec"]["replicas"] if old else PODS_OF_NO_AUTOSCALER
            applied = (old or new)["metadata"].get("annotations", {}).get(LAST_APPLIED, "{}")
            if old and "replicas" in json.loads(applied)["spec"]:
                running = 1
            new["spec"].setdefault("replicas", max([running, *scaled[-1:]]))
            if old and what == "configured":
                state["was"] = old["spec"]["template"]["spec"]["containers"][0]["image"]
            if what != "unchanged":
                state["looked"] = 0
            new["status"] = (old or {}).get("status", {})
        if one["kind"] == "Service":
            new["spec"]["clusterIP"] = "10.96.0.10"
        state["objects"][key(one)] = new
        print(f"{one['kind'].lower()}/{one['metadata']['name']} {what}")


def control(state: dict[str, Any]) -> None:
    """What controller and kubelets have done by now: status of the Deployment, and its pods."""
    pods = {name: one for name, one in state["objects"].items() if one["kind"] == "Pod"}
    deployments = [one for one in state["objects"].values() if one["kind"] == "Deployment"]
    for name in pods:
        del state["objects"][name]
    for one in deployments:
        image = one["spec"]["template"]["spec"]["containers"][0]["image"]
        looked = state.get("looked", 0)
        starting = 0
        if looked >= state.get("scales", looked + 1):
            least = [
                other["spec"]["minReplicas"]
                for other in state["objects"].values()
                if other["kind"] == "HorizontalPodAutoscaler"
            ]
            if looked < state["scales"] + 2 or state.get("full"):
                starting = max(0, max(least) - state.setdefault("before", one["spec"]["replicas"]))
            one["spec"]["replicas"] = max([one["spec"]["replicas"], *least])
        wanted, told = one["spec"]["replicas"], state["images"].get(image, {})
        works, done = "port" in told, state.get("looked", 0) >= state["polls"]
        old = wanted if state.get("was") and not (works and done) else 0
        new = wanted if works and done else 1
        serving = old if "port" in state["images"].get(state.get("was"), {}) else 0
        reason = "ProgressDeadlineExceeded" if done and not works else "ReplicaSetUpdated"
        one["status"] = {
            "observedGeneration": one["metadata"]["generation"],
            "replicas": old + new,
            "updatedReplicas": new,
            "availableReplicas": serving + (new - starting if works and done else 0),
            "unavailableReplicas": starting if works and done else 1,
            "conditions": [
                {
                    "type": "Progressing",
                    "status": "False" if "Deadline" in reason else "True",
                    "reason": "NewReplicaSetAvailable" if works and done else reason,
                }
            ],
        }
        for count, of, fine in ((old, state.get("was"), True), (new, image, works and done)):
            for number in range(count):
                waiting = told.get("waiting", "ErrImagePull")
                late = fine and of == image and number >= count - starting
                waits = "ContainerCreating" if late else None if fine else waiting
                taken = not (late and state.get("full"))
                add_pod(state, one, f"{abs(hash_of(of))}-{number}", of, waits, taken)


def hash_of(image: str) -> int:
    return sum(map(ord, image))


def add_pod(
    state: dict[str, Any],
    of: dict[str, Any],
    name: str,
    image: str,
    waiting: str | None,
    taken: bool,
) -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{of['metadata']['name']}-{name}",
            "namespace": of["metadata"]["namespace"],
            "labels": of["spec"]["template"]["metadata"]["labels"],
        },
        "spec": {"containers": [{"name": "text-classifier", "image": image}]},
        "status": {
            "phase": "Pending" if waiting else "Running",
            "conditions": [
                {"type": "PodScheduled", "status": "True" if taken else "False"},
                {"type": "Ready", "status": "False" if waiting else "True"},
            ],
            "containerStatuses": [
                {
                    "ready": not waiting,
                    "restartCount": 0,
                    "state": {"waiting": {"reason": waiting, "message": f'image "{image}"'}}
                    if waiting
                    else {"running": {}},
                }
            ],
        },
    }
    state["objects"][key(pod)] = pod


def get(state: dict[str, Any], words: list[str]) -> None:
    if option("filename") == "-":
        found = [state["objects"][key(one)] for one in given() if key(one) in state["objects"]]
        if found:
            print(json.dumps({"apiVersion": "v1", "kind": "List", "items": found}))
        return
    space = option("namespace")
    kinds = [kind.rstrip("s") for kind in words[0].split(",")]
    if "deployment" in kinds and len(words) > 1:
        state["looked"] = state.get("looked", 0) + 1
    control(state)
    if len(words) > 1:
        space = "" if kinds == ["namespace"] else space
        one = state["objects"].get(f"{kinds[0]}/{space}/{words[1]}")
        if one:
            print(json.dumps(one))
        return
    items = [
        one
        for one in state["objects"].values()
        if one["kind"].lower() in kinds and one["metadata"].get("namespace") == space
    ]
    print(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))


def diff(state: dict[str, Any], found: list[dict[str, Any]]) -> int:
    changed = 0
    for one in found:
        need_namespace(state, one)
        old = state["objects"].get(key(one), {})
        # What the server or an autoscaler has put there is no difference.
        spec = {
            name: value
            for name, value in (old.get("spec") or {}).items()
            if name in one.get("spec", {}) or name not in ("clusterIP", "replicas")
        }
        if spec != (one.get("spec") or {}) or old.get("data") != one.get("data"):
            name = key(one).replace("/", ".")
            print(f"diff -u -N /tmp/LIVE-1/{name} /tmp/MERGED-2/{name}")
            print(f"--- /tmp/LIVE-1/{name}\t2026-01-01 00:00:00.0 +0000")
            print(f"+++ /tmp/MERGED-2/{name}\t2026-01-01 00:00:00.0 +0000")
            print("@@ -1 +1 @@")
            changed = 1
    return changed


def port_of(state: dict[str, Any], pod: str) -> int:
    control(state)
    one = state["objects"].get(f"pod/{option('namespace')}/{pod}")
    if one is None:
        fail(f'Error from server (NotFound): pods "{pod}" not found')
    if one["status"]["phase"] != "Running":
        fail("error: unable to forward port because pod is not running. Current status=Pending")
    found: int = state["images"][one["spec"]["containers"][0]["image"]]["port"]
    return found


def main() -> int:
    words = [word for word in sys.argv[1:] if not word.startswith("--")]
    verb = words[0]
    if verb == "kustomize":
        own = str(STATE.parent)
        places = [one for one in os.environ["PATH"].split(os.pathsep) if one != own]
        real = shutil.which("kubectl", path=os.pathsep.join(places))
        os.execv(real, [real, *sys.argv[1:]])
    with cluster() as state:
        state["calls"].append(sys.argv[1:])
        waiting = state["faults"].get(verb, [])
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
            found = given()
            apply(state, found[: len(found) // 2] if fault == "half" else found)
        elif verb == "diff":
            status = diff(state, given())
        elif verb == "delete":
            for one in given():
                if state["objects"].pop(key(one), None):
                    print(f'{one["kind"].lower()} "{one["metadata"]["name"]}" deleted')
                if one["kind"] == "Deployment":
                    state.pop("was", None)
                    control(state)
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
