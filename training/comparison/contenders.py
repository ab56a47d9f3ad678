"""The two packages of a comparison, and the rows that both can be measured on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from service.inference.classifier import Classifier
from service.package.manifest import Manifest
from training.common.errors import CompareError
from training.data.dataset import read_labeled
from training.data.sources import sha256_of
from training.data.splits import Split
from training.recipe.arguments import columns_of
from training.registry.publish import package_at

NO_CHAMPION = "none"


@dataclass(frozen=True)
class Contender:
    """A loaded package, and the name that the user gave it."""

    name: str
    classifier: Classifier

    @property
    def manifest(self) -> Manifest:
        """The manifest of the package."""
        return self.classifier.manifest


@dataclass(frozen=True)
class Contenders:
    """Champion and challenger; there is no champion before a first release."""

    champion: Contender | None
    challenger: Contender

    @property
    def champion_labels(self) -> tuple[str, ...]:
        """The champion's labels; without a champion the challenger's."""
        return (self.champion or self.challenger).manifest.labels

    @property
    def removed_labels(self) -> list[str]:
        """Labels that only the champion knows."""
        return [x for x in self.champion_labels if x not in self.challenger.manifest.labels]

    @property
    def added_labels(self) -> list[str]:
        """Labels that only the challenger knows."""
        return [x for x in self.challenger.manifest.labels if x not in self.champion_labels]

    @property
    def all_labels(self) -> tuple[str, ...]:
        """The challenger's labels, then the removed ones."""
        return (*self.challenger.manifest.labels, *self.removed_labels)

    @property
    def shared_labels(self) -> set[str]:
        """Labels that both know."""
        return set(self.champion_labels) & set(self.challenger.manifest.labels)


@dataclass(frozen=True)
class ComparedRows:
    """The rows of a file by which two packages are compared.

    Attributes:
        file: the file as the user named it; `sha256` is its digest.
        split: the rows whose labels both packages know.
        places: the 0-based place of each row of `split` in the file, shape (rows,).
        known_split: the rows whose labels the challenger knows; they include those of `split`.
        dropped: how many rows of the file cannot be used.
        left_out: how many rows have a label that only one package knows.
    """

    file: str
    sha256: str
    split: Split
    places: np.ndarray
    known_split: Split
    dropped: int
    left_out: int


def load_contenders(champion: str, challenger: str) -> Contenders:
    """Load and verify both packages.

    Args:
        champion, challenger: folder, tag, version or published address; the champion may be `none`.

    Raises:
        CompareError: the packages do not do the same task.
        PackageError: a package does not verify.
        VerifyError: the model store has no such model.
        PublishError: a published package cannot be fetched.
    """
    new = _load(challenger)
    old = None if champion == NO_CHAMPION else _load(champion)
    if old is not None:
        _refuse_other_task(old.manifest, new.manifest)
    return Contenders(old, new)


def load_rows(contenders: Contenders, file: str, columns: Mapping[str, Any]) -> ComparedRows:
    """Read the labeled rows of a file, and select the rows that both packages can answer.

    Args:
        columns: the columns that are read, where they differ from the challenger's recipe.

    Raises:
        CompareError: no row has a label that both packages know.
        DataError: the file cannot be used.
    """
    manifest = contenders.challenger.manifest
    labeled = read_labeled(
        file, columns_of(manifest, columns), list(contenders.all_labels), manifest.task
    )
    split = labeled.split
    if not any(split.labels):
        raise CompareError(f"{file}: no row has a label, so there is nothing to measure")
    known = _rows_with_labels(split, set(manifest.labels))
    shared = _rows_with_labels(split, contenders.shared_labels)
    if not any(split.labels[row] for row in shared):
        who = "both packages know" if contenders.champion else "the package knows"
        raise CompareError(f"{file}: no row has labels that {who}")
    return ComparedRows(
        file=file,
        sha256=sha256_of(file),
        split=split.take(shared),
        places=labeled.rows[shared],
        known_split=split.take(known),
        dropped=labeled.dropped,
        left_out=len(split) - len(shared),
    )


def _load(target: str) -> Contender:
    with package_at(target) as folder:
        return Contender(target, Classifier.load(folder))


def _refuse_other_task(old: Manifest, new: Manifest) -> None:
    for verb, old_task, new_task in (
        ("gives", _labels_per_row(old), _labels_per_row(new)),
        ("reads", _texts_per_row(old), _texts_per_row(new)),
    ):
        if old_task != new_task:
            raise CompareError(
                f"the champion {old.name} {old.version} {verb} {old_task}, the challenger "
                f"{new.name} {new.version} {new_task}: they cannot be compared on the same rows"
            )


def _labels_per_row(manifest: Manifest) -> str:
    several = manifest.task == "multi_label"
    return "any number of labels a row" if several else "one label a row"


def _texts_per_row(manifest: Manifest) -> str:
    return "pairs of texts" if manifest.has_pairs else "single texts"


def _rows_with_labels(split: Split, labels: set[str]) -> np.ndarray:
    """The places of the rows that have no other labels than these."""
    return np.flatnonzero([labels.issuperset(row) for row in split.labels])
