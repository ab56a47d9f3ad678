"""Package → bento → image, tried on this machine, and pushed."""

from __future__ import annotations

import hashlib
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import bentoml

from service.classifier import GoldenMismatchError
from service.model_package import read_manifest, write_manifest
from training.errors import ImageError, ReleaseError, VerifyError
from training.image import ROOT, build_image, find_engine
from training.layout import IMAGES
from training.verify import Service, verify_service

RUNNERS = ("docker", "podman")
START_SECONDS = 120.0
LAST_LINES = 5


def find_runner(wanted: str | None) -> str:
    """docker or podman: what builds and runs the image.

    Raises:
        ImageError: none of them can be used.
    """
    if wanted == "buildah":
        raise ImageError(
            "buildah builds images but does not serve them, and a release tries its image first: "
            "use docker or podman, or build and try it yourself and give --image NAME:TAG"
        )
    if wanted:
        return find_engine(wanted)
    reasons = []
    for engine in RUNNERS:
        try:
            return find_engine(engine)
        except ImageError as error:
            reasons.append(str(error).partition(":")[0])
    raise ImageError(
        f"there is no engine to build and try the image with ({', '.join(reasons)}): install "
        "docker or podman, or give --image NAME:TAG"
    )


def state_label_change(tag: str, change: dict[str, object] | None) -> None:
    """Write into the stored manifest which labels went and came: the service's /info shows it.

    No answer depends on it, so the version stays.
    """
    folder = Path(bentoml.models.get(tag).path)
    manifest = read_manifest(folder)
    if manifest.provenance.get("label_change") != change:
        provenance = {**manifest.provenance, "label_change": change}
        write_manifest(folder, manifest.model_copy(update={"provenance": provenance}))


def build_bento(tag: str) -> str:
    """`bentoml build` of exactly this model; the bento's tag.

    Raises:
        ReleaseError: it failed.
    """
    words = ["-m", "bentoml", "build", "--output", "tag", "--arg", f"model={tag}"]
    environment = {key: value for key, value in os.environ.items() if key != "WHETSTONE_PACKAGE"}
    done = _run([sys.executable, *words], cwd=ROOT, env=environment)
    if done.returncode != 0:
        raise ReleaseError(f"bentoml build failed: {_last(done.stderr or done.stdout)}")
    return done.stdout.strip().splitlines()[-1].removeprefix("__tag__:")


def has_bento(tag: str) -> bool:
    """Whether a bento is still in the store."""
    try:
        bentoml.bentos.get(tag)
    except bentoml.exceptions.BentoMLException:
        return False
    return True


def build(bento: str, engine: str, repository: str, platform: str | None) -> str:
    """The image of a bento; its name.

    Raises:
        ImageError: it cannot be built.
    """
    name = None if repository == bento.partition(":")[0] else repository
    built = build_image(bento, engine, platform=platform, repository=name, sbom_folder=IMAGES)
    return built.name


def has_image(engine: str, image: str) -> bool:
    """Whether an engine has an image."""
    return _run([engine, "image", "inspect", image]).returncode == 0


def try_image(engine: str, image: str, package: str) -> None:
    """Run it with no more rights than in the cluster, and ask it the golden texts.

    Raises:
        ReleaseError: it does not start, or does not answer as the package did.
    """
    # The same name again: what a killed release has left behind goes when it is tried anew.
    container = f"whetstone-try-{hashlib.sha256(image.encode()).hexdigest()[:12]}"
    _run([engine, "rm", "--force", container])
    try:
        address = _start(engine, image, container)
        _wait_until_ready(engine, container, address, image)
        verify_service(address, package, None)
    except (VerifyError, GoldenMismatchError) as error:
        raise ReleaseError(f"{image}, tried here, is not what it should be: {error}") from None
    finally:
        _run([engine, "rm", "--force", container])


def _start(engine: str, image: str, container: str) -> str:
    """Start a container; the address of its service.

    Raises:
        ReleaseError: it cannot be started.
    """
    words = [engine, "run", "--detach", f"--name={container}", "--read-only", "--cap-drop=all"]
    words += ["--security-opt=no-new-privileges", "--tmpfs=/tmp:rw,size=256m,mode=1777"]
    words += ["--read-only-tmpfs=false"] if engine == "podman" else []
    started = _run([*words, "--publish=127.0.0.1::3000", image])
    if started.returncode == 0:
        return f"http://{_answer([engine, 'port', container, '3000']).splitlines()[0]}"
    # Where it may not make a network, as in many a CI's container, it can use this machine's.
    _run([engine, "rm", "--force", container])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    on_host = _run([*words, "--network=host", f"--env=BENTOML_PORT={port}", image])
    if on_host.returncode != 0:
        raise ReleaseError(f"{engine} cannot run {image}: {_last(started.stderr)}")
    return f"http://127.0.0.1:{port}"


def push(engine: str, image: str, command: str) -> str:
    """Bring the image to where the cluster finds it; what was done.

    Args:
        command: what does it, the image's name is its last word; empty for the engine's push.

    Raises:
        ReleaseError: it failed.
    """
    words = [*(shlex.split(command) if command else [engine, "push"]), image]
    # Words between may be credentials.
    told = f"{words[0]} … {image}" if command else shlex.join(words)
    try:
        done = _run(words)
    except OSError as error:
        raise ReleaseError(f"--push {words[0]}: {error.strerror}") from None
    if done.returncode != 0:
        raise ReleaseError(f"`{told}` failed: {_last(done.stderr or done.stdout)}")
    return told


def _wait_until_ready(engine: str, container: str, address: str, image: str) -> None:
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            Service(address, None).ask("/info")
            return
        except VerifyError as error:
            state = _answer([engine, "inspect", "--format", "{{.State.Status}}", container])
            if state not in ("created", "running") or time.monotonic() > end:
                logs = _run([engine, "logs", container])
                raise ReleaseError(
                    f"{image} does not serve when it is tried here ({error}); it ended with: "
                    f"{_last(logs.stdout + logs.stderr)}"
                ) from None
        time.sleep(0.5)


def _answer(words: Sequence[str]) -> str:
    done = _run(words)
    if done.returncode != 0:
        raise ReleaseError(f"`{' '.join(words[:2])}` failed: {_last(done.stderr)}")
    return done.stdout.strip()


def _run(
    words: Sequence[str], *, cwd: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - programs and arguments of ours, or of who releases
        words,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


def _last(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return "; ".join(lines[-LAST_LINES:])[-500:] or "it does not say why"
