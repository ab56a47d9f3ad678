"""Every server of `benchmarks/bench_serve.py`: how it is installed, started and asked."""

from __future__ import annotations

import hashlib
import http.client
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.load import HOST, ROOT, post
from service.package.manifest import read_manifest

REQUIREMENTS = ROOT / "benchmarks/peers"
PEERS = ROOT / "runs/peers"
INSTALL_SECONDS = 900
# One that warms up by itself, or reads weights from a slow disk.
PEER_START_SECONDS = 300


class InstallError(Exception):
    """A peer's packages could not be installed; the message says why."""


@dataclass(frozen=True)
class Contender:
    """One server.

    `command` makes its arguments from the folder of its programs and a port; `body` makes the JSON
    of one text, `label` reads the answer to it. `packages` are those whose versions count.
    """

    key: str
    title: str
    what: str
    packages: tuple[str, ...]
    command: Callable[[Path, int], list[str]]
    environment: dict[str, str]
    body: Callable[[str], dict[str, Any]]
    label: Callable[[Any], str]
    ready: str = "/readyz"
    requirements: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def request(self, text: str, headers: dict[str, str] | None = None) -> bytes:
        """One text as it goes over the wire."""
        body = json.dumps(self.body(text)).encode()
        return post("/classify", body, {**self.headers, **(headers or {})})

    def labels(self, port: int, texts: Sequence[str]) -> list[str]:
        """What the server says to each text, one after another."""
        connection = http.client.HTTPConnection(HOST, port, timeout=60)
        found = []
        for text in texts:
            body = json.dumps(self.body(text))
            connection.request("POST", "/classify", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            content = answer.read()
            if answer.status != 200:
                raise ConnectionError(f"HTTP {answer.status}: {content[:200].decode()}")
            found.append(self.label(json.loads(content)))
        connection.close()
        return found


def contenders(package: Path, checkpoint: Path) -> list[Contender]:
    """Whetstone first, then what it is measured against."""
    package, checkpoint = package.resolve(), checkpoint.resolve()
    quiet = {"BENTOML_DO_NOT_TRACK": "True", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}

    def home(key: str) -> dict[str, str]:
        # BentoML keeps the metrics of workers there, and empties it at every start.
        return {"BENTOML_HOME": str(PEERS / f"{key}-home")}

    def where(port: int) -> list[str]:
        return ["--host", HOST, "--port", str(port)]

    return [
        Contender(
            key="whetstone",
            title="Whetstone",
            what="bentoml serve service.service:TextClassifier, defaults",
            packages=("bentoml", "onnxruntime", "tokenizers"),
            command=lambda programs, port: [
                *(str(programs / "bentoml"), "serve", "service.service:TextClassifier"),
                *where(port),
            ],
            environment={
                **quiet,
                **home("whetstone"),
                "PYTHONPATH": str(ROOT),
                "WHETSTONE_PACKAGE": str(package),
            },
            body=lambda text: {"input": text},
            label=lambda answer: answer["data"][0]["label"],
        ),
        Contender(
            key="bentoml",
            title="BentoML's tutorial service",
            what="@bentoml.api(batchable=True), the same ONNX file in onnxruntime, defaults",
            packages=("bentoml", "onnxruntime", "tokenizers"),
            command=lambda programs, port: [
                *(str(programs / "bentoml"), "serve", "benchmarks.serve_peers:Tutorial"),
                *where(port),
            ],
            environment={
                **quiet,
                **home("bentoml"),
                "PYTHONPATH": str(ROOT),
                "PEER_PACKAGE": str(package),
                "PEER_LABELS": json.dumps(read_manifest(package).labels),
            },
            body=lambda text: {"texts": [text]},
            label=lambda answer: answer[0]["label"],
            requirements="bentoml.txt",
        ),
        Contender(
            key="fastapi",
            title="FastAPI with a transformers pipeline",
            what="the torch checkpoint, fp32, defaults",
            packages=("fastapi", "uvicorn", "transformers", "torch"),
            command=lambda programs, port: [
                *(str(programs / "uvicorn"), "benchmarks.serve_peers:app"),
                *where(port),
            ],
            environment={**quiet, "PYTHONPATH": str(ROOT), "PEER_CHECKPOINT": str(checkpoint)},
            body=lambda text: {"text": text},
            label=lambda answer: answer["label"],
            ready="/health",
            requirements="fastapi.txt",
        ),
        Contender(
            key="infinity",
            title="infinity",
            what="infinity_emb v2, torch engine, the torch checkpoint, fp32, defaults",
            packages=("infinity_emb", "transformers", "optimum", "torch"),
            command=lambda programs, port: [
                *(str(programs / "infinity_emb"), "v2", "--model-id", str(checkpoint)),
                *("--served-model-name", "bench", "--engine", "torch", "--device", "cpu"),
                # Two minutes of batches of 512 tokens; the benchmark warms up every server.
                *("--no-model-warmup", *where(port)),
            ],
            environment=quiet,
            body=lambda text: {"model": "bench", "input": [text]},
            label=lambda answer: max(answer["data"][0], key=lambda one: one["score"])["label"],
            ready="/health",
            requirements="infinity.txt",
        ),
    ]


def programs_of(contender: Contender) -> Path:
    """The folder of a contender's programs; its packages are installed where they are not yet.

    Raises:
        InstallError: with the end of what pip said.
    """
    if contender.requirements is None:
        return Path(sys.executable).parent
    requirements = REQUIREMENTS / contender.requirements
    folder = PEERS / contender.key
    stamp = folder / "installed"
    # What is named by `-r` counts, too.
    wanted = hashlib.sha256(_flat(requirements).encode()).hexdigest()
    programs = folder / "bin"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return programs
    print(f"installing {contender.title} into {folder.relative_to(ROOT)} …", file=sys.stderr)
    stamp.unlink(missing_ok=True)
    install = [str(programs / "pip"), "install", "--quiet", "--disable-pip-version-check"]
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [*install, "-r", str(requirements)],
    ):
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            raise InstallError(f"not installed within {INSTALL_SECONDS} s") from None
        if done.returncode:
            raise InstallError(f"could not be installed: {last_line(done.stderr)}")
    stamp.write_text(wanted, encoding="utf-8")
    return programs


def versions_of(contender: Contender, programs: Path) -> dict[str, str]:
    """The versions of a contender's main packages, and of the Python that it runs on."""
    script = (
        "import json, platform, sys; from importlib.metadata import version; "
        "print(json.dumps({'python': platform.python_version(), "
        "**{name: version(name) for name in sys.argv[1:]}}))"
    )
    command = [str(programs / "python"), "-c", script, *contender.packages]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    versions: dict[str, str] = json.loads(done.stdout)
    return versions


def last_line(text: str) -> str:
    """The last line that says something, for a table: no folder of this machine in it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    line = lines[-1] if lines else "nothing was said"
    return line.replace(str(ROOT) + "/", "").replace("|", "/")[:300]


def _flat(requirements: Path) -> str:
    """A requirement file with those that it names."""
    lines = []
    for line in requirements.read_text(encoding="utf-8").splitlines():
        name = line.removeprefix("-r ").strip()
        lines.append(_flat(requirements.parent / name) if line.startswith("-r ") else line)
    return "\n".join(lines)
