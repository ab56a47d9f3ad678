"""A release that builds bento and image itself; docker is a stand-in."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import bentoml
import pytest

from tests.release.world import (
    FIRST,
    REPOSITORY,
    SECOND,
    Captured,
    World,
    program,
    sentence,
)
from whetstone.main import main

# What a release needs of docker. Every container that it runs is the server of one port. Its output
# of `push` is that of docker 20.10; like docker, it names an image by a digest of its content.
ENGINE = """#!{python}
import fcntl, hashlib, json, os, signal, sys
from pathlib import Path
here = Path(__file__).parent
file = here / "engine.json"
words = sys.argv[1:]
verb = words[0]
digest = lambda *texts: "sha256:" + hashlib.sha256("".join(texts).encode()).hexdigest()
with (here / "engine.lock").open("w") as lock:
    # A push runs beside a try-out.
    fcntl.flock(lock, fcntl.LOCK_EX)
    state = {{"images": {{}}, "registry": {{}}, "asked": []}}
    if file.exists():
        state = json.loads(file.read_text())
    state["asked"].append(words)
    status, name = 0, words[-1]
    if verb == "build":
        name = words[words.index("--tag") + 1]
        state["images"][name] = digest(name, str(len(state["asked"])))
    elif verb == "push":
        repository, _, tag = name.rpartition(":")
        pushed = digest("manifest", state["images"][name])
        reference = f"{{repository}}@{{pushed}}"
        state["registry"][reference] = name
        cluster = here / "cluster.json"
        with cluster.with_suffix(".lock").open("w") as other:
            # From now on the nodes can pull it.
            fcntl.flock(other, fcntl.LOCK_EX)
            known = json.loads(cluster.read_text())
            known["images"][name] = known["images"][reference] = {{"port": {port}}}
            cluster.write_text(json.dumps(known))
    elif verb == "image":
        status = 0 if name in state["images"] else 1
    elif verb == "pull":
        status = 0 if name in state["registry"] else 1
    file.write_text(json.dumps(state))
faults = here / "engine-faults"
if faults.exists() and faults.read_text() == verb:
    faults.unlink()
    os.kill(os.getppid(), signal.SIGKILL)
if faults.exists() and faults.read_text() == f"no {{verb}}":
    sys.exit("denied: requested access to the resource is denied")
if verb == "info":
    print("28.0")
elif verb == "history":
    print(json.dumps({{"CreatedBy": "CMD bash", "Size": "1"}}))
elif verb == "run":
    print("0123456789ab")
elif verb == "port":
    print("127.0.0.1:{port}")
elif verb == "inspect":
    print("running")
elif verb == "image" and not status:
    print(state["images"][name])
elif verb == "push":
    print(f"The push refers to repository [{{repository}}]\\n5f70bf18a086: Pushed")
    print(f"{{tag}}: digest: {{pushed}} size: 1573")
sys.exit(status)
"""


@pytest.fixture
def with_engine(deployed: World, images: dict[str, Any]) -> World:
    """`deployed`, with a docker whose containers serve the second package."""
    engine = deployed.state_file.with_name("docker")
    engine.write_text(
        ENGINE.format(python=sys.executable, port=images[SECOND]["port"]), encoding="utf-8"
    )
    engine.chmod(0o755)
    return deployed


def engine_state(world: World) -> dict[str, Any]:
    """What docker knows: images by name, the registry by digest, and the words of every call."""
    file = world.state_file.with_name("engine.json")
    content: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return content


def engine_verbs(world: World) -> list[str]:
    """The verb of every call of docker."""
    return [call[0] for call in engine_state(world)["asked"]]


def from_a_bento(world: World, *more: str) -> list[str]:
    """The command line of a release that builds bento and image."""
    words = world.words("second", SECOND, "--engine", "docker", *more)
    place = words.index("--image")
    return words[:place] + words[place + 2 :]


def fail_engine_at(world: World, fault: str) -> None:
    """Let docker kill the release after a verb, or refuse "no VERB"."""
    world.state_file.with_name("engine-faults").write_text(fault, "utf-8")


def serve_by_containers(world: World, image: Any) -> None:
    """Let every container that docker runs be another server."""
    engine = world.state_file.with_name("docker")
    script = engine.read_text("utf-8")
    ports = re.compile(r"127\.0\.0\.1:\d+")
    engine.write_text(ports.sub(f"127.0.0.1:{image['port']}", script), "utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("at", ["build", "run", "push"])
def test_a_release_that_is_killed_while_it_builds_reuses_what_it_made(
    with_engine: World, at: str, capsys: Captured
) -> None:
    words = from_a_bento(with_engine, "--push")
    fail_engine_at(with_engine, at)
    with_engine.killed(words)
    killed = with_engine.records[with_engine.version("second")]
    assert (killed.outcome, killed.step) == ("unfinished", "image")
    bento = killed.bento
    assert bento and with_engine.image == FIRST
    # The engine may have built the image without the release learning of it.
    assert killed.built and (killed.built.name is None) == (at == "build")
    assert main(words) == 0
    assert "stopped at image: continuing it" in capsys.readouterr().out
    record = with_engine.records[with_engine.version("second")]
    # Neither the bento nor a recorded image is built a second time.
    assert record.bento == bento
    name = f"{REPOSITORY}:{bento.partition(':')[2]}"
    verbs = engine_verbs(with_engine)
    assert verbs.count("build") == (2 if at == "build" else 1)
    assert record.pushed == f"docker push {name}"
    # The cluster gets what was pushed, by its digest; the tag is for people.
    assert record.built and record.built.digest
    reference = f"{REPOSITORY}@{record.built.digest}"
    assert engine_state(with_engine)["registry"][reference] == name
    assert with_engine.image == reference
    assert record.image == f"{name}@{record.built.digest}"
    assert f"digest: {record.built.digest} # tag {name.rpartition(':')[2]}" in with_engine.overlay
    # Every container that the release knew of was removed again.
    assert verbs.count("rm") >= verbs.count("run") - (at in ("run", "push"))
    run = next(call for call in engine_state(with_engine)["asked"] if call[0] == "run")
    assert {"--read-only", "--cap-drop=all", "--security-opt=no-new-privileges"} <= set(run)
    pinned = bentoml.bentos.get(bento).info.all_models
    version = with_engine.version("second")
    assert [str(model.tag) for model in pinned] == [f"text-classifier:{version}"]


@pytest.mark.slow
def test_an_image_that_answers_differently_is_pushed_and_not_used(
    with_engine: World, images: dict[str, Any], capsys: Captured
) -> None:
    serve_by_containers(with_engine, images[FIRST])
    before = with_engine.overlay
    assert main(from_a_bento(with_engine, "--push")) == 1
    line = sentence(capsys)
    assert "tried here, is not what it should be" in line
    assert "was pushed meanwhile (`docker push " in line and line.endswith("nothing uses it")
    assert (with_engine.image, with_engine.overlay) == (FIRST, before)
    assert {"push", "rm"} <= set(engine_verbs(with_engine))
    record = with_engine.records[with_engine.version("second")]
    assert record.outcome == "failed" and record.built and not record.built.tried
    # The image that failed is tried again, not believed.
    serve_by_containers(with_engine, images[SECOND])
    assert main(from_a_bento(with_engine, "--push")) == 0
    assert engine_verbs(with_engine).count("build") == 1


@pytest.mark.slow
def test_a_push_that_fails_stops_the_release_after_the_try_out(
    with_engine: World, capsys: Captured
) -> None:
    before = with_engine.overlay
    fail_engine_at(with_engine, "no push")
    assert main(from_a_bento(with_engine, "--push")) == 1
    assert "failed: denied: requested access" in sentence(capsys)
    assert (with_engine.image, with_engine.overlay) == (FIRST, before)
    record = with_engine.records[with_engine.version("second")]
    assert record.built and record.built.tried
    assert {"image: build", "image: try"} <= set(record.durations)


@pytest.mark.slow
def test_a_second_try_takes_the_image_that_was_built_tried_and_pushed(
    with_engine: World, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = from_a_bento(with_engine, "--push")
    with_engine.faults(apply=["forbidden"])
    assert main(words) == 1
    first = with_engine.records[with_engine.version("second")]
    assert first.outcome == "undone" and first.built
    capsys.readouterr()
    # Another machine of the CI has no image; the registry has it.
    file = with_engine.state_file.with_name("engine.json")
    state = engine_state(with_engine)
    file.write_text(json.dumps(state | {"images": {}, "asked": []}), "utf-8")
    assert main(words) == 0
    assert f"{first.built.name} of {first.id} is taken" in capsys.readouterr().out
    second = with_engine.records[f"{with_engine.version('second')}-2"]
    assert (second.image, second.built) == (first.image, first.built)
    assert not {"build", "run", "push"} & set(engine_verbs(with_engine))
    assert "bento" not in second.durations

    # What goes into an image is looked at, not what it is called.
    monkeypatch.setattr("release.image.reuse.bentoml.__version__", "0")
    assert main(words) == 0
    third = with_engine.records[f"{with_engine.version('second')}-3"]
    assert third.built and third.built.inputs != first.built.inputs
    assert third.image != first.image
    assert engine_verbs(with_engine).count("build") == 1

    # Somebody has pulled a newer base image.
    state = engine_state(with_engine)
    state["images"]["docker.io/library/python:3.11-slim"] = "newer"
    file.write_text(json.dumps(state), "utf-8")
    assert main(words) == 0
    fourth = with_engine.records[f"{with_engine.version('second')}-4"]
    assert fourth.built and (fourth.built.base, fourth.bento) == ("newer", third.bento)
    assert engine_verbs(with_engine).count("build") == 2


@pytest.mark.slow
def test_an_image_that_neither_engine_nor_registry_has_is_built_again(with_engine: World) -> None:
    words = from_a_bento(with_engine, "--push")
    with_engine.faults(apply=["forbidden"])
    assert main(words) == 1
    file = with_engine.state_file.with_name("engine.json")
    name = with_engine.records[with_engine.version("second")].built.name
    # Somebody has built another image of the same name.
    file.write_text(json.dumps({"images": {name: "other"}, "registry": {}, "asked": []}), "utf-8")
    assert main(words) == 0
    assert {"build", "run", "push"} <= set(engine_verbs(with_engine))


@pytest.mark.slow
def test_an_image_that_a_command_loads_keeps_its_tag(
    with_engine: World, images: dict[str, Any]
) -> None:
    load = program(with_engine.state_file.parent, "load", "exit 0")
    words = from_a_bento(with_engine, "--push", str(load))
    assert main(words) == 1
    record = with_engine.records[with_engine.version("second")]
    assert record.built and record.image == record.built.name
    assert record.built.digest is None
    state = with_engine.state
    state["images"][record.image] = images[SECOND]
    with_engine.write(state)
    assert main(words) == 0
    assert with_engine.image == record.image
    # It is loaded again, because nothing says that the cluster still has it.
    assert (
        with_engine.records[f"{with_engine.version('second')}-2"].pushed
        == f"{load} … {record.image}"
    )
