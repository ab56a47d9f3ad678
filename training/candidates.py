"""Which graph ships: each candidate as a package of its own, measured, judged, and one chosen.

On a CPU: int8, or where the gates refuse it one of its repairs; then the fp32 graph as exported,
or with its operators fused where that is asked for. On a GPU: fp16, then fp32. Graphs in fp32 ship
because their logits are the checkpoint's, the others by the gates.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from service.classifier import Classifier, NotFiniteError, Prediction
from service.decisions import FloatArray
from service.inference.tokenizing import EncodedText
from service.model_package import (
    MODEL_FILE,
    TOKENIZER_FILE,
    Manifest,
    Precision,
    seal_package,
)
from training.calibrate import finish
from training.config import ExportArguments
from training.costs import cpu_milliseconds, neighbour_effect
from training.data.splits import Split
from training.digits import measured
from training.errors import ExportError
from training.exporter import optimise
from training.gates import Answers, Gates, Rule, Verdict, evidence, judge
from training.metrics import label_matrix, mean_of
from training.parity import LOGIT_TOLERANCE
from training.progress import progress
from training.quantise import quantise
from training.significance import label_f1

logger = logging.getLogger(__name__)

# What one copy of an fp32 package may differ from another by: the order of float32 sums.
FP32_SCORE_TOLERANCE = 1e-5
# A probability may change by this much at most because of other texts in the same batch, and no
# label may: dynamic quantisation over whole batches once changed one by 0.33.
NEIGHBOUR_TOLERANCE = 1e-3

Make = Callable[[Path, Path], object]


@dataclass(frozen=True)
class Kind:
    """A way to make a graph of the fp32 one, at its first argument, to its second."""

    name: str
    precision: Precision
    make: Make


def make_fp16(source: Path, target: Path) -> None:
    """Weights and activations in half precision; inputs and logits as they were.

    Raises:
        ExportError: there is an operator that the conversion does not know.
    """
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    try:
        onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), target)
    except (ValueError, KeyError, RuntimeError) as error:
        raise ExportError(f"the graph cannot be converted to fp16: {error}") from None


def make_int8(source: Path, target: Path, **options: bool) -> None:
    """As `training.quantise` makes it.

    Raises:
        ExportError: there is nothing to quantise.
    """
    if not quantise(source, target, **options):
        raise ExportError("the graph has no matrix that can be quantised")


FP32 = Kind("fp32", "fp32", shutil.copyfile)
OPTIMISED = Kind("optimised", "fp32", optimise)
INT8 = Kind("int8", "int8", make_int8)
FP16 = Kind("fp16", "fp16", make_fp16)
# Tried one after another where int8 is refused.
REPAIRS = (
    Kind("int8, embeddings in fp32", "int8", partial(make_int8, embeddings=False)),
    Kind("int8, full range", "int8", partial(make_int8, embeddings=False, full_range=True)),
)
KINDS = {kind.name: kind for kind in (FP32, OPTIMISED, INT8, FP16)}


@dataclass(frozen=True)
class Candidate:
    """A graph as the package that it would be: calibrated, with its thresholds and answers.

    `logits` are those of the windows of the validation rows.
    """

    kind: Kind
    folder: Path
    classifier: Classifier
    manifest: Manifest
    answers: list[Prediction]
    verdict: Verdict
    evidence: dict[str, Any] = field(repr=False)
    logits: FloatArray = field(repr=False)

    @property
    def passed(self) -> bool:
        """Whether it may ship without anybody's saying so."""
        return self.verdict.outcome == "passed"


class Trial:
    """The validation rows, what the checkpoint answers to them, and every candidate so far.

    Args:
        draft: the manifest before anything is chosen for it.
        graph: the fp32 graph as exported.
        tokenizer: the `tokenizer.json` of all candidates.
        reference: the checkpoint's logits, of shape (windows of `encoded`, labels).
        scratch: a folder for the candidates.

    Raises:
        ExportError: no abstain threshold reaches the precision that the recipe wants.
    """

    def __init__(
        self,
        draft: Manifest,
        arguments: ExportArguments,
        gates: Gates,
        validation: Split,
        *,
        graph: Path,
        tokenizer: Path,
        encoded: Sequence[EncodedText],
        reference: FloatArray,
        scratch: Path,
    ) -> None:
        self.gates = gates
        self.candidates: dict[str, Candidate] = {}
        self.unavailable: dict[str, str] = {}
        self._draft, self._arguments, self._validation = draft, arguments, validation
        self._graph, self._tokenizer, self._scratch = graph, tokenizer, scratch
        self._encoded, self._logits = encoded, reference
        self._truth = label_matrix(validation.labels, draft.labels)
        finished, answers = finish(
            *(draft, arguments, validation.labels, encoded, reference), validation.groups
        )
        self._behaviour, self._reference = finished, self._compared(answers)

    def measure(self, kind: Kind) -> Candidate | None:
        """Make, finish, measure and judge one candidate; None where it cannot be made."""
        folder = self._scratch / kind.name.replace(", ", "-").replace(" ", "-")
        folder.mkdir()
        try:
            kind.make(self._graph, folder / MODEL_FILE)
        except ExportError as error:
            self.unavailable[kind.name] = str(error)
            return None
        shutil.copyfile(self._tokenizer, folder / TOKENIZER_FILE)
        draft = seal_package(folder, self._draft.model_copy(update={"precision": kind.precision}))
        try:
            classifier = Classifier.load(folder)
            with progress(len(self._encoded), kind.name, "text", leave=False) as bar:
                logits = classifier.window_logits(self._encoded, on_batch=bar.update)
        except NotFiniteError:
            self.unavailable[kind.name] = "its logits are not finite numbers"
            return None
        except Exception as error:  # onnxruntime's exceptions share no base of their own
            if kind is FP32:
                raise
            logger.debug("%s cannot be run", kind.name, exc_info=True)
            self.unavailable[kind.name] = f"ONNX Runtime does not run it ({type(error).__name__})"
            return None
        labels = self._validation.labels
        try:
            manifest, answers = finish(
                *(draft, self._arguments, labels, self._encoded, logits), self._validation.groups
            )
        except ExportError as error:
            # The checkpoint's answers reach the wanted precision, its own do not.
            self.unavailable[kind.name] = str(error)
            return None
        change, flips = neighbour_effect(classifier, manifest, self._validation.texts)
        verdict = self._verdict(kind, logits, answers, change, flips)
        compared = self._compared(answers)
        per_label = label_f1(self._truth, compared.answered)
        found = {
            "name": kind.name,
            "precision": kind.precision,
            **evidence(verdict),
            "accuracy": float((compared.answered == self._truth).all(axis=1).mean()),
            "macro_f1": mean_of([None if np.isnan(f1) else float(f1) for f1 in per_label]),
            "per_label_f1": {
                label: None if np.isnan(f1) else round(float(f1), 4)
                for label, f1 in zip(manifest.labels, per_label, strict=True)
            },
            "largest_logit_difference": float(np.abs(logits - self._logits).max()),
            "largest_change_by_neighbours": change,
            "labels_changed_by_neighbours": flips,
            "bytes": (folder / MODEL_FILE).stat().st_size,
        }
        manifest = manifest.model_copy(
            update={"score_tolerance": max(change, FP32_SCORE_TOLERANCE)}
        )
        candidate = Candidate(kind, folder, classifier, manifest, answers, verdict, found, logits)
        self.candidates[kind.name] = candidate
        return candidate

    def _verdict(
        self,
        kind: Kind,
        logits: FloatArray,
        answers: Sequence[Prediction],
        change: float,
        flips: int,
    ) -> Verdict:
        """By the gates; of an fp32 graph by its logits, which need no statistics."""
        verdict = judge(
            self._truth, self._reference, self._compared(answers), self._behaviour, self.gates
        )
        if kind.precision == "fp32":
            largest = float(np.abs(logits - self._logits).max())
            equal = largest <= LOGIT_TOLERANCE
            why: dict[Rule, str] = {}
            if not equal:
                why = {"logits": f"logits differ from the checkpoint's by {largest:.2g}"}
            verdict = replace(verdict, outcome="passed" if equal else "refused", by_rule=why)
        # An fp32 answer that changes with so small a change was a tie, for the checkpoint as well.
        if change > NEIGHBOUR_TOLERANCE or (flips and kind.precision != "fp32"):
            why = {
                "neighbours": f"a text's probabilities change by up to {change:.2g} with the texts "
                f"beside it in a batch, and {flips} answers do"
            }
            verdict = replace(verdict, outcome="refused", by_rule=why | verdict.by_rule)
        return verdict

    def _compared(self, answers: Sequence[Prediction]) -> Answers:
        return Answers(
            np.stack([answer.probs for answer in answers]),
            label_matrix([tuple(answer.answer) for answer in answers], self._draft.labels),
        )


def choose(trial: Trial, arguments: ExportArguments) -> tuple[Candidate, dict[str, Any]]:
    """Try the candidates that the recipe allows; the one that ships, and the evidence.

    Raises:
        ExportError: the fp32 graph does not answer as the checkpoint does, or the precision that
            was asked for cannot be made.
    """
    wanted = arguments.precision
    plain = trial.measure(FP32)
    if plain is None or not plain.passed:
        why = "; ".join(plain.verdict.reasons) if plain else trial.unavailable[FP32.name]
        raise ExportError(f"the fp32 graph does not answer as the checkpoint does: {why}")
    if wanted == "auto":
        on_gpu = arguments.target_device == "gpu"
        for kind in (FP16,) if on_gpu else (INT8, OPTIMISED):
            trial.measure(kind)
    elif wanted != FP32.name:
        trial.measure(KINDS[wanted])
    first = trial.candidates.get(INT8.name)
    if INT8.name in trial.unavailable or (first and first.verdict.outcome == "refused"):
        for repair in REPAIRS:
            repaired = trial.measure(repair)
            if repaired is not None and repaired.passed:
                break
    if wanted in trial.unavailable and not any(map(_is_kind_of(wanted), trial.candidates.values())):
        raise ExportError(f"precision {wanted} cannot be had: {trial.unavailable[wanted]}")
    costs = cpu_milliseconds({n: c.classifier for n, c in trial.candidates.items()})
    for name, cost in costs.items():
        trial.candidates[name].evidence["cpu_ms_per_text"] = cost
    chosen, forced, reason = _first_that_may(trial, wanted)
    unavailable = [
        {"name": name, "verdict": "unavailable", "reasons": [why]}
        for name, why in trial.unavailable.items()
    ]
    return chosen, {
        "rows": len(chosen.answers),
        # Graphs for a GPU, too: the numbers are the same, the costs are not.
        "measured_on": "cpu",
        "gates": vars(trial.gates),
        "chosen": chosen.kind.name,
        "forced": forced,
        "reason": reason,
        "candidates": [c.evidence for c in trial.candidates.values()] + unavailable,
    }


def _is_kind_of(wanted: str) -> Callable[[Candidate], bool]:
    """Whether a candidate is of the kind named, or a repair of it."""
    return lambda candidate: candidate.kind.name.split(",")[0] == wanted


def _first_that_may(trial: Trial, wanted: str) -> tuple[Candidate, bool, str]:
    """What ships, whether the gates were overruled, and why in a sentence.

    Costs do not decide: the same recipe should give the same package, and on a busy machine two
    equal graphs were seen 6 % apart. So fused operators, which ONNX Runtime makes at load in any
    case, are measured and ship where they are asked for.
    """
    found = trial.candidates
    if wanted != "auto":
        family = list(filter(_is_kind_of(wanted), found.values()))
        # The first of the best there is: what nobody could refuse before what was refused.
        order = ("passed", "inconclusive", "refused")
        chosen = min(family, key=lambda candidate: order.index(candidate.verdict.outcome))
        if chosen.passed:
            return chosen, False, f"{chosen.kind.name}, which was asked for and passes"
        why = "; ".join(chosen.verdict.reasons)
        logger.warning("%s ships because it was asked for, against the gates: %s", wanted, why)
        return chosen, True, f"{chosen.kind.name}, which was asked for, against the gates: {why}"
    reduced = [c for c in found.values() if c.kind.precision != "fp32"]
    passing = [candidate for candidate in reduced if candidate.passed]
    if passing:
        first, repaired = passing[0].kind, ""
        if first in REPAIRS:
            outcome = "not available" if INT8.name in trial.unavailable else "refused"
            repaired = f", after {INT8.name} was {outcome}"
        return passing[0], False, f"{first.name}, which passes the gates{repaired}"
    chosen = found[FP32.name]
    whys = [f"{c.kind.name} is {c.verdict.outcome}" for c in reduced]
    whys += [f"{name} is not available" for name in trial.unavailable]
    # What anybody can do about it.
    undecided = any(c.verdict.outcome == "inconclusive" for c in reduced)
    hint = " (more validation rows would decide; `precision` overrules it)" if undecided else ""
    return chosen, False, f"{chosen.kind.name}, since {' and '.join(whys)}{hint}"


def print_selection(selection: dict[str, Any]) -> None:
    """The candidates as a table on screen, and why the one that ships does."""
    from rich.console import Console
    from rich.table import Table

    rows = selection["candidates"]
    lengths = next(row["cpu_ms_per_text"] for row in rows if "cpu_ms_per_text" in row)
    table = Table(title=f"what may ship, on {selection['rows']} validation rows")
    table.title_justify = "left"
    table.add_column("graph", overflow="fold")
    table.add_column("verdict", no_wrap=True)
    for name in ("macro-F1", "agrees", "drift", "MB"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("CPU ms a text", justify="right", no_wrap=True)
    for row in rows:
        mark = "→ " if row["name"] == selection["chosen"] else "  "
        cells = ["-"] * 5
        if row["verdict"] != "unavailable":
            cells = [
                measured(row["macro_f1"], selection["rows"]),
                measured(row["label_agreement"], selection["rows"]),
                f"{row['mean_probability_drift']:.4f}",
                f"{row['bytes'] / 1e6:.0f}",
                "/".join(f"{cost:.1f}" for cost in row["cpu_ms_per_text"].values()),
            ]
        table.add_row(mark + row["name"], row["verdict"], *cells)
    console = Console(markup=False, emoji=False)
    console.print(table)
    console.print(f"CPU ms: one text alone of {'/'.join(lengths)} tokens", highlight=False)
    for row in rows:
        for reason in row["reasons"]:
            console.print(f"{row['name']}, {row['verdict']}: {reason}", highlight=False)
    console.print(f"ships: {selection['reason']}", highlight=False)
