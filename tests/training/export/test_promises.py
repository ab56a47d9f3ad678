"""What precision is promised, and whether new rows keep it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.promises import Labelled, simulate
from service.inference.classifier import Prediction
from service.package.manifest import Manifest
from training.data.dataset import LabeledData
from training.data.splits import Split
from training.export.promises import broken_promises, most_promised, rows_for, warn_of_promises
from training.export.thresholds import choose_threshold, warn_of_few_rows, with_thresholds
from training.recipe.arguments import ExportArguments


def test_the_rows_that_prove_a_precision_are_counted() -> None:
    assert (rows_for(0.9), rows_for(0.95)) == (22, 45)
    assert most_promised(22) > 0.9 > most_promised(21)
    assert most_promised(0) == 0


@pytest.mark.parametrize(("rows", "promised"), [(21, False), (22, True)])
def test_right_answers_prove_what_their_number_allows(rows: int, promised: bool) -> None:
    truth = np.arange(200) < rows
    probs = np.where(truth, 0.9, 0.1) + np.linspace(0.05, 0, 200)
    threshold, promise = choose_threshold(truth, probs.astype(np.float32), 0.9)
    assert 0.15 < threshold < 0.9
    assert promise is not None
    assert promise.promised == promised
    assert promise.at_most == promise.lower_bound == pytest.approx(0.1 ** (1 / rows))


@pytest.mark.parametrize(
    "labelled",
    [
        Labelled(separation=3, prevalence=0.1),
        # No threshold's precision is above 0.9: the best of many estimates is, by chance.
        Labelled(separation=5, prevalence=0.3, mislabelled=0.1),
    ],
)
def test_promises_are_kept_on_new_rows(labelled: Labelled) -> None:
    new = simulate(labelled, positives=300, wanted=0.9, times=200)
    # Of 200 with one broken in ten, more than 30 are broken in one of 10,000 tries.
    assert new.broken <= 0.15
    # Chosen by what is seen on these rows, half of them and more would be.
    assert new.best_observed.kept < 0.6


def test_where_rows_allow_it_precision_is_promised() -> None:
    new = simulate(Labelled(separation=4, prevalence=0.1), positives=100, wanted=0.9, times=100)
    assert new.promised > 0.9
    assert new.proven.recall > new.best_observed.recall - 0.1


def answered(probs: np.ndarray) -> list[Prediction]:
    return [Prediction("a", 0.5, row, (), None, 3, 1, False) for row in probs]


def test_labels_without_rows_enough_are_named(caplog: pytest.LogCaptureFixture) -> None:
    names = ("many", "some", "few")
    truth = [("many",)] * 60 + [("some",)] * 12 + [("few",)] * 3 + [()] * 100
    probs = np.asarray(
        [[0.9 if name in labels else 0.1 for name in names] for labels in truth], dtype=np.float32
    )
    draft = Manifest.model_construct(
        task="multi_label", labels=names, thresholds=dict.fromkeys(names, 0.5), max_length=8
    )
    arguments = ExportArguments(threshold_precision=0.9)
    chosen = with_thresholds(draft, arguments, truth, answered(probs))
    assert set(chosen.thresholds.values()) == {0.5}
    said = broken_promises(chosen)
    assert said == [
        "label 'some': 12 validation rows can promise a precision of 0.82 at most, not 0.9; from "
        "its threshold on they prove 0.82",
        "label 'few': 3 validation rows can promise a precision of 0.46 at most, not 0.9; from "
        "its threshold on they prove 0.46",
    ]
    warn_of_promises(chosen)
    assert said[0] in caplog.text
    assert said[1] in caplog.text
    assert broken_promises(with_thresholds(draft, ExportArguments(), truth, answered(probs))) == []
    # Packages that are older say nothing of it.
    assert broken_promises(draft) == []


def test_a_precision_that_the_rows_cannot_prove_is_warned_of_before_training(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rows = [("a",)] * 12 + [("b",)] * 30
    split = Split(["text"] * 42, rows)
    data = LabeledData(split, split, None, ["a", "b"], "single_label", has_pairs=False, dropped=0)
    warn_of_few_rows(ExportArguments(positive_label="b", threshold_precision=0.9), data)
    warn_of_few_rows(ExportArguments(abstain_precision=0.9), data)
    warn_of_few_rows(ExportArguments(), data)
    assert not caplog.text
    warn_of_few_rows(ExportArguments(positive_label="a", threshold_precision=0.9), data)
    assert (
        "threshold_precision 0.9 cannot be promised of label 'a': 12 validation rows "
        "can promise 0.82 at most, 22 are needed"
    ) in caplog.text
    warn_of_few_rows(ExportArguments(abstain_precision=0.95), data)
    assert "abstain_precision 0.95 cannot be promised: 42 validation rows" in caplog.text
    several = replace(data, task="multi_label")
    caplog.clear()
    warn_of_few_rows(ExportArguments(threshold_precision=0.95), several)
    assert "of label 'a' (and of 1 more): 12 validation rows" in caplog.text
