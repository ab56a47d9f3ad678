"""The value of a label column → names of labels, or the reason why it has none."""

from __future__ import annotations

import ast
import datetime
import json
import re
from collections.abc import Sequence
from typing import Any

from training.data.blocks import Problem
from training.data.layouts import LeftOut

Names = tuple[str, ...]
# A longer cell is no list of labels.
LIST_CHARACTERS = 100_000
CHOICES = re.compile(r'\s*\{\s*"choices"\s*:')
# A list as NumPy writes it, without commas.
NUMPY = re.compile(r"""['"]\s+['"]""")
QUOTED = re.compile(r"""'([^']*)'|"([^"]*)\"""")


class LabelReader:
    """Names of labels from values of any type; equal values are examined once.

    `lists` is true after any value that is a list, `choices` after a cell with a list as Label
    Studio writes it, `several` after any list, and always where labels have a separator.
    """

    def __init__(self, label_column: str, separator: str | None) -> None:
        self._column = label_column
        self._separator = separator
        self._known: dict[Any, Names | Problem | LeftOut] = {}
        self._spaced: set[Any] = set()
        self.several = separator is not None
        self.lists = self.choices = False

    def read(self, value: Any) -> Names | Problem | LeftOut:
        """The names in a value, each once; none where the value is empty."""
        key = _key(value)
        if key not in self._known:
            self._known[key] = self._names(value)
            if _has_space(value, self._separator):
                self._spaced.add(key)
        if isinstance(value, list):
            self.several = self.lists = True
        return self._known[key]

    def is_spaced(self, value: Any) -> bool:
        """Whether a value that was read had white space around a name."""
        return bool(self._spaced) and _key(value) in self._spaced

    def _names(self, value: Any) -> Names | Problem | LeftOut:
        if isinstance(value, Problem | LeftOut):
            return value
        choices = _choices_in_text(value)
        self.choices = self.choices or choices is not value
        value = choices
        if isinstance(value, dict) and set(value) == {"choices"}:
            value = value["choices"]
            self.several = self.lists = True
        if isinstance(value, str) and self._separator is not None:
            value = value.split(self._separator)
        names: list[str] = []
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, dict):
                return self._object(part, isinstance(value, list))
            if isinstance(part, datetime.date | datetime.time):
                message = (
                    f"column {self._column!r} was read as dates, not as text: give it as CSV, "
                    "where every column is text"
                )
                return Problem("label_value", message)
            name = "" if part is None else str(part).strip()
            if name:
                names.append(name)
        return tuple(dict.fromkeys(names))

    def _object(self, value: dict[str, Any], in_list: bool) -> Problem:
        fields = [str(name) for name in value]
        likely = [name for name in ("name", "label", "value", "text") if name in fields]
        named = likely or fields
        place = f"{self._column}{'.0' if in_list else ''}"
        advice = f": set label_column: {place}.{named[0]}" if named else ""
        shown = ", ".join(map(repr, fields[:5]))
        return Problem("label_object", f"its label is an object with the fields {shown}{advice}")


def _choices_in_text(value: Any) -> Any:
    """The object in a cell `{"choices": ["a", "b"]}`, as Label Studio writes several choices.

    Anything else as it is: a single choice is the cell itself.
    """
    if not isinstance(value, str) or CHOICES.match(value) is None or len(value) > LIST_CHARACTERS:
        return value
    try:
        content = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return content if isinstance(content.get("choices"), list) else value


def list_in_text(value: Any) -> list[str] | None:
    """The list that pandas or JSON wrote into a cell; None where the cell has no list."""
    if not isinstance(value, str) or len(value) > LIST_CHARACTERS:
        return None
    text = value.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return None
    if NUMPY.search(text):
        # Python would join strings that stand side by side.
        return [first or second for first, second in QUOTED.findall(text)]
    for parse in (json.loads, ast.literal_eval):
        try:
            content = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(content, list) and not any(isinstance(part, dict) for part in content):
            return [str(part) for part in content if part is not None]
    return None


def lists_in_text(values: Sequence[Any]) -> list[Any] | None:
    """The values of a column as lists, where every value in it is a list in text.

    None where any is not, or there are none.
    """
    known: dict[str, list[str] | None] = {}
    lists: list[Any] = []
    for value in values:
        if value is None or isinstance(value, Problem | LeftOut) or value == "":
            lists.append(value)
            continue
        if not isinstance(value, str):
            return None
        if value not in known:
            known[value] = list_in_text(value)
        if known[value] is None:
            return None
        lists.append(known[value])
    return lists if known else None


def _key(value: Any) -> Any:
    """A key that tells values apart; 1, 1.0 and True would be equal."""
    return repr(value) if isinstance(value, list | dict) else (type(value), value)


def _has_space(value: Any, separator: str | None) -> bool:
    """Whether white space surrounds a label; around a separator it is usual."""
    if separator is not None:
        return False
    parts = value if isinstance(value, list) else [value]
    return any(isinstance(part, str) and part != part.strip() and part.strip() for part in parts)
