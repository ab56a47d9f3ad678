"""A rollback: which release it returns to, and what it leaves alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.release.world import (
    BROKEN,
    FIRST,
    OVERLAY,
    SECOND,
    Captured,
    World,
    sentence,
)
from tests.service.test_bento import empty_the_store
from whetstone.main import main


@pytest.mark.slow
def test_a_rollback_after_a_killed_release_that_changed_nothing_goes_to_the_release_before(
    deployed: World, capsys: Captured
) -> None:
    assert deployed.release("second", SECOND) == 0
    deployed.faults(diff=["kill before"])
    deployed.killed(deployed.words("first", FIRST))
    deployed.faults()
    assert main(["rollback", "--overlay", OVERLAY, "--watch", "0"]) == 0
    out = capsys.readouterr().out
    assert "it is given up" in out and "rolled back: " in out
    assert deployed.image == FIRST
    assert main(["rollback", "--overlay", OVERLAY, "--unfinished", "--watch", "0"]) == 0
    assert "no release of k8s/overlays/staging is unfinished" in capsys.readouterr().out
    assert deployed.image == FIRST


def test_a_rollback_asks_no_golden_texts_if_its_package_is_missing(
    deployed: World, capsys: Captured
) -> None:
    assert deployed.release("second", SECOND) == 0
    empty_the_store()
    path = Path("releases", f"{deployed.version('first')}.json")
    content = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(content | {"package": "file:///nowhere/first/1"}), "utf-8")
    assert main(["rollback", "--overlay", OVERLAY, "--watch", "0"]) == 0
    out = capsys.readouterr().out
    assert "warning: no golden text will be asked" in out
    assert deployed.image == FIRST


def test_after_an_abandoned_release_a_rollback_returns_to_the_last_successful_one(
    unfinished: World, capsys: Captured
) -> None:
    assert main(["rollback", "--overlay", OVERLAY, "--abandon"]) == 0
    assert unfinished.image == BROKEN
    assert unfinished.release("first", FIRST) == 1
    assert "(whetstone rollback where a release was abandoned" in sentence(capsys)
    for image in (SECOND, FIRST):
        assert main(["rollback", "--overlay", OVERLAY, "--watch", "0"]) == 0
        assert unfinished.image == image


def test_an_unfinished_release_does_not_prevent_a_rollback_to_a_version(
    stuck: World, capsys: Captured
) -> None:
    broken = f"{stuck.version('first')}-2"
    assert main(["rollback", "000000000000", "--overlay", OVERLAY]) == 1
    assert "is not a release of" in sentence(capsys)
    assert stuck.records[broken].outcome == "unfinished"
    version, calls = stuck.version("first"), len(stuck.state["calls"])
    assert main(["rollback", version, "--overlay", OVERLAY, "--watch", "0"]) == 0
    assert "is not undone" in capsys.readouterr().out
    assert [call[0] for call in stuck.state["calls"][calls:]].count("apply") == 1
    assert stuck.image == FIRST
    failed = stuck.records[broken]
    assert failed.outcome == "failed" and failed.reason
    assert failed.reason.endswith(f"not undone: a rollback to {version} replaced it")


def test_a_rollback_that_cannot_begin_gives_up_no_unfinished_release(
    stuck: World, images: dict[str, Any], capsys: Captured
) -> None:
    version = stuck.version("first")
    words = ["rollback", version, "--overlay", OVERLAY, "--watch", "0"]
    assert main([*words, "--api_key_file", "nothing"]) == 1
    assert "nothing" in sentence(capsys)
    render = Path("releases", f"{version}.yaml")
    content = render.read_text("utf-8")
    render.write_text(content + "# altered\n", "utf-8")
    assert main(words) == 1
    assert "was altered" in sentence(capsys)
    render.write_text(content, "utf-8")
    # The version that runs can be neither determined nor saved.
    stuck.faults(get=["forbidden"] * 2)
    assert main(words) == 1
    assert "Forbidden" in sentence(capsys)
    assert stuck.records[f"{version}-2"].outcome == "unfinished"
    # The release is still unfinished, and can be undone.
    state = stuck.state
    state["images"][SECOND] = images[SECOND]
    stuck.write(state)
    assert main(["rollback", "--overlay", OVERLAY, "--unfinished"]) == 0
    assert stuck.records[f"{version}-2"].outcome == "undone"
    assert stuck.image == SECOND
