"""Publishing: to real folders and to a real S3 server on this machine; complete or not there."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import bentoml
import pytest
from fsspec import filesystem

from service.package.golden import write_golden
from service.package.manifest import (
    GOLDEN_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    PACKAGE_FILES,
    read_manifest,
)
from service.package.package import seal_package, verify_package
from tests.conftest import ROOT, example_rows, write_csv
from tests.s3 import CREDENTIALS, ask, wait_until
from tests.servers import free_port
from training.common.errors import PublishError
from training.common.exit_status import EXIT_ERROR, EXIT_OF_VERDICT
from training.common.storage import Place
from training.registry.publish import check_place, open_place, package_at, publish
from whetstone.main import main

Captured = pytest.CaptureFixture[str]

PUBLISH = """
import sys
from pathlib import Path
from training.registry.publish import publish
publish(Path(sys.argv[1]), sys.argv[2])
"""
# So much that a publication can be killed in its middle.
GROWN_BYTES = 32 * 2**20


@pytest.fixture(params=["folder", "file", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place that nothing was published to."""
    if request.param == "s3":
        address: str = request.getfixturevalue("s3")
        return address
    folder = tmp_path / "models"
    return str(folder) if request.param == "folder" else f"file://{folder}"


@pytest.fixture
def grown(package: Path) -> Path:
    """A package with a graph that takes a while to send, sealed as it is."""
    with (package / MODEL_FILE).open("ab") as graph:
        graph.write(os.urandom(GROWN_BYTES))
    seal_package(package, read_manifest(package))
    return package


def files(url: str) -> dict[str, bytes]:
    """Everything below an address, by path."""
    place = open_place(url)
    found = place.fs.find(place.path)
    return {path.removeprefix(place.path).strip("/"): place.fs.cat_file(path) for path in found}


def address_of(package: Path, url: str) -> str:
    manifest = read_manifest(package)
    return f"{url}/{manifest.name}/{manifest.version}"


# There and back


def test_what_is_published_is_the_package(tiny_package: Path, url: str, capsys: Captured) -> None:
    check_place(url)
    assert files(url) == {}
    assert publish(tiny_package, url) == (address_of(tiny_package, url), True)
    version = read_manifest(tiny_package).version
    assert files(url) == {
        f"tiny/{version}/{name}": (tiny_package / name).read_bytes() for name in PACKAGE_FILES
    }
    shown = capsys.readouterr()
    assert "publishing: 100%" in shown.err
    assert "reading back: 100%" in shown.err
    with package_at(address_of(tiny_package, url)) as folder:
        assert verify_package(folder) == read_manifest(tiny_package)
        copied = str(folder) != address_of(tiny_package, url)
    # A plain folder is used where it is.
    assert copied == ("://" in url)
    assert folder.exists() == (not copied)


def test_a_slash_at_the_end_changes_nothing(tiny_package: Path, url: str) -> None:
    assert publish(tiny_package, url + "/") == (address_of(tiny_package, url), True)
    with package_at(address_of(tiny_package, url) + "/") as folder:
        verify_package(folder)


def test_the_same_version_again_is_verified_and_left_alone(package: Path, url: str) -> None:
    publish(package, url)
    before = files(url)
    manifest = read_manifest(package)
    # Made anew, the same content has the same version, and another date and duration.
    seal_package(package, manifest.model_copy(update={"created_at": "2031-01-01T00:00:00+00:00"}))
    assert publish(package, url) == (address_of(package, url), False)
    assert files(url) == before


def test_other_golden_texts_are_refused(package: Path, url: str) -> None:
    publish(package, url)
    before = files(url)
    write_golden(package, [])
    seal_package(package, read_manifest(package))
    with pytest.raises(PublishError, match="with other golden texts, and is not replaced"):
        publish(package, url)
    assert files(url) == before


@pytest.mark.parametrize("url", ["file", "s3"], indirect=True)
def test_a_published_version_that_was_altered_is_named(tiny_package: Path, url: str) -> None:
    address, _ = publish(tiny_package, url)
    place = open_place(address) / MODEL_FILE
    place.fs.pipe_file(place.path, b"another graph")
    for use in (lambda: publish(tiny_package, url), lambda: fetch(address)):
        with pytest.raises(PublishError) as caught:
            use()
        assert str(caught.value).startswith(f"{address}/{MODEL_FILE} was altered")


def fetch(address: str) -> None:
    with package_at(address):
        pass


def test_a_damaged_upload_is_no_version(
    tiny_package: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import training.registry.publish as publishing

    send = publishing.upload

    def damage(package: Path, place: Place, names: list[str]) -> None:
        send(package, place, names)
        graph = place / MODEL_FILE
        place.fs.pipe_file(graph.path, place.fs.cat_file(graph.path)[:-1])

    monkeypatch.setattr(publishing, "upload", damage)
    with pytest.raises(PublishError, match=f"{MODEL_FILE} is not what was sent"):
        publish(tiny_package, url)
    assert not [path for path in files(url) if path.endswith(MANIFEST_FILE)]
    monkeypatch.undo()


@pytest.mark.parametrize("url", ["file", "s3"], indirect=True)
def test_a_version_without_a_manifest_is_none(tiny_package: Path, url: str) -> None:
    publish(tiny_package, url)
    unfinished = open_place(url) / "tiny" / "0123456789ab" / MODEL_FILE
    unfinished.fs.pipe_file(unfinished.path, b"half a graph")
    version = read_manifest(tiny_package).version
    with pytest.raises(PublishError) as caught:
        fetch(f"{url}/tiny")
    assert str(caught.value).endswith(
        f"tiny is no published version: name one of its versions {version}"
    )
    with pytest.raises(
        PublishError, match=r"0123456789ab is no published version: name it as URL/"
    ):
        fetch(f"{url}/tiny/0123456789ab")


@pytest.mark.parametrize("url", ["file", "s3"], indirect=True)
def test_a_kill_leaves_no_version_and_the_next_run_completes_it(grown: Path, url: str) -> None:
    address = address_of(grown, url)
    graph, manifest = (open_place(address) / name for name in (MODEL_FILE, MANIFEST_FILE))
    child = subprocess.Popen(
        [sys.executable, "-c", PUBLISH, str(grown), url], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    wait_until(lambda: child.poll() is not None or graph.fs.exists(graph.path), 60)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    assert graph.fs.exists(graph.path)
    assert not manifest.fs.exists(manifest.path)
    with pytest.raises(PublishError, match="is no published version"):
        fetch(address)
    assert publish(grown, url) == (address, True)
    fetch(address)


# The verbs


@pytest.mark.parametrize("url", ["s3"], indirect=True)
def test_run_publishes_what_it_registered(
    tiny_recipe: Path, tiny_run_folder: Path, url: str, tmp_path: Path, capsys: Captured
) -> None:
    folder = shutil.copytree(tiny_run_folder, tmp_path / "run")
    words = ["run", str(tiny_recipe), "--output_dir", str(folder)]
    assert main([*words, "--publish", url]) == 0
    address = address_of(folder / "package", url)
    assert f"\npublished:  {address}\n" in capsys.readouterr().out
    assert json.loads(
        files(url)[f"{Path(address).parent.name}/{Path(address).name}/manifest.json"]
    )["metrics"]["test"]
    assert main(["run", "--publish", url, *words[1:]]) == 0
    assert f"\npublished:  {address} (was there already)\n" in capsys.readouterr().out


def test_a_published_version_is_registered_verified_and_compared(
    tiny_package: Path, url: str, tmp_path: Path, capsys: Captured
) -> None:
    address, _ = publish(tiny_package, url)
    manifest = read_manifest(tiny_package)
    tag = f"text-classifier:{manifest.version}"
    if bentoml.models.list(tag):
        bentoml.models.delete(tag)
    assert main(["register", address]) == 0
    assert f"registered: {tag}" in capsys.readouterr().out
    assert verify_package(Path(bentoml.models.get(tag).path)) == manifest
    assert main(["verify", address]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{address}: tiny {manifest.version}, ")
    assert said.endswith("golden texts answered as recorded\n")
    data = write_csv(tmp_path / "test.csv", example_rows("test"))
    words = ["compare", address, str(tiny_package), "--data", str(data)]
    assert main([*words, "--output_dir", str(tmp_path / "out")]) == EXIT_OF_VERDICT["promote"]
    written = json.loads((tmp_path / "out" / "compare.json").read_text("utf-8"))
    assert written["champion"]["named"] == address


def test_a_verdict_is_published_beside_its_challenger(
    tiny_package: Path, url: str, tmp_path: Path, capsys: Captured
) -> None:
    rows = example_rows("test")
    data, out = write_csv(tmp_path / "test.csv", rows), tmp_path / "out"
    words = ["compare", "none", str(tiny_package), "--data", str(data), "--output_dir", str(out)]
    words += ["--min_macro_f1", "1"]
    assert main([*words, "--publish", url]) == EXIT_ERROR
    assert "publish the challenger first" in capsys.readouterr().err
    address, _ = publish(tiny_package, url)
    assert main([*words, "--publish", url]) == EXIT_OF_VERDICT["refuse"]
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("published: ")]
    verdict = line.removeprefix("published: ")
    version = read_manifest(tiny_package).version
    assert verdict.startswith(f"{address}/verdicts/none-{version}-")
    place = open_place(verdict)
    published = place.fs.cat_file(place.path)
    assert published == (out / "compare.json").read_bytes()
    assert json.loads(published)["verdict"] == "refuse"
    assert not [row for row in rows if row["text"] in published.decode()]
    # What takes the version takes nothing of it.
    fetch(address)


# What cannot be


def refusal(capsys: Captured, *words: str) -> str:
    """The one line that a command fails with."""
    assert main(list(words)) == EXIT_ERROR
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("whetstone: ")
    return lines[-1]


def test_a_place_that_cannot_be_used_is_refused_before_any_work(
    tiny_recipe: Path,
    tiny_package: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Captured,
) -> None:
    def work(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError("it began to work")

    monkeypatch.setattr("training.pipeline.train", work)
    monkeypatch.setattr("training.comparison.compare.compare", work)
    (tmp_path / "file").touch()
    place = str(tmp_path / "file" / "models")
    for words in (
        ("run", str(tiny_recipe)),
        ("compare", "none", str(tiny_package), "--data", str(tmp_path / "test.csv")),
    ):
        line = refusal(capsys, *words, "--publish", place)
        assert line.startswith(f"whetstone: {place}: something else is in the way")


@pytest.mark.parametrize(
    "url",
    [
        "s3://whetstone:hush-hush@models/folder",
        "s3://hush-hush@models/folder",
        "s3://models/folder?secret=hush-hush",
        "simplecache::s3://whetstone:hush-hush@models",
    ],
)
def test_an_address_with_a_secret_is_refused_and_not_repeated(
    url: str, tiny_recipe: Path, tiny_package: Path, tmp_path: Path, capsys: Captured
) -> None:
    data = ("--data", str(tmp_path / "test.csv"))
    for words in (
        ("run", str(tiny_recipe), "--publish", url),
        ("compare", url, str(tiny_package), *data),
        ("compare", "none", str(tiny_package), *data, "--publish", url),
        ("register", url),
        ("verify", url),
    ):
        assert main(list(words)) == EXIT_ERROR
        said = capsys.readouterr()
        assert "hush" not in said.out + said.err
        assert "holds no user, password or query" in said.err


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("", "nothing is no place for packages"),
        ("s3://", "s3:// is no place for packages"),
        ("http://localhost:3000/models", "is no place for packages"),
        ("s4://models", "no driver is known for s4://"),
    ],
)
def test_a_malformed_address_is_refused_in_one_sentence(url: str, sentence: str) -> None:
    with pytest.raises(PublishError, match=sentence):
        check_place(url)


@pytest.mark.parametrize(
    "words", [["--publish"], ["--publish", "a", "b"], ["--publish", "--overwrite"]]
)
def test_publish_takes_one_address(words: list[str], tiny_recipe: Path, capsys: Captured) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["run", str(tiny_recipe), *words])
    assert caught.value.code == 2
    assert "argument --publish: expected one argument" in capsys.readouterr().err


@pytest.mark.parametrize(("protocol", "driver"), [("s3", "s3fs"), ("gs", "gcsfs")])
def test_a_driver_that_is_not_installed_is_named(
    protocol: str, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The name `fsspec.registry` is the mapping itself, not the module.
    monkeypatch.setattr(sys.modules["fsspec.registry"], "registry", {})
    monkeypatch.setitem(sys.modules, driver, None)
    with pytest.raises(PublishError) as caught:
        check_place(f"{protocol}://models")
    assert str(caught.value) == (
        f"{protocol}://models needs the driver {driver}, which is not installed: "
        f"pip install -c constraints.txt {driver}"
    )


def test_without_credentials_nothing_is_tried(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CREDENTIALS:
        monkeypatch.delenv(name)
    filesystem("s3").clear_instance_cache()
    with pytest.raises(
        PublishError, match="there are no credentials for it: set AWS_ACCESS_KEY_ID"
    ):
        check_place(s3)


def test_a_bucket_that_is_not_there_is_not_made(
    s3: str, tiny_package: Path, s3_server: str
) -> None:
    for use in (check_place, lambda url: publish(tiny_package, url)):
        with pytest.raises(PublishError) as caught:
            use("s3://elsewhere/models")
        assert str(caught.value).endswith(": there is no such bucket or folder: make it first")
    assert b"elsewhere" not in ask(f"{s3_server}/", method="GET")


def test_a_missing_permission_is_one_sentence(
    s3: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with reading_only(s3_server) as credentials:
        for name, value in credentials.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(PublishError) as caught:
            check_place(s3)
    said = str(caught.value)
    assert said.startswith(
        f"{s3}: it may not be listed, read or written with the credentials in force"
    )
    assert credentials["AWS_SECRET_ACCESS_KEY"] not in said


@contextmanager
def reading_only(server: str) -> Iterator[dict[str, str]]:
    """Credentials that the S3 server takes for listing and reading, as long as this lasts."""

    def iam(**query: str) -> str:
        body = urllib.parse.urlencode({"Version": "2010-05-08", "UserName": "reader", **query})
        # Not checked yet, but it says which service is asked.
        scope = "AWS4-HMAC-SHA256 Credential=admin/20260101/us-east-1/iam/aws4_request"
        return ask(server, body.encode(), headers={"Authorization": scope}).decode()

    policy = {"Effect": "Allow", "Action": ["s3:Get*", "s3:List*"], "Resource": "*"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [policy]})
    iam(Action="CreateUser")
    iam(Action="PutUserPolicy", PolicyName="read", PolicyDocument=document)
    made = iam(Action="CreateAccessKey")
    enforce_after(server, "0")
    try:
        yield {
            f"AWS_{name}": re.findall(f"<{tag}>(.*)</{tag}>", made)[0]
            for name, tag in (
                ("ACCESS_KEY_ID", "AccessKeyId"),
                ("SECRET_ACCESS_KEY", "SecretAccessKey"),
            )
        }
    finally:
        enforce_after(server, "inf")


def enforce_after(server: str, requests: str) -> None:
    """Have the S3 server look at policies after so many requests."""
    headers = {"Content-Type": "text/plain"}
    ask(f"{server}/moto-api/reset-auth", requests.encode(), headers=headers)


def test_a_server_that_is_not_there_is_one_sentence(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(PublishError, match=rf"^{s3}: Could not connect to the endpoint"):
        check_place(s3)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_is_one_sentence_and_no_version(package: Path, tmp_path: Path) -> None:
    address = Path(address_of(package, str(tmp_path / "models")))
    address.mkdir(parents=True)
    (address / GOLDEN_FILE).symlink_to("/dev/full")
    with pytest.raises(PublishError, match="no room is left there: make some, then"):
        publish(package, str(tmp_path / "models"))
    assert not (address / MANIFEST_FILE).exists()


def test_an_unexpected_error_is_not_hidden(
    tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def upload(*_: Any) -> NoReturn:
        raise ZeroDivisionError

    monkeypatch.setattr("training.registry.publish.upload", upload)
    with pytest.raises(ZeroDivisionError):
        publish(tiny_package, str(tmp_path / "models"))
