"""A release: what it changes, what it refuses, and that a failed one changes nothing."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import bentoml
import pytest
import yaml

from release.image.bento import record_label_change
from service.package.manifest import read_manifest
from tests.release.world import (
    BROKEN,
    DEPLOYMENT,
    FIRST,
    LABELS,
    LAST_APPLIED,
    OVERLAY,
    SECOND,
    SPACE,
    WRONG,
    Captured,
    World,
    sentence,
)
from tests.servers import classify, get, serving
from whetstone.main import main


def test_a_plan_shows_everything_and_writes_nothing(deployed: World, capsys: Captured) -> None:
    before, objects = deployed.tree(), deployed.state["objects"]
    words = [word for word in deployed.words("second", SECOND) if word != "--apply"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert f"image: {SECOND}" in out
    assert '+    newTag: "second"' in out
    assert f"+++ deployment.{SPACE}.text-classifier" in out
    assert "promote:" in out and "--apply releases the package" in out
    assert deployed.tree() == before
    assert deployed.state["objects"] == objects
    assert not {call[0] for call in deployed.state["calls"][-6:]} & {"apply", "delete"}


def test_a_release_replaces_the_version_and_a_rollback_returns_to_it(
    world: World, capsys: Captured
) -> None:
    before = world.overlay
    assert world.release("first", FIRST, champion="none") == 0
    assert world.image == FIRST
    # Two lines differ: comments, order and quotes are as they were.
    changed = set(world.overlay.splitlines()) ^ set(before.splitlines())
    assert changed == {'    newTag: "first"', '    newTag: "unreleased"'}
    first = world.records[world.version("first")]
    assert first.outcome == "released"
    assert first.previous and first.previous.kind == "nothing"

    assert world.release("second", SECOND) == 0
    assert world.image == SECOND
    second = world.records[world.version("second")]
    assert second.verdict and second.verdict.outcome == "promote"
    assert second.champion_version == world.version("first")
    assert second.previous and second.previous.kind == "release"
    assert len(second.pods) == 2
    assert second.render and yaml.safe_load_all(Path("releases", second.render.file).read_text())

    capsys.readouterr()
    # However the overlay is written, it is the same one.
    absolute = str(world.folder / OVERLAY)
    assert main(["rollback", "--overlay", absolute, "--watch", "0"]) == 0
    assert world.image == FIRST
    assert '"first"' in world.overlay
    assert "the golden texts are answered as recorded" in capsys.readouterr().out
    # There is nothing earlier than the first; the second is found by its version.
    assert main(["rollback", "--overlay", OVERLAY, "--watch", "0"]) == 1
    assert "nothing was released" in sentence(capsys)
    version = world.version("second")
    assert main(["rollback", version, "--overlay", OVERLAY, "--watch", "0"]) == 0
    assert world.image == SECOND
    assert "rolled back: " in capsys.readouterr().out
    assert main(["history", "--overlay", str(world.folder / OVERLAY)]) == 0
    out = capsys.readouterr().out
    assert out.count("rolled back") == 2 and "promote" in out


def test_a_broken_image_leaves_everything_as_it_was(deployed: World, capsys: Captured) -> None:
    overlay, objects = deployed.overlay, set(deployed.state["objects"])
    assert deployed.release("second", BROKEN) == 1
    line = sentence(capsys)
    assert "ImagePullBackOff" in line and "the version before runs again" in line
    assert deployed.image == FIRST
    assert deployed.overlay == overlay
    assert set(deployed.state["objects"]) == objects
    assert deployed.records[deployed.version("second")].outcome == "undone"
    assert main(["history"]) == 0
    assert "undone" in capsys.readouterr().out


def test_a_first_release_that_fails_leaves_nothing(world: World, capsys: Captured) -> None:
    overlay = world.overlay
    assert world.release("first", BROKEN, champion="none") == 1
    assert "ImagePullBackOff" in sentence(capsys)
    assert world.state["objects"] == {}
    assert world.overlay == overlay


def test_a_first_pod_of_another_version_is_undone_before_a_caller_could_reach_it(
    deployed: World, capsys: Captured
) -> None:
    objects, calls = set(deployed.state["objects"]), len(deployed.state["calls"])
    assert deployed.release("second", WRONG) == 1
    line = sentence(capsys)
    assert "pod text-classifier-first-" in line
    assert f"serves version {deployed.version('first')}, not" in line
    record = deployed.records[deployed.version("second")]
    assert "first pod" in record.durations and "apply" not in record.durations
    assert record.evidence and record.evidence.pod
    assert record.evidence.pod.startswith("text-classifier-first-")
    assert set(deployed.state["objects"]) == objects
    # The Deployment that callers reach never had another image.
    asked = [call for call in deployed.state["calls"][calls:] if call[0] == "apply"]
    assert len(asked) == 2
    assert {*deployed.state.get("was", {}).values(), deployed.image} == {FIRST}


def test_pods_of_another_version_are_undone_after_a_good_first_pod(
    deployed: World, capsys: Captured, images: dict[str, Any]
) -> None:
    """Such as a tag that was pushed again meanwhile."""
    state = deployed.state
    state["images"][WRONG] = images[WRONG] | {"by_name": {"-first": images[SECOND]}}
    deployed.write(state)
    assert deployed.release("second", WRONG) == 1
    assert f"serves version {deployed.version('first')}, not" in sentence(capsys)
    assert "check" in deployed.records[deployed.version("second")].durations
    assert deployed.image == FIRST


def test_a_first_pod_is_gone_after_the_release_and_asked_by_no_rollback(deployed: World) -> None:
    assert deployed.release("second", SECOND) == 0
    names = [name for name in deployed.state["objects"] if "-first" in name]
    assert names == []
    forwarded = [call[2] for call in deployed.state["calls"] if call[0] == "port-forward"]
    first = [name for name in forwarded if "-first-" in name]
    # Once for /info and once for the golden texts, in each of two releases.
    assert len(first) == 4
    assert main(["rollback", "--overlay", OVERLAY, "--watch", "0"]) == 0
    assert "first pod" not in deployed.records[f"{deployed.version('first')}-2"].durations


def test_a_service_that_would_reach_the_first_pod_stops_the_release(
    deployed: World, capsys: Captured
) -> None:
    state = deployed.state
    service = json.loads(json.dumps(state["objects"][f"service/{SPACE}/text-classifier"]))
    service["metadata"]["name"] = "everything"
    service["spec"]["selector"] = {"team": "words"}
    state["objects"][f"service/{SPACE}/everything"] = service
    deployed.write(state)
    # The overlay gives its pods this label, too.
    file = Path(OVERLAY, "kustomization.yaml")
    patch = "- {op: add, path: /spec/template/metadata/labels/team, value: words}"
    target = "  - target: {kind: Deployment}\n    patch: |\n      "
    file.write_text(deployed.overlay + target + patch + "\n", "utf-8")
    assert deployed.release("second", SECOND) == 1
    assert "Service everything selects pods by" in sentence(capsys)
    assert deployed.image == FIRST


def test_a_release_whose_pods_answer_a_golden_text_differently_is_undone(
    deployed: World, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def verify(url: str, _package: str, _key: Path | None) -> str:
        from service.package.golden import GoldenMismatchError

        asked.append(url)
        raise GoldenMismatchError(f"{url} answers golden text 3 differently")

    monkeypatch.setattr("release.cluster.rollout.verify_service", verify)
    assert deployed.release("second", SECOND) == 1
    assert "answers golden text 3 differently" in sentence(capsys)
    assert len(asked) == 1
    assert deployed.image == FIRST


def test_an_apply_that_is_refused_half_way_is_undone(deployed: World, capsys: Captured) -> None:
    deployed.faults(apply=["half"])
    overlay, objects = deployed.overlay, set(deployed.state["objects"])
    assert deployed.release("second", SECOND) == 1
    assert "Forbidden" in sentence(capsys)
    assert (deployed.image, deployed.overlay) == (FIRST, overlay)
    assert set(deployed.state["objects"]) == objects


def test_a_cluster_that_is_unreachable_for_a_moment_is_waited_for(deployed: World) -> None:
    deployed.faults(get=[None] * 8 + ["refused"] * 6)
    assert deployed.release("second", SECOND) == 0
    assert deployed.image == SECOND


@pytest.mark.parametrize(("looks", "asked"), [(3, 2), (4, 2), (5, 1)])
def test_pods_that_an_autoscaler_starts_meanwhile_are_waited_for_and_checked(
    world: World, looks: int, asked: int
) -> None:
    """They start before the check, during it, or during the watch, where they are not checked."""
    world.write(world.state | {"scales": looks})
    assert world.release("first", FIRST, champion="none") == 0
    pods = world.records[world.version("first")].pods
    assert len(pods) == asked
    forwarded = [call[2] for call in world.state["calls"] if call[0] == "port-forward"]
    # For /info and the golden texts; once or twice more for the metrics.
    assert all(forwarded.count(f"pod/{name}") >= 3 for name in pods)
    assert world.state["objects"][DEPLOYMENT]["spec"]["replicas"] == 2


def test_a_pod_of_the_autoscaler_that_no_node_takes_does_not_fail_a_good_release(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("release.cluster.rollout.ROLLOUT_SECONDS", 5.0)
    world.write(world.state | {"scales": 4, "full": True})
    assert world.release("first", FIRST, champion="none") == 0
    assert world.state["objects"][DEPLOYMENT]["status"]["unavailableReplicas"] == 1
    assert len(world.records[world.version("first")].pods) == 1
    # The version that runs can still be determined.
    assert main([word for word in world.words("second", SECOND) if word != "--apply"]) == 0


def test_replicas_that_were_applied_before_do_not_become_one(deployed: World) -> None:
    """`kubectl apply` resets what was in the last manifest and is not in this one."""
    state = deployed.state
    deployment = state["objects"][DEPLOYMENT]
    deployment["spec"]["replicas"] = 3
    applied = json.loads(deployment["metadata"]["annotations"][LAST_APPLIED])
    applied["spec"]["replicas"] = 3
    deployment["metadata"]["annotations"][LAST_APPLIED] = json.dumps(applied)
    deployed.write(state)
    assert deployed.release("second", BROKEN) == 1
    assert deployed.state["objects"][DEPLOYMENT]["spec"]["replicas"] == 3
    assert deployed.release("second", SECOND) == 0
    assert deployed.state["objects"][DEPLOYMENT]["spec"]["replicas"] == 3


def test_the_baseline_is_what_the_old_pods_served_since_the_release_began(
    deployed: World, images: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask_meanwhile(*_: object) -> None:
        for _number in range(100):
            classify(f"http://127.0.0.1:{images[FIRST]['port']}", {"input": "where is my order"})

    monkeypatch.setattr("release.preparation.record_label_change", ask_meanwhile)
    assert deployed.release("second", SECOND) == 0
    first, second = (
        deployed.records[deployed.version(name)].watched for name in ("first", "second")
    )
    assert first and first.before_since == "the pods started"
    assert second and second.before_since == "the release began"


def test_the_watch_shows_what_it_judges_and_the_end_where_the_time_went(
    deployed: World, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("release.cluster.rollout.SAMPLE_SECONDS", 0.2)
    monkeypatch.setattr("release.console.LOG_SECONDS", 0.0)
    assert deployed.release("second", SECOND, "--watch", "0.5") == 0
    out = capsys.readouterr().out
    assert re.search(
        r"^watch: 0 requests, 0 errors, 0\.0% refused \(before 0\.0%\), p99 needs 100 requests; "
        r"0 s left$",
        out,
        re.MULTILINE,
    )
    table = out[out.index("step         seconds") :].splitlines()
    durations = deployed.records[deployed.version("second")].durations
    names = [line.split("  ")[0].strip() for line in table[1 : len(durations) + 2]]
    assert names == [*durations, "in all"]
    assert table[names.index("watch") + 1].split()[-1] == f"{durations['watch']:.1f}"


def test_a_change_by_hand_since_the_last_release_is_restored(deployed: World) -> None:
    state = deployed.state
    container = state["objects"][DEPLOYMENT]["spec"]["template"]["spec"]["containers"][0]
    container["env"] = [{"name": "WHETSTONE_UI", "value": "1e5"}]
    deployed.write(state)
    assert deployed.release("second", BROKEN) == 1
    previous = deployed.records[deployed.version("second")].previous
    assert previous and previous.kind == "live" and previous.render
    # kubectl would read 1e5 without quotes as a number.
    assert '"1e5"' in Path("releases", previous.render.file).read_text("utf-8")
    restored = deployed.state["objects"][DEPLOYMENT]["spec"]["template"]["spec"]["containers"][0]
    assert restored["env"] == container["env"]


def test_the_context_is_the_one_that_was_current_at_the_beginning(deployed: World) -> None:
    """Another one may become current while an image is built."""
    assert deployed.release("second", BROKEN) == 1
    assert main(["rollback", deployed.version("first"), "--overlay", OVERLAY, "--watch", "0"]) == 0
    asked = [call for call in deployed.state["calls"] if call[0] != "config"]
    assert {"apply", "diff", "get", "port-forward"} <= {call[0] for call in asked}
    assert all("--context=stand-in" in call for call in asked)
    assert {record.context for record in deployed.records.values()} == {"stand-in"}


def test_inside_of_a_cluster_there_is_no_context(world: World) -> None:
    world.faults(config=["no context"])
    assert world.release("first", FIRST, champion="none") == 0
    assert not [call for call in world.state["calls"] if "--context" in " ".join(call)]
    assert world.records[world.version("first")].context is None


def test_a_deployment_that_never_worked_may_be_replaced(world: World, capsys: Captured) -> None:
    """Such as an overlay that was applied before it had an image."""
    assert world.release("first", FIRST, champion="none") == 0
    state = world.state
    deployment = state["objects"][DEPLOYMENT]
    deployment["spec"]["template"]["spec"]["containers"][0]["image"] = BROKEN
    state.pop("was", None)
    shutil.rmtree("releases")
    world.write(state)
    assert world.release("second", BROKEN, champion="none") == 1
    assert "the cluster is as it was" in sentence(capsys)
    assert world.image == BROKEN
    assert world.release("second", SECOND, champion="none") == 0
    assert world.image == SECOND


def test_a_deployment_made_by_hand_is_restored(deployed: World, capsys: Captured) -> None:
    shutil.rmtree("releases")
    before = deployed.state["objects"][DEPLOYMENT]["spec"]
    assert deployed.release("second", BROKEN) == 1
    record = deployed.records[deployed.version("second")]
    assert record.previous and record.previous.kind == "live" and record.previous.render
    saved = Path("releases", record.previous.render.file).read_text("utf-8")
    for word in ("resourceVersion", "uid", "last-applied", '"status":', "clusterIP", '"replicas":'):
        assert word not in saved
    assert deployed.image == FIRST
    assert deployed.state["objects"][DEPLOYMENT]["spec"] == before


def test_a_package_below_a_floor_is_refused(deployed: World, capsys: Captured) -> None:
    overlay, calls = deployed.overlay, len(deployed.state["calls"])
    assert deployed.release("second", SECOND, "--min_macro_f1", "1.0") == 3
    assert "refuse: " in capsys.readouterr().out
    refused = deployed.records[deployed.version("second")]
    assert refused.outcome == "refused"
    assert refused.verdict and "min_macro_f1" in refused.verdict.reasons
    verbs = {call[0] for call in deployed.state["calls"][calls:]}
    assert not verbs & {"apply", "delete"}
    assert (deployed.overlay, deployed.image) == (overlay, FIRST)


def test_an_inconclusive_verdict_releases_nothing_unless_it_is_accepted(
    deployed: World, capsys: Captured
) -> None:
    few = ["--data", "few.csv"]
    assert deployed.release("second", SECOND, *few) == 4
    assert "nothing was released" in capsys.readouterr().out
    assert deployed.image == FIRST
    refused = deployed.records[deployed.version("second")]
    assert (refused.outcome, refused.accepted_inconclusive) == ("refused", False)
    assert deployed.release("second", SECOND, *few, "--accept_inconclusive") == 0
    assert deployed.image == SECOND
    assert deployed.records[f"{deployed.version('second')}-2"].accepted_inconclusive


def test_changed_labels_are_refused_or_recorded_and_shown_at_info(
    deployed: World, capsys: Captured
) -> None:
    old = set(read_manifest(deployed.packages["first"]).labels)
    new = set(read_manifest(deployed.packages["labels"]).labels)
    (removed,), (added,) = old - new, new - old
    assert deployed.release("labels", LABELS) == 3
    out = capsys.readouterr().out
    assert repr(removed) in out and repr(added) in out
    assert deployed.image == FIRST
    # The image cannot be pulled here. What is tested is what was compared and registered.
    assert deployed.release("labels", LABELS, "--allow_label_change") == 1
    record = deployed.records[f"{deployed.version('labels')}-2"]
    change = {"from": deployed.version("first"), "gone": [removed], "come": [added]}
    assert record.label_change
    assert record.label_change.model_dump(by_alias=True) == change
    stored = bentoml.models.get(f"text-classifier:{deployed.version('labels')}").path
    with serving("service.service:TextClassifier", {"WHETSTONE_PACKAGE": stored}) as address:
        assert json.loads(get(address, "/info")[1])["provenance"]["label_change"] == change
    # A release of the same package that changes no label takes the change back.
    record_label_change(f"text-classifier:{deployed.version('labels')}", None)
    assert not read_manifest(Path(stored)).provenance["label_change"]


def test_an_image_that_no_cluster_can_pull_is_refused_before_any_work(
    deployed: World, capsys: Captured
) -> None:
    before, calls = deployed.overlay, len(deployed.state["calls"])
    words = deployed.words("second", "localhost/text-classifier:1")
    assert main(words) == 1
    assert "localhost/text-classifier is podman's name for an image of" in sentence(capsys)
    assert deployed.overlay == before and deployed.image == FIRST
    assert deployed.records[deployed.version("second")].durations == {}
    verbs = {call[0] for call in deployed.state["calls"][calls:]}
    assert not verbs & {"apply", "delete", "diff", "port-forward"}
    assert main([word for word in words if word != "--apply"]) == 0
    assert "--apply would be refused: localhost/text-classifier is" in capsys.readouterr().out


def test_a_missing_key_file_stops_before_anything_changes(
    deployed: World, capsys: Captured
) -> None:
    assert deployed.release("second", SECOND, "--api_key_file", "nothing") == 1
    assert "nothing" in sentence(capsys)
    assert deployed.image == FIRST


def test_a_champion_that_does_not_exist_is_refused(world: World, capsys: Captured) -> None:
    assert world.release("first", FIRST) == 1
    assert "--champion none" in sentence(capsys)
    assert world.release("first", FIRST, champion="text-classifier:000000000000") == 1
    assert "000000000000" in sentence(capsys)
    assert world.state["objects"] == {}
