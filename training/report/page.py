"""What the report is written with: escaped HTML, numbers of one format, tables, the whole page.

Text is escaped unless it is `Html`, so a label or a text of the user cannot become markup. The page
loads nothing: style and script stand in it, and its Content-Security-Policy allows that one script
by its hash and no request at all.
"""

from __future__ import annotations

import base64
import hashlib
import html
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Literal

from training.digits import decimals, measured

STYLE, SCRIPT = "report.css", "report.js"
# What stands for a number that is not there.
NOTHING = "–"  # noqa: RUF001
# A table with more rows than this scrolls by itself on screen.
LONG_TABLE = 40

# A name of several words may break here.
BREAKS = re.compile(r"([_/.:-])(?=\w)")

# What much of it means.
Bar = Literal["good", "bad"]


class Html(str):
    """Markup, not to be escaped."""

    __slots__ = ()


@dataclass(frozen=True)
class Section:
    """`how` says in a sentence how to read it; `short` is its name in the list of contents."""

    name: str
    short: str
    title: str
    how: str
    content: Html


def escape(value: object) -> Html:
    """A value as markup that shows it; half of a surrogate pair, which is no text, as `?`."""
    if isinstance(value, Html):
        return value
    return Html(html.escape(str(value).encode("utf-8", "replace").decode("utf-8")))


def join(parts: Iterable[object]) -> Html:
    """The parts one after another."""
    return Html("".join(map(escape, parts)))


def element(name: str, /, *content: object, **attributes: object) -> Html:
    """One element. Attributes: `class_` is class, `data_v` data-v; None and False leave it out."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{"" if value is True else escape(value)}"'
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    return Html(f"<{name}{written}>{join(content)}</{name}>")


def paragraph(*content: object, class_: str | None = None) -> Html:
    """A paragraph."""
    return element("p", *content, class_=class_)


def user_text(value: object, name: str = "span", class_: str | None = None) -> Html:
    """A text or a label of the user, which may run from right to left."""
    return element(name, value, dir="auto", class_=class_)


def score(value: float | None, rows: int | None = None, *, digits: int = 3) -> str:
    """A probability; or what was measured on so many rows, with the decimals that they carry."""
    if value is None or math.isnan(value):
        return NOTHING
    return f"{value:.{digits}f}" if rows is None else measured(value, rows)


def signed(value: float | None, digits: int = 3) -> str:
    """A difference."""
    if value is None or math.isnan(value):
        return NOTHING
    written = f"{value:+.{digits}f}".replace("-", "−")  # noqa: RUF001
    return written if round(value, digits) else written[1:]


def count(value: int) -> str:
    """A number of things."""
    return f"{value:,}"


def span(low: float, high: float) -> str:
    """Two scores as an interval, with the decimals that its width allows."""
    digits = decimals((high - low) / 2)
    return f"{score(low, digits=digits)}–{score(high, digits=digits)}"  # noqa: RUF001


def plural(number: int, singular: str) -> str:
    """`1 row`, `2 rows`."""
    return f"{count(number)} {singular}{'' if number == 1 else 's'}"


@dataclass(frozen=True)
class Column:
    """A heading; `about` is shown over it, numbers are set flush right."""

    title: str
    about: str | None = None
    numeric: bool = True


def words(content: object) -> Html:
    """A cell with text."""
    return element("td", content)


def number(written: str, value: float | None, *, bar: Bar | None = None) -> Html:
    """A cell with a number; `value` is what it is sorted by, with `bar` drawn as a share of 1."""
    if value is None or math.isnan(value):
        return element("td", NOTHING, class_="n")
    return element(
        "td",
        written,
        class_=f"n bar {bar}" if bar else "n",
        data_v=f"{value:.9g}",
        style=f"--v:{min(1.0, value) * 100:.1f}" if bar else None,
    )


def scored(value: float | None, rows: int | None = None, *, bar: Bar | None = None) -> Html:
    """A cell with a score."""
    return number(score(value, rows), value, bar=bar)


def counted(value: int) -> Html:
    """A cell with a number of things."""
    return number(count(value), value)


def label_name(label: str, class_: str | None = None) -> Html:
    """A label, which may be broken after what joins its words."""
    return user_text(Html(BREAKS.sub("\\1<wbr>", escape(label))), class_=class_)


def labelled(label: str) -> Html:
    """The cell that names the row."""
    return element("th", label_name(label), scope="row")


def table(
    columns: Sequence[Column],
    rows: Sequence[Sequence[Html]],
    caption: str,
    *,
    sorted_by: tuple[int, str] | None = None,
) -> Html:
    """A table that scrolls sideways where it must.

    Args:
        rows: cells, made by `words`, `number`, `scored`, `counted` and `labelled`.
        caption: for those who hear the page.
        sorted_by: makes it sortable; the column and the direction the rows already have.
    """
    heads = []
    for index, column in enumerate(columns):
        title: object = column.title
        order = None
        if sorted_by is not None:
            title = element("button", column.title, type="button")
            order = sorted_by[1] if index == sorted_by[0] else "none"
        kind = "n" if column.numeric else None
        heads.append(
            element("th", title, scope="col", class_=kind, title=column.about, aria_sort=order)
        )
    body = [element("tr", *cells) for cells in rows]
    whole = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *heads)),
        element("tbody", *body),
        class_="sortable" if sorted_by else None,
    )
    return scrolling(whole, caption, tall=len(rows) > LONG_TABLE)


def scrolling(content: Html, label: str, *, tall: bool = False) -> Html:
    """A region that scrolls by itself, by keyboard too."""
    kind = "scroll tall" if tall else "scroll"
    return element("div", content, class_=kind, tabindex=0, role="region", aria_label=label)


def folded(items: Sequence[Html], shown: int, name: str) -> Html:
    """A list of which the first are shown and the others open on demand."""
    visible = element("ol", *items[:shown], class_="rows")
    if len(items) <= shown:
        return visible
    others = element("ol", *items[shown:], class_="rows", start=shown + 1)
    more = element("summary", f"{len(items) - shown} more {name}")
    return join([visible, element("details", more, others, class_="more")])


def page(title: str, header: Html, sections: Sequence[Section], footer: Html) -> str:
    """The whole file."""
    script = _asset(SCRIPT)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    links = [
        element("li", element("a", section.short, href=f"#{section.name}")) for section in sections
    ]
    contents = element("nav", element("ol", *links), aria_label="Contents")
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="referrer" content="no-referrer">',
            element("title", title),
            f"<style>{_asset(STYLE)}</style>",
            "</head>",
            "<body>",
            element("a", "Skip to the numbers", href=f"#{sections[0].name}", class_="skip"),
            element("header", header),
            contents,
            element("main", *map(_section, sections)),
            element("footer", footer),
            f"<script>{script}</script>",
            "</body>",
            "</html>",
            "",
        ]
    )


def _section(section: Section) -> Html:
    heading = element("h2", section.title)
    how = paragraph(section.how, class_="how")
    return element("section", heading, how, section.content, id=section.name)


def _asset(name: str) -> str:
    return resources.files("training.report").joinpath(name).read_text(encoding="utf-8")
