"""The report is whole, loads nothing, escapes everything, and says what the metrics say."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest

from service.inference.classifier import Prediction
from service.inference.decisions import decide, sigmoid, softmax
from service.package.files import FileRecord
from service.package.manifest import HASHED_FILES, Manifest, Profile, Text
from tests.browsers import Browser, browsing
from training.data.splits import Split
from training.evaluation.metrics import all_metrics
from training.evaluation.report.formats import breakable, score, signed, span
from training.evaluation.report.report import write_report
from training.evaluation.report.rows import (
    CURVE_POINTS,
    SLICE_VALUES,
    Measured,
    by_label_frequency,
    by_length,
    by_value,
    confident_errors,
    confusions,
    least_certain,
    measure,
    precision_recall,
)
from training.evaluation.significance import wilson

VOID = {"meta", "wbr"}
ATTACK = """<script>alert("1")</script>&'"""
SELECTION: dict[str, Any] = {
    "rows": 128,
    "chosen": "int8, full range",
    "forced": True,
    "reason": "it was asked for",
    "candidates": [
        {
            "name": "fp32",
            "verdict": "passed",
            "reasons": [],
            "accuracy": 0.91,
            "macro_f1": 0.9,
            "label_agreement": 1.0,
            "mean_probability_drift": 0.0,
            "largest_probability_drift": 0.0,
            "macro_f1_difference": {"point": 0.0, "low": -0.001, "high": 0.001},
            "largest_change_by_neighbours": 1e-7,
            "bytes": 91_200_000,
            "cpu_ms_per_text": {"16": 2.1, "256": 31.2, "64": 6.2},
        },
        {
            "name": "int8, full range",
            "verdict": "refused",
            "reasons": ["agrees with the checkpoint in 0.962 of the rows"],
            "macro_f1_difference": {"point": -0.025, "low": -0.047, "high": -0.004},
        },
        {"name": "optimized", "verdict": "unavailable", "reasons": ["no attention was found"]},
    ],
}
CALIBRATION = {
    "method": "temperature",
    "rows": 128,
    "before": {"ece": 0.061, "brier": 0.152, "log_loss": 0.41},
    "after": {"ece": 0.032, "brier": 0.148, "log_loss": 0.35},
}
BEHAVIOUR = {
    "passed": 41,
    "failed": 1,
    "kinds": {"negation": {"passed": 41, "failed": 1}},
    "failures": [
        {"kind": "negation", "name": "a", "text": ATTACK, "expected": "praise", "got": "billing"}
    ],
}


@dataclass
class Case:
    """A package's answers to some rows."""

    manifest: Manifest
    texts: list[Text]
    truth: list[tuple[str, ...]]
    probs: np.ndarray
    tokens: list[int] = field(default_factory=list)

    def answers(self) -> list[Prediction]:
        tokens = self.tokens or [3] * len(self.texts)
        decisions = decide(self.probs.astype(np.float32), self.manifest)
        return [
            Prediction(d.label, d.score, d.probs, d.labels, d.abstained, count, 1, False)
            for d, count in zip(decisions, tokens, strict=True)
        ]

    def measured(self) -> Measured:
        answers = self.answers()
        metrics = all_metrics(self.manifest, self.truth, answers)
        return measure(self.manifest, Split(self.texts, self.truth), answers, metrics)

    def write(self, path: Path, **options: Any) -> str:
        answers = self.answers()
        metrics = all_metrics(self.manifest, self.truth, answers)
        split = Split(self.texts, self.truth)
        write_report(path, self.manifest, split, answers, metrics, where="test.csv", **options)
        return path.read_text(encoding="utf-8")


def manifest(labels: Sequence[str], **fields: Any) -> Manifest:
    shares = {label: 1 / (1 + place) for place, label in enumerate(labels)}
    return Manifest(
        labels=tuple(labels),
        max_length=32,
        name=fields.pop("name", "tickets"),
        version="0123456789ab",
        created_at="2026-11-24T08:36:58+00:00",
        precision="int8",
        score_tolerance=0.01,
        profile=Profile(label_priors=shares),
        files={name: FileRecord(sha256="0" * 64, size=1) for name in HASHED_FILES},
        **fields,
    )


def single(labels: Sequence[str], rows: int, strength: float, **fields: Any) -> Case:
    """Rows of one label each; the stronger, the more are answered rightly."""
    random = np.random.default_rng(0)
    places = random.integers(0, len(labels), rows)
    logits = random.normal(size=(rows, len(labels)))
    logits[np.arange(rows), places] += strength
    return Case(
        manifest(labels, **fields),
        [f"text {row} of {labels[place]}" for row, place in enumerate(places)],
        [(labels[place],) for place in places],
        softmax(logits.astype(np.float32)),
        random.integers(3, 60, rows).tolist(),
    )


def seventy_seven() -> Case:
    labels = [f"label_number_{place:02}" for place in range(77)]
    return single(labels, 800, 4, abstain_threshold=0.5, selection=SELECTION)


def binary() -> Case:
    return single(["ham", "spam"], 200, 2, thresholds={"spam": 0.3}, calibration=CALIBRATION)


def several() -> Case:
    labels = [f"feeling {place}" for place in range(12)]
    random = np.random.default_rng(0)
    truth = random.random((300, len(labels))) < 0.15
    probs = sigmoid((random.normal(size=truth.shape) - 2 + 4 * truth).astype(np.float32))
    thresholds = {label: 0.3 + 0.03 * place for place, label in enumerate(labels)}
    return Case(
        manifest(labels, task="multi_label", thresholds=thresholds),
        [f"text {row}" for row in range(len(truth))],
        [tuple(label for label, has in zip(labels, row, strict=True) if has) for row in truth],
        probs,
        random.integers(3, 60, len(truth)).tolist(),
    )


def nothing_to_find() -> Case:
    case = several()
    case.truth = [() for _ in case.truth]
    return case


def pairs() -> Case:
    case = single(["no", "yes"], 60, 1, text_columns=("text", "text_pair"))
    case.texts = [(f"first {row}", f"second {row}") for row in range(60)]
    return case


def one_row() -> Case:
    return single(["a", "b", "c"], 1, 1)


def all_right() -> Case:
    return single(["a", "b", "c"], 50, 99)


def all_wrong() -> Case:
    return single(["a", "b", "c"], 50, -99)


CASES: dict[str, Callable[[], Case]] = {
    case.__name__: case
    for case in (
        *(seventy_seven, binary, several, nothing_to_find),
        *(pairs, one_row, all_right, all_wrong),
    )
}


class Page(HTMLParser):
    """What a page holds; a tag that is not closed, or closes another one, is an error."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(content)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), (tag, names)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def values(self, name: str) -> list[str]:
        """All values of an attribute."""
        return [value for _, attribute, value in self.attributes if attribute == name]

    def inside(self, tag: str) -> list[str]:
        """The texts that stand directly in such an element."""
        return [text for element, text in self.texts if element == tag]


@pytest.mark.parametrize("name", CASES)
def test_a_page_of_every_shape_is_well_formed_and_loads_nothing(name: str, tmp_path: Path) -> None:
    case = CASES[name]()
    slices = {"channel": [f"channel {row % 3}" for row in range(len(case.texts))]}
    path = tmp_path / "report" / "index.html"
    content = case.write(path, slices=slices, behaviour=BEHAVIOUR)
    assert [path.name for path in (tmp_path / "report").iterdir()] == ["index.html"]
    page = Page(content)
    assert not page.values("src")
    links = page.values("href")
    assert links and all(link.startswith("#") for link in links)
    assert {link[1:] for link in links} <= set(page.values("id"))
    assert len(set(page.values("id"))) == len(page.values("id"))
    (style,) = page.inside("style")
    assert "url(" not in style and "@import" not in style
    assert not any(attribute.startswith("on") for _, attribute, _ in page.attributes)
    assert "nan" not in "".join(text for tag, text in page.texts if tag in ("td", "p"))
    expected = {"headline", "labels", "slices", "calibration", "scores"}
    expected |= {"confident-errors", "least-certain"}
    assert expected <= set(page.values("id"))
    assert ("errors" if case.manifest.task == "multi_label" else "confusions") in page.values("id")


def test_the_policy_allows_the_one_script_by_its_hash(tmp_path: Path) -> None:
    page = Page(one_row().write(tmp_path / "index.html"))
    (script,) = page.inside("script")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(value for value in page.values("content") if "default-src" in value)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == f"'sha256-{digest}'"


def test_what_the_user_wrote_is_never_markup(tmp_path: Path) -> None:
    labels = [ATTACK, "other"]
    case = single(labels, 40, 0, name=ATTACK, selection=SELECTION)
    case.texts = [f"{row} {ATTACK} \ud800 {'long ' * 100}" for row in range(40)]
    slices = {ATTACK: [f"{ATTACK}{row % 2}" for row in range(40)]}
    content = case.write(tmp_path / "index.html", slices=slices, behaviour=BEHAVIOUR)
    page = Page(content)
    assert page.open == [] and len(page.inside("script")) == 1
    assert "alert" not in page.inside("script")[0]
    assert "<script>alert" not in content
    shown = [text for _, text in page.texts]
    for found in (ATTACK, f"By {ATTACK}", f"{ATTACK}0", f"0 {ATTACK} ? {'long ' * 100}"):
        assert found in shown
    assert any(value.startswith(f"{ATTACK} answered other") for value in page.values("title"))


def test_a_label_may_break_after_what_joins_its_words_and_is_escaped() -> None:
    assert breakable("card_lost/stolen") == "card_<wbr>lost/<wbr>stolen"
    assert breakable('<b>_"x"') == "&lt;b&gt;_&#34;x&#34;"


def test_numbers_have_one_format() -> None:
    assert [score(value) for value in (0.12345, 1, None, float("nan"))] == [
        *("0.123", "1.000", "–", "–"),  # noqa: RUF001
    ]
    written = [signed(value) for value in (0.0123, -0.0123, -0.0001, None)]
    assert written == ["+0.012", "−0.012", "0.000", "–"]  # noqa: RUF001
    assert [score(0.875, rows) for rows in (8, 1000, 10_000)] == ["0.88", "0.88", "0.875"]
    assert span(0.8812, 0.9331) == "0.88–0.93"  # noqa: RUF001
    assert span(0.9212, 0.9331) == "0.921–0.933"  # noqa: RUF001


@pytest.mark.parametrize(("hits", "rows"), [(0, 10), (10, 10), (9, 10), (1, 1), (481, 1000)])
def test_the_interval_of_a_share_is_wilsons(hits: int, rows: int) -> None:
    expected = binomtest(hits, rows).proportion_ci(method="wilson")
    assert wilson(hits, rows) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_the_headline_has_intervals(tmp_path: Path) -> None:
    case = binary()
    metrics = case.measured().metrics
    content = case.write(tmp_path / "index.html")
    tiles = dict(re.findall(r'<div class="tile"><h3>(.*?)</h3><p class="value">(.*?)</p>', content))
    # So few rows carry two digits.
    assert tiles["Accuracy"] == f"{metrics['accuracy']:.2f}"
    assert tiles["F1 of spam"] == f"{metrics['positive']['f1']:.2f}"
    assert tiles["ECE"] == f"{metrics['calibration']['ece']:.2f}"
    tile = content.split("<h3>F1 of spam</h3>")[1].split("</div>")[0]
    low, high = map(float, re.findall(r"[01]\.\d{2}", tile.split("95 % interval")[1])[:2])
    assert low < metrics["positive"]["f1"] < high


def test_errors_are_ranked_by_confidence_and_rows_by_certainty() -> None:
    labels = ("a", "b", "c")
    probs = np.asarray([[0.9, 0.1, 0], [0.2, 0.8, 0], [0.34, 0.33, 0.33], [0.6, 0.4, 0]])
    truth = [("b",), ("b",), ("c",), ("b",)]
    found = Case(manifest(labels), ["0", "1", "2", "3"], truth, probs).measured()
    assert confident_errors(found) == [0, 3, 2]
    assert least_certain(found) == [2, 3, 1, 0]
    assert [(pair.label, pair.answer, pair.rows) for pair in confusions(found.metrics)] == [
        ("b", "a", 2),
        ("c", "a", 1),
    ]
    assert confusions(found.metrics)[0].share == pytest.approx(2 / 3)


def test_of_several_labels_the_farthest_wrong_one_is_the_confidence_of_an_error() -> None:
    thresholds = {"a": 0.5, "b": 0.2}
    probs = np.asarray([[0.9, 0.9], [0.4, 0.1], [0.9, 0.1], [0.1, 0.25]])
    truth = [("a",), ("a", "b"), ("a",), ()]
    case = Case(
        manifest(("a", "b"), task="multi_label", thresholds=thresholds), list("wxyz"), truth, probs
    )
    found = case.measured()
    assert found.right.tolist() == [False, False, True, False]
    assert found.confidence == pytest.approx([0.7, 0.1, 0, 0.05])
    assert confident_errors(found) == [0, 1, 3]


def test_slices_are_of_all_rows() -> None:
    found = single([f"{place}" for place in range(9)], 400, 2).measured()
    values = [f"value {row % 45}" for row in range(400)]
    for slices in (by_length(found), by_label_frequency(found), by_value(found, values)):
        assert sum(part.rows for part in slices) == 400
        right = sum(part.accuracy * part.rows for part in slices)
        assert right == pytest.approx(found.right.sum())
        assert all(part.low <= part.accuracy <= part.high for part in slices)
    assert len(by_length(found)) == 4
    assert [part.name.split()[0] for part in by_label_frequency(found)] == [
        *("rare", "medium", "common"),
    ]
    mean = np.mean([part.macro_f1 for part in by_label_frequency(found)])
    assert mean == pytest.approx(found.metrics["macro_f1"])
    by_column = by_value(found, values)
    assert len(by_column) == SLICE_VALUES
    assert by_column[-1].name == "other (16 values)"
    assert by_column[0].rows >= by_column[1].rows


def test_a_small_slice_is_marked(tmp_path: Path) -> None:
    slices = {"channel": ["phone"] * 5 + ["email"] * 195}
    content = binary().write(tmp_path / "index.html", slices=slices)
    assert re.search(r">phone</span> <span class=\"mark\"", content)
    assert not re.search(r">email</span> <span class=\"mark\"", content)


def test_curves_have_few_points_and_all_are_real() -> None:
    random = np.random.default_rng(0)
    truth, scores = random.random(5000) < 0.2, random.random(5000)
    points = precision_recall(truth, scores)
    assert 50 < len(points) <= CURVE_POINTS
    assert points == sorted(points, key=lambda point: point[0])
    assert points[-1] == (1, pytest.approx(truth.mean(), abs=0.01))
    assert precision_recall(np.zeros(9, dtype=bool), scores[:9]) == []
    assert precision_recall(np.ones(1, dtype=bool), scores[:1])[-1] == (1, 1)


def test_the_matrix_of_many_labels_counts_what_was_answered(tmp_path: Path) -> None:
    case = seventy_seven()
    content = case.write(tmp_path / "index.html")
    table = content.split('<table class="matrix dense"')[1].split("</table>")[0]
    confusion = np.asarray(case.measured().metrics["confusion"])
    cells = [int(cell) for cell in re.findall(r'<td class="(?:hit|miss)[^>]*>(\d+)</td>', table)]
    assert cells == confusion[confusion > 0].tolist()
    assert table.count('scope="col"') == 77
    listed = content.split("Most confused pairs</caption>")[1].split("</table>")[0]
    first = re.findall(r'data-v="(\d+)"', listed)[0]
    assert int(first) == (confusion * ~np.eye(77, dtype=bool)).max()


def test_a_precision_that_is_not_promised_is_named(tmp_path: Path) -> None:
    promise = {"wanted": 0.9, "rows": 12, "promised": False, "observed": 1.0, "lower_bound": 0.7}
    promises = {"labels": {"a": promise, "b": {**promise, "rows": 90, "promised": True}}}
    calibration = CALIBRATION | {"promises": promises}
    case = single(["a", "b"], 50, 1, calibration=calibration)
    shown = " ".join(text for _, text in Page(case.write(tmp_path / "index.html")).texts)
    assert "label 'a': 12 validation rows can promise a precision of 0.82 at most" in shown
    assert "label 'b'" not in shown


def test_evidence_is_shown_with_its_reasons(tmp_path: Path) -> None:
    case = single(["a", "b"], 50, 1, selection=SELECTION, calibration=CALIBRATION)
    content = case.write(tmp_path / "index.html", behaviour=BEHAVIOUR)
    shown = " ".join(text for _, text in Page(content).texts)
    for expected in (
        "against the gates",
        ", refused: agrees with the checkpoint in 0.962 of the rows",
        ", unavailable: no attention was found",
        "−0.047 to −0.004",  # noqa: RUF001
        "One temperature for all labels was fitted.",
        "41 passed, 1 failed",
    ):
        assert expected in shown
    costs = re.findall(r"CPU time of (\d+) tokens", content)
    assert costs == ["16", "64", "256"]
    assert not {"candidates", "behavior"} & set(
        Page(one_row().write(tmp_path / "index.html")).values("id")
    )


def test_long_texts_are_clipped_and_can_be_opened(tmp_path: Path) -> None:
    case = all_wrong()
    case.texts = ["word " * 100] + ["x" * 9000] + ["short"] * 48
    content = case.write(tmp_path / "index.html")
    page = Page(content)
    assert "word " * 100 in page.inside("p")
    assert any(text.endswith("… (4,000 characters more)") for text in page.inside("p"))
    assert "x" * 5001 not in content
    assert content.count('<details class="long">') == 2 * 2


def test_a_report_without_errors_says_so(tmp_path: Path) -> None:
    content = all_right().write(tmp_path / "index.html")
    assert "Every row is answered with its label." in content
    assert "No label is taken for another." in content


SORTED = """
const head = [...document.querySelectorAll("#labels th")].find((h) => h.innerText.startsWith("F1"));
head.querySelector("button").click();
return [head.ariaSort, [...document.querySelectorAll("#labels tbody tr")].map(
  (row) => parseFloat(row.cells[head.cellIndex].dataset.v))];
"""
CHOSEN = """
const picker = document.querySelector(".picker select");
picker.value = "3";
picker.dispatchEvent(new Event("change"));
return [...document.querySelectorAll(".curve.chosen")].map((curve) => curve.dataset.curve);
"""
TOUCHED = """
document.querySelector(".matrix td.miss").click();
return document.querySelector(".readout").textContent;
"""
WIDTHS = "return [document.documentElement.scrollWidth, window.innerWidth];"


@pytest.mark.slow
def test_a_browser_shows_the_page_without_a_complaint_and_sorts_it(tmp_path: Path) -> None:
    case = seventy_seven()
    case.write(tmp_path / "index.html", behaviour=BEHAVIOUR)
    expected = [row["f1"] for row in case.measured().metrics["per_label"].values()]
    with browsing() as browser:
        browser.open((tmp_path / "index.html").as_uri())
        for direction, reverse in (("descending", True), ("ascending", False)):
            order, values = browser.run(SORTED)
            assert order == direction
            assert values == pytest.approx(sorted(expected, reverse=reverse))
        assert browser.run(CHOSEN) == ["3"]
        assert "answered label_number_" in browser.run(TOUCHED)
        assert browser.console() == []


@pytest.mark.slow
def test_the_policy_stops_what_is_not_the_pages_own(tmp_path: Path) -> None:
    page = tmp_path / "index.html"
    content = one_row().write(page)
    page.write_text(content.replace("</main>", "<script>1</script></main>"), encoding="utf-8")
    with browsing() as browser:
        browser.open(page.as_uri())
        (complaint,) = browser.console()
        assert "Content Security Policy" in complaint


@pytest.mark.slow
@pytest.mark.parametrize("name", ["seventy_seven", "several", "binary"])
def test_the_page_fits_a_desk_and_a_phone_by_day_and_by_night(name: str, tmp_path: Path) -> None:
    CASES[name]().write(tmp_path / "index.html", behaviour=BEHAVIOUR)
    with browsing() as browser:
        browser.open((tmp_path / "index.html").as_uri())
        for width in (1280, 390):
            darkness = [_darkness(browser, tmp_path, width, way) for way in ("light", "dark")]
            assert darkness[0] < 0.2 < 0.8 < darkness[1]
            page, window = browser.run(WIDTHS)
            assert page <= window == width
        assert browser.console() == []


def _darkness(browser: Browser, folder: Path, width: int, scheme: str) -> float:
    """How dark a screenshot is on the whole: 0 white, 1 black."""
    browser.show(width, scheme)
    picture = folder / f"{width}-{scheme}.png"
    browser.screenshot(picture)
    with Image.open(picture) as image:
        return 1 - float(np.asarray(image.convert("L")).mean()) / 255
