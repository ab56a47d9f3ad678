"""The page of a report: Jinja2 templates, with the style and the script in the page.

    content = render_page("report.html", PACKAGE, title, sections, manifest=manifest)

Every value is escaped unless it is `Markup`, so a label or a text of the user cannot become markup.
The page loads nothing: style and script stand in it, and its Content-Security-Policy allows that
one script by its hash and no request at all.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from training.evaluation.report import formats

PACKAGE = "training.evaluation.report"
STYLE, SCRIPT = "report.css", "report.js"


@dataclass(frozen=True)
class Column:
    """A heading of a table; `about` is shown over it, numbers are set flush right."""

    title: str
    about: str | None = None
    numeric: bool = True


@dataclass(frozen=True)
class Section:
    """A section of a page: its id, its name in the contents, its template and what that shows."""

    name: str
    short: str
    template: str
    data: Any


def render_page(
    template: str, package: str, title: str, sections: Sequence[Section], **context: object
) -> str:
    """The whole page.

    Args:
        template: extends `page.html`.
        package: the package whose folder `templates` holds it, and the templates of the sections.
        context: what its blocks show.
    """
    script = _asset(SCRIPT)
    content = (
        _environment(package)
        .get_template(template)
        .render(
            title=title,
            sections=sections,
            policy=_policy(script),
            style=_asset(STYLE),
            script=script,
            **context,
        )
    )
    # Half of a surrogate pair, which is no text, becomes a question mark.
    return content.encode("utf-8", "replace").decode("utf-8")


def _policy(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )


@cache
def _environment(package: str) -> Environment:
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader(PACKAGE)]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "score": formats.score,
        "signed": formats.signed,
        "number": formats.count,
        "span": formats.span,
        "plural": formats.plural,
        "breakable": formats.breakable,
    }
    environment.tests["missing"] = formats.is_missing
    environment.globals |= {"Column": Column, "NOTHING": formats.NOTHING}
    return environment


def _asset(name: str) -> Markup:
    """Style or script: a file of this package, and so markup."""
    return Markup(resources.files(PACKAGE).joinpath(name).read_text(encoding="utf-8"))  # noqa: S704
