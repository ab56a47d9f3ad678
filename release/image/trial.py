"""An image, tried on this machine before a cluster gets it."""

from __future__ import annotations

import hashlib
import socket
import time

from release.image.commands import read_output, reason_in, run_command
from service.package.golden import GoldenMismatchError
from training.common.errors import ReleaseError, VerifyError
from training.registry.client import Service
from training.registry.verify import verify_service

START_SECONDS = 120.0
POLL_SECONDS = 0.5
PORT = 3000


def try_image(engine: str, image: str, package: str) -> None:
    """Run an image with no more rights than in the cluster, and ask it the golden texts.

    Raises:
        ReleaseError: it does not start, or does not answer as the package did.
    """
    # The name depends on the image only: a container that a killed release left behind is removed.
    container = f"whetstone-try-{hashlib.sha256(image.encode()).hexdigest()[:12]}"
    _remove(engine, container)
    try:
        address = _start(engine, image, container)
        _wait_until_ready(engine, container, address, image)
        verify_service(address, package, None)
    except (VerifyError, GoldenMismatchError) as error:
        raise ReleaseError(f"{image}, tried here, is not what it should be: {error}") from None
    finally:
        _remove(engine, container)


def _start(engine: str, image: str, container: str) -> str:
    """Start a container; the address of its service.

    Raises:
        ReleaseError: it cannot be started.
    """
    words = [engine, "run", "--detach", f"--name={container}", "--read-only", "--cap-drop=all"]
    words += ["--security-opt=no-new-privileges", "--tmpfs=/tmp:rw,size=256m,mode=1777"]
    words += ["--read-only-tmpfs=false"] if engine == "podman" else []
    started = run_command([*words, f"--publish=127.0.0.1::{PORT}", image])
    if started.returncode == 0:
        return f"http://{read_output([engine, 'port', container, str(PORT)]).splitlines()[0]}"
    # An engine inside of a container often may not make a network. It can use this machine's.
    _remove(engine, container)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    on_host = run_command([*words, "--network=host", f"--env=BENTOML_PORT={port}", image])
    if on_host.returncode != 0:
        raise ReleaseError(f"{engine} cannot run {image}: {reason_in(started.stderr)}")
    return f"http://127.0.0.1:{port}"


def _wait_until_ready(engine: str, container: str, address: str, image: str) -> None:
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            Service(address, None).ask("/info")
            return
        except VerifyError as error:
            state = read_output([engine, "inspect", "--format", "{{.State.Status}}", container])
            if state not in ("created", "running") or time.monotonic() > end:
                logs = run_command([engine, "logs", container])
                raise ReleaseError(
                    f"{image} does not serve when it is tried here ({error}); it ended with: "
                    f"{reason_in(logs.stdout + logs.stderr)}"
                ) from None
        time.sleep(POLL_SECONDS)


def _remove(engine: str, container: str) -> None:
    run_command([engine, "rm", "--force", container])
