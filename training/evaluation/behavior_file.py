"""The tables of behavior tests, as a YAML file holds them.

    must_have:                     # a text that must get a label
      - name: plain questions
        cases:
          - {text: "where is my parcel?", label: delivery}
    invariance:                    # a change that must not change the answer
      - name: typos
        change: typos              # or lowercase, uppercase, punctuation, whitespace
        texts: ["where is my parcel?"]
      - name: names
        replace: {from: [Anna], to: [Kofi, Mei]}
        texts: ["Anna never got her parcel"]
      - name: the same question
        groups: [["where is it?", "where has it got to?"]]
    direction:                     # a change that must move a label's probability
      - name: negation
        label: returns
        by: 0.1
        cases:
          - {from: "I will send it back", to: "I will not send it back", change: down}

The three kinds are those of Ribeiro et al. 2020, "Beyond Accuracy: Behavioral Testing of NLP Models
with CheckList", ACL, section 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from service.package.manifest import Manifest
from training.common.errors import DataError

KINDS = ("must_have", "invariance", "direction")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


Line = Annotated[str, Field(min_length=1)]
Words = list[Line]


class MustHaveCase(_Strict):
    """A text and its label, or its labels for a multi-label package."""

    text: Line
    text_pair: str | None = None
    label: str | None = None
    labels: Words | None = None

    @model_validator(mode="after")
    def _one_answer(self) -> MustHaveCase:
        if (self.label is None) == (self.labels is None):
            raise ValueError("give either label or labels")
        return self


class MustHave(_Strict):
    """Texts that must get a label."""

    name: Line
    cases: list[MustHaveCase] = Field(min_length=1)


class Replacement(_Strict):
    """Each word of `from` in a text is replaced by each word of `to`."""

    old: Words = Field(alias="from", min_length=1)
    new: Words = Field(alias="to", min_length=1)


Change = Literal["typos", "lowercase", "uppercase", "punctuation", "whitespace"]


class Invariance(_Strict):
    """Texts whose answer must not change, or groups of texts with the same answer."""

    name: Line
    change: Change | None = None
    replace: Replacement | None = None
    texts: Words | None = Field(None, min_length=1)
    groups: list[Words] | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _one_way(self) -> Invariance:
        ways = [self.change is not None, self.replace is not None, self.groups is not None]
        if sum(ways) != 1 or (self.texts is None) != (self.groups is not None):
            raise ValueError("give texts with either change or replace, or give groups alone")
        if self.groups and min(map(len, self.groups)) < 2:
            raise ValueError("a group has two texts at least")
        return self


class DirectionCase(_Strict):
    """A text, what it becomes, and where the label's probability must go."""

    before: Line = Field(alias="from")
    after: Line = Field(alias="to")
    change: Literal["up", "down"]


class Direction(_Strict):
    """Changes that must move a label's probability by at least `by`."""

    name: Line
    label: str
    by: float = Field(0.0, ge=0, lt=1)
    cases: list[DirectionCase] = Field(min_length=1)


class BehaviorTests(_Strict):
    """A file of tests."""

    must_have: list[MustHave] = []
    invariance: list[Invariance] = []
    direction: list[Direction] = []


def read_behavior(path: Path, manifest: Manifest) -> BehaviorTests:
    """The tests of a file, which must fit the package.

    Raises:
        DataError: the file cannot be read, or a test does not fit; one sentence says which.
    """
    try:
        tests = BehaviorTests.model_validate(_read_yaml(path))
    except ValidationError as error:
        raise DataError(f"{path}, {_problem(error)}") from None
    if not (tests.must_have or tests.invariance or tests.direction):
        raise DataError(f"{path} holds no tests: it should have some of {', '.join(KINDS)}")
    for test in tests.must_have:
        for number, case in enumerate(test.cases, start=1):
            _check_case(case, manifest, f"{path}, {test.name!r}, case {number}")
    if manifest.has_pairs and (tests.invariance or tests.direction):
        raise DataError(f"{path}: of a package that reads pairs only must_have can be tested")
    for direction in tests.direction:
        _check_labels([direction.label], manifest, f"{path}, {direction.name!r}")
    return tests


def _read_yaml(path: Path) -> dict[Any, Any]:
    """The mapping in a file.

    Raises:
        DataError: there is none.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        # A date that no calendar has is a ValueError, as is a file that is not UTF-8.
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise DataError(f"{path} is not YAML{where}: {problem}: correct it there") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no tests: it should have some of {', '.join(KINDS)}")
    return content


def _check_case(case: MustHaveCase, manifest: Manifest, where: str) -> None:
    """Refuse a case that does not fit the package."""
    if (case.text_pair is not None) != manifest.has_pairs:
        wanted = "pairs: add" if manifest.has_pairs else "single texts: leave out"
        raise DataError(f"{where}: {manifest.name} reads {wanted} text_pair")
    if case.labels is not None and manifest.task == "single_label":
        raise DataError(f"{where}: {manifest.name} answers with one label: give label")
    labels = case.labels if case.label is None else [case.label]
    _check_labels(labels or [], manifest, where)


def _check_labels(labels: Sequence[str], manifest: Manifest, where: str) -> None:
    for label in labels:
        if label not in manifest.labels:
            nearest = difflib.get_close_matches(label, manifest.labels, n=1, cutoff=0.0)[0]
            raise DataError(
                f"{where}: {manifest.name} has no label {label!r}: did you mean {nearest!r}?"
            )


def _problem(error: ValidationError) -> str:
    """The first problem in a sentence: where, and what to do; misspelled keys come first."""
    misspelled = ("extra_forbidden", "invalid_key")
    first = min(error.errors(), key=lambda details: details["type"] not in misspelled)
    *above, last = first["loc"] or ("the file",)
    if first["type"] in misspelled:
        known = _keys(_MODELS[tuple(part for part in above if isinstance(part, str))])
        nearest = difflib.get_close_matches(str(last), known, n=1, cutoff=0.0)[0]
        place = _place(above) or "the file"
        return f"{place}: unknown key {str(last)!r}: did you mean {nearest!r}?"
    return f"{_place([*above, last])}: {_remedy(first)}"


def _place(parts: Sequence[int | str]) -> str:
    """Keys and numbers, counted from 1, on the way from the top of the file."""
    return ".".join(str(part + 1) if isinstance(part, int) else part for part in parts)


def _remedy(error: Any) -> str:
    """What to do about an error of pydantic."""
    kind = error["type"]
    if kind == "literal_error":
        return f"{error['input']!r} is no choice: give {error['ctx']['expected']}"
    if kind.startswith(("float", "greater", "less", "finite")):
        return f"{error['input']!r} is no step: give a number from 0 to below 1"
    remedies = {
        "missing": "it is missing: add it",
        "string_type": "it is no text: put text in quotes",
        "string_too_short": "it is empty: write some text",
        "list_type": "it is no list: write [one, two], or lines that begin with -",
        "too_short": "it is an empty list: give at least one",
        "model_type": "it is no mapping: write {key: value}",
    }
    return remedies.get(kind) or str(error["msg"]).removeprefix("Value error, ")


# Which model reads the mapping below these keys.
_MODELS: dict[tuple[str, ...], type[BaseModel]] = {
    (): BehaviorTests,
    ("must_have",): MustHave,
    ("must_have", "cases"): MustHaveCase,
    ("invariance",): Invariance,
    ("invariance", "replace"): Replacement,
    ("direction",): Direction,
    ("direction", "cases"): DirectionCase,
}


def _keys(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]
