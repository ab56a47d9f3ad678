"""The page of a look at production: what it says, and that nothing in it becomes markup."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest

from monitoring.accuracy import Feedbacks
from monitoring.captured import Reading
from monitoring.drift import Reference, drift, overall
from monitoring.page import write_drift_page
from monitoring.report import Accuracy, DriftReport
from monitoring.window import windows_of
from service.capture.records import CapturedAnswer
from tests.browsers import browsing
from tests.monitoring.made import LABELS, answers, manifest

# Of all that is shown, and of the window.
WIDTHS = "return [document.documentElement.scrollWidth, window.innerWidth]"


def report_of(captured: list[CapturedAnswer]) -> DriftReport:
    """What captured answers say of the made package."""
    package = manifest()
    windows = windows_of(package, captured)
    reference = Reference.of_package(package)
    checks = drift(reference, windows[None])
    return DriftReport(
        manifest=package,
        reference=reference,
        since=None,
        until=None,
        windows=windows,
        checks=checks,
        verdict=overall(checks),
        expected=Accuracy(0.9, 0.88, 0.92, len(captured)),
        measured=None,
        trained=0.9,
        feedback=Feedbacks(frozenset(LABELS), package.version),
        reading=Reading(),
    )


class Text(HTMLParser):
    """The words of a page, without its style and script; it counts open tags."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: set[str] = set()
        self._inside = ""
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self._inside = tag

    def handle_data(self, data: str) -> None:
        if self._inside not in ("style", "script"):
            self.words += data.split()


def page_of(tmp_path: Path, captured: list[CapturedAnswer]) -> str:
    path = tmp_path / "drift.html"
    write_drift_page(path, report_of(captured))
    return path.read_text("utf-8")


def test_a_drift_is_named_with_its_shares(tmp_path: Path) -> None:
    said = " ".join(Text(page_of(tmp_path, answers(1000, (0.2, 0.6, 0.2)))).words)
    assert "drift" in said
    assert "label 'billing': 50.0% before, " in said
    assert "label 'delivery': 30.0% before, " in said


def test_steady_production_names_nothing(tmp_path: Path) -> None:
    said = " ".join(Text(page_of(tmp_path, answers(1000))).words)
    assert "steady" in said
    assert "before, " not in said


def test_a_group_cannot_become_markup(tmp_path: Path) -> None:
    page = Text(page_of(tmp_path, answers(300, group="<blink>")))
    assert "blink" not in page.tags
    assert "<blink>" in " ".join(page.words)


@pytest.mark.slow
def test_a_browser_shows_the_page_without_a_complaint(tmp_path: Path) -> None:
    path = tmp_path / "drift.html"
    write_drift_page(path, report_of(answers(1000, (0.2, 0.6, 0.2), group="app")))
    with browsing() as browser:
        browser.open(path.as_uri())
        for width in (360, 1280):
            browser.show(width, "dark")
            page, window = browser.run(WIDTHS)
            assert page <= window
        assert browser.console() == []
