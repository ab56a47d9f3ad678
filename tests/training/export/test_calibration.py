"""Calibration, thresholds and abstention: the best that validation offers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from tokenizers import Encoding

from service.inference.classifier import Prediction
from service.inference.decisions import text_probabilities
from service.inference.tokenizing import EncodedText
from service.package.manifest import Manifest
from training.common.errors import ExportError
from training.export import finish as calibrate_module
from training.export.calibration import with_calibration
from training.export.finish import finish, out_of_fold
from training.export.platt import fit_platt, scores_of
from training.export.thresholds import choose_threshold, with_abstention, with_thresholds
from training.recipe.arguments import ExportArguments

# Few different scores, so that many rows tie.
ROWS = st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=1, max_size=40)


def counts(truth: np.ndarray, probs: np.ndarray, threshold: float) -> tuple[int, int]:
    """How many are answered, and how many of them rightly."""
    answered = probs >= threshold
    return int(answered.sum()), int((answered & truth).sum())


def possible(truth: np.ndarray, probs: np.ndarray) -> list[tuple[int, int]]:
    """What every threshold that answers anything would give."""
    return [counts(truth, probs, value) for value in sorted(set(probs.tolist()))]


def within_one_error(
    truth: np.ndarray, probs: np.ndarray
) -> dict[tuple[int, int], tuple[float, float]]:
    """The options whose F1 is within one standard error of the best, row by row: how far the gap
    below each is from half of the best F1, and its F1."""
    values = sorted(set(probs.tolist()))

    def f1(threshold: float) -> float:
        answered, hits = counts(truth, probs, threshold)
        return 2 * hits / (answered + int(truth.sum()))

    def influences(threshold: float) -> np.ndarray:
        answered = probs >= threshold
        size = answered.sum() + truth.sum()
        return (2 * (answered & truth) - f1(threshold) * (answered + truth.astype(int))) / size

    best = max(reversed(values), key=f1)
    found = {}
    for place, value in enumerate(values):
        error = np.sqrt(((influences(value) - influences(best)) ** 2).sum())
        below = values[place - 1] if place else 0.0
        if f1(best) - f1(value) <= error + 1e-9:
            gap = max(below - f1(best) / 2, f1(best) / 2 - value, 0.0)
            found[counts(truth, probs, value)] = (gap, f1(value))
    return found


@given(ROWS, st.sampled_from([None, 0.5, 0.8, 0.95]))
def test_no_other_threshold_is_better(
    rows: list[tuple[int, bool]], precision: float | None
) -> None:
    probs = np.asarray([score / 13 + 0.01 for score, _ in rows], dtype=np.float32)
    truth = np.asarray([true for _, true in rows])
    threshold, promise = choose_threshold(truth, probs, precision)
    if not truth.any():
        assert threshold == 0.5
        return
    answered, hits = counts(truth, probs, threshold)
    options = possible(truth, probs)
    assert (answered, hits) in options
    assert np.abs(probs - threshold).min() > 1e-3
    if precision is None:
        close = within_one_error(truth, probs)
        assert (answered, hits) in close
        nearest = min(gap for gap, _ in close.values())
        assert close[answered, hits][0] == pytest.approx(nearest)
        return
    assert promise is not None
    # So few rows prove little: of the cuts with that precision here, the surest one.
    good = [(a, h) for a, h in options if h / a >= precision] or options
    bounds = [binomtest(h, a, alternative="greater").proportion_ci(0.9).low for a, h in good]
    assert promise.observed == pytest.approx(hits / answered)
    if not promise.promised:
        assert promise.lower_bound == pytest.approx(max(bounds))
    else:
        assert promise.lower_bound > precision - 1e-9


def plainly_best(truth: np.ndarray, probs: np.ndarray) -> float:
    """The threshold of the best F1 on these rows, whatever it is due to."""
    order = np.argsort(-probs)
    found = 2 * np.cumsum(truth[order]) / (np.arange(1, len(probs) + 1) + truth.sum())
    return float(probs[order][np.argmax(found)])


def f1_at(truth: np.ndarray, probs: np.ndarray, threshold: float) -> float:
    answered, hits = counts(truth, probs, threshold)
    return 2 * hits / (answered + int(truth.sum()))


def test_of_few_rows_the_threshold_holds_on_others() -> None:
    random = np.random.default_rng(0)
    chosen, plain = [], []
    for _ in range(100):
        probs = random.beta(0.1, 0.5, 10_450)
        truth = random.random(len(probs)) < probs
        seen, other = slice(450), slice(450, None)
        threshold, _ = choose_threshold(truth[seen], probs[seen], None)
        chosen.append(f1_at(truth[other], probs[other], threshold))
        best = plainly_best(truth[seen], probs[seen])
        plain.append(f1_at(truth[other], probs[other], best))
    # A lottery no more: better on average, and in the unlucky tenth most of all.
    assert np.mean(chosen) > np.mean(plain) + 0.005
    assert np.quantile(chosen, 0.1) > np.quantile(plain, 0.1) + 0.01


def test_many_rows_decide_against_probabilities_that_are_wrong() -> None:
    random = np.random.default_rng(0)
    probs = random.beta(0.5, 2, 100_000)
    truth = random.random(len(probs)) < probs
    # All of them a tenth of what they should be.
    threshold, _ = choose_threshold(truth, probs / 10, None)
    best = plainly_best(truth, probs / 10)
    assert f1_at(truth, probs / 10, threshold) > f1_at(truth, probs / 10, best) - 0.005
    assert threshold < 0.05


def answers(scores: list[float]) -> list[Prediction]:
    return [
        Prediction("a", score, np.asarray([score, 1 - score]), None, None, 3, 1, False)
        for score in scores
    ]


def manifest() -> Manifest:
    return Manifest.model_construct(labels=("a", "b"), max_length=8)


def test_labels_with_few_rows_share_a_threshold() -> None:
    names = ("many", "few", "none")
    draft = Manifest.model_construct(
        task="multi_label", labels=names, thresholds=dict.fromkeys(names, 0.5), max_length=8
    )
    probs = np.full((40, 3), 0.05, dtype=np.float32)
    probs[:20, 0] = 0.7
    # The one row of `few` scores low; alone it would draw its threshold down to 0.15.
    probs[0, 1] = 0.2
    probs[1:10, 2] = 0.1
    truth = [("many", "few")] + [("many",)] * 19 + [()] * 20
    given_answers = [
        Prediction("many", 0.7, row, (), None, tokens=3, windows=1, truncated=False)
        for row in probs
    ]
    chosen = with_thresholds(draft, ExportArguments(), truth, given_answers).thresholds
    truths = np.asarray([["many" in x, "few" in x, False] for x in truth])
    shared, _ = choose_threshold(truths.ravel(), probs.ravel(), None)
    assert chosen["few"] == chosen["none"] == shared
    assert chosen["many"] == choose_threshold(truths[:, 0], probs[:, 0], None)[0] != shared


def test_abstention_keeps_as_many_answers_as_the_rows_prove() -> None:
    """The surest 60 of 100 answers are right, of the others every second is."""
    scores = np.linspace(0.99, 0.5, 100).tolist()
    truth = [("a",) if row < 60 or row % 2 else ("b",) for row in range(100)]
    given_answers = answers(scores)

    def threshold(wanted: float | None) -> float | None:
        arguments = ExportArguments(abstain_precision=wanted)
        return with_abstention(manifest(), arguments, truth, given_answers).abstain_threshold

    proven = threshold(0.9)
    assert proven is not None
    right = [
        labels == ("a",) for labels, score in zip(truth, scores, strict=True) if score >= proven
    ]
    # Some wrong ones may be among them, but not so many that 0.9 is only just seen.
    assert 60 < len(right) < 80
    assert np.mean(right) > 0.93
    assert threshold(0.6) == 0
    assert threshold(None) is None
    # 60 rows, all right, do not prove 0.97; the surest threshold is theirs.
    unproven = with_abstention(
        manifest(), ExportArguments(abstain_precision=0.97), truth, given_answers
    )
    assert unproven.abstain_threshold == pytest.approx((scores[61] + scores[62]) / 2, abs=0.01)
    assert unproven.calibration["promises"]["abstention"]["promised"] is False


def test_a_precision_that_no_threshold_reaches_is_refused() -> None:
    truth = [("b",), ("a",), ("a",)]
    with pytest.raises(ExportError, match="is not reached on the 3 validation rows"):
        with_abstention(
            manifest(), ExportArguments(abstain_precision=0.9), truth, answers([0.9, 0.8, 0.7])
        )


def overconfident(rows: int, factor: float, seed: int = 0) -> tuple[list[tuple[str]], np.ndarray]:
    """Labels drawn from known probabilities, and logits that are `factor` times too large."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(rows, 3)) * 2
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    truth = [("abc"[random.choice(3, p=row)],) for row in probs]
    return truth, (logits * factor).astype(np.float32)


def single(**fields: Any) -> Manifest:
    return Manifest.model_construct(labels=("a", "b", "c"), max_length=8, **fields)


def test_the_temperature_is_found_and_the_error_falls() -> None:
    truth, logits = overconfident(2000, 3.0)
    found = with_calibration(single(), truth, [1] * 2000, logits)
    assert found.temperature == pytest.approx(3, rel=0.15)
    evidence = found.calibration
    assert evidence["method"] == "temperature"
    assert evidence["after"]["ece"] < 0.04 < evidence["before"]["ece"]
    assert evidence["after"]["log_loss"] < evidence["before"]["log_loss"]
    answers_before = text_probabilities(logits, [1] * 2000, single()).argmax(axis=1)
    answers_after = text_probabilities(logits, [1] * 2000, found).argmax(axis=1)
    assert (answers_before == answers_after).all()


def test_calibrated_probabilities_are_left_alone() -> None:
    """A temperature fitted to noise does not help rows that it was not fitted on."""
    left = 0
    for seed in range(10):
        truth, logits = overconfident(300, 1.0, seed)
        found = with_calibration(single(), truth, [1] * 300, logits)
        left += found.temperature == 1
        if found.temperature == 1:
            assert found.calibration["method"] is None
            assert "does not fall" in found.calibration["reason"]
    assert left >= 5


def test_few_rows_are_not_calibrated_and_say_so() -> None:
    truth, logits = overconfident(49, 3.0)
    found = with_calibration(single(), truth, [1] * 49, logits)
    assert found.temperature == 1
    assert found.calibration["reason"] == "49 validation rows are fewer than 50"


@pytest.mark.parametrize("several", [False, True], ids=["one label", "several"])
def test_a_calibration_that_makes_answers_worse_is_left_out(
    several: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A calibration that turns one label's scores around, as no real one should."""
    names = ("a", "b")
    random = np.random.default_rng(0)
    logits = random.normal(size=(300, 2)).astype(np.float32)
    if several:
        rows = [tuple(n for n, z in zip(names, row, strict=True) if z > 0) for row in logits]
        keys = {"task": "multi_label", "thresholds": dict.fromkeys(names, 0.5)}
        fields = {"platt": {"a": (-1.0, 0.0), "b": (1.0, 0.0)}}
    else:
        rows, keys = [(names[int(row.argmax())],) for row in logits], {}
        fields = {"temperature": -1.0}
    draft = Manifest.model_construct(labels=names, max_length=8, **keys)
    method = "platt" if several else "temperature"

    def worse(manifest: Manifest, *_: object) -> Manifest:
        return manifest.model_copy(update={**fields, "calibration": {"method": method}})

    monkeypatch.setattr(calibrate_module, "with_calibration", worse)
    encoded = [EncodedText((encoding(),), truncated=False)] * 300
    found, given = finish(draft, ExportArguments(), rows, encoded, logits)
    assert (found.temperature, found.platt) == (1, {})
    assert found.calibration["method"] is None
    assert "rows more would be answered wrongly" in found.calibration["reason"]
    assert [answer.answer for answer in given] == [frozenset(labels) for labels in rows]


def test_each_label_of_several_gets_its_coefficients_and_rare_ones_share_theirs() -> None:
    random = np.random.default_rng(0)
    names = ("x", "y", "rare")
    logits = (random.normal(size=(3000, 3)) * 2).astype(np.float32)
    logits[:, 2] -= 4
    offsets = np.float32([1, -2, 0])
    true_logits = logits * np.float32([0.5, 1, 1]) + offsets
    truth = random.random((3000, 3)) < 1 / (1 + np.exp(-true_logits))
    truth[:, 2] = False
    truth[:3, 2] = True
    labels = [tuple(name for name, has in zip(names, row, strict=True) if has) for row in truth]
    draft = Manifest.model_construct(
        task="multi_label", labels=names, thresholds=dict.fromkeys(names, 0.5), max_length=8
    )
    found = with_calibration(draft, labels, [1] * 3000, logits)
    assert found.platt["x"] == pytest.approx((0.5, 1), abs=0.15)
    assert found.platt["y"] == pytest.approx((1, -2), abs=0.2)
    scores = scores_of(logits, np.ones(3000, dtype=int), None)
    everything = fit_platt(scores, truth, shared=True)
    assert found.platt["rare"] == pytest.approx(everything[:, 0].tolist(), abs=1e-4)
    assert found.calibration["after"]["ece"] < found.calibration["before"]["ece"]


def test_windows_are_calibrated_as_the_texts_they_make() -> None:
    """Each text is three equal windows: the same temperature as of one."""
    truth, logits = overconfident(600, 3.0)
    whole = with_calibration(single(), truth, [1] * 600, logits)
    windows = single(long_text="window", window_stride=1, window_aggregation="mean")
    split = with_calibration(windows, truth, [3] * 600, np.repeat(logits, 3, axis=0))
    assert split.temperature == pytest.approx(whole.temperature, rel=1e-3)


def test_thresholds_are_chosen_on_calibrated_probabilities() -> None:
    random = np.random.default_rng(0)
    truth = [("b",) if has else ("a",) for has in random.random(400) < 0.3]
    evidence = np.asarray([1.0 if label == ("b",) else -1.0 for label in truth])
    score = evidence + random.normal(size=400)
    logits = np.stack([-score, score], axis=1).astype(np.float32) * 4
    draft = Manifest.model_construct(labels=("a", "b"), max_length=8)
    encoded = [EncodedText((encoding(),), truncated=False)] * 400
    chosen, given = finish(draft, ExportArguments(positive_label="b"), truth, encoded, logits)
    assert chosen.temperature > 2
    probs = text_probabilities(logits, [1] * 400, chosen)
    expected, _ = choose_threshold(np.asarray([x == ("b",) for x in truth]), probs[:, 1], None)
    assert chosen.thresholds == {"b": expected}
    assert [a.label for a in given] == ["b" if p >= expected else "a" for p in probs[:, 1]]


def encoding() -> Encoding:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"x": 0, "[UNK]": 1}, unk_token="[UNK]"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer.encode("x")


def test_labels_that_validation_does_not_have_are_not_scaled_away() -> None:
    random = np.random.default_rng(0)
    names = ("x", "y", "flat")
    logits = (random.normal(size=(400, 3)) * 2).astype(np.float32)
    draft = Manifest.model_construct(
        task="multi_label", labels=names, thresholds=dict.fromkeys(names, 0.5), max_length=8
    )
    none = with_calibration(draft, [()] * 400, [1] * 400, logits)
    assert none.platt == {}
    assert "fewer than 5 labels are set" in none.calibration["reason"]
    truth = random.random((400, 3)) < 1 / (1 + np.exp(-logits / 3))
    # As often with a low logit as with a high one, and rather against it.
    truth[:, 2] = (random.random(400) < 0.3) & (logits[:, 2] < 1)
    labels = [tuple(name for name, has in zip(names, row, strict=True) if has) for row in truth]
    found = with_calibration(draft, labels, [1] * 400, logits)
    assert found.platt["flat"][0] > 0.05


def test_out_of_fold_answers_are_by_what_other_rows_chose() -> None:
    """Labels that the logits say nothing of: what is fitted to the rows finds something in them."""
    random = np.random.default_rng(0)
    names = ("x", "y")
    draft = Manifest.model_construct(
        task="multi_label", labels=names, thresholds=dict.fromkeys(names, 0.5), max_length=8
    )
    encoded = [EncodedText((encoding(),), truncated=False)] * 60
    same, folded = [], []
    for _ in range(20):
        logits = random.normal(size=(60, 2)).astype(np.float32)
        truth = random.random((60, 2)) < 0.3
        rows = [tuple(n for n, has in zip(names, row, strict=True) if has) for row in truth]
        arguments = ExportArguments(threshold_precision=0.5)
        chosen, given_answers = finish(draft, arguments, rows, encoded, logits)
        held = out_of_fold(chosen, arguments, rows, encoded, logits)
        for found, these in ((same, given_answers), (folded, held)):
            hits = [
                bool(a.answer & set(row)) for a, row in zip(these, rows, strict=True) if a.answer
            ]
            found.append(np.mean(hits) if hits else np.nan)
    # A third of the rows have either label, half is what was asked for.
    assert np.nanmean(same) > np.nanmean(folded) + 0.1
    assert np.nanmean(folded) < 0.5


def test_out_of_fold_answers_keep_the_order_of_the_rows() -> None:
    """Where the rows leave no doubt every fold chooses alike, and answers are the package's."""
    truth = [("b",) if row % 3 == 0 else ("a",) for row in range(90)]
    score = np.asarray([4.0 if labels == ("b",) else -4.0 for labels in truth])
    logits = np.stack([-score, score], axis=1).astype(np.float32)
    encoded = [EncodedText((encoding(),), truncated=False)] * 90
    arguments = ExportArguments(positive_label="b", abstain_precision=0.9)
    chosen, given_answers = finish(manifest(), arguments, truth, encoded, logits)
    held = out_of_fold(chosen, arguments, truth, encoded, logits)
    assert [answer.label for answer in held] == [labels[0] for labels in truth]
    assert [a.answer for a in held] == [a.answer for a in given_answers]
    assert not any(answer.abstained for answer in held)
