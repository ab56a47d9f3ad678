"""The report's sections about what else was tried and tested.

Rows that training has seen, candidates, behaviour tests.
"""

from __future__ import annotations

from typing import Any

from service.model_package import Manifest
from training.digits import difference_decimals
from training.report.page import (
    NOTHING,
    Column,
    Html,
    Section,
    count,
    counted,
    element,
    join,
    labelled,
    number,
    paragraph,
    plural,
    scored,
    signed,
    span,
    table,
    user_text,
)

# A candidate's numbers: key, name and what it is.
MEASURES = (
    ("accuracy", "Accuracy", "rows with exactly the right answer"),
    ("macro_f1", "Macro-F1", "every label counts alike"),
    ("label_agreement", "Agreement", "rows answered as by the checkpoint"),
    ("mean_probability_drift", "Mean drift", "of a probability"),
    ("largest_probability_drift", "Largest drift", "of a probability"),
    ("largest_change_by_neighbours", "Neighbours", "change with the other texts of a batch"),
)
# Those that few rows tell roughly; drifts are hardly noisy.
SHARES = ("accuracy", "macro_f1", "label_agreement")
VERDICTS = {"passed": "good", "refused": "bad", "inconclusive": "open", "unavailable": "open"}


def unseen(metrics: dict[str, Any]) -> Section | None:
    """The score with and without the rows that training has seen, where that was looked at."""
    found = metrics.get("unseen")
    if found is None:
        return None
    near = found["by"] == "near-duplicates"
    kind = "near-duplicates of" if near else "equal to"
    looked_at = plural(found["looked_at"], "row")
    said = [f"Of {looked_at} {count(found['seen'])} are {kind} texts of training. "]
    if not near:
        said.append(
            "A package keeps hashes of its texts, so that only equal ones are found; the report of "
            "whetstone run counts near-duplicates, too."
        )
    lines = [
        ("all rows", found["with"]),
        (f"those not {kind} a text of training", found["without"]),
    ]
    names = list(found["with"]["metrics"])
    columns = [Column("Rows", numeric=False), Column("How many")]
    for name in names:
        title = name.replace("_", "-").replace("f1", "F1").capitalize()
        columns += [Column(title), Column("95 % interval")]
    rows = []
    for name, part in lines:
        cells = [element("th", name, scope="row"), counted(part["rows"] if part else 0)]
        for key in names:
            value = part["metrics"][key] if part else None
            cells.append(scored(value and value["value"]))
            ends = span(value["low"], value["high"]) if value else NOTHING
            cells.append(number(ends, value and value["low"]))
        rows.append(cells)
    return Section(
        "unseen",
        "Unseen rows",
        "Without what training has seen",
        "A text that training has, nearly or to the letter, is answered from memory: the second "
        "line says what to expect of new texts.",
        join([paragraph(*said), table(columns, rows, "Unseen rows")]),
    )


def candidates(manifest: Manifest) -> Section | None:
    """Which graphs were tried, which one ships and why the others do not."""
    selection = manifest.selection
    tried: list[dict[str, Any]] = selection.get("candidates", [])
    if not tried:
        return None
    chosen = selection.get("chosen")
    ships: list[Any] = ["Ships: ", element("b", selection.get("reason", chosen))]
    if selection.get("forced"):
        ships.append(element("span", "against the gates", class_="mark bad"))
    reasons = [
        element("li", element("b", one["name"]), f", {one['verdict']}: {'; '.join(one['reasons'])}")
        for one in tried
        if one.get("reasons")
    ]
    measured = selection.get("rows")
    on = f" on {plural(measured, 'validation row')}" if measured else ""
    return Section(
        "candidates",
        "Candidates",
        "What was tried, and what ships",
        f"Each candidate against the trained checkpoint{on}: a smaller and faster one ships "
        "when it answers alike.",
        join(
            [
                paragraph(*ships),
                _comparison(tried, chosen, measured),
                element("ul", *reasons, class_="reasons") if reasons else "",
            ]
        ),
    )


def _comparison(tried: list[dict[str, Any]], chosen: str | None, rows_measured: int | None) -> Html:
    """A line a measure, a column a candidate: there are more measures than candidates."""
    columns = [Column("", numeric=False)] + [Column(one["name"]) for one in tried]
    verdicts = []
    for one in tried:
        verdict = element(
            "span", one["verdict"], class_=f"verdict-{VERDICTS.get(one['verdict'], 'open')}"
        )
        mark = element("span", "ships", class_="mark good") if one["name"] == chosen else ""
        verdicts.append(element("td", verdict, " ", mark, class_="n"))
    rows = [[element("th", "Verdict", scope="row"), *verdicts]]
    for key, name, about in MEASURES:
        if any(one.get(key) is not None for one in tried):
            size = rows_measured if key in SHARES else None
            rows.append([_measure(name, about), *(scored(one.get(key), size) for one in tried)])
        if key == "macro_f1":
            about = "to the checkpoint, with its 95 % interval over the same rows"
            differences = [_difference(one.get("macro_f1_difference") or {}) for one in tried]
            rows.append([_measure("Difference of macro-F1", about), *differences])
    sizes = [one.get("bytes") for one in tried]
    megabytes = [number("" if size is None else f"{size / 1e6:.1f}", size) for size in sizes]
    rows.append([_measure("Size", "MB"), *megabytes])
    costs = [one.get("cpu_ms_per_text") or {} for one in tried]
    for length in sorted({length for cost in costs for length in cost}, key=int):
        cells = [number(f"{cost.get(length, 0):.2f}", cost.get(length)) for cost in costs]
        rows.append([_measure(f"CPU time of {length} tokens", "ms a text"), *cells])
    return table(columns, rows, "Candidates")


def _measure(name: str, about: str) -> Html:
    return element("th", name, element("span", about, class_="about"), scope="row")


def _difference(found: dict[str, float]) -> Html:
    written = signed(found.get("point"))
    if "low" in found and "high" in found:
        digits = difference_decimals((found["high"] - found["low"]) / 2)
        written = signed(found.get("point"), digits)
        ends = f"{signed(found['low'], digits)} to {signed(found['high'], digits)}"
        return element("td", written, element("span", ends, class_="about"), class_="n")
    return number(written, found.get("point"))


def behaviour_tests(results: dict[str, Any] | None) -> Section | None:
    """What the behaviour tests found."""
    if results is None:
        return None
    passed, failed = int(results.get("passed", 0)), int(results.get("failed", 0))
    columns = [Column("Kind", numeric=False), Column("Passed"), Column("Failed"), Column("Share")]
    rows = [
        [
            labelled(kind),
            counted(found["passed"]),
            counted(found["failed"]),
            scored(_passed_share(found), found["passed"] + found["failed"], bar="good"),
        ]
        for kind, found in results.get("kinds", {}).items()
    ]
    failures = [_failure(failure) for failure in results.get("failures", [])]
    parts = [paragraph(element("b", f"{passed:,} passed, {failed:,} failed"))]
    if rows:
        parts.append(table(columns, rows, "Behaviour tests by kind"))
    if failures:
        parts += [element("h3", "Failures"), element("ol", *failures, class_="rows")]
    return Section(
        "behaviour",
        "Behaviour",
        "Behaviour tests",
        "Texts that were written to ask one thing each, and what was to be answered.",
        join(parts),
    )


def _passed_share(found: dict[str, int]) -> float:
    return found["passed"] / max(found["passed"] + found["failed"], 1)


def _failure(failure: dict[str, Any]) -> Html:
    facts = [
        element(
            "div",
            element("span", name, class_="role"),
            user_text(failure.get(key, NOTHING), class_="label"),
            class_=class_,
        )
        for name, key, class_ in (("expected", "expected", "true"), ("got", "got", "miss"))
    ]
    about = [user_text(failure.get("kind", "")), " · ", user_text(failure.get("name", ""))]
    text = failure.get("text", "")
    texts = [text] if isinstance(text, str) else text
    return element(
        "li",
        element("div", *facts, class_="verdict"),
        element("div", *(user_text(part, "p", "text") for part in texts), class_="texts pair"),
        paragraph(*about, class_="details"),
    )
