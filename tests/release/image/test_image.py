"""The image: engines, refusals, the Dockerfile; with `-m image` also a real one that runs."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import bentoml
import pytest
import yaml
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from benchmarks.load import cpu_seconds
from release.image.build import (
    Image,
    build_image,
    describe,
    revision_of,
    source_url,
)
from release.image.engine import Layer, find_engine, image_id, layers_above_base
from release.image.push import is_in_registry, push_image
from release.image.reuse import by_digest
from release.image.trial import try_image
from service.package.manifest import MODEL_FILE, read_manifest
from service.package.package import seal_package
from tests.closed_loop import ClosedLoop
from tests.conftest import ROOT
from tests.servers import BENTOML, free_port, get
from tests.service.test_bento import build, empty_the_store
from tests.test_project import pins
from tests.whetstone.test_main import error_line
from training.common.errors import ImageError, ReleaseError
from training.registry.register import register
from whetstone.main import main

Captured = pytest.CaptureFixture[str]

REQUIREMENTS = ROOT / "service" / "requirements.txt"
HADOLINT = str(Path(sys.executable).with_name("hadolint"))
SBOM = "sbom.cdx.json"
# The largest size of the layers above the base image with MiniLM in int8, which has 24 MB.
LARGEST_MB = 350
MINILM_MB = 24
START_SECONDS = 60

# It writes its arguments to a file; `build` keeps the context, or fails if a file says so.
FAKE_ENGINE = """#!/bin/sh
here=$(/usr/bin/dirname "$0")
case $1 in
info) [ -e "$here/daemon" ] && echo 28.0 || { echo "Cannot connect to the daemon"; exit 1; } ;;
build)
    printf '%s\\n' "$@" > "$here/asked"
    [ ! -e "$here/broken" ] || { echo "STEP 4/9: RUN pip"; echo "No space left"; exit 125; }
    for context; do :; done
    /bin/cp -r "$context" "$here/context"
    /bin/cp "$3" "$here/Dockerfile" ;;
history)
    # Rootless podman warns like this on machines without systemd.
    echo 'level=warning msg="/ is not a shared mount"' >&2
    /bin/cat "$here/history" ;;
esac
"""
HISTORY = [
    {"CreatedBy": "/bin/sh -c #(nop) USER 1034:1034", "size": 0},
    {"CreatedBy": f"/bin/sh -c #(nop) COPY dir:{'0a' * 32} in /app/.venv ", "size": 190_000_000},
    {"CreatedBy": "/bin/sh -c #(nop) ENV BENTO_PATH=/home/bentoml/bento", "size": 0},
    {"CreatedBy": "CMD bash", "size": 120_000_000},
]


class Engines:
    """A folder of stand-ins for engines, the only programs in PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "history").write_text(json.dumps(HISTORY), "utf-8")

    def install(self, *names: str) -> None:
        for name in names:
            program = self.folder / name
            program.write_text(FAKE_ENGINE, "utf-8")
            program.chmod(0o755)

    def has(self, file: str) -> None:
        (self.folder / file).touch()

    @property
    def asked(self) -> list[str]:
        """The arguments of the last build."""
        return (self.folder / "asked").read_text("utf-8").splitlines()


@pytest.fixture
def engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engines:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.chdir(tmp_path)
    return Engines(folder)


@pytest.fixture(scope="module")
def bento(tiny_package: Path) -> Path:
    """A bento of the tiny package, which is the only registered one; read only."""
    empty_the_store()
    register(tiny_package)
    return build()


@pytest.fixture(scope="module")
def gpu_bento(bento: Path, tiny_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bento of a package for a GPU, built without one; after `bento`, which empties the store."""
    package = shutil.copytree(tiny_package, tmp_path_factory.mktemp("gpu") / "package")
    seal_package(package, read_manifest(package).model_copy(update={"target_device": "gpu"}))
    tag, _ = register(package)
    done = subprocess.run(
        [BENTOML, "build", "-f", "bentofile.gpu.yaml", "-o", "tag", "--arg", f"model={tag}"],
        cwd=ROOT,
        env={**os.environ, "WHETSTONE_DEVICE": "cuda"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return Path(bentoml.bentos.get(done.stdout.strip().removeprefix("__tag__:")).path)


def tag_of(bento: Path) -> str:
    return f"{bento.parent.name}:{bento.name}"


# Engines


@pytest.mark.parametrize(
    ("installed", "running", "wanted", "chosen"),
    [
        (("docker", "podman", "buildah"), True, None, "docker"),
        (("docker", "podman", "buildah"), False, None, "podman"),
        (("docker", "buildah"), False, None, "buildah"),
        (("docker", "podman", "buildah"), True, "buildah", "buildah"),
    ],
)
def test_the_first_engine_that_answers_is_used(
    installed: tuple[str, ...], running: bool, wanted: str | None, chosen: str, engines: Engines
) -> None:
    engines.install(*installed)
    if running:
        engines.has("daemon")
    assert find_engine(wanted) == chosen


@pytest.mark.parametrize(
    ("installed", "wanted", "message"),
    [
        ((), None, "docker is not installed, podman is not installed, buildah is not installed"),
        (("docker",), None, r"daemon does not answer \(Cannot connect to the daemon\)"),
        (("docker",), "docker", r"Cannot connect to the daemon\): install or start it"),
        (("docker",), "podman", "podman is not installed: install or start it"),
        (("docker",), "kaniko", "kaniko is not one of docker, podman, buildah"),
    ],
)
def test_an_engine_that_does_not_work_is_one_sentence(
    installed: tuple[str, ...], wanted: str | None, message: str, engines: Engines
) -> None:
    engines.install(*installed)
    with pytest.raises(ImageError, match=message):
        find_engine(wanted)


# What the engines are asked


def test_the_engine_gets_bento_model_labels_and_materials(
    bento: Path, tiny_package: Path, engines: Engines, capsys: Captured
) -> None:
    engines.install("podman")
    words = ["--platform", "linux/arm64", "--image_repository", "registry.example/team/tickets"]
    assert main(["image", tag_of(bento), *words]) == 0
    name = f"registry.example/team/tickets:{bento.name}"
    manifest = read_manifest(tiny_package)
    asked = engines.asked
    assert asked[asked.index("--tag") + 1] == name
    assert asked[asked.index("--platform") + 1] == "linux/arm64"
    # Labels as options would be those of the first stage as well, and no layer be used again.
    assert "--label" not in asked
    own, _, labels = (engines.folder / "Dockerfile").read_text("utf-8").partition("\nLABEL ")
    assert own.strip() == dockerfile(bento).strip()
    assert f'whetstone.model.version="{manifest.version}"' in labels
    assert f'org.opencontainers.image.version="{bento.name}"' in labels
    assert re.search(r'created="\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00"\n', labels)
    context = engines.folder / "context"
    stored = context / "models" / "text-classifier" / manifest.version / MODEL_FILE
    assert stored.read_bytes() == (tiny_package / MODEL_FILE).read_bytes()
    beside = Path("runs/images") / f"text-classifier-{bento.name}.cdx.json"
    assert beside.read_bytes() == (context / SBOM).read_bytes()
    shown = capsys.readouterr().out
    assert f"image: {name} (podman)" in shown
    assert f"model: tiny:{manifest.version}" in shown
    assert re.search(r"^ +190\.0 MB  COPY … in /app/.venv$", shown, re.MULTILINE)
    assert re.search(r"^ +190\.0 MB  above the base image$", shown, re.MULTILINE)
    assert re.search(r"^ +310\.0 MB  in all", shown, re.MULTILINE)


def test_a_failed_build_ends_with_the_engines_last_lines(
    bento: Path, engines: Engines, capsys: Captured
) -> None:
    engines.install("buildah")
    engines.has("broken")
    assert main(["image", tag_of(bento)]) == 1
    error = capsys.readouterr().err
    assert error == (
        f"whetstone: buildah could not build text-classifier:{bento.name} (status 125); it ended "
        "with:\nSTEP 4/9: RUN pip\nNo space left\n"
    )
    assert "--layers" in engines.asked
    assert not Path("runs").exists()


def test_a_missing_bento_is_one_line(engines: Engines, capsys: Captured) -> None:
    engines.install("podman")
    assert main(["image", "text-classifier:nowhere"]) == 1
    assert "there is no bento text-classifier:nowhere in the store" in capsys.readouterr().err


def test_a_bento_whose_model_is_missing_or_damaged_is_one_line(
    bento: Path, tiny_package: Path, engines: Engines, capsys: Captured
) -> None:
    engines.install("podman")
    tag = f"text-classifier:{read_manifest(tiny_package).version}"
    try:
        with (Path(bentoml.models.get(tag).path) / MODEL_FILE).open("ab") as graph:
            graph.write(b"!")
        assert main(["image", tag_of(bento)]) == 1
        assert "model.onnx was altered" in capsys.readouterr().err
        bentoml.models.delete(tag)
        assert main(["image", tag_of(bento)]) == 1
        assert f"needs the model {tag}, which is not in the store" in capsys.readouterr().err
    finally:
        register(tiny_package)
    assert not (engines.folder / "asked").exists()


def test_no_engine_is_one_line(bento: Path, engines: Engines, capsys: Captured) -> None:
    assert "there is no container engine" in error_line(capsys, "image", tag_of(bento))


def test_the_layers_are_those_of_our_own_instructions() -> None:
    layers = [
        Layer("/bin/sh -c #(nop) ADD file:0123456789abcdef in / ", 80_000_000),
        Layer("RUN python", 40_000_000),
        Layer("ENV BENTO_PATH=/home/bentoml/bento BENTOML_HOME=/tmp/bentoml", 0),
        Layer("|1 A=b /bin/sh -c groupadd bentoml", 4_000),
        Layer("COPY --from=environment /app/.venv /app/.venv", 150_000_000),
    ]
    assert layers_above_base(layers) == [
        Layer("groupadd bentoml", 4_000),
        Layer("COPY --from=environment /app/.venv /app/.venv", 150_000_000),
    ]


# The source of an image


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.example"]
    done = subprocess.run(
        ["git", "-C", str(folder), *identity, *words], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with a service of one module, committed."""
    folder = tmp_path / "checkout"
    (folder / "service").mkdir(parents=True)
    (folder / "service" / "service.py").write_text("ANSWER = 42\n", "utf-8")
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "first")
    return folder


def test_the_revision_is_the_commit_that_holds_the_bentos_code(
    checkout: Path, tmp_path: Path
) -> None:
    bento = tmp_path / "bento"
    shutil.copytree(checkout / "service", bento / "src" / "service")
    (bento / "src" / "service" / "__pycache__").mkdir()
    (bento / "src" / "service" / "__pycache__" / "service.pyc").touch()
    assert revision_of(bento, checkout) == git(checkout, "rev-parse", "HEAD")
    template = bento / "env" / "docker" / "Dockerfile.template"
    template.parent.mkdir(parents=True)
    template.write_text("FROM elsewhere\n", "utf-8")
    assert revision_of(bento, checkout) is None
    template.unlink()
    (bento / "src" / "service" / "service.py").write_text("ANSWER = 43\n", "utf-8")
    assert revision_of(bento, checkout) is None
    assert revision_of(bento, tmp_path) is None


@pytest.mark.parametrize(
    ("remote", "source"),
    [
        ("https://me:secret@git.example:8443/a/b.git", "https://git.example:8443/a/b.git"),
        ("git@git.example:a/b.git", "git@git.example:a/b.git"),
        (None, None),
    ],
)
def test_the_source_is_where_the_checkout_came_from_without_a_password(
    checkout: Path, remote: str | None, source: str | None
) -> None:
    if remote:
        git(checkout, "remote", "add", "origin", remote)
    assert source_url(checkout) == source


def materials(content: str) -> dict[str, dict[str, Any]]:
    """The components of a bill of materials by name; the bill must be valid."""
    problem = JsonStrictValidator(SchemaVersion.V1_6).validate_str(content)
    assert problem is None, problem
    components = json.loads(content)["components"]
    by_name = {component["name"]: component for component in components}
    assert len(by_name) == len(components)
    return by_name


def test_the_materials_are_every_pinned_package_and_the_model(
    bento: Path, tiny_package: Path, engines: Engines
) -> None:
    engines.install("podman")
    assert main(["image", tag_of(bento)]) == 0
    components = materials((engines.folder / "context" / SBOM).read_text("utf-8"))
    manifest = read_manifest(tiny_package)
    model = components.pop(manifest.name)
    assert (model["type"], model["version"]) == ("machine-learning-model", manifest.version)
    assert model["hashes"][0]["content"] == manifest.files[MODEL_FILE].sha256
    listed = {
        re.sub(r"[-_.]+", "-", name).lower(): component["version"]
        for name, component in components.items()
    }
    assert listed == pins(REQUIREMENTS)


# The Dockerfile


def dockerfile(bento: Path) -> str:
    return (bento / "env" / "docker" / "Dockerfile").read_text("utf-8")


@pytest.mark.parametrize("which", ["bento", "gpu_bento"])
def test_hadolint_accepts_the_dockerfile(which: str, request: pytest.FixtureRequest) -> None:
    text = dockerfile(request.getfixturevalue(which))
    done = subprocess.run([HADOLINT, "-"], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_image_is_python_an_environment_and_the_bento(bento: Path) -> None:
    text = dockerfile(bento)
    final = text[text.rindex("FROM ") :]
    assert text.startswith("FROM docker.io/library/python:3.11-slim AS base\n")
    assert "apt-get" not in text
    assert "\nUSER 1034:1034\n" in final
    assert "\nENV BENTOML_DO_NOT_TRACK=True\n" in final
    assert "\nENV ORT_DISABLE_TELEMETRY=1\n" in final
    # The tools of the build stay in the stages before.
    assert "pip" not in final
    assert "# syntax" not in text


def test_the_gpu_image_is_the_same_on_cuda(gpu_bento: Path) -> None:
    text = dockerfile(gpu_bento)
    assert text.startswith("FROM docker.io/nvidia/cuda:")
    final = text[text.rindex("FROM ") :]
    assert "\nENV WHETSTONE_DEVICE=cuda\n" in final
    assert "\nUSER 1034:1034\n" in final
    assert gpu_bento.parent.name == "text-classifier-gpu"
    installed = pins(gpu_bento / "env" / "python" / "requirements.txt")
    assert "onnxruntime-gpu" in installed
    assert "onnxruntime" not in installed


def test_the_requirements_for_cpu_and_gpu_differ_in_onnxruntime_only() -> None:
    cpu, gpu = pins(REQUIREMENTS), pins(REQUIREMENTS.with_name("requirements-gpu.txt"))
    assert cpu.pop("onnxruntime")
    assert gpu.pop("onnxruntime-gpu")
    assert gpu == cpu


def test_the_bentofiles_for_cpu_and_gpu_differ_in_what_a_gpu_needs_only() -> None:
    cpu, gpu = (
        yaml.safe_load((ROOT / name).read_text("utf-8"))
        for name in ("bentofile.yaml", "bentofile.gpu.yaml")
    )
    assert gpu.pop("name") == "text-classifier-gpu"
    assert gpu["envs"].pop() == {"name": "WHETSTONE_DEVICE", "value": "cuda"}
    gpu["include"].remove("service/requirements-gpu.txt")
    cpu["include"].remove("service/requirements.txt")
    for content in (cpu, gpu):
        del content["docker"]["base_image"], content["python"]["requirements_txt"]
    assert gpu == cpu


def test_a_bento_for_a_gpu_is_refused_where_onnx_runtime_has_none(gpu_bento: Path) -> None:
    done = subprocess.run(
        [BENTOML, "serve", str(gpu_bento), "--port", "1"],
        env={**os.environ, "WHETSTONE_DEVICE": "cuda"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode != 0
    assert "has no CUDAExecutionProvider here" in done.stderr
    assert "Traceback" not in done.stderr


# A real image: `make test-image`

image_test = pytest.mark.image


def note(config: pytest.Config, text: str) -> None:
    """Show a measurement on the screen although pytest captures the output."""
    with config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        sys.stdout.write(f"\n{text}\n")


def runner() -> str:
    """podman or docker, as tests/release/image/run.sh found it."""
    return os.environ["IMAGE_TEST_RUNNER"]


def engine_says(*words: str) -> str:
    done = subprocess.run([runner(), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout.strip()


@pytest.fixture(scope="module")
def image(
    bento: Path, tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Image:
    """The image of the tiny bento, built by buildah if it is installed; podman runs it."""
    engine = "buildah" if runner() == "podman" and shutil.which("buildah") else runner()
    folder = tmp_path_factory.mktemp("materials")
    began = time.monotonic()
    built = build_image(tag_of(bento), engine, repository="localhost/whetstone", sbom_folder=folder)
    note(pytestconfig, f"{describe(built)}\nbuilt in {time.monotonic() - began:.0f} s")
    return built


@contextmanager
def running(image: Image, config: pytest.Config) -> Iterator[tuple[str, str]]:
    """A ready container with no more rights than it needs; its address and its name."""
    port = free_port()
    read_only = ["--read-only", *(["--read-only-tmpfs=false"] if runner() == "podman" else [])]
    name = engine_says(
        *("run", "--detach", *read_only, "--cap-drop=all"),
        *("--security-opt=no-new-privileges", "--tmpfs=/tmp:rw,size=64m,mode=1777"),
        *("--network=host", f"--env=BENTOML_PORT={port}", image.name),
    )
    began = time.monotonic()
    try:
        address = f"http://127.0.0.1:{port}"
        while True:
            try:
                if get(address, "/readyz")[0] == 200:
                    break
            except OSError:
                pass
            logs = engine_says("logs", name)
            assert time.monotonic() < began + START_SECONDS, f"not ready: {logs}"
            state = engine_says("inspect", "--format", "{{.State.Status}}", name)
            assert state in {"created", "running"}, f"{state}: {logs}"
            time.sleep(0.05)
        cost = cpu_seconds(process_of(name))
        note(config, f"ready after {time.monotonic() - began:.1f} s and {cost:.1f} CPU-seconds")
        yield address, name
    finally:
        engine_says("rm", "--force", name)


def process_of(container: str) -> int:
    return int(engine_says("inspect", "--format", "{{.State.Pid}}", container))


@pytest.fixture(scope="module")
def container(image: Image, pytestconfig: pytest.Config) -> Iterator[tuple[str, str]]:
    with running(image, pytestconfig) as address_and_name:
        yield address_and_name


@image_test
def test_the_layers_above_the_base_image_are_small(image: Image, tiny_package: Path) -> None:
    own = sum(path.stat().st_size for path in tiny_package.iterdir()) / 1e6
    assert 0 < image.size_above_base / 1e6 - own + MINILM_MB <= LARGEST_MB
    assert image.size > image.size_above_base


@image_test
def test_the_image_serves_its_package_read_only_without_privileges(
    container: tuple[str, str], tiny_package: Path, capsys: Captured
) -> None:
    address, name = container
    assert main(["verify", address, "--package", str(tiny_package)]) == 0
    assert "golden" in capsys.readouterr().out
    status = Path(f"/proc/{process_of(name)}/status").read_text("utf-8")
    of_process = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert of_process["CapEff"].strip("0") == "" == of_process["CapBnd"].strip("0")
    assert of_process["NoNewPrivs"] == "1"
    assert engine_says("exec", name, "id", "-u") == "1034"
    assert engine_says("exec", name, "id", "-g") == "1034"
    for place in ("/", "/app/.venv", "/home/bentoml/bento", "/var/log"):
        denied = subprocess.run(
            [runner(), "exec", name, "touch", f"{place}/new"], capture_output=True, check=False
        )
        assert denied.returncode != 0, place


@image_test
def test_the_image_holds_nothing_that_serving_does_not_need(container: tuple[str, str]) -> None:
    script = """
import importlib.util, json, shutil
packages = "torch transformers datasets optimum sklearn training pip setuptools uv".split()
programs = "cc gcc g++ clang make git uv".split()
print(json.dumps({
    "packages": [name for name in packages if importlib.util.find_spec(name)],
    "programs": [name for name in programs if shutil.which(name)],
}))
"""
    _, name = container
    present = json.loads(engine_says("exec", name, "python", "-c", script))
    assert present == {"packages": [], "programs": []}
    caches = engine_says("exec", name, "sh", "-c", "ls -d /root/.cache /tmp/pip* 2>&1 || true")
    assert "/root/.cache\n" not in caches
    lists = engine_says("exec", name, "sh", "-c", "du -sk /var/cache/apt | cut -f1")
    assert int(lists) < 100


@image_test
def test_the_labels_and_materials_describe_the_image(
    image: Image, container: tuple[str, str], tiny_package: Path
) -> None:
    config = json.loads(engine_says("image", "inspect", image.name))[0]["Config"]
    assert config["User"] == "1034:1034"
    labels = config["Labels"]
    manifest = read_manifest(tiny_package)
    assert labels["org.opencontainers.image.version"] == image.name.rpartition(":")[2]
    assert labels["org.opencontainers.image.title"] == "text-classifier"
    assert labels["whetstone.model.name"] == manifest.name
    assert labels["whetstone.model.version"] == manifest.version
    if not git(ROOT, "status", "--porcelain", "service"):
        assert labels["org.opencontainers.image.revision"] == git(ROOT, "rev-parse", "HEAD")
    inside = engine_says("exec", container[1], "cat", f"/home/bentoml/bento/{SBOM}")
    assert json.loads(inside) == json.loads(image.sbom.read_text("utf-8"))
    assert materials(inside)["onnxruntime"]["version"] == pins(REQUIREMENTS)["onnxruntime"]


@image_test
def test_the_materials_list_exactly_what_is_installed(
    image: Image, container: tuple[str, str]
) -> None:
    script = (
        "import importlib.metadata as m; "
        "print(*{f'{d.name}=={d.version}' for d in m.distributions()}, sep='\\n')"
    )
    listed = engine_says("exec", container[1], "python", "-c", script).splitlines()
    installed = {
        re.sub(r"[-_.]+", "-", name).lower(): version
        for name, _, version in (line.partition("==") for line in listed)
    }
    assert installed == pins(REQUIREMENTS)


@image_test
def test_no_request_is_lost_when_the_container_is_stopped(
    image: Image, pytestconfig: pytest.Config
) -> None:
    with running(image, pytestconfig) as (address, name):
        signalled: list[float] = []
        clients = [ClosedLoop(address, signalled) for _ in range(16)]
        for client in clients:
            client.start()
        time.sleep(2)
        signalled.append(time.monotonic())
        engine_says("kill", "--signal", signal.SIGTERM.name, name)
        status = engine_says("wait", name)
        took = time.monotonic() - signalled[0]
        for client in clients:
            client.join(START_SECONDS)
    answered = sum(sum(client.statuses.values()) for client in clients)
    note(pytestconfig, f"{answered} requests answered, ended with {status} after {took:.1f} s")
    assert [client.lost for client in clients if client.lost] == []
    assert {status for client in clients for status in client.statuses} == {200}
    assert answered > 100
    assert took < 20
    assert status == "0"


@image_test
def test_an_image_of_another_package_fails_its_trial(
    image: Image, tiny_package: Path, tmp_path: Path
) -> None:
    try_image(runner(), image.name, str(tiny_package))
    other = shutil.copytree(tiny_package, tmp_path / "other")
    manifest = read_manifest(other)
    seal_package(other, manifest.model_copy(update={"temperature": manifest.temperature * 1.01}))
    with pytest.raises(ReleaseError, match="tried here, is not what it should be"):
        try_image(runner(), image.name, str(other))
    assert "whetstone-try" not in engine_says("ps", "--all", "--format", "{{.Names}}")


@image_test
def test_an_image_of_another_package_has_the_same_layers_but_the_last(
    image: Image, tiny_package: Path, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    """The layers below hold the packages that serve: they are neither built nor pushed again."""
    other = shutil.copytree(tiny_package, tmp_path / "other")
    manifest = read_manifest(other)
    seal_package(other, manifest.model_copy(update={"temperature": manifest.temperature * 1.01}))
    register(other)
    began = time.monotonic()
    built = build_image(
        tag_of(build()), image.engine, repository="localhost/whetstone", sbom_folder=tmp_path
    )
    note(pytestconfig, f"of another package: built in {time.monotonic() - began:.0f} s")
    layers, others = (layers_of(each.name) for each in (image, built))
    assert built.name != image.name
    assert layers[:-1] == others[:-1]
    assert layers[-1] != others[-1]


def layers_of(name: str) -> list[str]:
    """The digests of an image's layers, the base image's first."""
    shown = engine_says("image", "inspect", "--format", "{{json .RootFS.Layers}}", name)
    layers: list[str] = json.loads(shown)
    return layers


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a registry on this machine; the engines know that it has no certificate."""
    program, port = os.environ.get("IMAGE_TEST_REGISTRY"), free_port()
    if program is None:
        pytest.skip("there is no docker-registry: run.sh could not fetch Debian's package")
    address = f"127.0.0.1:{port}"
    config = tmp_path / "registry.yaml"
    storage = {"filesystem": {"rootdirectory": str(tmp_path / "registry")}}
    content = {"version": 0.1, "storage": storage, "http": {"addr": address}}
    config.write_text(yaml.safe_dump(content), "utf-8")
    engines = tmp_path / "registries.conf"
    engines.write_text(f'[[registry]]\nlocation = "{address}"\ninsecure = true\n', "utf-8")
    monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", str(engines))
    process = subprocess.Popen(
        [program, "serve", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                if get(f"http://{address}", "/v2/")[0] == 200:
                    break
            except OSError:
                assert time.monotonic() < end and process.poll() is None
            time.sleep(0.05)
        yield address
    finally:
        process.terminate()
        process.wait(30)


@image_test
def test_a_pushed_image_has_the_digest_of_its_registry(
    image: Image, registry: str, tmp_path: Path
) -> None:
    name = f"{registry}/team/tickets:{image.name.rpartition(':')[2]}"
    engine_says("tag", image.name, name)
    pushed = push_image(runner(), name, "")
    assert pushed.digest
    reference = by_digest(name, pushed.digest).reference
    # The registry keeps what it gave out under its digest.
    kept = tmp_path / "registry/docker/registry/v2/blobs/sha256" / pushed.digest[7:9]
    manifest = (kept / pushed.digest.removeprefix("sha256:") / "data").read_bytes()
    assert f"sha256:{hashlib.sha256(manifest).hexdigest()}" == pushed.digest
    assert json.loads(manifest)["layers"]
    assert is_in_registry(runner(), reference)
    assert not is_in_registry(runner(), f"{reference[:-1]}{'0' if reference[-1] != '0' else '1'}")
    # A second push changes nothing.
    assert push_image(runner(), name, "").digest == pushed.digest
    assert image_id(runner(), name) == image_id(runner(), reference)
    assert image_id(runner(), f"{name}-nothing") is None
