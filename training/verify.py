"""Is this copy sound? A folder, a model of BentoML's store, or a running service.

    whetstone verify runs/support_tickets/package
    whetstone verify text-classifier:latest
    whetstone verify http://localhost:3000 --api_key_file key

Hashes, version, and the golden texts: asked of this copy, their answers must be those recorded when
the package was made, within what another processor explains.
"""

from __future__ import annotations

import http.client
import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import numpy as np

from service.classifier import Classifier, compare_golden
from service.decisions import Decision
from service.model_package import (
    MODEL_STORE_NAME,
    GoldenAnswer,
    Manifest,
    read_golden,
    verify_package,
)
from training.errors import VerifyError

TIMEOUT_SECONDS = 10.0
# An answer to 32 texts with a thousand labels has a tenth of this.
MAX_ANSWER_BYTES = 16 * 2**20
TEXTS_PER_REQUEST = 32
SMALL_BODY_BYTES = 2**20
VERSION = re.compile(r"[0-9a-f]{12}")


def is_url(target: str) -> bool:
    """Whether `target` names a service rather than a package."""
    return target.startswith(("http://", "https://"))


def package_folder(target: str) -> Path:
    """The folder of a package that is named by its path, its tag, its version, or the store's name.

    The name alone means the model that was registered last.

    Raises:
        VerifyError: the model store has no such model, or this is an address.
    """
    if is_url(target):
        raise VerifyError(
            f"{target} is the address of a service: name a folder, a tag or a version"
        )
    folder = Path(target)
    if folder.exists() or not (
        VERSION.fullmatch(target) or target.partition(":")[0] == MODEL_STORE_NAME
    ):
        return folder
    import bentoml
    from bentoml.exceptions import BentoMLException

    tag = f"{MODEL_STORE_NAME}:{target}" if VERSION.fullmatch(target) else target
    try:
        return Path(bentoml.models.get(tag).path)
    except BentoMLException:
        raise VerifyError(
            f"there is no {tag} in BentoML's model store: name a folder, or register the package"
        ) from None


def verify_folder(folder: Path, named: str | None = None) -> str:
    """Check hashes, version and golden texts of a package; a line that says what was found.

    Args:
        named: what the user calls it, where that is not the folder.

    Raises:
        PackageError: a file is missing or altered.
        GoldenMismatchError: it does not answer as it did where it was made.
    """
    classifier = Classifier.load(folder)
    return _found(named or str(folder), classifier.manifest, classifier.check_golden(folder))


def verify_service(url: str, package: str | None, key_file: Path | None) -> str:
    """Check that a service answers as the package that it says it serves; a line that says so.

    Args:
        package: folder, tag or version; else the model of the store with the version served.
        key_file: its first line is the API key.

    Raises:
        VerifyError: the service cannot be asked, or serves another version.
        PackageError: the package to compare with does not verify.
        GoldenMismatchError: an answer differs by more than another processor explains.
    """
    service = Service(url, read_key(key_file))
    info = service.ask("/info")
    version = info.get("version")
    # Other servers have an /info with a version, too.
    if not isinstance(version, str) or not VERSION.fullmatch(version):
        raise VerifyError(f"{url}/info is not Whetstone's: is this the right address?")
    folder = package_folder(package) if package else _served(url, version)
    manifest = verify_package(folder)
    if manifest.version != version:
        raise VerifyError(
            f"{url} serves version {version}, and {folder} is version {manifest.version}"
        )
    golden = read_golden(folder)
    answers: list[Decision] = []
    for part in _requests(golden, info, manifest):
        answers += service.classify(part, manifest)
    compare_golden(golden, answers, manifest, url)
    return _found(url, manifest, len(golden))


class Service:
    """A running service, asked politely: with time-outs, a limit, and no redirects."""

    def __init__(self, url: str, key: str | None) -> None:
        self._url = url.rstrip("/")
        self._headers = {"Content-Type": "application/json"}
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"

    def ask(self, path: str, content: object = None) -> dict[str, Any]:
        """The JSON object that a route answers with.

        Raises:
            VerifyError: there is no such answer; one sentence says why.
        """
        try:
            found = json.loads(self.read(path, content))
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise VerifyError(f"{self._url}{path} is not Whetstone's: it answered with other text")
        return found

    def read(self, path: str, content: object = None) -> bytes:
        """What a route answers with.

        Raises:
            VerifyError: as `ask`.
        """
        data = None if content is None else json.dumps(content).encode()
        try:
            request = urllib.request.Request(self._url + path, data=data, headers=self._headers)  # noqa: S310
            with opener_for(self._url).open(request, timeout=TIMEOUT_SECONDS) as answer:
                body = answer.read(MAX_ANSWER_BYTES + 1)
        except urllib.error.HTTPError as error:
            _refuse(self._url + path, error.code)
        except TimeoutError:
            raise VerifyError(
                f"{self._url} did not answer within {TIMEOUT_SECONDS:g} seconds"
            ) from None
        except (http.client.InvalidURL, ValueError):
            raise VerifyError(f"{self._url} is not an address: write http://host:port") from None
        except http.client.IncompleteRead:
            raise VerifyError(f"{self._url}{path} broke off in its answer: try again") from None
        except OSError as error:
            reason = getattr(error, "reason", error)
            raise VerifyError(f"{self._url} cannot be reached: {reason}") from None
        except http.client.HTTPException:
            raise VerifyError(f"{self._url} is not Whetstone's: it does not speak HTTP") from None
        if len(body) > MAX_ANSWER_BYTES:
            raise VerifyError(f"{self._url}{path} answered with more than {MAX_ANSWER_BYTES} bytes")
        return body

    def classify(self, golden: Sequence[GoldenAnswer], manifest: Manifest) -> list[Decision]:
        """The answers to golden texts.

        Raises:
            VerifyError: they are not answers of this package's labels.
        """
        content: dict[str, Any] = {"input": [one.text for one in golden]}
        if manifest.has_pairs:
            content["text_pair"] = [one.text_pair for one in golden]
        answer = self.ask("/classify", content)
        try:
            decisions = [_decision(item, manifest) for item in answer["data"]]
        except (KeyError, TypeError, ValueError, OverflowError):
            decisions = []
        if len(decisions) != len(golden):
            raise VerifyError(f"{self._url}/classify answered with something else than classes")
        return decisions


def opener_for(url: str) -> urllib.request.OpenerDirector:
    """What asks `url`: no redirects, and of this machine itself no proxy either."""
    # A key must not follow a redirect to another host, and no route of ours redirects.
    handlers: list[Any] = [_NoRedirects]
    with suppress(ValueError):
        if urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1"):
            handlers.append(urllib.request.ProxyHandler({}))
    return urllib.request.build_opener(*handlers)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect is an error with its own status."""

    def redirect_request(self, *_: Any) -> None:
        """Do not follow."""


def _decision(item: Any, manifest: Manifest) -> Decision:
    """One answer of `/classify`; KeyError, TypeError, ValueError or OverflowError if it is none."""
    if not isinstance(item, dict):
        raise TypeError
    label, labels = item["label"], item.get("labels")
    probs = np.asarray(item["probs"], dtype=np.float32)
    named = [label, *(labels or ())]
    if any(name not in manifest.labels for name in named) or probs.shape != (len(manifest.labels),):
        raise ValueError
    several = None if labels is None else tuple(labels)
    return Decision(label, float(item["score"]), probs, several, item.get("abstained"))


def _requests(
    golden: Sequence[GoldenAnswer], info: dict[str, Any], manifest: Manifest
) -> Iterator[list[GoldenAnswer]]:
    """Golden texts in as few requests as the service's limits take.

    A text by windows goes alone: how many windows it needs is the service's to count.
    """
    limits = info.get("limits")
    most = _limit(limits, "texts", TEXTS_PER_REQUEST)
    if manifest.long_text == "window":
        most = 1
    # Half of a body: what stands around the texts takes little.
    room = _limit(limits, "body_bytes", SMALL_BODY_BYTES) // 2
    part: list[GoldenAnswer] = []
    used = 0
    for one in golden:
        size = len(json.dumps([one.text, one.text_pair]))
        if part and (len(part) == most or used + size > room):
            yield part
            part, used = [], 0
        part.append(one)
        used += size
    if part:
        yield part


def _limit(limits: object, name: str, most: int) -> int:
    """A limit that a service states, at most so much."""
    stated = limits.get(name) if isinstance(limits, dict) else None
    return min(stated, most) if isinstance(stated, int) and stated > 0 else most


def _refuse(address: str, status: int) -> NoReturn:
    """Say what a status means to who verifies."""
    meaning = {
        401: "the API key is missing or wrong: give it with --api_key_file",
        404: "that is not Whetstone's: is this the right address?",
        413: "a golden text is too large for it: raise WHETSTONE_MAX_BODY_BYTES there",
        422: "its limits refuse a golden text: raise WHETSTONE_MAX_CHARACTERS or "
        "WHETSTONE_MAX_WINDOWS there",
        429: "it is overloaded: try again",
        503: "it is starting or shutting down: try again",
        504: "it was too slow: try again",
    }.get(status)
    if 300 <= status < 400:
        meaning = "it redirects, which is not followed: give the address that it redirects to"
    known = {one.value: one.phrase for one in HTTPStatus}
    raise VerifyError(
        f"{address} answered {status} {known.get(status, '')}".rstrip()
        + (f": {meaning}" if meaning else "")
    )


def _served(url: str, version: str) -> Path:
    """The model of the store that a service says it serves."""
    try:
        return package_folder(f"{MODEL_STORE_NAME}:{version}")
    except VerifyError:
        raise VerifyError(
            f"{url} serves version {version}, which is not in BentoML's model store here: name "
            "its package with --package"
        ) from None


def read_key(path: Path | None) -> str | None:
    """The API key in a file's first line.

    Raises:
        VerifyError: there is none.
    """
    if path is None:
        return None
    # Bytes that are no text are refused below, without a word of them.
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    key = lines[0].strip() if lines else ""
    if not key or not key.isascii() or not key.isprintable():
        raise VerifyError(f"{path} holds no API key in its first line")
    return key


def _found(where: str, manifest: Manifest, golden: int) -> str:
    asked = f"{golden} golden texts answered as recorded" if golden else "it has no golden texts"
    return f"{where}: {manifest.name} {manifest.version}, {manifest.precision}, {asked}"
