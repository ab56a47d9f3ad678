"""The steps on a terminal and in a log."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

import pytest

from release.console import StepConsole
from tests.conftest import ROOT

STEP = """
import time
from release.console import StepConsole
console = StepConsole()
with console.step("watch") as results:
    for count in (10, 20):
        console.report(f"{count} requests")
        time.sleep(0.3)
    results.append("good")
"""


def test_a_terminal_has_one_line_that_is_written_again() -> None:
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", STEP],
        stdout=slave,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(slave)
    shown = b""
    while True:
        try:
            part = os.read(master, 4096)
        except OSError:
            # Linux says so when the other side is closed.
            break
        if not part:
            break
        shown += part
    os.close(master)
    assert process.wait(30) == 0
    text = shown.decode()
    assert "watch: 10 requests" in text and "watch: 20 requests" in text
    # The line is erased before it is written again, and what stays is the step's own.
    assert "\x1b[2K" in text[text.index("10 requests") : text.index("20 requests")]
    lines = [line for line in re.split(r"\r?\n", text) if line]
    assert "good" in lines[-1] and "10 requests" not in lines[-1]


def test_a_log_has_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = 1000.0
    monkeypatch.setattr("release.console.time.monotonic", lambda: clock)
    console = StepConsole()
    with console.step("watch"):
        for number in range(14):
            console.report(f"look {number}")
            clock += 5
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["watch: look 6", "watch: look 12", "watch     done  (70.0 s)"]
