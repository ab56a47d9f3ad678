"""Every call to kubectl, and nothing else: what a release asks of a cluster and tells it.

kubectl brings what a client of our own would have to repeat: contexts, credentials, plugins for
them, kustomize, and the three-way merge of `apply`.
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

from training.errors import ClusterError, ClusterUnreachableError

REQUEST_SECONDS = 30
# A command that kubectl's own limit does not end: one of many requests, or a plugin that hangs.
COMMAND_SECONDS = 300
FORWARDING = re.compile(r"Forwarding from 127\.0\.0\.1:(\d+) ")
# kubectl's words for what may pass by itself: the API server restarts, or the network is away.
PASSING = re.compile(
    r"connection refused|was refused|connection reset|connection lost|lost connection|broken pipe"
    r"|i/o timeout|timed out|Client\.Timeout|deadline exceeded|TLS handshake|unexpected EOF|: EOF"
    r"|no route to host|network is unreachable|no such host|server is currently unable|etcdserver"
    r"|too many requests|server was unable to return a response|Unable to connect to the server"
    r"|ServiceUnavailable|InternalError|shutting down|apiserver not ready",
    re.IGNORECASE,
)
# What kubectl repeats of an object whose patch was refused, the content of a Secret too.
REPEATED = re.compile(r"error when applying patch:.*?for: \S+ ", re.DOTALL)
LONGEST_REASON = 400
PAUSE_SECONDS = 2.0
FORWARD_SECONDS = 30.0
# The forwarding ends when this process does, however it ends: then `read` returns.
UNTIL_OWNER_ENDS = '"$@" <&3 3<&- & child=$!; exec >&- 2>&- 3<&-; read -r _; kill "$child"'


class Cluster:
    """The cluster of a kubectl context.

    Args:
        context: its name; whichever is current where it is None.

    Attributes:
        patience: seconds for which what the cluster does not answer is asked again. All that is
            asked may be asked twice.
        lock: a file that whatever changes the cluster keeps open until it has ended: killed, its
            owner does not take it along.
    """

    patience = 0.0
    lock: IO[str] | None = None

    def __init__(self, context: str | None = None) -> None:
        self.context = context

    def render(self, folder: Path) -> str:
        """The manifests that kustomize makes of `folder`; asks no cluster.

        Raises:
            ClusterError: it does not render.
        """
        return self._run("kustomize", str(folder), local=True)

    def pin_context(self) -> None:
        """Stay with the context that is current now, whichever somebody makes it meanwhile.

        Inside of a cluster kubectl has none, and needs none.
        """
        if self.context is None:
            with suppress(ClusterError):
                self.context = self._run("config", "current-context", local=True).strip() or None

    def live(self, manifests: str) -> list[dict[str, Any]]:
        """Those of the objects in `manifests` that exist, as they are.

        Raises:
            ClusterError: a kind is not known there, or not to be read.
        """
        answer = self._run(
            "get", "--filename=-", "--ignore-not-found", "--output=json", content=manifests
        )
        return _items(answer)

    def get(self, kind: str, name: str, namespace: str) -> dict[str, Any] | None:
        """An object; None where there is none."""
        answer = self._run(
            "get", kind, name, f"--namespace={namespace}", "--ignore-not-found", "--output=json"
        )
        return json.loads(answer) if answer.strip() else None

    def list(self, kinds: str, namespace: str, selector: str = "") -> list[dict[str, Any]]:
        """The objects of some kinds in a namespace, of those with labels that `selector` names."""
        words = ["get", kinds, f"--namespace={namespace}", "--output=json"]
        return _items(self._run(*words, *([f"--selector={selector}"] if selector else [])))

    def diff(self, manifests: str) -> str:
        """What `apply` would change, line by line; kubectl masks what is in Secrets.

        Raises:
            ClusterError: the API server would refuse an object.
        """
        environment = {"KUBECTL_EXTERNAL_DIFF": "diff -u -N"}
        # 1 means that there are differences; 2 and above that there is no answer.
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
        """Delete the objects in `manifests` that exist, and wait until they are gone."""
        words = ["delete", "--filename=-", "--ignore-not-found"]
        self._run(*words, content=manifests, changes=True)

    @contextmanager
    def forward(self, namespace: str, pod: str, port: int) -> Iterator[str]:
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
            # Ctrl-C is ours to answer: what runs must still be asked while a release is undone.
            start_new_session=True,
        )
        if process.stdout is None or process.stderr is None:  # pragma: no cover - for types
            raise ClusterError("kubectl has no output")
        try:
            # Where the API server cannot be reached kubectl itself waits for long.
            ready, _, _ = select.select([process.stdout], [], [], FORWARD_SECONDS)
            if not ready:
                raise ClusterUnreachableError(f"pod {pod} cannot be reached: nothing answers")
            found = FORWARDING.match(process.stdout.readline())
            if not found:
                raise _error(process.stderr.read(), f"pod {pod} cannot be reached")
            yield f"http://127.0.0.1:{found[1]}"
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
        command = self._command(*words, local=local)
        if not local:
            command.append(f"--request-timeout={REQUEST_SECONDS}s")
        end = time.monotonic() + self.patience
        while True:
            try:
                return self._once(command, words[0], content, good, changes, environment)
            except ClusterUnreachableError:
                if time.monotonic() > end:
                    raise
                time.sleep(PAUSE_SECONDS)

    def _once(
        self,
        command: Sequence[str],
        verb: str,
        content: str | None,
        good: Sequence[int],
        changes: bool,
        environment: dict[str, str] | None,
    ) -> str:
        kept = [self.lock.fileno()] if changes and self.lock else []
        try:
            done = subprocess.run(  # noqa: S603 - programs and arguments of ours
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
                f"kubectl {verb} did not end within {COMMAND_SECONDS} seconds"
            ) from None
        if done.returncode not in good:
            raise _error(done.stderr, f"kubectl {verb} failed")
        return done.stdout


def _items(answer: str) -> list[dict[str, Any]]:
    """The objects of an answer: a list's, a single one, or none."""
    if not answer.strip():
        return []
    found = json.loads(answer)
    items: list[dict[str, Any]] = found["items"] if found["kind"] == "List" else [found]
    return items


def _error(stderr: str, what: str) -> ClusterError:
    told = REPEATED.sub("", stderr)
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    # Warnings and what klog says come first, and are not the reason.
    reasons = [line for line in lines if not re.match(r"Warning:|[EWI]\d{4} ", line)] or lines
    reason = "; ".join(reasons).removeprefix("error: ") or "it does not say why"
    if len(reason) > LONGEST_REASON:
        # The cause stands at the end.
        reason = f"… {reason[-LONGEST_REASON:]}"
    kind = ClusterUnreachableError if PASSING.search(stderr) else ClusterError
    return kind(f"{what}: {reason}")
