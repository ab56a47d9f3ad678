"""A canary: the new version beside the old one, under the requests of real callers."""

from __future__ import annotations

import csv
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from release.canary import describe_step, pods_for
from release.cluster.pods import Pods
from release.records import CanaryStep
from release.transaction import ReleaseTransaction
from service.inference.classifier import Classifier
from tests.release.world import DEPLOYMENT, FIRST, OVERLAY, SECOND, SPACE, Captured, World, sentence
from tests.servers import Server
from whetstone.main import main

ROUTE = f"httproute/{SPACE}/text-classifier"
CANARY = f"deployment/{SPACE}/text-classifier-canary"
# Long enough for 200 answers on a slow machine, where callers ask without a pause.
OPTIONS = ("--canary", "30%", "--canary_seconds", "8")
CALLERS = 2


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("release.canary.SAMPLE_SECONDS", 0.5)


@pytest.fixture
def texts(world: World) -> dict[str, list[str]]:
    """The texts of the test rows by the label that they are answered."""
    with Path("few.csv").open(newline="", encoding="utf-8") as handle:
        rows = [row["text"] for row in csv.DictReader(handle)]
    answers = Classifier.load(world.packages["first"]).classify(rows)
    found: dict[str, list[str]] = {}
    for text, answer in zip(rows, answers, strict=True):
        found.setdefault(answer.label, []).append(text)
    return found


@contextmanager
def callers(port: int, texts: Sequence[str]) -> Iterator[None]:
    """Callers who ask a server these texts, over and over, until the block ends."""
    ended = threading.Event()

    def ask() -> None:
        server = Server(f"http://127.0.0.1:{port}", Path())
        for text in cycle(texts):
            if ended.is_set():
                return
            server.ask("/classify", {"input": text})

    threads = [threading.Thread(target=ask) for _ in range(CALLERS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def release_under_load(
    world: World, images: dict[str, Any], old: Sequence[str], new: Sequence[str]
) -> int:
    with ExitStack() as stack:
        stack.enter_context(callers(images[FIRST]["port"], old))
        stack.enter_context(callers(images[SECOND]["port"], new))
        return world.release("second", SECOND, *OPTIONS)


def release_with_gateway(world: World) -> None:
    """Let an HTTPRoute lead to the first version."""
    file = Path(OVERLAY, "kustomization.yaml")
    components = "components:\n  - ../../components/gateway"
    file.write_text(world.overlay.replace("components:", components), "utf-8")
    assert world.release("first", FIRST) == 0


def test_an_equal_canary_is_released(
    deployed: World, images: dict[str, Any], texts: dict[str, list[str]], capsys: Captured
) -> None:
    every = [text for own in texts.values() for text in own]
    assert release_under_load(deployed, images, every, every) == 0
    record = deployed.records[deployed.version("second")]
    (step,) = record.canary
    assert (step.wanted, step.pods, step.of) == (0.3, 1, 3)
    assert step.requests >= 200 and step.requests_to_others >= 200
    assert step.undecided is None and step.differences
    assert "canary of 30%: 1 of 3 pods (they give 33%) answered" in capsys.readouterr().out
    assert deployed.image == SECOND
    assert CANARY not in deployed.state["objects"]


def test_a_canary_that_predicts_other_labels_is_undone(
    deployed: World, images: dict[str, Any], texts: dict[str, list[str]], capsys: Captured
) -> None:
    """The model is the same here: the callers of the canary send other texts."""
    every = [text for own in texts.values() for text in own]
    label, own = max(texts.items(), key=lambda item: len(item[1]))
    assert release_under_load(deployed, images, every, own) == 1
    line = sentence(capsys)
    assert "in a canary of 30%" in line
    assert f"the share of label {label!r} is 100.0%, of the old pods" in line
    record = deployed.records[deployed.version("second")]
    assert record.outcome == "undone"
    assert "canary" in record.durations and "apply" not in record.durations
    assert deployed.image == FIRST
    assert CANARY not in deployed.state["objects"]


def test_without_requests_nothing_is_decided_and_that_is_said(
    deployed: World, capsys: Captured
) -> None:
    assert deployed.release("second", SECOND, "--canary", "5%,50%", "--canary_seconds", "0.1") == 0
    out = capsys.readouterr().out
    assert "canary of 5%: 1 of 3 pods (they give 33%) answered" in out
    assert "canary of 50%: 2 of 4 pods answered" in out
    assert out.count("fewer than 200 answers decide nothing about predictions") == 2
    applied = [call for call in deployed.state["calls"] if call[0] == "apply"]
    assert applied
    assert [step.pods for step in deployed.records[deployed.version("second")].canary] == [1, 2]


def test_an_httproute_gives_the_shares_and_is_whole_again(deployed: World) -> None:
    release_with_gateway(deployed)
    before = deployed.state["objects"][ROUTE]["spec"]
    assert deployed.release("second", SECOND, "--canary", "5%,25%", "--canary_seconds", "0.1") == 0
    steps = deployed.records[deployed.version("second")].canary
    assert [(step.by, step.wanted) for step in steps] == [("weights", 0.05), ("weights", 0.25)]
    assert deployed.state["objects"][ROUTE]["spec"] == before
    assert not [name for name in deployed.state["objects"] if "canary" in name]


def test_a_canary_that_fails_gets_no_more_requests_before_anything_is_undone(
    deployed: World, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    release_with_gateway(deployed)
    before = deployed.state["objects"][ROUTE]["spec"]
    routes: list[Any] = []

    def find(*_: object) -> str:
        routes.append(deployed.state["objects"][ROUTE]["spec"])
        return "every answer is made up"

    def undo(transaction: ReleaseTransaction, pods: Pods, reason: str) -> None:
        routes.append(deployed.state["objects"][ROUTE]["spec"])
        real(transaction, pods, reason)

    real = ReleaseTransaction.undo
    monkeypatch.setattr("release.canary.find_difference", find)
    monkeypatch.setattr(ReleaseTransaction, "undo", undo)
    options = ("--canary", "20%", "--canary_seconds", "0.1")
    assert deployed.release("second", SECOND, *options) == 1
    assert "in a canary of 20%, every answer is made up" in sentence(capsys)
    during, after = routes
    weights = {ref["name"]: ref["weight"] for ref in during["rules"][0]["backendRefs"]}
    assert weights == {"text-classifier": 800, "text-classifier-canary": 200}
    assert after == before == deployed.state["objects"][ROUTE]["spec"]
    assert not [name for name in deployed.state["objects"] if "canary" in name]


def test_a_first_release_has_nothing_to_compare_a_canary_with(
    world: World, capsys: Captured
) -> None:
    assert world.release("first", FIRST, *OPTIONS, champion="none") == 0
    assert "nothing runs that a canary could be compared with" in capsys.readouterr().out


def test_a_killed_canary_is_deleted_by_the_next_command(deployed: World) -> None:
    process = deployed.start(deployed.words("second", SECOND, *OPTIONS))
    deployed.wait_for(process, "canary")
    while CANARY not in deployed.state["objects"]:
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert main(["rollback", "--overlay", OVERLAY, "--unfinished"]) == 0
    assert CANARY not in deployed.state["objects"]
    assert DEPLOYMENT in deployed.state["objects"] and deployed.image == FIRST


def test_a_plan_names_the_shares(deployed: World, capsys: Captured) -> None:
    words = [word for word in deployed.words("second", SECOND, *OPTIONS) if word != "--apply"]
    assert main(words) == 0
    assert "30% of the requests go to the new version for 8 s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ("5", "'5' is not a share between 0% and 100%, such as 5%"),
        ("0%", "'0%' is not a share"),
        ("100%", "'100%' is not a share"),
        ("x%", "'x%' is not a share"),
        ("5%,", "'' is not a share"),
        ("25%,5%", "25%,5%: each share must be larger than the one before"),
        ("5%,5%", "each share must be larger"),
    ],
)
def test_shares_that_are_none_are_refused(
    world: World, capsys: Captured, shares: str, message: str
) -> None:
    with pytest.raises(SystemExit) as error:
        main(world.words("first", FIRST, "--canary", shares))
    assert error.value.code != 0
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("share", "others", "pods"), [(0.05, 2, 1), (0.05, 20, 1), (0.25, 9, 3), (0.5, 4, 4)]
)
def test_the_number_of_pods_gives_about_the_share(share: float, others: int, pods: int) -> None:
    assert pods_for(share, others) == pods


def test_a_step_is_described_with_the_share_that_its_pods_give() -> None:
    step = CanaryStep(
        wanted=0.25, by="pods", pods=1, of=4, seconds=300, requests=100, requests_to_others=300
    )
    assert describe_step(step) == (
        "canary of 25%: 1 of 4 pods answered 100 of 400 requests in 300 s; "
        "errors, latency and predictions are as those of the old pods"
    )
    step.by, step.pods = "weights", 2
    assert "2 of 4 pods, by the weights of the HTTPRoute, answered" in describe_step(step)
