"""A release that builds bento and image itself; docker is a stand-in."""

from __future__ import annotations

import json
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
    sentence,
)
from whetstone.main import main

# What a release needs of docker. Every container that it runs is the server of one port.
ENGINE = """#!{python}
import json, os, signal, sys
from pathlib import Path
here = Path(__file__).parent
file = here / "engine.json"
state = json.loads(file.read_text()) if file.exists() else {{"images": [], "asked": []}}
words = sys.argv[1:]
state["asked"].append(words)
verb = words[0]
if verb == "build":
    state["images"].append(words[words.index("--tag") + 1])
status = 0
if verb == "image":
    status = 0 if words[2] in state["images"] else 1
file.write_text(json.dumps(state))
faults = here / "engine-faults"
if faults.exists() and faults.read_text() == verb:
    faults.unlink()
    os.kill(os.getppid(), signal.SIGKILL)
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


def engine_asked(world: World) -> list[list[str]]:
    """The words of every call of docker."""
    file = world.state_file.with_name("engine.json")
    calls: list[list[str]] = json.loads(file.read_text("utf-8"))["asked"]
    return calls


def from_a_bento(world: World, *more: str) -> list[str]:
    """The command line of a release that builds bento and image."""
    words = world.words("second", SECOND, "--engine", "docker", *more)
    place = words.index("--image")
    return words[:place] + words[place + 2 :]


def cluster_knows(world: World, images: dict[str, Any]) -> None:
    """Let the cluster run every image that was built, as the second server."""
    state = world.state
    for name in json.loads(world.state_file.with_name("engine.json").read_text("utf-8"))["images"]:
        state["images"][name] = images[SECOND]
    world.write(state)


@pytest.mark.slow
@pytest.mark.parametrize("at", ["build", "run", "push"])
def test_a_release_that_is_killed_while_it_builds_reuses_what_it_made(
    with_engine: World, images: dict[str, Any], at: str, capsys: Captured
) -> None:
    words = from_a_bento(with_engine, "--push")
    fault = with_engine.state_file.with_name("engine-faults")
    fault.write_text(at, "utf-8")
    with_engine.killed(words)
    killed = with_engine.records[with_engine.version("second")]
    assert (killed.outcome, killed.step) == ("unfinished", "image")
    bento = killed.bento
    assert bento and with_engine.image == FIRST
    if at == "build":
        # The engine has built the image, but the release did not learn of it.
        assert killed.image is None
    cluster_knows(with_engine, images)
    assert main(words) == 0
    assert "stopped at image: continuing it" in capsys.readouterr().out
    record = with_engine.records[with_engine.version("second")]
    # Neither the bento nor a recorded image is built a second time.
    assert record.bento == bento
    name = f"{REPOSITORY}:{bento.partition(':')[2]}"
    assert (with_engine.image, record.image, record.pushed) == (name, name, f"docker push {name}")
    verbs = [call[0] for call in engine_asked(with_engine)]
    assert verbs.count("build") == (2 if at == "build" else 1)
    # Every container that the release knew of was removed again.
    assert verbs.count("rm") >= verbs.count("run") - (at == "run")
    run = next(call for call in engine_asked(with_engine) if call[0] == "run")
    assert {"--read-only", "--cap-drop=all", "--security-opt=no-new-privileges"} <= set(run)
    pinned = bentoml.bentos.get(bento).info.all_models
    version = with_engine.version("second")
    assert [str(model.tag) for model in pinned] == [f"text-classifier:{version}"]


@pytest.mark.slow
def test_an_image_that_answers_differently_is_not_pushed(
    with_engine: World, images: dict[str, Any], capsys: Captured
) -> None:
    engine = with_engine.state_file.with_name("docker")
    script = engine.read_text("utf-8")
    engine.write_text(
        script.replace(str(images[SECOND]["port"]), str(images[FIRST]["port"])), encoding="utf-8"
    )
    before = with_engine.overlay
    assert main(from_a_bento(with_engine, "--push")) == 1
    assert "tried here, is not what it should be" in sentence(capsys)
    assert (with_engine.image, with_engine.overlay) == (FIRST, before)
    verbs = [call[0] for call in engine_asked(with_engine)]
    assert "push" not in verbs and verbs[-1] == "rm"
    assert with_engine.records[with_engine.version("second")].outcome == "failed"
