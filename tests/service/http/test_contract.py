"""The contract over the wire: a real server, other servers' documented requests, every refusal."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import json
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import bentoml
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from service.http.schemas import ClassifyResponse, ErrorResponse, ModelList, PredictError
from service.inference.classifier import Classifier
from service.package.manifest import read_manifest
from tests.conftest import ROOT
from tests.servers import SECONDS, SERVICE, Server, serving
from training.data import leakage


@pytest.fixture(scope="module")
def server(tiny_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("log") / "server.log"
    environment = {
        "WHETSTONE_PACKAGE": str(tiny_package),
        "WHETSTONE_ACCESS_LOG": "1",
        "WHETSTONE_BODY_TIMEOUT_MS": "1500",
        "WHETSTONE_CORS_ORIGINS": "https://shop.example",
    }
    with serving(SERVICE, environment, log=log) as address:
        yield Server(address, log)


PROMPTS = [
    "Hello, my name is",
    "The president of the United States is",
    "The capital of France is",
    "The future of AI is",
]


def test_the_example_client_of_vllm_works(server: Server) -> None:
    # docs.vllm.ai/en/latest/examples/pooling/classify: the model list, a list of prompts, one.
    headers = {"accept": "application/json"}
    status, models, _ = server.ask("/v1/models", method="GET", headers=headers)
    assert status == 200
    ModelList.model_validate(models)
    model = models["data"][0]["id"]
    for body, count in (
        ({"model": model, "input": PROMPTS}, 4),
        ({"model": model, "input": PROMPTS[0]}, 1),
    ):
        status, answer, _ = server.ask("/classify", body, headers=headers)
        assert status == 200
        assert [item["index"] for item in answer["data"]] == list(range(count))
        assert all(len(item["probs"]) == item["num_classes"] == 3 for item in answer["data"])
        assert all(sum(item["probs"]) == pytest.approx(1) for item in answer["data"])
    # The token ids of the example belong to another tokenizer.
    status, answer, _ = server.ask("/classify", {"model": model, "input": [101, 7592, 102]})
    assert (status, answer["error"]["param"]) == (422, "input[0]")


def test_the_documented_request_of_sglang_works(server: Server) -> None:
    # docs.sglang.io, "Classification API".
    body = {"model": "model_name", "input": "text to classify", "user": "u", "rid": "r"}
    status, answer, _ = server.ask("/v1/classify", {**body, "priority": 1})
    assert status == 200
    assert {"id", "object", "created", "model", "data", "usage"} <= set(answer)
    assert answer["id"].startswith("classify-") and answer["object"] == "list"
    assert {"index", "label", "probs", "num_classes"} <= set(answer["data"][0])
    assert {"prompt_tokens", "total_tokens"} <= set(answer["usage"])
    ClassifyResponse.model_validate(answer)


def test_the_documented_request_of_infinity_works(server: Server) -> None:
    body = {"model": "default/not-specified", "input": ["a sentence"], "raw_scores": False}
    assert server.ask("/classify", body)[0] == 200


@pytest.mark.parametrize(
    ("body", "shape"),
    [
        ({"inputs": "I like you."}, "one"),
        ({"inputs": "I like you.", "truncate": None, "raw_scores": False}, "one"),
        ({"inputs": ["I like you."]}, "one"),
        ({"inputs": [["I like you."], ["I hate pineapples"]]}, "batch"),
        ({"inputs": [["I like you."]], "truncation_direction": "Left"}, "batch"),
    ],
)
def test_the_documented_requests_of_text_embeddings_inference_work(
    server: Server, body: Any, shape: str
) -> None:
    status, answer, _ = server.ask("/predict", body)
    assert status == 200
    answers = answer if shape == "batch" else [answer]
    assert len(answers) == (len(body["inputs"]) if shape == "batch" else 1)
    for scored in answers:
        scores = [item["score"] for item in scored]
        assert scores == sorted(scores, reverse=True) and len(scored) == 3
        assert all(set(item) == {"label", "score"} for item in scored)


def test_the_client_of_bentoml_knows_the_route(server: Server, tiny_package: Path) -> None:
    expected = Classifier.load(tiny_package).classify(PROMPTS)
    with bentoml.SyncHTTPClient(server.address) as client:
        answer = client.classify(input=PROMPTS, top_k=1)
        assert [item["label"] for item in answer["data"]] == [each.label for each in expected]
        assert [len(item["scores"]) for item in answer["data"]] == [1] * 4
        assert len(client.classify(input=PROMPTS[0])["data"]) == 1
        # The client itself leaves this to the garbage collector, which warns.
        client._temp_dir.cleanup()


@pytest.mark.parametrize("body", [b"{", b"", b'{"input": NaN}', b"\xff\xfe", b"[" * 5000])
def test_what_is_not_json_is_400(server: Server, body: bytes) -> None:
    for path, kind in (("/classify", ErrorResponse), ("/predict", PredictError)):
        status, answer, _ = server.ask(path, body)
        assert status == 400
        kind.model_validate(answer)


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        ("/classify", {"input": "a"}, {"Content-Type": "text/plain"}, 415),
        ("/classify", {}, {}, 422),
        ("/classify", {"input": ["a"] * 257}, {}, 422),
        ("/classify", b'{"input": "\\ud800"}', {}, 422),
        ("/classify", b'{"input": "a", "input": ""}', {}, 422),
        ("/classify", b'{"input": "", "input": "a"}', {}, 200),
        ("/classify", b'{"input": "a\\u0000b"}', {}, 200),
        ("/classify", {"input": "a"}, {"X-Request-Timeout-Ms": "never"}, 422),
        ("/nowhere", {"input": "a"}, {}, 404),
        ("/rerank", {"query": "a", "texts": ["b"]}, {}, 404),
        ("/info", {"input": "a"}, {}, 405),
        ("/readyz", {"input": "a"}, {}, 405),
    ],
)
def test_all_refusals_have_one_schema(
    server: Server, path: str, body: Any, headers: dict[str, str], status: int
) -> None:
    returned, answer, _ = server.ask(path, body, headers=headers)
    assert returned == status
    if status != 200:
        ErrorResponse.model_validate(answer)
        assert answer["error"]["code"] == status


def test_a_body_that_is_too_large_is_refused_while_it_is_sent(server: Server) -> None:
    for size in ((1 << 20) + 1, 20 << 20):
        status, answer, _ = server.ask("/classify", b" " * size)
        assert (status, answer["error"]["type"]) == (413, "body_too_large")


def test_a_slow_body_times_out_and_delays_nobody(server: Server) -> None:
    head = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    slow = [server.connect() for _ in range(20)]
    try:
        for connection in slow:
            connection.sendall(head + b"Content-Length: 1000\r\n\r\n{")
        for _ in range(5):
            for connection in slow:
                connection.sendall(b" ")
            assert server.ask("/classify", {"input": "a"})[0] == 200
        for connection in slow:
            answer = connection.recv(4096)
            assert answer.startswith(b"HTTP/1.1 408")
            assert b"connection: close" in answer.lower()
    finally:
        for connection in slow:
            connection.close()


UNREAD = [
    ("POST /nowhere", "", 404),
    ("POST /info", "", 405),
    ("POST /classify", "Content-Type: text/plain\r\n", 415),
    ("POST /predict", "X-Request-Timeout-Ms: never\r\n", 422),
    ("GET /info", "", 200),
    ("GET /livez", "", 200),
    (
        "OPTIONS /classify",
        "Origin: https://shop.example\r\nAccess-Control-Request-Method: POST\r\n",
        200,
    ),
]


@pytest.mark.parametrize("size", ["Content-Length: 1000000000", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize(("call", "header", "status"), UNREAD)
def test_an_unread_body_has_the_same_size_limit(
    server: Server, call: str, header: str, status: int, size: str
) -> None:
    # The kernel's buffers on both sides come on top of the limit.
    chunk, most = b"a" * 65_536, 16 << 20
    line = b"10000\r\n" + chunk + b"\r\n" if "chunked" in size else chunk
    with closing(server.connect()) as connection:
        connection.sendall(f"{call} HTTP/1.1\r\nHost: x\r\n{header}{size}\r\n\r\n".encode())
        # The answer does not wait for the body.
        head = connection.recv(4096)
        assert head.startswith(b"HTTP/1.1 %d" % status)
        assert b"connection: close" in head.lower()
        with pytest.raises(ConnectionError):
            for _ in range(most // len(chunk)):
                connection.sendall(line)


@pytest.mark.parametrize(("call", "header", "status"), UNREAD[:4])
def test_an_unread_body_has_the_same_time_limit(
    server: Server, call: str, header: str, status: int
) -> None:
    head = f"{call} HTTP/1.1\r\nHost: x\r\n{header}Content-Length: 1000\r\n\r\n"
    with closing(server.connect()) as connection:
        connection.sendall(head.encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 %d" % status)
        with pytest.raises(ConnectionError):
            for _ in range(60):
                connection.sendall(b" ")
                time.sleep(0.1)


def test_the_sender_of_an_unread_body_gets_the_answer(server: Server) -> None:
    # The client writes head and body separately, and reads after both.
    for size in (0, 10, 100_000, 1 << 20):
        for _ in range(10):
            status, answer, headers = server.ask("/nowhere", b" " * size)
            assert (status, answer["error"]["code"]) == (404, 404)
            assert (headers.get("connection") == "close") == (size > 0)


def test_a_refusal_without_a_body_keeps_the_connection(server: Server) -> None:
    with closing(http.client.HTTPConnection(server.host, server.port, timeout=SECONDS)) as opened:
        opened.connect()
        first = opened.sock
        for path in ("/nowhere", "/classify", "/nowhere"):
            opened.request("GET", path)
            answer = opened.getresponse()
            answer.read()
            assert answer.status in (404, 405)
            assert opened.sock is first


def test_the_deadline_counts_while_the_body_arrives(server: Server) -> None:
    with closing(server.connect()) as connection:
        connection.sendall(
            b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"X-Request-Timeout-Ms: 200\r\nContent-Length: 1000\r\n\r\n{"
        )
        # The time limit of the body itself would be a 408.
        assert connection.recv(4096).startswith(b"HTTP/1.1 504")


def test_vanished_callers_leave_nothing_behind(server: Server) -> None:
    body = json.dumps({"input": ["where is my parcel " * 20] * 200}).encode()
    head = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    for cut in (len(body), len(body) // 2, 0):
        for _ in range(10):
            connection = server.connect()
            connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body[:cut])
            connection.close()
    assert server.ask("/classify", {"input": "a"})[0] == 200


def test_a_short_deadline_is_kept(server: Server) -> None:
    texts = ["where is my parcel " * 4000] * 10
    started = time.monotonic()
    status, answer, _ = server.ask(
        "/classify", {"input": texts}, headers={"X-Request-Timeout-Ms": "1"}
    )
    assert status in (429, 504)
    ErrorResponse.model_validate(answer)
    assert time.monotonic() - started < SECONDS


def test_only_pages_of_named_origins_may_call(server: Server) -> None:
    for origin, allowed in (("https://shop.example", True), ("https://evil.example", False)):
        headers = {
            "Origin": origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type",
        }
        status, _, headers_back = server.ask("/classify", method="OPTIONS", headers=headers)
        assert (status == 200) == allowed
        _, _, headers_back = server.ask("/classify", {"input": "a"}, headers={"Origin": origin})
        assert (headers_back.get("access-control-allow-origin") == origin) == allowed


def test_the_access_log_has_every_request_and_no_text(server: Server) -> None:
    text_of_customer = "the secret of this customer"
    headers = {"X-Request-Id": "log-me"}
    assert server.ask("/classify", {"input": text_of_customer}, headers=headers)[0] == 200
    assert server.ask("/classify", {"input": [text_of_customer, ""]}, headers=headers)[0] == 422
    assert server.ask("/classify", text_of_customer.encode(), headers=headers)[0] == 400
    deadline = time.monotonic() + SECONDS
    lines: list[dict[str, Any]] = []
    while len(lines) < 3 and time.monotonic() < deadline:
        text = server.log.read_text("utf-8")
        lines = [json.loads(line) for line in text.splitlines() if '"log-me"' in line]
    assert [line["status"] for line in lines] == [200, 422, 400]
    assert lines[0]["route"] == "/classify" and lines[0]["texts"] == 1
    assert lines[0]["tokens"] > 0 and lines[0]["milliseconds"] > 0
    assert "secret" not in text and "customer" not in text


def test_unknown_paths_create_no_series(server: Server) -> None:
    assert server.ask("/classify", {"input": "a"})[0] == 200
    for index in range(20):
        assert server.ask(f"/nowhere/{index}", {})[0] == 404
        status, answer, _ = server.ask(f"/static_content/nowhere{index}", method="GET")
        assert (status, answer["error"]["code"]) == (404, 404)
    assert server.ask("/static_content/swagger-ui.css", method="GET")[0] == 200
    _, metrics, _ = server.ask("/metrics", method="GET")
    assert "nowhere" not in metrics + server.log.read_text("utf-8")
    assert re.search(r'whetstone_requests_total{route="other",status="404"} \d\d', metrics)
    assert 'whetstone_requests_total{route="other",status="200"}' in metrics
    assert 'whetstone_requests_total{route="/static' not in metrics
    assert 'whetstone_requests_total{route="/classify",status="200"}' in metrics


def test_the_page_of_bentoml_loads_nothing_from_elsewhere(server: Server) -> None:
    status, page, headers = server.ask("/", method="GET")
    assert status == 200 and "swagger" in page
    # Its inline script would load another one from elsewhere.
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'self';") and "script-src" not in policy


def test_info_names_the_version(server: Server, tiny_package: Path) -> None:
    status, answer, _ = server.ask("/info", method="GET")
    assert (status, answer["version"]) == (200, read_manifest(tiny_package).version)
    # Hashes of training texts would let callers test which texts were trained on.
    assert read_manifest(tiny_package).provenance[leakage.KEY]["hashes"]
    assert leakage.KEY not in answer["provenance"]
    assert "hashes" not in json.dumps(answer)


def is_surely_short(body: dict[str, Any]) -> bool:
    """Whether no text can have more than 32 tokens, which is what the server's model reads."""
    asked = [body.get("input"), body.get("text_pair")]
    longest = sum(max(map(len, [x] if isinstance(x, str) else x or [""])) for x in asked)
    return longest <= 24 and not body.get("truncate_prompt_tokens")


def test_answers_conform_to_the_served_document(server: Server) -> None:
    """Schemathesis generates valid and invalid requests; answers must be as documented."""
    schema = schemathesis.openapi.from_url(f"{server.address}/docs.json")
    operations = [each.ok() for each in schema.get_all_operations()]
    assert len(operations) >= 12
    for operation in operations:

        @given(case=operation.as_strategy())
        @settings(
            max_examples=40,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],
        )
        def check(case: schemathesis.Case) -> None:
            body = case.body if isinstance(case.body, dict) else {}
            # How many tokens a text has no schema can say: without the special ones it may be
            # none, and where it may not be truncated it may have too many.
            assume(body.get("add_special_tokens") is not False)
            assume(body.get("truncate") is not False or is_surely_short(body))
            case.call_and_validate()

        check()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=8,
)
texts = st.text() | st.lists(st.text() | json_values, max_size=5)
bodies = (
    st.binary()
    | json_values.map(lambda value: json.dumps(value).encode())
    | st.fixed_dictionaries(
        {"input": texts | json_values},
        optional={
            "top_k": json_values,
            "text_pair": texts | json_values,
            "truncate": json_values,
            "return_logits": json_values,
            "model": json_values,
            "use_activation": json_values,
            "truncate_prompt_tokens": st.integers(-2, 40) | json_values,
            "truncation_side": st.sampled_from(["left", "right"]) | json_values,
            "add_special_tokens": st.booleans() | json_values,
            "request_id": json_values,
            "rid": json_values,
            "messages": json_values,
        },
    ).map(lambda value: json.dumps(value).encode())
    | st.fixed_dictionaries(
        {"inputs": texts | st.lists(texts, max_size=4) | json_values},
        optional={
            "truncate": json_values,
            "raw_scores": json_values,
            "truncation_direction": st.sampled_from(["Left", "Right"]) | json_values,
            "parameters": json_values
            | st.fixed_dictionaries(
                {},
                optional={
                    "top_k": st.integers(-1, 4) | json_values,
                    "function_to_apply": st.sampled_from(["softmax", "sigmoid", "none"])
                    | json_values,
                    "candidate_labels": json_values,
                },
            ),
        },
    ).map(lambda value: json.dumps(value).encode())
)


def fuzz(server: Server, examples: int) -> None:
    """Any body gets an answer in the schema, without a fault of the server and in time."""
    connection = http.client.HTTPConnection(server.host, server.port, timeout=SECONDS)

    @settings(
        max_examples=examples,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(["/classify", "/v1/classify", "/predict", "/"]), bodies)
    def check(path: str, body: bytes) -> None:
        try:
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            content = json.loads(answer.read())
        except BaseException:
            # Hypothesis asks once more for what failed: on a connection that can ask.
            connection.close()
            raise
        assert answer.status in (200, 400, 422), (answer.status, path, body)
        ours = path in ("/classify", "/v1/classify")
        if answer.status == 200 and ours:
            ClassifyResponse.model_validate(content)
        elif answer.status != 200:
            (ErrorResponse if ours else PredictError).model_validate(content)

    with closing(connection):
        check()


def test_any_body_is_answered(server: Server) -> None:
    fuzz(server, 500)


@pytest.mark.faults
def test_a_hundred_thousand_bodies_are_answered(server: Server) -> None:
    # Hypothesis keeps what it tried: in one run a collection of garbage comes to take seconds, as
    # long as a server leaves an idle connection open.
    for _ in range(100):
        fuzz(server, 1000)


def test_only_owners_of_api_keys_are_answered(tiny_package: Path, tmp_path: Path) -> None:
    # As the guide to operating makes one.
    guide = (ROOT / "docs" / "guides" / "operating.md").read_text("utf-8")
    making = re.findall(r"^(?:KEY=|echo \"sha256:).*$", guide, re.MULTILINE)
    assert len(making) == 2
    key = subprocess.run(
        ["bash", "-ec", "\n".join([*making, 'printf %s "$KEY"'])],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    keys = tmp_path / "api-keys"
    environment = {
        "WHETSTONE_PACKAGE": str(tiny_package),
        "WHETSTONE_API_KEYS_FILE": str(keys),
    }
    log = tmp_path / "log"
    with serving(SERVICE, environment, log=log) as address:
        assert "API keys accepted: 1," in log.read_text("utf-8")
        server = Server(address, log)
        assert server.ask("/readyz", method="GET")[0] == 200
        assert server.ask("/metrics", method="GET")[0] == 200
        for path in ("/info", "/docs.json", "/", "/schema.json"):
            assert server.ask(path, method="GET")[0] == 401
        status, _, headers_back = server.ask("/classify", {"input": "a"})
        # A body without a valid key is not read.
        assert (status, headers_back["connection"]) == (401, "close")
        headers = {"Authorization": f"Bearer {key}"}
        assert server.ask("/classify", {"input": "a"}, headers=headers)[0] == 200
        assert server.ask("/schema.json", method="GET", headers=headers)[0] == 200
        other = "another-key-0123456789"
        keys.write_text(f"sha256:{hashlib.sha256(other.encode()).hexdigest()}\n", "utf-8")
        new = {"Authorization": f"Bearer {other}"}
        deadline = time.monotonic() + SECONDS
        while server.ask("/info", method="GET", headers=new)[0] != 200:
            assert time.monotonic() < deadline
        assert server.ask("/classify", {"input": "a"}, headers=headers)[0] == 401


class Collector(BaseHTTPRequestHandler):
    """Keeps the spans that an OTLP exporter sends."""

    received: ClassVar[list[bytes]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        zipped = self.headers.get("Content-Encoding") == "gzip"
        self.received.append(gzip.decompress(body) if zipped else body)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def test_traced_requests_get_the_same_answers(tiny_package: Path, tmp_path: Path) -> None:
    collector = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    environment = {
        "WHETSTONE_PACKAGE": str(tiny_package),
        "WHETSTONE_TRACING_URL": f"http://127.0.0.1:{collector.server_port}/v1/traces",
    }
    try:
        with serving(SERVICE, environment) as address:
            server = Server(address, tmp_path)
            assert server.ask("/classify", {"input": "somebody's text"})[0] == 200
            assert server.ask("/classify", {"input": ""})[0] == 422
            assert server.ask("/info", method="GET")[0] == 200
            assert server.ask("/nowhere", method="GET")[0] == 404
            deadline = time.monotonic() + SECONDS
            while b"/classify" not in b"".join(Collector.received):
                assert time.monotonic() < deadline, "no span came"
                time.sleep(0.1)
        spans = b"".join(Collector.received)
        assert b"text-classifier" in spans
        assert b"somebody" not in spans
    finally:
        collector.shutdown()
        collector.server_close()


def test_concurrent_callers_get_their_own_answers(server: Server, tiny_package: Path) -> None:
    classifier = Classifier.load(tiny_package)

    @settings(max_examples=15, suppress_health_check=list(HealthCheck), database=None)
    @given(
        st.lists(
            st.lists(st.text(st.characters(codec="ascii"), min_size=1, max_size=200), min_size=1),
            min_size=1,
            max_size=12,
        )
    )
    def check(requests: list[list[str]]) -> None:
        asked = [[text for text in texts if text.strip()] or ["a"] for texts in requests]
        with ThreadPoolExecutor(len(asked)) as callers:
            answers = callers.map(
                lambda body: server.ask("/classify", body)[1], [{"input": texts} for texts in asked]
            )
            for texts, answer in zip(asked, answers, strict=True):
                expected = [classifier.classify([text])[0] for text in texts]
                for item, alone in zip(answer["data"], expected, strict=True):
                    assert item["probs"] == pytest.approx(alone.probs.tolist(), abs=1e-5)

    check()
