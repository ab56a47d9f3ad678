"""Callers in a closed loop against a real server: each asks again as soon as it has its answer."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from contextlib import closing
from urllib.parse import urlsplit

BODY = json.dumps({"input": "where is my parcel"}).encode()
SECONDS = 60


class ClosedLoop(threading.Thread):
    """A caller in a closed loop.

    `lost` holds the errors of requests that the server had to answer and did not: those that were
    written before the signal, and those on a connection that had answered before.
    """

    def __init__(self, address: str, signalled: list[float]) -> None:
        super().__init__()
        self.statuses: Counter[int] = Counter()
        self.closes = 0
        self.lost: list[str] = []
        self._address = urlsplit(address)
        self._signalled = signalled

    def run(self) -> None:
        while self._use_one_connection():
            pass

    def _use_one_connection(self) -> bool:
        with closing(http.client.HTTPConnection(self._address.netloc, timeout=SECONDS)) as opened:
            try:
                opened.connect()
            except OSError:
                return False
            return self._ask_again_and_again(opened)

    def _ask_again_and_again(self, connection: http.client.HTTPConnection) -> bool:
        """Whether the server asked for a new connection."""
        has_answered = False
        while True:
            written = 0.0
            try:
                connection.request("POST", "/classify", BODY, {"Content-Type": "application/json"})
                written = time.monotonic()
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException) as error:
                before = written and not (self._signalled and written > self._signalled[0])
                if has_answered or before:
                    self.lost.append(repr(error))
                return False
            self.statuses[answer.status] += 1
            has_answered = True
            if answer.getheader("connection") == "close":
                self.closes += 1
                return True
