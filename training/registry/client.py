"""A client of a running service, over HTTP."""

from __future__ import annotations

import http.client
import json
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import numpy as np

from service.inference.decisions import Decision
from service.package.golden import GoldenAnswer
from service.package.manifest import VERSION_PATTERN, Manifest
from training.common.errors import KeyRefusedError, VerifyError

TIMEOUT_SECONDS = 10.0
# Ten times an answer to 32 texts with a thousand labels.
MAX_ANSWER_BYTES = 16 * 2**20
TEXTS_PER_REQUEST = 32
SMALL_BODY_BYTES = 2**20
VERSION = re.compile(VERSION_PATTERN)


class Service:
    """A running service; requests have a time-out, answers a limit, and redirects are refused."""

    def __init__(self, url: str, key: str | None) -> None:
        self._url = url.rstrip("/")
        self._headers = {"Content-Type": "application/json"}
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"

    def ask(self, path: str, content: object = None) -> dict[str, Any]:
        """Ask a route; the JSON object of its answer.

        Raises:
            VerifyError: there is no such answer; one sentence says why.
        """
        try:
            answer = json.loads(self.read(path, content))
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise VerifyError(f"{self._url}{path} is not Whetstone's: it answered with other text")
        return answer

    def read(self, path: str, content: object = None) -> bytes:
        """Ask a route; the bytes of its answer.

        Raises:
            VerifyError: there is no such answer; one sentence says why.
        """
        data = None if content is None else json.dumps(content).encode()
        try:
            request = urllib.request.Request(self._url + path, data=data, headers=self._headers)  # noqa: S310
            with opener_for(self._url).open(request, timeout=TIMEOUT_SECONDS) as answer:
                body: bytes = answer.read(MAX_ANSWER_BYTES + 1)
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
        """Let the service classify golden texts.

        Raises:
            VerifyError: they are not answers of this package's labels.
        """
        content: dict[str, Any] = {"input": [text.text for text in golden]}
        if manifest.has_pairs:
            content["text_pair"] = [text.text_pair for text in golden]
        answer = self.ask("/classify", content)
        try:
            decisions = [_decision(item, manifest) for item in answer["data"]]
        except (KeyError, TypeError, ValueError, OverflowError):
            decisions = []
        if len(decisions) != len(golden):
            raise VerifyError(f"{self._url}/classify answered with something else than classes")
        return decisions


def opener_for(url: str) -> urllib.request.OpenerDirector:
    """An opener that follows no redirect, and uses no proxy for this machine itself."""
    # A key must not go to another host by a redirect, and no route of ours redirects.
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
    all_labels = [label, *(labels or ())]
    if any(name not in manifest.labels for name in all_labels) or probs.shape != (
        len(manifest.labels),
    ):
        raise ValueError
    several = None if labels is None else tuple(labels)
    return Decision(label, float(item["score"]), probs, several, item.get("abstained"))


def _refuse(address: str, status: int) -> NoReturn:
    """Raise VerifyError or KeyRefusedError with the meaning of a status."""
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
    phrases = {status.value: status.phrase for status in HTTPStatus}
    kind = KeyRefusedError if status == HTTPStatus.UNAUTHORIZED else VerifyError
    raise kind(
        f"{address} answered {status} {phrases.get(status, '')}".rstrip()
        + (f": {meaning}" if meaning else "")
    )


def read_key(path: Path | None) -> str | None:
    """The API key in a file's first line.

    Raises:
        VerifyError: there is none.
    """
    if path is None:
        return None
    # Bytes that are no text are refused below, without quoting them.
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    key = lines[0].strip() if lines else ""
    if not key or not key.isascii() or not key.isprintable():
        raise VerifyError(f"{path} holds no API key in its first line")
    return key
