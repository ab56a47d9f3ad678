"""Candidates: each graph as the package that it would be, measured and judged.

    evaluation = CandidateEvaluation.of_checkpoint(export, answers, arguments)
    candidate = evaluation.measure(VARIANTS["int8"])

Graphs in fp32 pass where their logits are the checkpoint's, the others by the gates.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from service.inference.classifier import Classifier, Prediction, predictions
from service.inference.decisions import FloatArray
from service.inference.errors import NotFiniteError
from service.inference.tokenizing import EncodedText
from service.package.manifest import MODEL_FILE, TOKENIZER_FILE, InferenceConfig, Manifest
from service.package.package import seal_package
from training.common.errors import ExportError
from training.common.progress import progress
from training.data.splits import Split
from training.evaluation.latency import BatchSensitivity, batch_sensitivity
from training.evaluation.metrics import label_matrix, mean_of
from training.evaluation.significance import label_f1
from training.export.finish import finish
from training.export.gates import Answers, Rule, Verdict, evidence, judge
from training.export.parity import LOGIT_TOLERANCE
from training.export.promises import without_promises
from training.export.variants import GraphVariant
from training.recipe.arguments import ExportArguments
from training.recipe.bounds import Gates, parse_gates

logger = logging.getLogger(__name__)

# Two copies of an fp32 package may differ by this much, by the order of float32 sums.
FP32_SCORE_TOLERANCE = 1e-5
# A probability may change by this much at most because of other texts in the same batch, and no
# label may: dynamic quantization over whole batches once changed one by 0.33.
BATCH_TOLERANCE = 1e-3


@dataclass(frozen=True)
class ExportedGraph:
    """What every candidate is made from.

    Attributes:
        draft: the manifest before anything is chosen for it.
        graph: the fp32 graph as exported.
        tokenizer: the `tokenizer.json` of all candidates.
        scratch: a folder for the candidates.
    """

    draft: Manifest
    graph: Path
    tokenizer: Path
    scratch: Path


@dataclass(frozen=True)
class CheckpointAnswers:
    """The validation rows, and the checkpoint's logits of shape (windows of `encoded`, labels).

    `held_out` are those of a checkpoint that has not seen the rows, where the one that ships has.
    """

    validation: Split
    encoded: Sequence[EncodedText]
    logits: FloatArray
    held_out: FloatArray | None = None

    def unseen(self, logits: FloatArray) -> FloatArray:
        """The logits that say how a package with these `logits` answers new rows."""
        return logits if self.held_out is None else self.held_out


@dataclass(frozen=True)
class Candidate:
    """A graph as the package that it would be: calibrated, with its thresholds and answers.

    `answers` are those to rows that its training has not seen. `logits` are those of the windows of
    the validation rows. `evidence` goes into the manifest.
    """

    variant: GraphVariant
    folder: Path
    classifier: Classifier
    manifest: Manifest
    answers: list[Prediction]
    verdict: Verdict
    evidence: dict[str, Any] = field(repr=False)
    logits: FloatArray = field(repr=False)

    @property
    def passed(self) -> bool:
        """Whether it may ship without anybody's asking for it."""
        return self.verdict.outcome == "passed"


@dataclass(frozen=True)
class CandidateEvaluation:
    """The checkpoint's answers, and every candidate that was compared with them so far.

    Attributes:
        truth: booleans of shape (rows, labels).
        config: how the checkpoint's own package would decide.
        reference: the answers of that package.
        candidates: by the name of the variant, in the order in which they were measured.
        unavailable: why a variant could not be made or run, by its name.
    """

    export: ExportedGraph
    checkpoint: CheckpointAnswers
    arguments: ExportArguments
    gates: Gates
    truth: np.ndarray
    config: InferenceConfig
    reference: Answers
    candidates: dict[str, Candidate] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of_checkpoint(
        cls, export: ExportedGraph, checkpoint: CheckpointAnswers, arguments: ExportArguments
    ) -> CandidateEvaluation:
        """Finish the checkpoint as a package is finished: calibrated, with thresholds.

        Raises:
            ExportError: no abstain threshold reaches the precision that the recipe wants.
        """
        config, _ = _finish(export.draft, arguments, checkpoint, checkpoint.logits)
        answers = predictions(config, checkpoint.encoded, checkpoint.logits)
        labels = export.draft.labels
        return cls(
            export=export,
            checkpoint=checkpoint,
            arguments=arguments,
            gates=parse_gates(arguments.gates),
            truth=label_matrix(checkpoint.validation.labels, labels),
            config=config,
            reference=_comparable(answers, labels),
        )

    def measure(self, variant: GraphVariant) -> Candidate | None:
        """Make, finish, measure and judge one candidate; None where it cannot be made or run."""
        try:
            candidate = self._measure(variant)
        except ExportError as error:
            self.unavailable[variant.name] = str(error)
            return None
        self.candidates[variant.name] = candidate
        return candidate

    def _measure(self, variant: GraphVariant) -> Candidate:
        folder, draft = self._make_package(variant)
        classifier, logits = self._run(variant, folder)
        # An ExportError: the checkpoint reaches the wanted precision, this candidate does not.
        manifest, answers = _finish(draft, self.arguments, self.checkpoint, logits)
        sensitivity = batch_sensitivity(classifier, manifest, self.checkpoint.validation.texts)
        own_answers = predictions(manifest, self.checkpoint.encoded, logits)
        comparable = _comparable(own_answers, manifest.labels)
        largest = float(np.abs(logits - self.checkpoint.logits).max())
        verdict = self._judge(variant, comparable, largest, sensitivity)
        tolerance = max(sensitivity.largest_change, FP32_SCORE_TOLERANCE)
        return Candidate(
            variant=variant,
            folder=folder,
            classifier=classifier,
            manifest=manifest.model_copy(update={"score_tolerance": tolerance}),
            answers=answers,
            verdict=verdict,
            evidence={
                "name": variant.name,
                "precision": variant.precision,
                **evidence(verdict),
                **({} if self.checkpoint.held_out is not None else self._scores(comparable)),
                "largest_logit_difference": largest,
                "largest_change_by_neighbours": sensitivity.largest_change,
                "labels_changed_by_neighbours": sensitivity.changed_answers,
                "bytes": (folder / MODEL_FILE).stat().st_size,
            },
            logits=logits,
        )

    def _make_package(self, variant: GraphVariant) -> tuple[Path, Manifest]:
        """A folder with the graph as a package, and the draft of its manifest."""
        folder = self.export.scratch / variant.name.replace(", ", "-").replace(" ", "-")
        folder.mkdir()
        variant.make(self.export.graph, folder / MODEL_FILE)
        shutil.copyfile(self.export.tokenizer, folder / TOKENIZER_FILE)
        draft = self.export.draft.model_copy(update={"precision": variant.precision})
        return folder, seal_package(folder, draft)

    def _run(self, variant: GraphVariant, folder: Path) -> tuple[Classifier, FloatArray]:
        """The package's logits of all validation windows.

        Raises:
            ExportError: a graph other than fp32 cannot be run.
        """
        encoded = self.checkpoint.encoded
        try:
            classifier = Classifier.load(folder)
            with progress(len(encoded), variant.name, "text", leave=False) as bar:
                return classifier, classifier.window_logits(encoded, on_batch=bar.update)
        except NotFiniteError:
            raise ExportError("its logits are not finite numbers") from None
        except Exception as error:  # onnxruntime's exceptions share no base of their own
            if variant.family == "fp32":
                raise
            logger.debug("%s cannot be run", variant.name, exc_info=True)
            raise ExportError(f"ONNX Runtime does not run it ({type(error).__name__})") from None

    def _judge(
        self,
        variant: GraphVariant,
        answers: Answers,
        largest_logit_difference: float,
        sensitivity: BatchSensitivity,
    ) -> Verdict:
        """Judge by the gates; a graph in fp32 by its logits, which need no statistics."""
        verdict = judge(self.truth, self.reference, answers, self.config, self.gates)
        if variant.precision == "fp32":
            equal = largest_logit_difference <= LOGIT_TOLERANCE
            reasons: dict[Rule, str] = {}
            if not equal:
                reasons["logits"] = (
                    f"logits differ from the checkpoint's by {largest_logit_difference:.2g}"
                )
            verdict = replace(verdict, outcome="passed" if equal else "refused", by_rule=reasons)
        elif verdict.outcome != "refused" and self.checkpoint.held_out is not None:
            # More rows or wider bounds would not help.
            reasons = {"rows": "the checkpoint was trained on the validation rows, too"}
            verdict = replace(verdict, outcome="inconclusive", by_rule=reasons)
        # An fp32 answer that changes with so small a change was a tie, for the checkpoint as well.
        changes_answers = sensitivity.changed_answers and variant.precision != "fp32"
        if sensitivity.largest_change > BATCH_TOLERANCE or changes_answers:
            reasons = {
                "batch": "a text's probabilities change by up to "
                f"{sensitivity.largest_change:.2g} with the texts beside it in a batch, and "
                f"{sensitivity.changed_answers} answers do"
            }
            verdict = replace(verdict, outcome="refused", by_rule=reasons | verdict.by_rule)
        return verdict

    def _scores(self, answers: Answers) -> dict[str, Any]:
        """Accuracy and F1 on validation rows that the checkpoint has not seen, for the manifest."""
        per_label = {
            label: None if np.isnan(f1) else float(f1)
            for label, f1 in zip(
                self.config.labels, label_f1(self.truth, answers.answered), strict=True
            )
        }
        return {
            "accuracy": float((answers.answered == self.truth).all(axis=1).mean()),
            "macro_f1": mean_of(list(per_label.values())),
            "per_label_f1": {
                label: None if f1 is None else round(f1, 4) for label, f1 in per_label.items()
            },
        }


def _finish(
    draft: Manifest, arguments: ExportArguments, checkpoint: CheckpointAnswers, logits: FloatArray
) -> tuple[Manifest, list[Prediction]]:
    validation, unseen = checkpoint.validation, checkpoint.unseen(logits)
    manifest, answers = finish(
        draft, arguments, validation.labels, checkpoint.encoded, unseen, validation.groups
    )
    return manifest if checkpoint.held_out is None else without_promises(manifest), answers


def _comparable(answers: Sequence[Prediction], labels: Sequence[str]) -> Answers:
    return Answers(
        np.stack([answer.probs for answer in answers]),
        label_matrix([tuple(answer.answer) for answer in answers], labels),
    )
