"""Where a row has its text and its labels: in plain columns, or as an annotation tool writes them.

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

# The columns that tools write, which are read besides the columns that a recipe names.
TOOL_COLUMNS = (
    *("answer", "accept", "cats", "data", "annotations"),
    *("fields", "responses", "status"),
)
logger = logging.getLogger(__name__)

ANSWERS = {"accept", "reject", "ignore"}
SURE = 0.5
DEFAULT_CONTROL = "label"


class LeftOut(NamedTuple):
    """Why an annotator decided that a row should not be learned from."""

    reason: str


# A label, a list of labels, LeftOut or a Problem.
Labels = Any


@dataclass(frozen=True)
class Layout:
    """How text and label are found in a row.

    `tool` wrote the file; it is None where the columns are plain. `label` takes the row's values of
    `columns`, by name, and returns a label, a list of labels, LeftOut or a Problem.
    """

    tool: str | None
    text_column: str
    columns: tuple[str, ...]
    label: Callable[[Mapping[str, Any]], Labels]

    def labels(self, block: Block) -> list[Labels]:
        """The label, or why there is none, of each row of a block."""
        values = [block.values(column) for column in self.columns]
        rows = (dict(zip(self.columns, row, strict=True)) for row in zip(*values, strict=True))
        return [self.label(row) for row in rows]


def find_layout(block: Block, text_column: str, label_column: str) -> Layout:
    """The layout of a tool that fits the first rows of a file; plain columns where none fits."""

    def sample(column: str) -> list[Any]:
        values = block.values(column) if block.has(column) else []
        return [value for value in values if value is not None][:100]

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
    """The layout of each file, by its first rows; a tool is named once, as a warning."""

    def __init__(self, text_column: str, label_column: str) -> None:
        self._text, self._label = text_column, label_column
        self._known: dict[str, Layout] = {}

    def of(self, block: Block) -> Layout:
        """The layout of the file that a block comes from."""
        layout = self._known.get(block.file)
        if layout is None:
            layout = find_layout(block, self._text, self._label)
            if len(block):
                self._known[block.file] = layout
                if layout.tool is not None:
                    logger.warning("%s: read as %s writes it", block.file, layout.tool)
        return layout


def one_hot(text_column: str, columns: Sequence[str]) -> Layout:
    """The layout with a column for each label: 1 where a row has the label, else 0."""

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
    """The labels that the annotations agree on: those of the ground truth, or of all not empty.

    Of several controls the one that is named; a single one need not be, by the default name.
    """
    if not isinstance(annotations, list):
        return None
    counting = [each for each in annotations if isinstance(each, dict)]
    if counting and all(each.get("was_cancelled") for each in counting):
        return LeftOut("its annotation was skipped")
    kept = [each for each in counting if not each.get("was_cancelled")]
    kept = [each for each in kept if each.get("ground_truth")] or kept
    different: dict[tuple[str, ...], list[str]] = {}
    for annotation in kept:
        results = [each for each in annotation.get("result") or () if isinstance(each, dict)]
        named = [each for each in results if each.get("from_name") == control]
        controls = sorted({str(each.get("from_name")) for each in results})
        if not named and control == DEFAULT_CONTROL:
            if len(controls) > 1:
                message = f"its labels come from {' and '.join(controls)}: name one as label_column"
                return Problem("label_value", message)
            named = results
        lists = [follow(each, ["value", "choices"]) for each in named]
        names = [str(name) for each in lists if isinstance(each, list) for name in each]
        if names:
            different[tuple(sorted(names))] = names
    if len(different) > 1:
        first, second = list(different.values())[:2]
        return Problem("disagreement", f"its annotators disagree: {first} and {second}")
    return _one_or_list(next(iter(different.values()), []))


def _responses(responses: Any) -> Labels:
    """The label that annotators agree on, who may also have discarded the row."""
    if not isinstance(responses, list):
        return None
    values = [each.get("value") for each in responses if isinstance(each, dict)]
    statuses = [each.get("status") for each in responses if isinstance(each, dict)]
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
    # Several labels stand in the order of the clicks.
    ordered = {repr(sorted(map(str, v)) if isinstance(v, list) else v): v for v in kept}
    different = list(ordered.values())
    if len(different) > 1:
        named = " and ".join(map(repr, different[:2]))
        return Problem("disagreement", f"its annotators disagree: {named}")
    return different[0] if different else None


def _one_or_list(names: Iterable[str]) -> Any:
    """A single label as itself, several as a list; None where there is none."""
    labels = list(names)
    return labels[0] if len(labels) == 1 else labels or None
