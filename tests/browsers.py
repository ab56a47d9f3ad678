"""A real browser for the tests that need one: headless Chromium by WebDriver, plain HTTP."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.servers import free_port

START_SECONDS = 60
ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def chromium() -> tuple[str, str]:
    """The paths of Chromium and of its driver; without them the test fails."""
    found = shutil.which("chromium"), shutil.which("chromedriver")
    if found[0] is None or found[1] is None:
        pytest.fail("install Debian's chromium and chromium-driver: make test-browser-setup")
    return found[0], found[1]


class Browser:
    """One window. Commands are those of https://www.w3.org/TR/webdriver2/ and of DevTools."""

    def __init__(self, session: str) -> None:
        self._session = session

    def open(self, address: str) -> None:
        """Go to an address and wait for the page."""
        _post(f"{self._session}/url", {"url": address})

    def run(self, script: str) -> Any:
        """What a function body in JavaScript returns."""
        return _post(f"{self._session}/execute/sync", {"script": script, "args": []})

    def console(self) -> list[str]:
        """The warnings and errors since the last call: violations of the page's policy too."""
        entries = _post(f"{self._session}/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] in ("WARNING", "SEVERE")]

    def devtools(self, command: str, **parameters: Any) -> Any:
        """A command of the DevTools protocol."""
        content = {"cmd": command, "params": parameters}
        return _post(f"{self._session}/goog/cdp/execute", content)

    def show(self, width: int, scheme: str) -> None:
        """Make the window that wide, and the user's preference `light` or `dark`."""
        phone = width < 600
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=844 if phone else 900,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.devtools("Emulation.setEmulatedMedia", features=[feature])

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """What is in the window as a PNG, or the whole page."""
        picture = self.devtools("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(picture["data"]))

    def pdf(self, path: Path) -> None:
        """The page as it prints."""
        printed = self.devtools("Page.printToPDF", printBackground=True)
        path.write_bytes(base64.b64decode(printed["data"]))


@contextmanager
def browsing() -> Iterator[Browser]:
    """A browser with a profile of its own, ended after."""
    binary, driver = chromium()
    port = free_port()
    process = subprocess.Popen(
        [driver, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_until_ready(address)
        with tempfile.TemporaryDirectory(prefix="whetstone-browser-") as profile:
            options = {"binary": binary, "args": [*ARGUMENTS, f"--user-data-dir={profile}"]}
            wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
            made = _post(f"{address}/session", {"capabilities": {"alwaysMatch": wanted}})
            session = f"{address}/session/{made['sessionId']}"
            try:
                yield Browser(session)
            finally:
                _send(urllib.request.Request(session, method="DELETE"))
    finally:
        process.terminate()
        process.wait(timeout=30)


def _wait_until_ready(address: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            if _send(urllib.request.Request(f"{address}/status"))["ready"]:
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("chromedriver did not get ready")


def _post(address: str, content: dict[str, Any]) -> Any:
    data = json.dumps(content).encode()
    kind = {"Content-Type": "application/json"}
    return _send(urllib.request.Request(address, data=data, headers=kind, method="POST"))


def _send(request: urllib.request.Request) -> Any:
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)["value"]
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{request.full_url}: {error.read().decode()[:1000]}") from None
