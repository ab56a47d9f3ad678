"""Unmodified clients against a real server: those in the documentation's table."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bentoml
import huggingface_hub
import openai
import pytest
import requests

from service.inference.classifier import Classifier, Prediction
from service.package.manifest import read_manifest
from tests.conftest import ROOT
from tests.servers import SECONDS, SERVICE, Server, serving

TEXTS = ["where is my parcel", "thank you so much for the lovely help"]


@pytest.fixture(scope="module")
def server(tiny_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("log") / "server.log"
    with serving(SERVICE, {"WHETSTONE_PACKAGE": str(tiny_package)}, log=log) as address:
        yield Server(address, log)


@pytest.fixture(scope="module")
def expected(tiny_package: Path) -> list[Prediction]:
    return Classifier.load(tiny_package, threads=1).classify(TEXTS)


def model_of(package: Path) -> str:
    manifest = read_manifest(package)
    return f"{manifest.name}:{manifest.version}"


def check(answer: dict[str, Any], expected: list[Prediction]) -> None:
    """Check an answer of /classify to TEXTS, or to the first of them."""
    for item, each in zip(answer["data"], expected, strict=False):
        assert item["label"] == each.label
        assert item["probs"] == pytest.approx(each.probs.tolist(), abs=1e-5)


def test_the_guide_lists_every_client_tested_here() -> None:
    guide = (ROOT / "docs" / "guides" / "clients.md").read_text("utf-8")
    table = guide.split("| client |")[1].split("\n\n")[0]
    for name in ("vLLM", "openai", "huggingface_hub", "bentoml", "HttpClient", "curl"):
        assert name in table


def test_the_example_of_vllm_works(
    server: Server, expected: list[Prediction], tiny_package: Path
) -> None:
    # examples/pooling/classify/classification_online.py, and the requests of its documentation.
    with urllib.request.urlopen(f"{server.address}/v1/models", timeout=SECONDS) as answer:
        model = json.load(answer)["data"][0]["id"]
    assert model == model_of(tiny_package)
    for body in ({"model": model, "input": TEXTS}, {"model": model, "input": TEXTS[0]}):
        status, answered, _ = server.ask("/classify", body, headers={"accept": "application/json"})
        assert status == 200 and answered["model"] == model
        check(answered, expected)
    everything = {
        "model": model,
        "input": TEXTS,
        "user": "somebody",
        "truncate_prompt_tokens": -1,
        "padding": None,
        "truncation_side": None,
        "request_id": "0123456789abcdef",
        "priority": 0,
        "mm_processor_kwargs": None,
        "cache_salt": None,
        "add_special_tokens": True,
        "use_activation": None,
    }
    status, answered, headers = server.ask("/classify", everything)
    assert (status, answered["id"]) == (200, "classify-0123456789abcdef")
    assert headers["x-request-id"] == "0123456789abcdef"
    check(answered, expected)
    # None of these fields counts as ignored.
    metrics = server.ask("/metrics", method="GET")[1]
    assert re.findall(r"^whetstone_ignored_fields_total (.*)$", metrics, re.M) in ([], ["0.0"])
    assert server.ask("/classify", {"input": "a", "metadata": 1, "top_p": 1})[0] == 200
    metrics = server.ask("/metrics", method="GET")[1]
    assert re.findall(r"^whetstone_ignored_fields_total (.*)$", metrics, re.M) == ["2.0"]


def test_openai_python_works(
    server: Server, expected: list[Prediction], tiny_package: Path
) -> None:
    model = model_of(tiny_package)
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0) as client:
        (card,) = client.models.list().data
        assert (card.id, card.object, card.owned_by) == (model, "model", "whetstone")
        for name in (card.id, model.partition(":")[0]):
            assert client.models.retrieve(name) == card
        with pytest.raises(openai.NotFoundError) as refused:
            client.models.retrieve("gpt-4o")
        assert refused.value.body == {
            "message": "there is no such model: GET /v1/models names the one here",
            "type": "not_found",
            "param": None,
            "code": 404,
        }
        body = {"model": card.id, "input": TEXTS}
        check(client.post("/classify", body=body, cast_to=dict[str, Any]), expected)
        with pytest.raises(openai.UnprocessableEntityError, match="messages"):
            client.post("/classify", body={"messages": []}, cast_to=dict[str, Any])


@pytest.fixture
def _online() -> Iterator[None]:
    """The tests keep the library offline, except for this server."""
    huggingface_hub.configure_http_backend(requests.Session)
    yield
    huggingface_hub.configure_http_backend()


@pytest.mark.usefixtures("_online")
def test_huggingface_hub_works(server: Server, expected: list[Prediction]) -> None:
    for client in (
        huggingface_hub.InferenceClient(base_url=server.address),
        huggingface_hub.InferenceClient(model=server.address),
    ):
        for text, each in zip(TEXTS, expected, strict=True):
            scores = client.text_classification(text)
            assert len(scores) == 3
            assert scores[0].label == each.label
            assert scores[0].score == pytest.approx(each.score, abs=1e-5)
        (first,) = client.text_classification(TEXTS[0], top_k=1)
        assert first.label == expected[0].label
        logits = client.text_classification(TEXTS[0], function_to_apply="none")
        sigmoids = client.text_classification(TEXTS[0], function_to_apply="sigmoid")
        assert sum(item.score for item in logits) != pytest.approx(1)
        assert [item.label for item in sigmoids] == [item.label for item in logits]
        with pytest.raises(huggingface_hub.errors.HfHubHTTPError, match="422"):
            client.zero_shot_classification(TEXTS[0], candidate_labels=["a", "b"])
        with pytest.raises(huggingface_hub.errors.HfHubHTTPError, match="422"):
            client.question_answering(question="a", context="b")


def test_the_clients_of_bentoml_work(server: Server, expected: list[Prediction]) -> None:
    with bentoml.SyncHTTPClient(server.address) as client:
        check(client.classify(input=TEXTS), expected)
        check(client.classify(input=TEXTS[0], truncate_prompt_tokens=32), expected)
        # The client itself leaves this to the garbage collector, which warns.
        client._temp_dir.cleanup()

    async def ask() -> None:
        async with bentoml.AsyncHTTPClient(server.address) as client:
            check(await client.classify(input=TEXTS), expected)
            client._temp_dir.cleanup()

    asyncio.run(ask())


JAVA = r"""
import java.net.URI;
import java.net.http.*;
import java.util.stream.*;

public class Ask {
    public static void main(String[] args) throws Exception {
        // HTTP/2 is its default, and so is asking for it with `Upgrade: h2c`.
        HttpClient client = HttpClient.newHttpClient();
        String body = "{\"input\": \"where is my parcel\", \"request_id\": \"%s\"}";
        var byLength = HttpRequest.BodyPublishers.ofString(body.formatted("java-1"));
        // Without a length, in chunks.
        var bytes = body.formatted("java-2").getBytes();
        var chunked = HttpRequest.BodyPublishers.ofInputStream(
            () -> new java.io.ByteArrayInputStream(bytes));
        for (int time = 0; time < 3; time++)
            for (var publisher : new HttpRequest.BodyPublisher[] {byLength, chunked}) {
                var request = HttpRequest.newBuilder(URI.create(args[0] + "/classify"))
                    .header("Content-Type", "application/json")
                    .POST(publisher).build();
                var answer = client.send(request, HttpResponse.BodyHandlers.ofString());
                System.out.println(answer.statusCode() + " " + answer.body());
            }
        var models = HttpRequest.newBuilder(URI.create(args[0] + "/v1/models")).build();
        var several = IntStream.range(0, 8)
            .mapToObj(i -> client.sendAsync(models, HttpResponse.BodyHandlers.ofString()))
            .collect(Collectors.toList());
        for (var one : several) System.out.println(one.get().statusCode() + " " + one.get().body());
    }
}
"""


@pytest.mark.skipif(shutil.which("java") is None, reason="there is no Java")
def test_the_http_client_of_java_works(
    server: Server, expected: list[Prediction], tmp_path: Path
) -> None:
    source = tmp_path / "Ask.java"
    source.write_text(JAVA, "utf-8")
    ran = subprocess.run(
        ["java", "-Xshare:auto", str(source), server.address],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    answers = [line.split(" ", 1) for line in ran.stdout.splitlines()]
    assert [status for status, _ in answers] == ["200"] * 14
    for number, (_, body) in enumerate(answers[:6]):
        check(json.loads(body), expected)
        assert json.loads(body)["id"] == f"classify-java-{number % 2 + 1}"
    assert all(json.loads(body)["object"] == "list" for _, body in answers[6:])


CURL = [
    ("--http1.0",),
    ("--http1.1",),
    ("--http2",),
    ("-H", "Transfer-Encoding: chunked"),
    ("--http2", "-H", "Transfer-Encoding: chunked"),
    ("-H", "Expect: 100-continue"),
    ("--http2", "-H", "Expect: 100-continue"),
]


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
@pytest.mark.parametrize("options", CURL)
def test_curl_works(server: Server, expected: list[Prediction], options: tuple[str, ...]) -> None:
    url = f"{server.address}/classify"
    sending = ["-H", "Content-Type: application/json", "-d", json.dumps({"input": TEXTS})]
    # Twice, so that the second request uses the first one's connection if that stays open.
    ran = subprocess.run(
        ["curl", "-sS", "--fail", "-v", *options, *sending, url, url],
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert ran.returncode == 0, ran.stderr
    decoder = json.JSONDecoder()
    first, end = decoder.raw_decode(ran.stdout)
    second, _ = decoder.raw_decode(ran.stdout[end:])
    for answer in (first, second):
        check(answer, expected)
    if "--http1.0" not in options:
        assert "Re-using existing connection" in ran.stderr
    if "Expect: 100-continue" in options:
        assert "HTTP/1.1 100 Continue" in ran.stderr


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_curl_with_a_compressed_file_works(
    server: Server, expected: list[Prediction], tmp_path: Path
) -> None:
    zipped = tmp_path / "body.json.gz"
    zipped.write_bytes(gzip.compress(json.dumps({"input": TEXTS}).encode()))
    headers = ["-H", "Content-Type: application/json", "-H", "Content-Encoding: gzip"]
    sending = [*headers, "--data-binary", f"@{zipped}"]
    ran = subprocess.run(
        ["curl", "-sS", "--fail", *sending, f"{server.address}/classify"],
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    check(json.loads(ran.stdout), expected)
