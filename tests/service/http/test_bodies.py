"""The body of a request: its size, its coding, its JSON."""

from __future__ import annotations

import json
import tracemalloc
import zlib
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.http.request import DISCARDED_BODIES
from tests.service.http.callers import LIMITS, post


@pytest.mark.parametrize(
    "size", [LIMITS.max_body_bytes + 1, (DISCARDED_BODIES + 1) * LIMITS.max_body_bytes]
)
def test_a_body_beyond_the_limit_is_answered_413(client: TestClient, size: int) -> None:
    assert post(client, b" " * size).status_code == 413


def test_a_body_at_the_limit_is_read(client: TestClient) -> None:
    body = json.dumps({"input": "hello"}).encode()
    assert post(client, body.ljust(LIMITS.max_body_bytes)).status_code == 200


@pytest.mark.parametrize("content_type", ["text/plain", "", "application/x-www-form-urlencoded"])
def test_another_content_type_is_refused(client: TestClient, content_type: str) -> None:
    assert post(client, b'{"input": "a"}', content_type).status_code == 415


def test_a_charset_in_the_content_type_is_accepted(client: TestClient) -> None:
    assert post(client, b'{"input": "a"}', "application/json; charset=utf-8").status_code == 200


def deflate(body: bytes, window_bits: int) -> bytes:
    packer = zlib.compressobj(wbits=window_bits)
    return packer.compress(body) + packer.flush()


CODINGS = {
    "gzip": lambda body: deflate(body, 31),
    "X-GZip": lambda body: deflate(body, 31),
    "deflate": lambda body: deflate(body, 15),
    "Deflate ": lambda body: deflate(body, -15),
    "identity": bytes,
    "": bytes,
}


def coded(client: TestClient, coding: str, body: bytes, path: str = "/classify") -> Any:
    headers = {"Content-Type": "application/json", "Content-Encoding": coding}
    return client.post(path, content=body, headers=headers)


@pytest.mark.parametrize("coding", CODINGS)
def test_a_coded_body_is_decoded(client: TestClient, coding: str) -> None:
    body = b'{"input": "where is my parcel"}'
    expected = post(client, body).json()["data"]
    assert coded(client, coding, CODINGS[coding](body)).json()["data"] == expected
    # A decompressed body at the limit, and one beyond it.
    for size, status in ((LIMITS.max_body_bytes, 200), (LIMITS.max_body_bytes + 1, 413)):
        answer = coded(client, coding, CODINGS[coding](body.ljust(size)))
        assert answer.status_code == status


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda body: b"",
        lambda body: b"{}",
        lambda body: body[:-1],
        lambda body: body[: len(body) // 2],
        lambda body: body + b"x",
        lambda body: body[:-6] + b"\0" * 6,
    ],
)
def test_a_broken_coding_is_400(client: TestClient, coding: str, spoil: Any) -> None:
    for path in ("/classify", "/predict"):
        answer = coded(client, coding, spoil(CODINGS[coding](b'{"input": "a"}')), path)
        assert answer.status_code == 400
        assert f"not whole {coding}" in answer.text


def test_a_compressed_bomb_is_refused_without_filling_the_memory(client: TestClient) -> None:
    bomb = deflate(b" " * (300 << 20), 31)
    assert len(bomb) < LIMITS.max_body_bytes
    tracemalloc.start()
    try:
        answer = coded(client, "gzip", bomb)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (answer.status_code, answer.json()["error"]["type"]) == (413, "body_too_large")
    assert most < 10 * LIMITS.max_body_bytes


@pytest.mark.parametrize(
    ("coding", "named"),
    [("br", "br"), ("gzip, gzip", "of this kind"), ("zstd", "zstd"), ("é" * 9, "of this kind")],
)
def test_another_coding_is_refused_and_the_supported_ones_are_named(
    client: TestClient, coding: str, named: str
) -> None:
    headers = {"Content-Type": b"application/json", "Content-Encoding": coding.encode()}
    answer = client.post("/classify", content=b"{}", headers=headers)
    assert (answer.status_code, answer.headers["accept-encoding"]) == (
        415,
        "gzip, deflate, identity",
    )
    assert f"a Content-Encoding {named} is not read" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "the body is not JSON"),
        (b"\xff{}", "the body is not UTF-8"),
        (b'{"input": -Infinity}', "-Infinity is no number"),
        (b'{"input": "a", "x": ' + b"1" * 5000 + b"}", "a number in the body has too many digits"),
        (b"[" * 1100 + b"]" * 1100, "the body is nested too deeply"),
        ('{"input": "a"}'.encode("utf-16"), "the body is UTF-16"),
        ('{"input": "a"}'.encode("utf-16-be"), "the body is UTF-16"),
        ('{"input": "a"}'.encode("utf-32-le"), "the body is UTF-32"),
    ],
)
def test_a_body_that_is_not_json_is_refused_with_the_reason(
    client: TestClient, body: bytes, message: str
) -> None:
    answer = post(client, body)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(("the body", "a number"))
    assert message in answer.json()["error"]["message"]


def test_a_byte_order_mark_and_deep_nesting_are_accepted(client: TestClient) -> None:
    assert post(client, b'\xef\xbb\xbf{"input": "a"}').status_code == 200
    assert post(client, b'{"input": "a", "x": ' + b"[" * 899 + b"]" * 899 + b"}").status_code == 200
    # JSON that orjson refuses is read by Python's parser.
    assert post(client, b'{"input": "a", "x": "\\ud800"}').status_code == 200
