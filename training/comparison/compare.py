"""Champion against challenger: may a retrained package replace the one that runs?

    whetstone compare text-classifier:3f2a9c1b77d0 runs/tickets/package --data test.csv

Both packages answer the rows of one labeled file through `Classifier`, the code that serves. The
rules are in `training.comparison.promotion`. `training.comparison.output` and
`training.comparison.page` write the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from service.inference.classifier import Classifier, Prediction
from service.package.manifest import MODEL_FILE, Manifest
from training.common.progress import progress
from training.comparison.caveats import find_caveats
from training.comparison.contenders import (
    ComparedRows,
    Contender,
    Contenders,
    load_contenders,
    load_rows,
)
from training.comparison.paired import Paired, PairedAnswers, compare_rows
from training.comparison.promotion import (
    Rule,
    changed_labels,
    decide,
    missed_floors,
    reasons_against,
)
from training.comparison.result import Comparison, FloorMetrics, Measurement, Side
from training.data.leakage import find_leakage
from training.data.splits import Split
from training.evaluation.latency import cpu_milliseconds
from training.evaluation.metrics import all_metrics, label_matrix
from training.recipe.arguments import recipe_of
from training.recipe.bounds import PromotionBounds, parse_bound, parse_compare

CHAMPION, CHALLENGER = "champion", "challenger"


def compare(
    champion: str,
    challenger: str,
    data: str | Path,
    *,
    bounds: Mapping[str, Any] = MappingProxyType({}),
    columns: Mapping[str, Any] = MappingProxyType({}),
    allow_label_change: bool = False,
) -> Comparison:
    """Let both packages answer the rows of a file, and judge the challenger.

    Args:
        champion, challenger: folder, tag, version or published address; the champion may be `none`.
        bounds: bounds by name, in place of those of the challenger's recipe; None changes nothing.
        columns: the columns that are read, where they differ from the challenger's recipe.

    Raises:
        RecipeError: a bound is not possible.
        CompareError: the packages do not do the same task, or share no row.
        WhetstoneError: a package or the file cannot be used.
        PublishError: a published package cannot be fetched.
        PackageError: a package does not verify.
    """
    contenders = load_contenders(champion, challenger)
    limits = bounds_of(contenders.challenger.manifest, bounds)
    rows = load_rows(contenders, str(data), columns)
    measurement = measure(contenders, rows)
    reasons = judge(contenders, measurement, limits, allow_label_change)
    return Comparison(
        outcome=decide(reasons),
        reasons=reasons,
        warnings=find_caveats(measurement, rows.file, limits),
        bounds=limits,
        rows=rows,
        measurement=measurement,
        removed_labels=contenders.removed_labels,
        added_labels=contenders.added_labels,
        allow_label_change=allow_label_change,
    )


def bounds_of(manifest: Manifest, overrides: Mapping[str, Any]) -> PromotionBounds:
    """The bounds of the challenger's recipe; `overrides` win where they are not None.

    Raises:
        RecipeError: a bound is not possible.
    """
    stated = parse_compare(recipe_of(manifest).get("compare"))
    chosen = {
        name: parse_bound("compare", name, value)
        for name, value in overrides.items()
        if value is not None
    }
    return replace(stated, **chosen)


def measure(contenders: Contenders, rows: ComparedRows) -> Measurement:
    """Measure both packages on the same rows."""
    sides = _measure_sides(contenders, rows.split)
    challenger, champion = sides[CHALLENGER], sides.get(CHAMPION)
    paired = None
    if champion is not None:
        paired = _pair_sides(contenders, champion, challenger, rows.split)
    floors = _measure_floors(contenders.challenger, challenger, rows)
    return Measurement(champion, challenger, paired, floors)


def judge(
    contenders: Contenders,
    measurement: Measurement,
    bounds: PromotionBounds,
    allow_label_change: bool,
) -> dict[Rule, str]:
    """A sentence for each rule that speaks against the challenger."""
    reasons: dict[Rule, str] = {}
    if not allow_label_change:
        reasons |= changed_labels(contenders.removed_labels, contenders.added_labels)
    floors = measurement.floors
    reasons |= missed_floors(floors.macro_f1, floors.ece, bounds)
    if measurement.paired is not None and not measurement.is_same_package:
        paired = measurement.paired
        reasons |= reasons_against(paired.answers, paired.differences["macro_f1"], bounds)
    return reasons


def _measure_sides(contenders: Contenders, split: Split) -> dict[str, Side]:
    """Both sides by name. Their latency is measured in turns, as the machine may be busy."""
    loaded = {CHALLENGER: contenders.challenger}
    if contenders.champion is not None:
        loaded[CHAMPION] = contenders.champion
    latency = cpu_milliseconds({name: contender.classifier for name, contender in loaded.items()})
    return {
        name: _measure_side(contender, name, split, latency[name])
        for name, contender in loaded.items()
    }


def _measure_side(contender: Contender, name: str, split: Split, cpu_ms: dict[str, float]) -> Side:
    answers = _classify(contender.classifier, split, name)
    manifest = contender.manifest
    return Side(
        name=contender.name,
        manifest=manifest,
        answers=answers,
        metrics=all_metrics(manifest, split.labels, answers),
        model_bytes=manifest.files[MODEL_FILE].size,
        cpu_ms=cpu_ms,
        leakage=find_leakage(manifest, split.texts),
    )


def _measure_floors(contender: Contender, side: Side, rows: ComparedRows) -> FloorMetrics:
    """Floors are asked of all that the challenger can answer, also of rows with new labels."""
    metrics, split = side.metrics, rows.known_split
    if len(split) > len(rows.split):
        answers = _classify(contender.classifier, split, "new labels")
        metrics = all_metrics(contender.manifest, split.labels, answers)
    return FloorMetrics(len(split), metrics["macro_f1"], metrics["calibration"]["ece"])


def _pair_sides(contenders: Contenders, champion: Side, challenger: Side, split: Split) -> Paired:
    """What changed between the answers of both sides to the same rows."""
    labels, shared = contenders.all_labels, contenders.shared_labels
    answers = PairedAnswers(
        labels=labels,
        truth=label_matrix(split.labels, labels),
        before=_answer_matrix(champion.answers, labels),
        after=_answer_matrix(challenger.answers, labels),
        shared=np.asarray([label in shared for label in labels]),
    )
    scores = np.asarray([answer.score for answer in challenger.answers])
    return compare_rows(answers, scores, challenger.manifest.task)


def _answer_matrix(answers: list[Prediction], labels: tuple[str, ...]) -> np.ndarray:
    return label_matrix([tuple(answer.answer) for answer in answers], labels)


def _classify(classifier: Classifier, split: Split, name: str) -> list[Prediction]:
    with progress(len(split), name, "text", leave=False) as bar:
        return classifier.classify(split.texts, on_batch=bar.update)
