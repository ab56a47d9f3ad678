"""Where in a row the text and the labels stand: in columns of their own, or as a labelling tool
writes them.

| tool | told by | label |
|---|---|---|
| Prodigy | `answer` is accept, reject or ignore | `label`, or the `accept`ed options |
| spaCy | an object `cats` of numbers | those of 0.5 and more |
| Label Studio | objects `data`, lists `annotations` | the choices that annotations agree on |
| Argilla | `fields` and `responses`, or `label.responses` | what all responses agree on |

Rows that an annotator rejected, skipped or discarded are left out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from training.data.blocks import Block, Problem, follow

# What tools write, read besides the columns that are named.
TOOL_COLUMNS = (
    *("answer", "accept", "cats", "data", "annotations"),
    *("fields", "responses", "status"),
)
logger = logging.getLogger(__name__)

ANSWERS = {"accept", "reject", "ignore"}
SURE = 0.5
DEFAULT_CONTROL = "label"


class LeftOut(NamedTuple):
    """An annotator decided that a row should not be learned from."""

    reason: str


# What stands where the label is looked for; why there is none.
Labels = Any


@dataclass(frozen=True)
class Layout:
    """How text and label are found in a row.

    `tool` is what wrote it, None where the columns are plain. `label` takes what stands in
    `columns`, by name, and returns a label, a list of them, LeftOut or a Problem.
    """

    tool: str | None
    text_column: str
    columns: tuple[str, ...]
    label: Callable[[Mapping[str, Any]], Labels]

    def labels(self, block: Block) -> list[Labels]:
        """What stands in each row of a block where its label should."""
        values = [block.values(column) for column in self.columns]
        rows = (dict(zip(self.columns, row, strict=True)) for row in zip(*values, strict=True))
        return [self.label(row) for row in rows]


def find_layout(block: Block, text_column: str, label_column: str) -> Layout:
    """The layout of the first rows of a file; that of plain columns where no tool's fits."""

    def sample(column: str) -> list[Any]:
        found = block.values(column) if block.has(column) else []
        return [value for value in found if value is not None][:100]

    answers = sample("answer")
    if label_column != "answer" and answers and {str(answer) for answer in answers} <= ANSWERS:
        column = "accept" if _all(sample("accept"), list) else label_column
        return Layout("Prodigy", text_column, ("answer", column), lambda row: _answer(row, column))
    if block.resolves(label_column):
        return Layout(None, text_column, (label_column,), lambda row: row[label_column])
    if _all(sample("cats"), dict):
        return Layout("spaCy", text_column, ("cats",), lambda row: _cats(row["cats"]))
    if _all(sample("data"), dict) and _all(sample("annotations"), list):
        return Layout(
            "Label Studio",
            text_column if block.resolves(text_column) else f"data.{text_column}",
            ("annotations",),
            lambda row: _choices(row["annotations"], label_column),
        )
    if _all(sample("fields"), dict) and _all(sample("responses"), dict):
        return Layout(
            "Argilla",
            text_column if block.resolves(text_column) else f"fields.{text_column}",
            ("responses",),
            lambda row: _responses(follow(row, ["responses", label_column])),
        )
    flat = f"{label_column}.responses"
    if block.has(flat):
        status = (f"{flat}.status",) if block.has(f"{flat}.status") else ()
        return Layout(
            "Argilla",
            text_column,
            (flat, *status),
            lambda row: _flat_responses(row[flat], row.get(f"{flat}.status")),
        )
    return Layout(None, text_column, (label_column,), lambda row: row[label_column])


class Layouts:
    """The layout of each file, by its first rows; a tool's is said once."""

    def __init__(self, text_column: str, label_column: str) -> None:
        self._text, self._label = text_column, label_column
        self._known: dict[str, Layout] = {}

    def of(self, block: Block) -> Layout:
        """That of the file which a block is of."""
        found = self._known.get(block.file)
        if found is None:
            found = find_layout(block, self._text, self._label)
            if len(block):
                self._known[block.file] = found
                if found.tool is not None:
                    logger.warning("%s: read as %s writes it", block.file, found.tool)
        return found


def one_hot(text_column: str, columns: Sequence[str]) -> Layout:
    """The layout of a column for each label, 1 where the row has it and 0 where it has not."""

    def label(row: Mapping[str, Any]) -> Labels:
        for column in columns:
            if _flag(row[column]) is None:
                message = f"column {column!r} holds {row[column]!r} where 0 or 1 should stand"
                return Problem("label_value", message)
        return [column for column in columns if _flag(row[column])]

    return Layout(None, text_column, tuple(columns), label)


def _flag(value: Any) -> bool | None:
    text = str(value).strip().casefold()
    if text in ("1", "1.0", "true", "yes"):
        return True
    return False if text in ("0", "0.0", "false", "no") else None


def _all(values: list[Any], kind: type) -> bool:
    return bool(values) and all(isinstance(value, kind) for value in values)


def _answer(row: Mapping[str, Any], column: str) -> Labels:
    if row["answer"] in ("reject", "ignore"):
        return LeftOut("its answer is reject or ignore")
    return _one_or_list(row[column]) if isinstance(row[column], list) else row[column]


def _cats(cats: Any) -> Labels:
    if not isinstance(cats, dict):
        return None
    return _one_or_list(
        name for name, sure in cats.items() if isinstance(sure, int | float) and sure >= SURE
    )


def _choices(annotations: Any, control: str) -> Labels:
    """What the annotations that count agree on: the ground truth, or else all that are not empty.

    Of several controls the one that is named; a single one need not be, by the default name.
    """
    if not isinstance(annotations, list):
        return None
    counting = [one for one in annotations if isinstance(one, dict)]
    if counting and all(one.get("was_cancelled") for one in counting):
        return LeftOut("its annotation was skipped")
    kept = [one for one in counting if not one.get("was_cancelled")]
    kept = [one for one in kept if one.get("ground_truth")] or kept
    found: dict[tuple[str, ...], list[str]] = {}
    for annotation in kept:
        results = [one for one in annotation.get("result") or () if isinstance(one, dict)]
        named = [one for one in results if one.get("from_name") == control]
        controls = sorted({str(one.get("from_name")) for one in results})
        if not named and control == DEFAULT_CONTROL:
            if len(controls) > 1:
                message = f"its labels come from {' and '.join(controls)}: name one as label_column"
                return Problem("label_value", message)
            named = results
        lists = [follow(one, ["value", "choices"]) for one in named]
        names = [str(name) for one in lists if isinstance(one, list) for name in one]
        if names:
            found[tuple(sorted(names))] = names
    if len(found) > 1:
        first, second = list(found.values())[:2]
        return Problem("disagreement", f"its annotators disagree: {first} and {second}")
    return _one_or_list(next(iter(found.values()), []))


def _responses(responses: Any) -> Labels:
    """What people agree on, who may also have discarded the row."""
    if not isinstance(responses, list):
        return None
    values = [one.get("value") for one in responses if isinstance(one, dict)]
    statuses = [one.get("status") for one in responses if isinstance(one, dict)]
    return _flat_responses(values, statuses)


def _flat_responses(values: Any, statuses: Any) -> Labels:
    if values is None:
        return None
    values = values if isinstance(values, list) else [values]
    statuses = statuses if isinstance(statuses, list) else [statuses] * len(values)
    if statuses and all(status == "discarded" for status in statuses):
        return LeftOut("it was discarded")
    kept = [
        value
        for value, status in zip(values, statuses, strict=False)
        if value is not None and status not in ("discarded", "draft")
    ]
    # The order of several is that in which they were clicked.
    ordered = {repr(sorted(map(str, v)) if isinstance(v, list) else v): v for v in kept}
    different = list(ordered.values())
    if len(different) > 1:
        named = " and ".join(map(repr, different[:2]))
        return Problem("disagreement", f"its annotators disagree: {named}")
    return different[0] if different else None


def _one_or_list(names: Iterable[str]) -> Any:
    """One label as itself: a row of a tool that allows several is a list where it has them."""
    found = list(names)
    return found[0] if len(found) == 1 else found or None
