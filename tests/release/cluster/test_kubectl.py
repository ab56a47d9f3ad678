"""kubectl: its errors, its context, and what of it outlives a release."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from release.cluster.kubectl import Cluster
from release.records import Records
from tests.conftest import ROOT
from tests.release.world import program
from training.common.errors import ClusterError, ClusterUnreachableError, ReleaseError


@pytest.mark.parametrize(
    ("message", "passing"),
    [
        ("The connection to the server 10.0.0.1:6443 was refused - did you specify the right?", 1),
        ("Unable to connect to the server: net/http: TLS handshake timeout", 1),
        ("Error from server: etcdserver: leader changed", 1),
        ('Error from server (Forbidden): deployments.apps is forbidden: User "ci"', 0),
        ("error: no matches for kind PodMonitor in version monitoring.coreos.com/v1", 0),
    ],
)
def test_a_fault_that_may_pass_is_an_unreachable_cluster(
    message: str, passing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, "kubectl", f"echo 'Warning: deprecated' >&2; echo '{message}' >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(ClusterError) as caught:
        Cluster().apply("kind: A\n")
    assert isinstance(caught.value, ClusterUnreachableError) == bool(passing)
    sentence = str(caught.value)
    assert sentence.startswith("kubectl apply failed: ") and "Warning" not in sentence


def test_the_error_of_a_refused_patch_has_its_cause_and_not_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message is that of kubectl 1.32."""
    message = (
        "Error from server (Forbidden): error when applying patch:\n"
        '{"stringData":{"key":"hunter2"},"metadata":{"annotations":{"a":"' + "x" * 900 + '"}}}\n'
        'to:\nResource: "/v1, Resource=secrets", GroupVersionKind: "/v1, Kind=Secret"\n'
        'Name: "keys", Namespace: "space"\n'
        'for: "STDIN": error when patching "STDIN": secrets "keys" is forbidden: cannot patch\n'
    )
    (tmp_path / "message").write_text(message, "utf-8")
    program(tmp_path, "kubectl", f"cat {tmp_path}/message >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(ClusterError) as caught:
        Cluster().apply("kind: Secret\n")
    assert "hunter2" not in str(caught.value)
    assert str(caught.value).endswith('secrets "keys" is forbidden: cannot patch')


def test_a_command_that_changes_the_cluster_keeps_the_lock_until_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A release that is killed with -9 leaves a kubectl behind that may still apply."""
    monkeypatch.setattr("release.records.LOCK_SECONDS", 0.1)
    program(tmp_path, "kubectl", "cat >/dev/null; sleep 3")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    code = (
        "from pathlib import Path\nfrom release.cluster.kubectl import Cluster\n"
        "from release.records import Records\n"
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
    with (
        pytest.raises(ReleaseError, match="a kubectl command"),
        Records(tmp_path).locked(),
    ):
        pass
    monkeypatch.setattr("release.records.LOCK_SECONDS", 30.0)
    with Records(tmp_path).locked():
        pass


def test_a_missing_kubectl_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match="there is no kubectl"):
        Cluster().render(tmp_path)


def test_every_command_that_asks_the_cluster_names_the_context(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, "kubectl", f'printf "%s\\n" "$@" > {tmp_path}/asked; cat >/dev/null')
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    Cluster("kind-one").apply("kind: A\n")
    assert "--context=kind-one" in (tmp_path / "asked").read_text("utf-8").split()
    Cluster("kind-one").render(tmp_path)
    assert "--context=kind-one" not in (tmp_path / "asked").read_text("utf-8").split()


def test_a_forwarding_ends_with_its_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A release that is killed with -9 leaves no port open."""
    script = f"echo $$ > {tmp_path}/pid; echo 'Forwarding from 127.0.0.1:9 -> 3000'; exec sleep 600"
    program(tmp_path, "kubectl", script)
    code = (
        "import os, signal\nfrom release.cluster.kubectl import Cluster\n"
        "with Cluster().forward('space', 'pod', '3000'):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=False, timeout=60)
    assert done.returncode == -9
    pid = int((tmp_path / "pid").read_text("utf-8"))
    stat_file = Path(f"/proc/{pid}/stat")
    for _ in range(200):
        # It ended; a zombie counts, because nobody may be left to wait for it.
        if not stat_file.exists() or stat_file.read_text("utf-8").split()[2] == "Z":
            return
        subprocess.run(["sleep", "0.05"], check=True)
    raise AssertionError("kubectl port-forward outlives its process")
