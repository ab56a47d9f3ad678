"""Every call to kubectl, and nothing else: what a release asks of a cluster and tells it.

kubectl has what a client library would have to repeat: contexts, credentials, plugins for them,
kustomize, and the three-way merge of `apply`.
"""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from training.common.errors import ClusterError, ClusterUnreachableError

REQUEST_SECONDS = 30
# kubectl's own limit does not end a command of many requests, or a plugin that hangs.
COMMAND_SECONDS = 300
# How long a cluster may be unreachable, once something was applied.
PATIENCE_SECONDS = 120.0
FORWARDING = re.compile(r"Forwarding from 127\.0\.0\.1:(\d+) ")
# What kubectl says about faults that may pass: the API server restarts, or the network is down.
PASSING = re.compile(
    r"connection refused|was refused|connection reset|connection lost|lost connection|broken pipe"
    r"|i/o timeout|timed out|Client\.Timeout|deadline exceeded|TLS handshake|unexpected EOF|: EOF"
    r"|no route to host|network is unreachable|no such host|server is currently unable|etcdserver"
    r"|too many requests|server was unable to return a response|Unable to connect to the server"
    r"|ServiceUnavailable|InternalError|shutting down|apiserver not ready",
    re.IGNORECASE,
)
NOT_FOUND = "Error from server (NotFound)"
# kubectl repeats an object whose patch was refused, even the content of a Secret.
REPEATED_OBJECT = re.compile(r"error when applying patch:.*?for: \S+ ", re.DOTALL)
LONGEST_REASON = 400
# The annotation in which kubectl keeps what was last applied.
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
# The name of an object and the keys of its content; the values never leave kubectl.
NAME_AND_KEYS = (
    "{{.metadata.name}}"
    "{{range $key, $value := .data}} {{$key}}{{end}}"
    "{{range $key, $value := .binaryData}} {{$key}}{{end}}"
)
# Of the last lines of a log, at most so much is read.
LOG_BYTES = 100_000
PAUSE_SECONDS = 2.0
FORWARD_SECONDS = 30.0
# The shell ends the forwarding when this process ends, in whatever way: then `read` returns.
UNTIL_OWNER_ENDS = '"$@" <&3 3<&- & child=$!; exec >&- 2>&- 3<&-; read -r _; kill "$child"'


class Cluster:
    """The cluster of a kubectl context.

    Args:
        context: the name of the context; the current one where it is None.

    Attributes:
        patience: how long a question is repeated while the cluster is unreachable, in seconds.
            Every command may be repeated safely.
        lock: a file that each command which changes the cluster keeps open until it has ended,
            even if this process is killed before.
    """

    def __init__(self, context: str | None = None) -> None:
        self.context = context
        self.patience = 0.0
        self.lock: IO[str] | None = None

    def be_patient(self) -> None:
        """From now on, wait for the cluster while it is unreachable."""
        self.patience = PATIENCE_SECONDS

    @contextmanager
    def impatient(self) -> Iterator[None]:
        """Ask once only while the block lasts, for answers that are useful but not needed."""
        before, self.patience = self.patience, 0.0
        try:
            yield
        finally:
            self.patience = before

    def render(self, folder: Path) -> str:
        """The manifests that kustomize makes of `folder`; this needs no cluster.

        Raises:
            ClusterError: the folder does not render.
        """
        return self._run("kustomize", str(folder), local=True)

    def pin_context(self) -> None:
        """Keep the context that is current now, even if somebody changes it meanwhile.

        Inside of a cluster kubectl has no context and needs none.
        """
        if self.context is None:
            with suppress(ClusterError):
                self.context = self._run("config", "current-context", local=True).strip() or None

    def live(self, manifests: str) -> list[dict[str, Any]]:
        """The objects of `manifests` that exist, as the cluster has them.

        Raises:
            ClusterError: the cluster does not know a kind, or does not let it be read.
        """
        answer = self._run(
            "get", "--filename=-", "--ignore-not-found", "--output=json", content=manifests
        )
        return _items(answer)

    def get(self, kind: str, name: str, namespace: str) -> dict[str, Any] | None:
        """An object; None if it does not exist."""
        answer = self._run(
            "get", kind, name, f"--namespace={namespace}", "--ignore-not-found", "--output=json"
        )
        return json.loads(answer) if answer.strip() else None

    def get_all(self, kinds: str, namespace: str, selector: str = "") -> list[dict[str, Any]]:
        """The objects of some kinds in a namespace, with the labels of `selector`."""
        words = ["get", kinds, f"--namespace={namespace}", "--output=json"]
        return _items(self._run(*words, *([f"--selector={selector}"] if selector else [])))

    def keys_of(self, kind: str, name: str, namespace: str) -> set[str] | None:
        """The keys of a Secret's or ConfigMap's content, without the values.

        Returns:
            None if the object does not exist; empty for a kind without content.
        """
        answer = self._run(
            "get",
            kind,
            name,
            f"--namespace={namespace}",
            "--ignore-not-found",
            f"--output=go-template={NAME_AND_KEYS}",
        )
        words = answer.split()
        return set(words[1:]) if words else None

    def kinds_of(self, version: str) -> set[str] | None:
        """The kinds of an API version such as `keda.sh/v1alpha1`; None if the cluster has none.

        Every user whom the cluster knows may ask this.

        Raises:
            ClusterUnreachableError: the cluster, or the server of that API, does not answer.
        """
        try:
            answer = self._run("get", "--raw", f"/apis/{version}")
        except ClusterError as error:
            if NOT_FOUND in str(error):
                return None
            raise
        return {each["kind"] for each in json.loads(answer)["resources"]}

    def warnings(self, namespace: str) -> list[dict[str, Any]]:
        """The events of type Warning in a namespace."""
        return _items(
            self._run(
                "get",
                "events",
                f"--namespace={namespace}",
                "--field-selector=type=Warning",
                "--output=json",
            )
        )

    def logs(
        self, namespace: str, pod: str, container: str, *, lines: int, previous: bool
    ) -> list[str]:
        """The last lines that a container wrote.

        Args:
            previous: read the log of the container before its last restart.

        Raises:
            ClusterError: there is no such log, for example because the container never started.
        """
        words = ["logs", pod, f"--namespace={namespace}", f"--container={container}"]
        words += [f"--tail={lines}", f"--limit-bytes={LOG_BYTES}"]
        return self._run(*words, *(["--previous"] if previous else [])).splitlines()

    def diff(self, manifests: str) -> str:
        """What `apply` would change, line by line; kubectl masks the content of Secrets.

        Raises:
            ClusterError: the API server would refuse an object.
        """
        environment = {"KUBECTL_EXTERNAL_DIFF": "diff -u -N"}
        # 1 means that there are differences, 2 and above that kubectl failed.
        answer = self._run(
            "diff", "--filename=-", content=manifests, good=(0, 1), environment=environment
        )
        lines = [line for line in answer.splitlines() if not line.startswith("diff -u")]
        return "\n".join(re.sub(r"^(---|\+\+\+) \S*/(\S+)\t.*", r"\1 \2", line) for line in lines)

    def apply(self, manifests: str) -> None:
        """Make the cluster hold what `manifests` say.

        Raises:
            ClusterError: an object was refused; others may have been applied.
        """
        self._run("apply", "--filename=-", content=manifests, changes=True)

    def delete(self, manifests: str) -> None:
        """Delete the objects of `manifests` that exist, and wait until they are deleted."""
        words = ["delete", "--filename=-", "--ignore-not-found"]
        self._run(*words, content=manifests, changes=True)

    @contextmanager
    def forward(self, namespace: str, pod: str, port: str) -> Iterator[str]:
        """The address of a pod's port on this machine, while the block lasts.

        Raises:
            ClusterError: the pod cannot be reached.
        """
        command = self._command(
            "port-forward", f"--namespace={namespace}", f"pod/{pod}", f":{port}"
        )
        command += ["--address=127.0.0.1"]
        process = subprocess.Popen(  # noqa: S603 - programs and arguments of ours
            ["/bin/sh", "-c", f"exec 3</dev/null; {UNTIL_OWNER_ENDS}", "sh", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Ctrl-C must not end it: the pods are still asked while a release is undone.
            start_new_session=True,
        )
        if process.stdout is None or process.stderr is None:  # pragma: no cover - for types
            raise ClusterError("kubectl has no output")
        try:
            # kubectl itself waits for long if the API server cannot be reached.
            ready, _, _ = select.select([process.stdout], [], [], FORWARD_SECONDS)
            if not ready:
                raise ClusterUnreachableError(f"pod {pod} cannot be reached: nothing answers")
            forwarding = FORWARDING.match(process.stdout.readline())
            if not forwarding:
                raise _error(process.stderr.read(), f"pod {pod} cannot be reached")
            yield f"http://127.0.0.1:{forwarding[1]}"
        finally:
            process.communicate()

    def _command(self, *words: str, local: bool = False) -> list[str]:
        program = shutil.which("kubectl")
        if program is None:
            raise ClusterError("there is no kubectl in PATH: install it, 1.28 or newer")
        context = [f"--context={self.context}"] if self.context and not local else []
        return [program, *words, *context]

    def _run(
        self,
        *words: str,
        content: str | None = None,
        good: Sequence[int] = (0,),
        local: bool = False,
        changes: bool = False,
        environment: dict[str, str] | None = None,
    ) -> str:
        """The output of a command; it is repeated for as long as the patience lasts.

        Args:
            content: the standard input.
            good: the exit statuses of success.
            local: whether the command asks no cluster.
            changes: whether the command changes the cluster.
        """
        command = self._command(*words, local=local)
        if not local:
            command.append(f"--request-timeout={REQUEST_SECONDS}s")
        kept = [self.lock.fileno()] if changes and self.lock else []
        end = time.monotonic() + self.patience
        while True:
            try:
                done = _run_once(command, content, environment, kept)
                if done.returncode not in good:
                    raise _error(done.stderr, f"kubectl {words[0]} failed")
                return done.stdout
            except ClusterUnreachableError:
                if time.monotonic() > end:
                    raise
                time.sleep(PAUSE_SECONDS)


def _run_once(
    command: Sequence[str],
    content: str | None,
    environment: dict[str, str] | None,
    kept: Sequence[int],
) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(  # noqa: S603 - programs and arguments of ours
            command,
            input=content or "",
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_SECONDS,
            env=os.environ | (environment or {}),
            start_new_session=True,
            pass_fds=kept,
        )
    except subprocess.TimeoutExpired:
        raise ClusterUnreachableError(
            f"kubectl {command[1]} did not end within {COMMAND_SECONDS} seconds"
        ) from None


def _items(answer: str) -> list[dict[str, Any]]:
    """The objects of an answer: of a list, a single one, or none."""
    if not answer.strip():
        return []
    content = json.loads(answer)
    items: list[dict[str, Any]] = content["items"] if content["kind"] == "List" else [content]
    return items


def _error(stderr: str, summary: str) -> ClusterError:
    """An error with the reason that kubectl gives."""
    shown = REPEATED_OBJECT.sub("", stderr)
    lines = [line.strip() for line in shown.splitlines() if line.strip()]
    # Warnings and the lines of klog come first, and are not the reason.
    reasons = [line for line in lines if not re.match(r"Warning:|[EWI]\d{4} ", line)] or lines
    reason = "; ".join(reasons).removeprefix("error: ") or "it gives no reason"
    if len(reason) > LONGEST_REASON:
        # The cause is at the end.
        reason = f"… {reason[-LONGEST_REASON:]}"
    kind = ClusterUnreachableError if PASSING.search(stderr) else ClusterError
    return kind(f"{summary}: {reason}")
