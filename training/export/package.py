"""Checkpoint → model package: exported, proven equal, and chosen by evidence.

whetstone export examples/support_tickets/recipe.yaml
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from service.inference.classifier import Classifier
from service.inference.decisions import FloatArray, aggregate_windows, probabilities
from service.inference.tokenizing import EncodedText
from service.package.files import replacing_folder, write_text
from service.package.golden import write_golden
from service.package.manifest import (
    CARD_FILE,
    MODEL_FILE,
    TOKENIZER_FILE,
    Manifest,
    Task,
    Text,
)
from service.package.package import seal_package
from training.common.errors import ExportError
from training.common.full_disk import full_disk_in_a_sentence
from training.common.layout import PACKAGE
from training.data.encoding import make_targets
from training.evaluation.evaluate import headline, validation_metrics_of
from training.evaluation.metrics import validation_metrics
from training.export.candidates import (
    Candidate,
    CandidateEvaluation,
    CheckpointAnswers,
    ExportedGraph,
)
from training.export.draft import draft_manifest, loading_options, profile_of
from training.export.golden_answers import choose_golden_texts, golden_answers
from training.export.model_card import model_card
from training.export.onnx import export_graph
from training.export.parity import TorchCheckpoint, check_parity
from training.export.promises import warn_of_promises
from training.export.selection import choose
from training.finetuning.lock import run_lock
from training.finetuning.record import ALL_ROWS

if TYPE_CHECKING:
    from training.finetuning.record import TrainedRun

logger = logging.getLogger(__name__)

# A share of the rows; one row may always be decided otherwise.
ACCURACY_TOLERANCE = 0.01
# Logits so near to one another, or to 0 for several labels, that bf16's eight bits may swap them.
HALF_TIE = 0.1


def export(run: TrainedRun) -> Path:
    """Make `<run>/package`; an earlier package stays until the new one is whole and proven.

    Raises:
        ExportError: the graph does not answer as the checkpoint does.
    """
    target = run.folder / PACKAGE
    golden_texts = choose_golden_texts(run)
    with (
        run_lock(run.folder),
        replacing_folder(target) as folder,
        tempfile.TemporaryDirectory(prefix="whetstone-") as temporary,
        full_disk_in_a_sentence(target, "give the same command again"),
    ):
        exported, parity, classifier, checkpoint = _export_and_check(run, Path(temporary))
        evaluation = CandidateEvaluation.of_checkpoint(exported, checkpoint, run.recipe.export)
        candidate, selection = choose(evaluation)
        warn_of_promises(candidate.manifest)
        manifest = candidate.manifest.model_copy(
            update={
                "metrics": {"validation": _validation_headline(run, candidate, checkpoint)},
                "parity": {"fp32": parity},
                "selection": selection,
                "profile": profile_of(run, classifier, candidate.answers),
            }
        )
        _write_package(folder, candidate, manifest, golden_texts)
    return target


def _export_and_check(
    run: TrainedRun, scratch: Path
) -> tuple[ExportedGraph, dict[str, Any], Classifier, CheckpointAnswers]:
    """The fp32 graph, its parity with the checkpoint, its package, the checkpoint's answers."""
    validation = run.data.validation
    graph, classifier, checkpoint, parity = prove(run, validation.texts, scratch)
    encoded = classifier.encode(validation.texts)
    logits = checkpoint.all_logits(encoded)
    check_accuracy(run, encoded, logits)
    held_out = held_out_logits(run, encoded)
    exported = ExportedGraph(draft_manifest(run), graph, scratch / TOKENIZER_FILE, scratch)
    # The checkpoint itself is not returned: the candidates need its memory.
    answers = CheckpointAnswers(validation, encoded, logits, held_out)
    return exported, parity, classifier, answers


def held_out_logits(run: TrainedRun, encoded: Sequence[EncodedText]) -> FloatArray | None:
    """The validation rows' logits by the checkpoint that has not seen them.

    Returns:
        Shape (windows of `encoded`, labels). None where the checkpoint that ships has not seen
        them either.
    """
    if run.held_out_checkpoint is None:
        return None
    checkpoint = TorchCheckpoint(run, loading_options(run), run.held_out_checkpoint)
    return checkpoint.all_logits(encoded)


def _validation_headline(
    run: TrainedRun, candidate: Candidate, checkpoint: CheckpointAnswers
) -> dict[str, Any]:
    """The headline of the candidate's metrics on the validation rows."""
    validation = checkpoint.validation
    metrics, _ = validation_metrics_of(
        candidate.manifest,
        run.recipe.export,
        validation.labels,
        checkpoint.encoded,
        checkpoint.unseen(candidate.logits),
        validation.groups,
        held_out=checkpoint.held_out is not None,
    )
    return headline(metrics)


def _write_package(
    folder: Path, candidate: Candidate, manifest: Manifest, golden_texts: list[Text]
) -> None:
    """Write all files of the package, and check its golden answers."""
    shutil.copyfile(candidate.folder / MODEL_FILE, folder / MODEL_FILE)
    shutil.copyfile(candidate.folder / TOKENIZER_FILE, folder / TOKENIZER_FILE)
    seal_package(folder, manifest)
    write_golden(folder, golden_answers(golden_texts, Classifier.load(folder)))
    sealed = seal_package(folder, manifest)
    write_text(folder / CARD_FILE, model_card(sealed))
    Classifier.load(folder).check_golden(folder)


def prove(
    run: TrainedRun, texts: list[Text], scratch: Path, *, fresh: bool = False
) -> tuple[Path, Classifier, TorchCheckpoint, dict[str, Any]]:
    """Export a checkpoint, and compare the graph with it on `texts`.

    Args:
        fresh: the head has learned nothing yet.

    Returns:
        The fp32 graph, a package of it, the checkpoint, and the evidence.

    Raises:
        ExportError: the graph cannot be made, or does not answer as the checkpoint does.
    """
    graph = export_graph(run.checkpoint, scratch / "exported", loading_options(run))
    write_tokenizer(run, scratch / TOKENIZER_FILE)
    classifier = _as_exported(run, graph, scratch)
    checkpoint = TorchCheckpoint(run, loading_options(run))
    evidence = check_parity(
        checkpoint, classifier, texts, run.text_encoding.max_length, fresh=fresh
    )
    return graph, classifier, checkpoint, evidence


def _as_exported(run: TrainedRun, graph: Path, scratch: Path) -> Classifier:
    """The fp32 graph as a package, before any choice."""
    folder = scratch / "as-exported"
    folder.mkdir()
    shutil.copyfile(graph, folder / MODEL_FILE)
    shutil.copyfile(scratch / TOKENIZER_FILE, folder / TOKENIZER_FILE)
    seal_package(folder, draft_manifest(run))
    return Classifier.load(folder)


def write_tokenizer(run: TrainedRun, path: Path) -> None:
    """`tokenizer.json` with truncation and padding written out.

    `save_pretrained` would write whatever the last call to the tokenizer left behind.
    """
    from transformers import AutoTokenizer

    fast = AutoTokenizer.from_pretrained(run.checkpoint, **loading_options(run))
    backend = fast.backend_tokenizer
    backend.enable_truncation(
        max_length=run.record["max_length"],
        stride=run.record["window_stride"] or 0,
        strategy="longest_first",
        direction=fast.truncation_side,
    )
    backend.enable_padding(
        direction=fast.padding_side,
        pad_id=fast.pad_token_id,
        pad_type_id=fast.pad_token_type_id,
        pad_token=fast.pad_token,
    )
    write_text(path, backend.to_str(pretty=True))


def check_accuracy(run: TrainedRun, encoded: list[EncodedText], logits: FloatArray) -> None:
    """Compare the loaded checkpoint's accuracy with the accuracy that the Trainer measured.

    Parity cannot tell that: it compares what was saved with itself.

    Args:
        logits: of the windows of `encoded`, the validation texts.

    Raises:
        ExportError: the two differ by more than rounding explains.
    """
    kept = [x for x in run.record["evaluations"] if x["step"] == run.record["kept_step"]]
    if ALL_ROWS in run.record:
        kept = [run.record[ALL_ROWS]]
    if not kept:
        return
    rows, task = run.data.validation, run.data.task
    windows = [len(text.windows) for text in encoded]
    probs = aggregate_windows(
        probabilities(logits, task), windows, task, run.text_encoding.aggregation
    )
    targets = make_targets(rows, run.data.labels, task)
    accuracy = validation_metrics(probs, targets, task)["accuracy"]
    tolerance = max(ACCURACY_TOLERANCE, 1.5 / len(rows))
    if run.record.get("mixed_precision", "no") != "no":
        tolerance += undecided(probs, task)
    if abs(accuracy - kept[0]["accuracy"]) > tolerance:
        raise ExportError(
            f"the checkpoint reaches accuracy {accuracy:.4f} on the {len(rows)} validation rows, "
            f"but it reached {kept[0]['accuracy']:.4f} while it was trained: what was saved is not "
            "what was trained"
        )


def undecided(probs: FloatArray, task: Task) -> float:
    """The share of rows whose answer half precision may change; `probs` of shape (rows, labels)."""
    if task == "multi_label":
        near = np.abs(probs - 0.5).min(axis=1) < 1 / (1 + np.exp(-HALF_TIE)) - 0.5
    else:
        best = np.sort(probs, axis=1)
        near = best[:, -2] > best[:, -1] * np.exp(-HALF_TIE)
    return float(near.mean())
