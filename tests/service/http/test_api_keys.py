"""API keys: hashes in a file, several at a time, read again when it changes."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from service.api_keys import ApiKeys, ApiKeysError, read_hashes
from service.classifier import Classifier
from tests.servers import routes_of

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


def test_a_key_opens_and_nothing_else_does(path: Path) -> None:
    keys = ApiKeys(path)
    assert keys.accept(bearer(OLD))
    assert keys.accept(b"bearer  " + OLD.encode() + b" ")
    digest = line(OLD).partition(":")[2].encode()
    for given in (None, b"", OLD.encode(), bearer(NEW), bearer(OLD[:-1]), b"Basic " + OLD.encode()):
        assert not keys.accept(given)
    # Whoever reads the file cannot ask with what stands there.
    assert not keys.accept(b"Bearer " + digest)


def test_no_key_is_none_of_them(path: Path) -> None:
    # As `printf %s "$KEY" | sha256sum` writes it where KEY is not set.
    path.write_text(f"{line(OLD)}\n{line('')}\n", "utf-8")
    keys = ApiKeys(path)
    assert keys.accept(bearer(OLD))
    for given in (b"Bearer", b"Bearer ", b"bearer   "):
        assert not keys.accept(given)


def test_keys_are_rotated_without_a_restart(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.api_keys.SECONDS_BETWEEN_LOOKS", 0)
    keys = ApiKeys(path)
    path.write_text(f"{line(OLD)}\n{line(NEW)}\n", "utf-8")
    assert keys.accept(bearer(OLD)) and keys.accept(bearer(NEW))
    assert len(keys) == 2
    path.write_text(f"{line(NEW)}\n", "utf-8")
    assert keys.accept(bearer(NEW)) and not keys.accept(bearer(OLD))


def test_a_change_while_the_file_is_first_read_is_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.api_keys.SECONDS_BETWEEN_LOOKS", 0)

    def read(path: Path) -> tuple[bytes, ...]:
        found = read_hashes(path)
        path.write_text(f"{line(NEW)}\n", "utf-8")
        return found

    monkeypatch.setattr("service.api_keys.read_hashes", read)
    keys = ApiKeys(path)
    monkeypatch.undo()
    monkeypatch.setattr(keys, "_next_look", 0)
    assert keys.accept(bearer(NEW)) and not keys.accept(bearer(OLD))


def test_a_link_that_is_pointed_elsewhere_is_a_change(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As Kubernetes replaces the files of a mounted Secret.
    monkeypatch.setattr("service.api_keys.SECONDS_BETWEEN_LOOKS", 0)
    (tmp_path / "other").write_text(line(NEW), "utf-8")
    link = tmp_path / "link"
    link.symlink_to(path)
    keys = ApiKeys(link)
    (tmp_path / "next").symlink_to(tmp_path / "other")
    (tmp_path / "next").rename(link)
    assert keys.accept(bearer(NEW)) and not keys.accept(bearer(OLD))


@pytest.mark.parametrize("content", ["", "not a hash\n", None])
def test_a_file_that_breaks_changes_nothing(
    path: Path,
    content: str | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("service.api_keys.SECONDS_BETWEEN_LOOKS", 0)
    keys = ApiKeys(path)
    if content is None:
        path.unlink()
    else:
        path.write_text(content, "utf-8")
    with caplog.at_level(logging.ERROR, "bentoml.service"):
        logging.getLogger("bentoml.service").addHandler(caplog.handler)
        assert keys.accept(bearer(OLD)) and keys.accept(bearer(OLD))
        logging.getLogger("bentoml.service").removeHandler(caplog.handler)
    said = {record.getMessage() for record in caplog.records}
    assert len(said) == 1 and "stay as they were" in said.pop()


def test_a_file_that_could_not_be_read_is_tried_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a new file comes with permissions that are set right a little later."""
    monkeypatch.setattr("service.api_keys.SECONDS_BETWEEN_LOOKS", 0)
    keys = ApiKeys(path)
    path.write_text(f"{line(NEW)}\n", "utf-8")

    def refuse(path: Path) -> tuple[bytes, ...]:
        raise ApiKeysError(f"{path} cannot be read")

    with monkeypatch.context() as patched:
        patched.setattr("service.api_keys.read_hashes", refuse)
        assert keys.accept(bearer(OLD)) and not keys.accept(bearer(NEW))
    assert keys.accept(bearer(NEW)) and not keys.accept(bearer(OLD))


@pytest.mark.parametrize(
    ("content", "said"),
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
    tmp_path: Path, content: bytes | None, said: str
) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ApiKeysError, match=said) as refused:
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
