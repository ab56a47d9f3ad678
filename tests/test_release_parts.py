"""What a release is made of, each alone: overlays, metrics, kubectl's answers, pushing."""

from __future__ import annotations

import math
import re
import shlex
import stat
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT
from training.cli import _parser, main
from training.cluster import Cluster
from training.errors import ClusterError, ClusterUnreachableError, ReleaseError, VerifyError
from training.release import images
from training.release.overlay import (
    Workload,
    kustomization_of,
    read_kustomization,
    rendered,
    repository_of,
    with_image,
    without_secrets,
    workload_of,
    write_kustomization,
    written,
)
from training.release.records import Record, Records
from training.release.rollout import Pods, progress_of, wait_for_rollout
from training.release.watch import Sample, compared_with, read_sample, trouble
from training.verify import opener_for

OVERLAYS = sorted((ROOT / "k8s" / "overlays").iterdir())
IMAGE = "registry.example.com/team/text-classifier:1e5"
WORKLOAD = Workload("space", "text-classifier", "app=a", "3000")


def names(path: Path) -> str:
    return path.name


@pytest.mark.parametrize("overlay", OVERLAYS, ids=names)
def test_only_the_image_of_an_overlay_changes(overlay: Path) -> None:
    before = kustomization_of(overlay).read_text("utf-8")
    after = with_image(before, IMAGE)
    assert repository_of(after) == IMAGE.rpartition(":")[0]
    changed = [line for line in after.splitlines() if line not in before.splitlines()]
    assert set(changed) <= {
        "    newName: registry.example.com/team/text-classifier",
        '    newTag: "1e5"',
    }
    theirs = ("    newTag:", "    newName:")
    kept = [line for line in before.splitlines() if not line.startswith(theirs)]
    assert [line for line in after.splitlines() if line not in changed] == kept
    # A second time nothing changes.
    assert with_image(after, IMAGE) == after


@pytest.mark.parametrize("overlay", OVERLAYS, ids=names)
def test_an_overlay_renders_in_a_temporary_folder(overlay: Path) -> None:
    before = {path: path.read_bytes() for path in overlay.rglob("*") if path.is_file()}
    content = with_image(kustomization_of(overlay).read_text("utf-8"), IMAGE)
    workload = workload_of(rendered(Cluster(), overlay, content), IMAGE)
    assert workload.name == "text-classifier"
    assert workload.namespace == f"whetstone-{overlay.name}"
    assert {path: path.read_bytes() for path in overlay.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "content",
    [
        # Flush and indented sequences, other images beside it, comments everywhere, a digest.
        "# top\nimages:\n- name: other\n  newTag: '7'\n- name: text-classifier  # ours\n"
        "  newTag: old\nresources: [a]  # end\n",
        "images:\n    - name: text-classifier\n      newName: x/y\n      digest: sha256:00\n",
        "resources: [a]\n",
        "images: [{name: text-classifier, newTag: old}]\n",
    ],
)
def test_overlays_of_other_hands_keep_what_is_theirs(content: str) -> None:
    after = with_image(content, IMAGE)
    found, before = yaml.safe_load(after), yaml.safe_load(content)
    entry = next(one for one in found.pop("images") if one["name"] == "text-classifier")
    repository, _, tag = IMAGE.rpartition(":")
    assert entry == {"name": "text-classifier", "newName": repository, "newTag": tag}
    assert [one for one in before.pop("images", []) if one["name"] == "other"] == [
        one for one in yaml.safe_load(after)["images"] if one["name"] == "other"
    ]
    assert found == before
    for comment in ("# top", "# ours", "# end"):
        assert (comment in content) == (comment in after)


@pytest.mark.parametrize("image", ["name", "host:5000/name", "name@sha256:00"])
def test_images_need_a_tag(image: str) -> None:
    with pytest.raises(ReleaseError, match="has no tag"):
        with_image("resources: [a]\n", image)


def test_a_folder_without_kustomization_is_no_overlay(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="is no overlay"):
        kustomization_of(tmp_path)
    (tmp_path / "Kustomization").write_text("", "utf-8")
    assert kustomization_of(tmp_path).name == "Kustomization"


def test_a_render_needs_one_classifier_and_its_namespace() -> None:
    one: dict[str, Any] = {
        "kind": "Deployment",
        "metadata": {"name": "a"},
        "spec": {
            "selector": {"matchLabels": {"app": "a"}},
            "template": {"spec": {"containers": [{"image": IMAGE}]}},
        },
    }
    with pytest.raises(ReleaseError, match="names no namespace"):
        workload_of(yaml.safe_dump(one), IMAGE)
    one["metadata"]["namespace"] = "space"
    assert workload_of(yaml.safe_dump(one), IMAGE).port == "3000"
    with pytest.raises(ReleaseError, match="has 0 containers"):
        workload_of(yaml.safe_dump(one), "other:tag")
    with pytest.raises(ReleaseError, match="has 2 containers"):
        workload_of(yaml.safe_dump_all([one, one]), IMAGE)


def test_secrets_are_not_kept() -> None:
    secret = {"kind": "Secret", "metadata": {"name": "keys"}, "data": {"keys": "c2VjcmV0"}}
    service = {"kind": "Service", "metadata": {"name": "a"}}
    kept = without_secrets(yaml.safe_dump_all([secret, service]))
    assert "c2VjcmV0" not in kept and yaml.safe_load(kept) == service
    # What has none stays as it was rendered.
    assert without_secrets("# note\nkind: Service\n") == "# note\nkind: Service\n"


PAGE = """\
# TYPE whetstone_requests counter
whetstone_requests_total{route="/classify",status="200"} 180.0
whetstone_requests_total{route="/v1/classify",status="429"} 15.0
whetstone_requests_total{route="/predict",status="500"} 5.0
whetstone_requests_total{route="/info",status="500"} 70.0
# TYPE whetstone_request_duration_seconds histogram
whetstone_request_duration_seconds_bucket{le="0.01",route="/classify"} 100.0
whetstone_request_duration_seconds_bucket{le="0.1",route="/classify"} 190.0
whetstone_request_duration_seconds_bucket{le="+Inf",route="/classify"} 200.0
"""


def test_metrics_are_read_as_prometheus_reads_them() -> None:
    found = read_sample(PAGE)
    assert (found.requests, found.errors, found.refused) == (200, 5, 0.075)
    # The 198th is beyond the last edge: histogram_quantile then says that edge.
    assert found.p99 == 0.1
    later = read_sample(PAGE.replace(" 190.0", " 200.0"))
    # The 198th of 200: 98 of the 100 between 0.01 and 0.1 s.
    assert later.p99 == pytest.approx(0.01 + 0.09 * 98 / 100)
    assert later.since(found) == Sample(Counter(), Counter({0.1: 10}))
    # A restart begins at nothing: a counter that is lower now has not been counted on.
    again = read_sample(PAGE.replace(" 180.0", " 300.0").replace(" 190.0", " 150.0"))
    assert again.since(found) == again
    assert sum([found, found], Sample()).requests == 400
    few = Sample(Counter({200: 99}), Counter({0.1: 99, math.inf: 99}))
    assert few.p99 is None


def sample(statuses: dict[int, int], edge: float = 0.05) -> Sample:
    """So many answers, all just below an edge."""
    count = sum(statuses.values())
    return Sample(Counter(statuses), Counter({edge: count, math.inf: count}))


@pytest.mark.parametrize(
    ("now", "before", "expected"),
    [
        (sample({200: 1000}), sample({200: 1000}), None),
        (sample({}), sample({200: 1000}), None),
        # Two of a few are chance, three are not; of many it is a hundredth.
        (sample({200: 20, 503: 2}), Sample(), None),
        (sample({200: 20, 503: 3}), Sample(), "3 of 23 requests were answered 5xx"),
        (sample({200: 1000, 500: 10}), Sample(), None),
        # The fault of the model at /predict.
        (sample({200: 20, 424: 3}), Sample(), "3 of 23 requests were answered 5xx or 424"),
        (sample({200: 1000, 500: 11}), Sample(), "11 of 1,011 requests"),
        # As many were refused before.
        (sample({200: 900, 429: 100}), sample({200: 900, 429: 60}), None),
        (sample({200: 900, 429: 100}), sample({200: 1000}), "10% of the requests were refused"),
        (sample({200: 20, 429: 20}), sample({200: 1000}), None),
        (sample({200: 1000}, 0.15), sample({200: 1000}, 0.06), None),
        (sample({200: 1000}, 0.5), sample({200: 1000}), "p99 is"),
        # Nothing to compare with.
        (sample({200: 1000}, 0.5), Sample(), None),
    ],
)
def test_what_speaks_against_a_release(now: Sample, before: Sample, expected: str | None) -> None:
    found = trouble(now, before)
    assert (found is None) if expected is None else (found is not None and expected in found)


def test_a_release_is_compared_with_what_came_since_it_began() -> None:
    """An hour of long texts at night is not what the old pods do now."""
    night, now = sample({200: 900}, 5.0), sample({200: 100})
    # The other was not ready when it began, and had its night, too.
    first, latest = {"a": night}, {"a": night + now, "b": night + now}
    assert compared_with(first, latest) == (now, "the release began")
    # Too few say nothing, and where nothing was known then there is only all of it.
    few = {"a": night + sample({200: 99})}
    assert compared_with(first, few) == (few["a"], "the pods started")
    assert compared_with({}, latest) == (night + now + night + now, "the pods started")
    assert compared_with({}, {}) == (Sample(), "the pods started")


def deployment(**status: Any) -> dict[str, Any]:
    return {"metadata": {"generation": 2}, "spec": {"replicas": 3}, "status": status}


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({}, "the cluster has not seen it yet"),
        ({"observedGeneration": 1, "updatedReplicas": 3, "availableReplicas": 3}, "has not seen"),
        ({"observedGeneration": 2, "updatedReplicas": 1, "replicas": 4}, "1 of 3 new pods"),
        ({"observedGeneration": 2, "updatedReplicas": 3, "replicas": 4}, "1 old pods"),
        (
            {"observedGeneration": 2, "updatedReplicas": 3, "replicas": 3, "availableReplicas": 2},
            "2 of 3 new pods are available",
        ),
    ],
)
def test_a_rollout_is_not_done_before_all_is_new(status: dict[str, Any], expected: str) -> None:
    done, how = progress_of(deployment(**status))
    assert not done and expected in how


def test_a_rollout_is_done_when_all_is_new_and_available() -> None:
    status = {"observedGeneration": 2, "updatedReplicas": 3, "replicas": 3, "availableReplicas": 3}
    assert progress_of(deployment(**status)) == (True, "3 pods are available")


def was_complete(**status: int) -> dict[str, Any]:
    """A Deployment whose rollout is complete by its controller's word; of four pods one is out."""
    counts = {"observedGeneration": 2, "updatedReplicas": 4, "replicas": 4, "availableReplicas": 3}
    said = [{"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"}]
    return deployment(**counts | status, conditions=said)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        # An autoscaler has asked for one more.
        ({}, True),
        # Said of the template before.
        ({"observedGeneration": 1}, False),
        ({"updatedReplicas": 1, "replicas": 4}, False),
        ({"availableReplicas": 0}, False),
    ],
)
def test_a_rollout_that_was_complete_is_done(changed: dict[str, int], expected: bool) -> None:
    assert progress_of(was_complete(**changed))[0] == expected


def pod(name: str, **conditions: str) -> dict[str, Any]:
    """A pod whose one container was restarted twice."""
    told = [{"type": kind, "status": status} for kind, status in conditions.items()]
    status = {"conditions": told, "containerStatuses": [{"ready": False, "restartCount": 2}]}
    return {"metadata": {"name": name}, "status": status}


class OneAnswer(Cluster):
    """A cluster with one Deployment and some pods."""

    def __init__(self, deployment: dict[str, Any], pods: list[dict[str, Any]]) -> None:
        super().__init__()
        self.deployment = deployment
        self.pods = pods

    def get(self, *_: str) -> dict[str, Any]:
        return self.deployment

    def list(self, *_: str) -> list[dict[str, Any]]:
        return self.pods


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.release.rollout.POLL_SECONDS", 0.01)
    monkeypatch.setattr("training.release.rollout.ROLLOUT_SECONDS", 1.0)


@pytest.mark.usefixtures("impatient")
def test_a_pod_that_no_node_takes_is_not_waited_for_and_one_that_broke_is_no_success() -> None:
    one = was_complete()
    one["spec"]["progressDeadlineSeconds"] = 0
    fine, pending = pod("a", PodScheduled="True", Ready="True"), pod("b", PodScheduled="False")
    broken = pod("c", PodScheduled="True", Ready="False")
    wait_for_rollout(Pods(OneAnswer(one, [fine, pending]), WORKLOAD, None), print)
    with pytest.raises(ReleaseError, match="pod c was not ready in time; pod c was restarted 2"):
        wait_for_rollout(Pods(OneAnswer(one, [broken, pending]), WORKLOAD, None), print)


@pytest.mark.usefixtures("impatient")
def test_a_pod_whose_node_is_gone_is_passed_over() -> None:
    """Ready is taken back, and nothing else is said of it until it is deleted."""
    one = was_complete()
    one["spec"]["progressDeadlineSeconds"] = 0
    fine = pod("a", PodScheduled="True", ContainersReady="True", Ready="True")
    lost = pod("b", PodScheduled="True", ContainersReady="True", Ready="False")
    pods = Pods(OneAnswer(one, [fine, lost]), WORKLOAD, None)
    wait_for_rollout(pods, print)
    assert pods.present() == ["a"]
    gated = pod("c", PodScheduled="True", ContainersReady="True", Ready="False")
    gated["status"]["conditions"][-1]["reason"] = "ReadinessGatesNotReady"
    with pytest.raises(ReleaseError, match="pod c was not ready in time"):
        wait_for_rollout(Pods(OneAnswer(one, [fine, gated]), WORKLOAD, None), print)


class Guarded(BaseHTTPRequestHandler):
    """A pod whose `/metrics` asks for a key."""

    def do_GET(self) -> None:
        known = self.headers.get("Authorization") == "Bearer secret"
        self.send_response(200 if known else 401)
        self.end_headers()
        self.wfile.write(PAGE.encode() if known else b"")

    def log_message(self, *_: object) -> None:
        """Nothing."""


class OnePod(OneAnswer):
    """A cluster whose pod is a server on this machine."""

    address = ""

    @contextmanager
    def forward(self, *_: object) -> Iterator[str]:
        yield self.address


def test_metrics_are_asked_for_with_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.release.rollout.ATTEMPT_SECONDS", 0.0)
    cluster = OnePod({}, [pod("a", PodScheduled="True", Ready="True")])
    with HTTPServer(("127.0.0.1", 0), Guarded) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        cluster.address = f"http://127.0.0.1:{server.server_port}"
        assert Pods(cluster, WORKLOAD, "secret").samples() == {"a": read_sample(PAGE)}
        with pytest.raises(VerifyError, match="give it with --api_key_file"):
            Pods(cluster, WORKLOAD, None).samples()
        server.shutdown()


def program(folder: Path, name: str, script: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n", "utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.mark.parametrize(
    ("said", "passing"),
    [
        ("The connection to the server 10.0.0.1:6443 was refused - did you specify the right?", 1),
        ("Unable to connect to the server: net/http: TLS handshake timeout", 1),
        ("Error from server: etcdserver: leader changed", 1),
        ('Error from server (Forbidden): deployments.apps is forbidden: User "ci"', 0),
        ("error: no matches for kind PodMonitor in version monitoring.coreos.com/v1", 0),
    ],
)
def test_what_may_pass_is_told_from_what_does_not(
    said: str, passing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, "kubectl", f"echo 'Warning: deprecated' >&2; echo '{said}' >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(ClusterError) as caught:
        Cluster().apply("kind: A\n")
    assert isinstance(caught.value, ClusterUnreachableError) == bool(passing)
    sentence = str(caught.value)
    assert sentence.startswith("kubectl apply failed: ") and "Warning" not in sentence


def test_a_refused_patch_tells_its_cause_and_not_what_was_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As kubectl 1.32 says it."""
    said = (
        "Error from server (Forbidden): error when applying patch:\n"
        '{"stringData":{"key":"hunter2"},"metadata":{"annotations":{"a":"' + "x" * 900 + '"}}}\n'
        'to:\nResource: "/v1, Resource=secrets", GroupVersionKind: "/v1, Kind=Secret"\n'
        'Name: "keys", Namespace: "space"\n'
        'for: "STDIN": error when patching "STDIN": secrets "keys" is forbidden: cannot patch\n'
    )
    (tmp_path / "said").write_text(said, "utf-8")
    program(tmp_path, "kubectl", f"cat {tmp_path}/said >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(ClusterError) as caught:
        Cluster().apply("kind: Secret\n")
    assert "hunter2" not in str(caught.value)
    assert str(caught.value).endswith('secrets "keys" is forbidden: cannot patch')


def test_what_changes_the_cluster_keeps_the_lock_until_it_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed with -9, a release leaves a kubectl behind that may still apply."""
    monkeypatch.setattr("training.release.records.LOCK_SECONDS", 0.1)
    program(tmp_path, "kubectl", "cat >/dev/null; sleep 3")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    code = (
        "from pathlib import Path\nfrom training.cluster import Cluster\n"
        "from training.release.records import Records\n"
        f"cluster = Cluster()\nwith Records(Path({str(tmp_path)!r})).locked() as cluster.lock:\n"
        "    print('locked', flush=True)\n    cluster.apply('kind: A')\n"
    )
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    owner = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout and owner.stdout.readline() == "locked\n"
    time.sleep(0.5)
    owner.kill()
    owner.wait()
    owner.stdout.close()
    with pytest.raises(ReleaseError, match="has told kubectl to do"), Records(tmp_path).locked():
        pass
    monkeypatch.setattr("training.release.records.LOCK_SECONDS", 30.0)
    with Records(tmp_path).locked():
        pass


def test_line_ends_links_and_rights_of_an_overlay_stay(tmp_path: Path) -> None:
    real = tmp_path / "real.yaml"
    real.write_bytes(b"resources: [a]\r\nimages:\r\n  - name: text-classifier\r\n")
    real.chmod(0o640)
    link = tmp_path / "kustomization.yaml"
    link.symlink_to(real)
    before = read_kustomization(link)
    after = with_image(before, IMAGE)
    assert after.count("\r\n") == after.count("\n") == 5
    write_kustomization(link, after)
    assert (link.is_symlink(), real.stat().st_mode & 0o777) == (True, 0o640)
    write_kustomization(link, before)
    assert real.read_bytes() == before.encode()


def test_texts_that_look_like_something_else_are_quoted() -> None:
    found = {"kind": "ConfigMap", "data": {"a": "1e5", "n": "y", "b": "two\nlines", "c": "é"}}
    text = written([found])
    assert '"a": "1e5"' in text and '"n": "y"' in text
    assert yaml.safe_load(text) == found


def test_a_proxy_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")

    def proxied(url: str) -> bool:
        return any(
            isinstance(one, urllib.request.ProxyHandler) and "http" in one.proxies
            for one in opener_for(url).handlers
        )

    assert not proxied("http://127.0.0.1:3000")
    assert proxied("http://classifier.example")


def test_kubectl_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match="there is no kubectl"):
        Cluster().render(tmp_path)


def test_the_context_is_said_where_a_cluster_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, "kubectl", f'printf "%s\\n" "$@" > {tmp_path}/asked; cat >/dev/null')
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    Cluster("kind-one").apply("kind: A\n")
    assert "--context=kind-one" in (tmp_path / "asked").read_text("utf-8").split()
    Cluster("kind-one").render(tmp_path)
    assert "--context=kind-one" not in (tmp_path / "asked").read_text("utf-8").split()


def test_a_forwarding_ends_with_its_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed with -9, a release leaves no port open."""
    script = f"echo $$ > {tmp_path}/pid; echo 'Forwarding from 127.0.0.1:9 -> 3000'; exec sleep 600"
    program(tmp_path, "kubectl", script)
    code = (
        "import os, signal\nfrom training.cluster import Cluster\n"
        "with Cluster().forward('space', 'pod', '3000'):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=False, timeout=60)
    assert done.returncode == -9
    pid = int((tmp_path / "pid").read_text("utf-8"))
    stat_file = Path(f"/proc/{pid}/stat")
    for _ in range(200):
        # Ended, and waited for or not: nobody may be left to do that.
        if not stat_file.exists() or stat_file.read_text("utf-8").split()[2] == "Z":
            return
        subprocess.run(["sleep", "0.05"], check=True)
    raise AssertionError("kubectl port-forward outlives its owner")


def test_pushing_is_the_engines_or_a_command_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = tmp_path / "asked"
    program(tmp_path, "docker", f'printf "%s " "$@" > {asked}')
    program(tmp_path, "load", f'printf "%s " "$@" > {asked}; [ "$2" != fail:1 ] || exit 1')
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert images.push("docker", "a:1", "") == "docker push a:1"
    assert asked.read_text("utf-8") == "push a:1 "
    # What may be a password is not told.
    assert images.push("docker", "a:1", "load 'two words'") == "load … a:1"
    assert asked.read_text("utf-8") == "two words a:1 "
    with pytest.raises(ReleaseError, match="`load … fail:1` failed: it does not say why"):
        images.push("docker", "fail:1", "load x")
    with pytest.raises(ReleaseError, match="--push nothing-there: No such file"):
        images.push("docker", "a:1", "nothing-there")


def test_a_torn_or_foreign_record_is_one_sentence(tmp_path: Path) -> None:
    records = Records(tmp_path)
    record = Record(
        id="a", name="n", version="a", overlay="o", package="p", started_at="2026-01-01T00:00:00"
    )
    records.save(record)
    assert records.all() == [record]
    saved = records.save_render("a.yaml", "kind: A\n")
    assert records.read_render(saved) == "kind: A\n"
    (tmp_path / "a.yaml").write_text("kind: B\n", "utf-8")
    with pytest.raises(ReleaseError, match=r"a\.yaml"):
        records.read_render(saved)
    (tmp_path / "b.json").write_text('{"format": 2}', "utf-8")
    with pytest.raises(ReleaseError, match=r"b\.json is no record of a release \(at format\)"):
        records.all()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--watch", "-1"], "no number of seconds"),
        (["--watch", "nan"], "no number of seconds"),
        (["--plan", "--apply"], "not allowed with argument"),
        (["--champion"], "expected one argument"),
    ],
)
def test_flags_that_cannot_be_meant(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["release", "p", "--overlay", "o", "--data", "d", "--champion", "none", *words]
    with pytest.raises(SystemExit) as caught:
        main(given)
    assert caught.value.code == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("words", [["0a1b", "--unfinished"], ["--unfinished", "--abandon"]])
def test_a_rollback_does_one_thing(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["rollback", "--overlay", "o", *words])
    assert caught.value.code == 2
    assert "not allowed with argument" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["release", "rollback", "history"])
def test_help_of_each_verb(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([verb, "--help"])
    assert caught.value.code == 0
    assert "--overlay" in capsys.readouterr().out


WORKFLOW = ROOT / ".github" / "workflows" / "release.yaml"


def steps_of_the_workflow() -> list[dict[str, Any]]:
    jobs = yaml.safe_load(WORKFLOW.read_text("utf-8"))["jobs"]
    return [step for job in jobs.values() for step in job["steps"]]


def test_the_workflows_scripts_are_shell_and_its_commands_ours() -> None:
    """What GitHub would run is parsed here; nothing of it runs here."""
    verbs = []
    for step in steps_of_the_workflow():
        script = step.get("run", "")
        # What is put into a script's text is run: it comes by the environment.
        assert "${{" not in script
        subprocess.run(["bash", "-n", "-c", script], check=True)
        given = step.get("env", {})
        for line in script.replace("\\\n", " ").splitlines():
            words = [word.replace("$APPLY", "--apply") for word in shlex.split(line)]
            words = [word for word in words if word != "${key[@]}"]
            words = words[words[:1] == ["exec"] :]
            if words[:1] != ["whetstone"]:
                continue
            verbs.append(words[1])
            # As the command line takes them; files and packages need not be there.
            _parser().parse_args(words[1:])
            used = set(re.findall(r"\$(\w+)", line))
            assert used <= {*given, "OVERLAY", "RUNNER_TEMP"}
    assert verbs == ["check", "run", "release", "rollback"]


def test_the_workflow_never_releases_twice_at_once_and_keeps_its_records() -> None:
    content = yaml.safe_load(WORKFLOW.read_text("utf-8"))
    assert content["concurrency"]["cancel-in-progress"] is False
    assert content["jobs"]["retrain"]["if"] == "vars.MODELS != ''"
    keeping = next(step for step in steps_of_the_workflow() if "git push" in step.get("run", ""))
    assert keeping["if"] == "always()"
