"""docker, podman and buildah: which one works, and what each is asked."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from release.image.commands import last_lines, read_output, run_command
from release.image_name import LOCALHOST
from training.common.errors import ImageError

# In the order in which they are looked for.
ENGINES = ("docker", "podman", "buildah")
# buildah cannot run an image as a service.
RUNNERS = ("docker", "podman")
INFO_SECONDS = 30
# The first instruction after those of the base image has it (service/Dockerfile.j2).
FIRST_OWN_INSTRUCTION = "BENTO_PATH="
SCREEN_WIDTH = 78


@dataclass(frozen=True)
class Layer:
    """What one instruction added, in bytes before compression."""

    made_by: str
    size: int


def find_engine(wanted: str | None = None) -> str:
    """The engine to build with: `wanted`, or the first that works.

    Raises:
        ImageError: no engine works; the message says why.
    """
    if wanted and wanted not in ENGINES:
        raise ImageError(f"--engine {wanted} is not one of {', '.join(ENGINES)}")
    if wanted:
        reason = _why_unusable(wanted)
        if reason is not None:
            raise ImageError(f"{reason}: install or start it, or choose another --engine")
        return wanted
    engine, reasons = _first_usable(ENGINES)
    if engine is None:
        raise ImageError(
            f"there is no container engine ({', '.join(reasons)}): install one, such as buildah"
        )
    return engine


def find_runner(wanted: str | None) -> str:
    """docker or podman: the engine that builds and runs the image.

    Raises:
        ImageError: neither of them works.
    """
    if wanted == "buildah":
        raise ImageError(
            "buildah builds images but does not run them, and a release tries its image first: "
            "use docker or podman, or build and try it yourself and give --image NAME:TAG"
        )
    if wanted:
        return find_engine(wanted)
    engine, reasons = _first_usable(RUNNERS)
    if engine is None:
        raise ImageError(
            f"there is no engine to build and try the image with ({', '.join(reasons)}): install "
            "docker or podman, or give --image NAME:TAG"
        )
    return engine


def build_with(
    engine: str, context: Path, dockerfile: Path, name: str, platform: str | None
) -> None:
    """Build an image of the bento in `context`.

    Raises:
        ImageError: the build failed.
    """
    words = [engine, "build", "--file", str(dockerfile), "--tag", name]
    if platform:
        words += ["--platform", platform]
    environment = dict(os.environ)
    if engine == "buildah":
        # The other engines cache a layer for each instruction by default. Chroot needs no
        # privileges, and what runs inside is our own Dockerfile.
        words += ["--layers"]
        environment.setdefault("BUILDAH_ISOLATION", "chroot")
    done = run_command([*words, str(context)], merged=True, environment=environment)
    if done.returncode != 0:
        raise ImageError(
            f"{engine} could not build {name} (status {done.returncode}); it ended with:\n"
            f"{last_lines(done.stdout)}"
        )


def read_layers(engine: str, name: str) -> list[Layer]:
    """The layers of an image, from the base image's first on.

    Raises:
        ImageError: the engine does not have the image.
    """
    if engine == "buildah":
        image = json.loads(read_output([engine, "inspect", "--type", "image", name]))
        sizes = iter([layer["size"] for layer in json.loads(image["Manifest"])["layers"]])
        return [
            Layer(step.get("created_by", ""), 0 if step.get("empty_layer") else next(sizes))
            for step in image["OCIv1"]["history"]
        ]
    if engine == "podman":
        newest_first = json.loads(read_output([engine, "history", "--format", "json", name]))
        return [Layer(step["CreatedBy"], step["size"]) for step in reversed(newest_first)]
    words = [engine, "history", "--no-trunc", "--human=false", "--format", "{{json .}}", name]
    newest_first = [json.loads(line) for line in read_output(words).splitlines()]
    return [Layer(step["CreatedBy"], int(step["Size"])) for step in reversed(newest_first)]


def layers_above_base(layers: Sequence[Layer]) -> list[Layer]:
    """The layers of our own instructions that hold something, each with a short name."""
    first = next(
        (place for place, layer in enumerate(layers) if FIRST_OWN_INSTRUCTION in layer.made_by), 0
    )
    return [Layer(_shorten(layer.made_by), layer.size) for layer in layers[first:] if layer.size]


def image_id(engine: str, image: str) -> str | None:
    """The engine's id of an image, which is a digest of its content; None if it has no such."""
    done = run_command([engine, "image", "inspect", "--format", "{{.Id}}", image])
    return done.stdout.strip() or None if done.returncode == 0 else None


def stored_name(engine: str, repository: str) -> str:
    """The name under which an engine keeps what it builds: podman completes a short one."""
    first, slash, _ = repository.partition("/")
    # As podman reads names: the first part is a registry if it looks like a host.
    has_registry = bool(slash) and (first == "localhost" or "." in first or ":" in first)
    return repository if engine == "docker" or has_registry else f"{LOCALHOST}{repository}"


def _first_usable(engines: Sequence[str]) -> tuple[str | None, list[str]]:
    """The first engine that works, and why each before it does not."""
    reasons: list[str] = []
    for engine in engines:
        reason = _why_unusable(engine)
        if reason is None:
            return engine, reasons
        reasons.append(reason)
    return None, reasons


def _why_unusable(engine: str) -> str | None:
    """Why an engine does not work; None if it does."""
    if shutil.which(engine) is None:
        return f"{engine} is not installed"
    if engine == "docker":
        try:
            # The client is often installed without its daemon.
            words = ["docker", "info", "--format", "{{.ServerVersion}}"]
            done = run_command(words, merged=True, timeout=INFO_SECONDS)
        except subprocess.TimeoutExpired:
            return f"docker's daemon does not answer within {INFO_SECONDS} seconds"
        if done.returncode != 0 or not done.stdout.strip():
            reason = last_lines(done.stdout, 1) or "no reason"
            return f"docker's daemon does not answer ({reason})"
    return None


def _shorten(made_by: str) -> str:
    """An instruction without what the engines write around it, on one line of the screen."""
    words = re.sub(r"^/bin/sh -c (#\(nop\) )?|^\|\d+ .*?/bin/sh -c ", "", made_by)
    words = re.sub(r"\b(file|dir|multi):\w{12,}", "…", " ".join(words.split()))
    return words if len(words) <= SCREEN_WIDTH else f"{words[: SCREEN_WIDTH - 1]}…"
