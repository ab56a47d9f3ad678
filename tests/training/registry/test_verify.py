"""Verify: a sound copy says so, any other is one sentence and an exit status."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from service.package.golden import GoldenAnswer, read_golden, write_golden
from service.package.manifest import read_manifest
from service.package.package import seal_package
from tests.servers import serving
from training.registry import client as client_module
from training.registry.register import register
from whetstone.main import main

KEY = "correct horse battery staple"


@pytest.fixture(scope="module")
def address(tiny_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real server of the tiny package that wants KEY."""
    keys = tmp_path_factory.mktemp("keys") / "hashes"
    keys.write_text(f"sha256:{hashlib.sha256(KEY.encode()).hexdigest()} tests\n", "utf-8")
    environment = {"WHETSTONE_PACKAGE": str(tiny_package), "WHETSTONE_API_KEYS_FILE": str(keys)}
    with serving("service.service:TextClassifier", environment) as found:
        yield found


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text(KEY + "\n", "utf-8")
    return path


def verified(*words: object) -> int:
    return main(["verify", *map(str, words)])


def with_golden(package: Path, change: Callable[[GoldenAnswer], GoldenAnswer]) -> Path:
    """The package with other golden answers, sealed as if they had been recorded so."""
    write_golden(package, [change(one) for one in read_golden(package)])
    seal_package(package, read_manifest(package))
    return package


def turned(golden: GoldenAnswer) -> GoldenAnswer:
    """The golden text with another answer: all on the label that was the least probable."""
    least = min(golden.probs)
    return golden.model_copy(update={"probs": tuple(float(prob == least) for prob in golden.probs)})


def test_a_sound_folder_says_what_it_is(
    tiny_package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    version = read_manifest(tiny_package).version
    assert verified(tiny_package) == 0
    printed = capsys.readouterr().out
    assert f"tiny {version}, fp32, 32 golden texts answered as recorded" in printed


def test_an_altered_file_is_named(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (package / "tokenizer.json").write_text("{}", "utf-8")
    assert verified(package) == 1
    assert "tokenizer.json was altered" in capsys.readouterr().err


def test_other_golden_answers_are_refused_without_the_text(
    package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = read_golden(package)[0].text
    assert verified(with_golden(package, turned)) == 1
    said = capsys.readouterr().err
    assert "golden text 1 no longer gets the answer recorded" in said
    assert text not in said


def test_a_package_without_golden_texts_says_so(
    package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_golden(package, [])
    seal_package(package, read_manifest(package))
    assert verified(package) == 0
    assert "it has no golden texts" in capsys.readouterr().out


def test_tags_and_versions_name_packages_of_the_store(
    tiny_package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tag, _ = register(tiny_package)
    for target in (tag, tag.split(":")[1], "text-classifier:latest"):
        assert verified(target) == 0
    assert capsys.readouterr().out.count("32 golden texts") == 3
    assert verified("text-classifier:aaaaaaaaaaaa") == 1
    assert "no text-classifier:aaaaaaaaaaaa in BentoML's model store" in capsys.readouterr().err


def test_a_service_is_verified_against_its_package(
    address: str, tiny_package: Path, key_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verified(address, "--package", tiny_package, "--api_key_file", key_file) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{address}: tiny ")
    assert "32 golden texts answered as recorded" in printed
    assert KEY not in printed


def test_a_service_is_verified_against_the_stored_version_that_it_names(
    address: str, tiny_package: Path, key_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import bentoml

    tag, _ = register(tiny_package)
    assert verified(address, "--api_key_file", key_file) == 0
    bentoml.models.delete(tag)
    assert verified(address, "--api_key_file", key_file) == 1
    assert "name its package with --package" in capsys.readouterr().err


def test_a_service_that_answers_otherwise_is_refused(
    address: str, package: Path, key_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same version, for golden answers are no part of it."""
    with_golden(package, turned)
    assert verified(address, "--package", package, "--api_key_file", key_file) == 1
    assert "golden text 1 no longer" in capsys.readouterr().err


def test_another_version_is_refused(
    address: str, package: Path, key_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    served = read_manifest(package).version
    manifest = seal_package(package, read_manifest(package).model_copy(update={"max_length": 16}))
    assert verified(address, "--package", package, "--api_key_file", key_file) == 1
    said = capsys.readouterr().err
    assert f"serves version {served}, and {package} is version {manifest.version}" in said


def test_a_key_that_is_missing_or_wrong_is_said(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("another", "utf-8")
    for words in ((), ("--api_key_file", wrong)):
        assert verified(address, *words) == 1
        said = capsys.readouterr().err
        assert "the API key is missing or wrong" in said
        assert "another" not in said
    for no_key in (b"", b"\n" + KEY.encode(), b"\xff\xfe\n"):
        wrong.write_bytes(no_key)
        assert verified(address, "--api_key_file", wrong) == 1
        said = capsys.readouterr().err
        assert said == f"whetstone: {wrong} holds no API key in its first line\n"


@contextmanager
def strange_server(status: int, body: bytes, headers: dict[str, str]) -> Iterator[str]:
    """A server that answers everything alike."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Be silent."""

    with running(Handler) as address:
        yield address


@contextmanager
def recorded_server(
    package: Path, limits: dict[str, Any], change: Callable[[dict[str, Any]], Any]
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that answers golden texts as recorded, each answer changed; and what it was sent."""
    answers = {one.text: one for one in read_golden(package)}
    info = {"version": read_manifest(package).version, **limits}
    requests: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self, content: object) -> None:
            body = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self.answer(info)

        def do_POST(self) -> None:
            requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            found = [answers[text] for text in requests[-1]["input"]]
            items = [
                one.model_dump(mode="json", include={"label", "labels", "probs"}) for one in found
            ]
            self.answer({"data": [change(item | {"score": 0.5}) for item in items]})

        def log_message(self, *_: Any) -> None:
            """Be silent."""

    with running(Handler) as address:
        yield address, requests


@contextmanager
def running(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """A server of `handler`; its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (200, b"<html>", "answered with other text"),
        (200, b"[1]", "answered with other text"),
        (200, b"{}", "is not Whetstone's"),
        (200, b'{"version": "../.."}', "is not Whetstone's"),
        (200, b'{"version": "1.8.0", "model_id": "other/server"}', "is not Whetstone's"),
        (200, b'{"version": "aaaaaaaaaaaa", "limits": null}', "name its package with --package"),
        (200, b"\xff\xfe", "answered with other text"),
        (200, b"[" * 100_000, "answered with other text"),
        (404, b"", "404 Not Found: that is not Whetstone's"),
        (429, b"", "overloaded: try again"),
        (503, b"", "starting or shutting down: try again"),
        (413, b"", "raise WHETSTONE_MAX_BODY_BYTES there"),
        (504, b"", "too slow: try again"),
        (302, b"", "it redirects, which is not followed"),
        (500, b"", "answered 500 Internal Server Error"),
        (200, b'"' + b"x" * 100 + b'"', "more than 50 bytes"),
    ],
)
def test_another_server_is_refused_in_one_sentence(
    status: int,
    body: bytes,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if body.startswith(b'"x'):
        monkeypatch.setattr(client_module, "MAX_ANSWER_BYTES", 50)
    with strange_server(status, body, {"Location": "http://127.0.0.1:9/"}) as address:
        assert verified(address) == 1
    printed = capsys.readouterr().err
    assert said in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n", "it does not speak HTTP"),
        (b"", "cannot be reached: Remote end closed"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nab", "broke off"),
    ],
)
def test_a_server_without_http_is_refused_in_one_sentence(
    answer: bytes, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer_once() -> None:
            with server.accept()[0] as connection:
                connection.recv(65_536)
                connection.sendall(answer)

        thread = threading.Thread(target=answer_once)
        thread.start()
        assert verified(f"http://127.0.0.1:{server.getsockname()[1]}") == 1
        thread.join()
    printed = capsys.readouterr().err
    assert said in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize("url", ["http://localhost:port", "http://[::1", "http://localhost/a b"])
def test_a_malformed_address_is_refused_in_one_sentence(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verified(url) == 1
    assert f"{url} is not an address" in capsys.readouterr().err


def test_texts_are_asked_in_lists_that_the_service_takes(package: Path) -> None:
    for limits, size in (({"limits": {"texts": 5}}, 5), ({}, 32), ({"limits": {"texts": 0}}, 32)):
        with recorded_server(package, limits, lambda item: item) as (address, requests):
            assert verified(address, "--package", package) == 0
        sizes = [len(request["input"]) for request in requests]
        assert max(sizes) == size
        assert sum(sizes) == 32


def test_long_texts_are_asked_in_bodies_that_the_service_takes(package: Path) -> None:
    answer = read_golden(package)[0]
    long = [answer.model_copy(update={"text": f"{n} " + "word " * 400}) for n in range(10)]
    write_golden(package, long)
    seal_package(package, read_manifest(package))
    limits = {"limits": {"texts": 256, "body_bytes": 10_000}}
    with recorded_server(package, limits, lambda item: item) as (address, requests):
        assert verified(address, "--package", package) == 0
    assert max(len(json.dumps(request)) for request in requests) < 10_000
    assert [len(request["input"]) for request in requests] == [2] * 5


def test_texts_by_windows_are_asked_one_by_one(package: Path) -> None:
    fields = {"long_text": "window", "window_stride": 4, "window_aggregation": "mean"}
    seal_package(package, read_manifest(package).model_copy(update=fields))
    with recorded_server(package, {}, lambda item: item) as (address, requests):
        assert verified(address, "--package", package) == 0
    assert [len(request["input"]) for request in requests] == [1] * 32


def recorded(package: Path, golden: GoldenAnswer, **behaviour: Any) -> Path:
    """The package with one golden answer, and other fields of its behaviour."""
    write_golden(package, [golden])
    seal_package(package, read_manifest(package).model_copy(update=behaviour))
    return package


@pytest.mark.parametrize(
    ("probs", "status"), [((0.52, 0.45, 0.03), 1), ((0.5, 0.46, 0.04), 0)], ids=["sure", "close"]
)
def test_another_label_is_refused_where_the_recorded_answer_was_clear(
    probs: tuple[float, ...], status: int, package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded(package, GoldenAnswer(text="secret words", label="delivery", probs=probs))
    with recorded_server(package, {}, lambda item: item | {"label": "praise"}) as (address, _):
        assert verified(address, "--package", package) == status
    said = capsys.readouterr().err
    assert ("golden text 1 no longer" in said) == bool(status)
    assert "secret" not in said


def test_of_several_labels_all_must_be_those_recorded(
    package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = read_manifest(package).labels
    golden = GoldenAnswer(
        text="late", label="delivery", labels=("delivery", "returns"), probs=(0.9, 0.1, 0.7)
    )
    several = {"task": "multi_label", "thresholds": dict.fromkeys(labels, 0.5), "temperature": 1.0}
    recorded(package, golden, **several)
    for answered, status in ((["returns", "delivery"], 0), (["delivery"], 1)):
        change = {"labels": answered}
        with recorded_server(package, {}, lambda item, to=change: item | to) as (address, _):
            assert verified(address, "--package", package) == status
    assert "golden text 1 no longer" in capsys.readouterr().err


def test_pairs_are_asked_as_pairs(package: Path) -> None:
    pair = GoldenAnswer(text="one", text_pair="two", label="delivery", probs=(0.8, 0.1, 0.1))
    recorded(package, pair, text_columns=("text", "text_pair"))
    with recorded_server(package, {}, lambda item: item) as (address, requests):
        assert verified(address, "--package", package) == 0
    assert requests == [{"input": ["one"], "text_pair": ["two"]}]


def test_the_package_to_compare_with_must_be_sound_itself(
    package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with recorded_server(package, {}, lambda item: item) as (address, requests):
        (package / "model.onnx").write_bytes(b"another")
        assert verified(address, "--package", package) == 1
    assert "model.onnx was altered" in capsys.readouterr().err
    assert not requests


@pytest.mark.parametrize(
    "change",
    [
        lambda item: "praise",
        lambda item: item | {"label": ["praise"]},
        lambda item: item | {"label": "weather"},
        lambda item: item | {"labels": [["praise"]]},
        lambda item: item | {"probs": [[one] for one in item["probs"]]},
        lambda item: item | {"probs": item["probs"][1:]},
        lambda item: item | {"probs": [10**400] * 3},
        lambda item: {"label": item["label"]},
    ],
)
def test_answers_that_are_no_classes_of_the_package_are_one_sentence(
    change: Callable[[dict[str, Any]], Any], package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with recorded_server(package, {}, change) as (address, _):
        assert verified(address, "--package", package) == 1
    said = capsys.readouterr().err
    assert said == f"whetstone: {address}/classify answered with something else than classes\n"


def test_a_service_that_is_down_or_silent_is_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert verified("http://127.0.0.1:9") == 1
    assert "cannot be reached" in capsys.readouterr().err
    monkeypatch.setattr(client_module, "TIMEOUT_SECONDS", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        assert verified(f"http://127.0.0.1:{silent.getsockname()[1]}") == 1
    assert "did not answer within 0.2 seconds" in capsys.readouterr().err


def test_options_of_a_service_are_refused_for_a_folder(tiny_package: Path) -> None:
    with pytest.raises(SystemExit):
        verified(tiny_package, "--package", tiny_package)
