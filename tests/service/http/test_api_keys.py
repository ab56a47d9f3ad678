"""API keys: hashes in a file, several at a time, read again when it changes."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from service.http.api_keys import CHECK_SECONDS, ApiKeys, ApiKeysError, read_hashes
from service.inference.classifier import Classifier
from tests.servers import routes_of
from tests.service.clock import Clock

OLD, NEW = "an-old-key-0123456789", "a-new-key-0123456789"


def line(key: str, owner: str = "") -> str:
    return f"sha256:{hashlib.sha256(key.encode()).hexdigest()} {owner}".rstrip()


def bearer(key: str) -> bytes:
    return f"Bearer {key}".encode()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "keys"
    file.write_text(f"# who may ask\n\n{line(OLD, 'checkout')}\n", "utf-8")
    return file


def test_only_a_listed_key_is_accepted(path: Path) -> None:
    keys = ApiKeys(path)
    assert keys.accept(bearer(OLD))
    assert keys.accept(b"bearer  " + OLD.encode() + b" ")
    digest = line(OLD).partition(":")[2].encode()
    for given in (None, b"", OLD.encode(), bearer(NEW), bearer(OLD[:-1]), b"Basic " + OLD.encode()):
        assert not keys.accept(given)
    # A hash in the file is not a key.
    assert not keys.accept(b"Bearer " + digest)


def test_an_empty_key_is_refused(path: Path) -> None:
    # `printf %s "$KEY" | sha256sum` writes this line where KEY is not set.
    path.write_text(f"{line(OLD)}\n{line('')}\n", "utf-8")
    keys = ApiKeys(path)
    assert keys.accept(bearer(OLD))
    for given in (b"Bearer", b"Bearer ", b"bearer   "):
        assert not keys.accept(given)


def test_keys_are_rotated_without_a_restart(path: Path) -> None:
    keys = ApiKeys(path, clock := Clock())
    path.write_text(f"{line(OLD)}\n{line(NEW)}\n", "utf-8")
    clock.now += CHECK_SECONDS
    assert keys.accept(bearer(OLD)) and keys.accept(bearer(NEW))
    assert len(keys) == 2
    path.write_text(f"{line(NEW)}\n", "utf-8")
    # A change takes effect at the next check, not at once.
    assert keys.accept(bearer(OLD))
    clock.now += CHECK_SECONDS
    assert keys.accept(bearer(NEW)) and not keys.accept(bearer(OLD))


def test_a_change_while_the_file_is_first_read_is_noticed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: Path) -> tuple[bytes, ...]:
        hashes = read_hashes(path)
        path.write_text(f"{line(NEW)}\n", "utf-8")
        return hashes

    with monkeypatch.context() as patched:
        patched.setattr("service.http.api_keys.read_hashes", read)
        keys = ApiKeys(path, clock := Clock())
    clock.now += CHECK_SECONDS
    assert keys.accept(bearer(NEW)) and not keys.accept(bearer(OLD))


def test_a_link_with_another_target_is_a_change(path: Path, tmp_path: Path) -> None:
    # Kubernetes replaces the files of a mounted Secret in this way.
    (tmp_path / "other").write_text(line(NEW), "utf-8")
    link = tmp_path / "link"
    link.symlink_to(path)
    keys = ApiKeys(link, clock := Clock())
    (tmp_path / "next").symlink_to(tmp_path / "other")
    (tmp_path / "next").rename(link)
    clock.now += CHECK_SECONDS
    assert keys.accept(bearer(NEW)) and not keys.accept(bearer(OLD))


@pytest.mark.parametrize("content", ["", "not a hash\n", None])
def test_a_file_that_breaks_changes_nothing(
    path: Path, content: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    keys = ApiKeys(path, clock := Clock())
    if content is None:
        path.unlink()
    else:
        path.write_text(content, "utf-8")
    with caplog.at_level(logging.ERROR, "bentoml.service"):
        logging.getLogger("bentoml.service").addHandler(caplog.handler)
        for _ in range(2):
            clock.now += CHECK_SECONDS
            assert keys.accept(bearer(OLD))
        logging.getLogger("bentoml.service").removeHandler(caplog.handler)
    messages = {record.getMessage() for record in caplog.records}
    assert len(messages) == 1 and "the API keys did not change" in messages.pop()


def test_a_file_that_could_not_be_read_is_tried_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example, a new file whose permissions are corrected a little later."""
    keys = ApiKeys(path, clock := Clock())
    path.write_text(f"{line(NEW)}\n", "utf-8")

    def refuse(path: Path) -> tuple[bytes, ...]:
        raise ApiKeysError(f"{path} cannot be read")

    with monkeypatch.context() as patched:
        patched.setattr("service.http.api_keys.read_hashes", refuse)
        clock.now += CHECK_SECONDS
        assert keys.accept(bearer(OLD)) and not keys.accept(bearer(NEW))
    clock.now += CHECK_SECONDS
    assert keys.accept(bearer(NEW)) and not keys.accept(bearer(OLD))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no API key"),
        (b"# nothing\n", "holds no API key"),
        (b"sha256:1234\n", "line 1 of"),
        (f"{line(OLD)}\na-secret-key\n".encode(), "line 2 of"),
        (b"\xff\xfe", "not UTF-8"),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ApiKeysError, match=message) as refused:
        ApiKeys(path)
    assert "a-secret-key" not in str(refused.value)


def test_without_a_key_only_open_routes_answer(tiny_package: Path, path: Path) -> None:
    classifier = Classifier.load(tiny_package, threads=1)
    with routes_of(classifier, keys=ApiKeys(path), open_routes=("/info",)) as routes:
        client = TestClient(routes)
        for method, route in (
            ("POST", "/classify"),
            ("POST", "/v1/classify"),
            ("POST", "/predict"),
            ("GET", "/v1/models"),
            ("GET", "/docs.json"),
            ("GET", "/metrics"),
            ("GET", "/"),
        ):
            answer = client.request(method, route, json={"input": "a", "inputs": "a"})
            assert answer.status_code == 401, route
            assert answer.headers["www-authenticate"] == "Bearer"
        assert client.post("/predict").json()["error_type"] == "Unauthorized"
        assert client.post("/classify").json()["error"]["type"] == "unauthorized"
        assert client.get("/info").status_code == 200
        headers = {"Authorization": f"Bearer {OLD}"}
        assert client.post("/classify", json={"input": "a"}, headers=headers).status_code == 200
        content = client.get("/docs.json", headers=headers).json()
        assert content["paths"]["/classify"]["post"]["security"] == [{"key": []}]
        assert "security" not in content["paths"]["/info"]["get"]
