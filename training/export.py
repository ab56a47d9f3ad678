"""Checkpoint → model package: exported, proven equal, and what ships chosen by evidence.

whetstone export examples/support_tickets/recipe.yaml
"""

from __future__ import annotations

import importlib.metadata
import logging
import shutil
import subprocess
import tempfile
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from service.classifier import TEXTS_AT_ONCE, Classifier, Prediction
from service.decisions import FloatArray, aggregate_windows, probabilities
from service.inference.tokenizing import EncodedText
from service.model_package import (
    CARD_FILE,
    MODEL_FILE,
    TOKENIZER_FILE,
    GoldenAnswer,
    Manifest,
    Profile,
    Task,
    Text,
    replacing_folder,
    seal_package,
    write_golden,
    write_text,
)
from training.candidates import FP32_SCORE_TOLERANCE, Trial, choose
from training.card import model_card
from training.data import leakage
from training.data.dataset import chosen_golden_texts
from training.data.encoding import make_targets
from training.errors import ExportError
from training.evaluate import headline, validation_metrics_of
from training.exporter import export_graph
from training.full_disk import full_disk_in_a_sentence
from training.gates import parse_gates
from training.layout import PACKAGE
from training.metrics import validation_metrics
from training.parity import TorchCheckpoint, check_parity
from training.promises import warn_of_promises
from training.run_lock import alone_in
from training.thresholds import DEFAULT_THRESHOLD

if TYPE_CHECKING:
    from training.train import TrainedRun

logger = logging.getLogger(__name__)

# Of the rows; and one may always be decided otherwise.
ACCURACY_TOLERANCE = 0.01
# Logits so near to one another, or to 0 of several labels, that bf16's eight bits may swap them.
HALF_TIE = 0.1
GOLDEN_TEXTS = 32
CONFIDENCE_BINS = 20
LENGTH_BINS = 16
VERSIONED_PACKAGES = (
    "whetstone",
    "torch",
    "transformers",
    "optimum",
    "optimum-onnx",
    "onnx",
    "onnxruntime",
    "tokenizers",
)


def export(run: TrainedRun) -> Path:
    """Make `<run>/package`; an earlier one stays until the new one is whole and proven.

    Raises:
        ExportError: the graph does not answer as the checkpoint does.
    """
    target = run.folder / PACKAGE
    golden_texts = _golden_texts(run)
    with (
        alone_in(run.folder),
        replacing_folder(target) as folder,
        tempfile.TemporaryDirectory(prefix="whetstone-") as temporary,
        full_disk_in_a_sentence(target, "give the same command again"),
    ):
        scratch = Path(temporary)
        validation = run.data.validation
        graph, classifier, checkpoint, parity = prove(run, validation.texts, scratch)
        encoded = classifier.encode(validation.texts)
        reference = checkpoint.all_logits(encoded)
        check_accuracy(run, encoded, reference)

        arguments = run.recipe.export
        trial = Trial(
            _draft(run),
            arguments,
            parse_gates(arguments.gates),
            validation,
            graph=graph,
            tokenizer=scratch / TOKENIZER_FILE,
            encoded=encoded,
            reference=reference,
            scratch=scratch,
        )
        # The candidates need the memory, and nothing asks the checkpoint any more.
        del checkpoint
        chosen, selection = choose(trial, arguments)

        warn_of_promises(chosen.manifest)
        shutil.copyfile(chosen.folder / MODEL_FILE, folder / MODEL_FILE)
        shutil.copyfile(chosen.folder / TOKENIZER_FILE, folder / TOKENIZER_FILE)
        metrics, _ = validation_metrics_of(
            *(chosen.manifest, arguments, validation.labels, encoded, chosen.logits),
            validation.groups,
        )
        manifest = chosen.manifest.model_copy(
            update={
                "metrics": {"validation": headline(metrics)},
                "parity": {"fp32": parity},
                "selection": selection,
                "profile": _profile(run, classifier, chosen.answers),
            }
        )
        seal_package(folder, manifest)
        write_golden(folder, golden_answers(golden_texts, Classifier.load(folder)))
        manifest = seal_package(folder, manifest)
        write_text(folder / CARD_FILE, model_card(manifest))
        Classifier.load(folder).check_golden(folder)
    return target


def prove(
    run: TrainedRun, texts: list[Text], scratch: Path, *, fresh: bool = False
) -> tuple[Path, Classifier, TorchCheckpoint, dict[str, Any]]:
    """Export a checkpoint, and compare the graph with it on `texts`.

    Args:
        fresh: the head has learned nothing yet.

    Returns:
        The fp32 graph, a package of it, the checkpoint, and what was compared.

    Raises:
        ExportError: the graph cannot be made, or does not answer as the checkpoint does.
    """
    graph = export_graph(run.checkpoint, scratch / "exported", loading(run))
    write_tokenizer(run, scratch / TOKENIZER_FILE)
    classifier = _as_exported(run, graph, scratch)
    checkpoint = TorchCheckpoint(run, loading(run))
    evidence = check_parity(checkpoint, classifier, texts, run.reading.max_length, fresh=fresh)
    return graph, classifier, checkpoint, evidence


def _as_exported(run: TrainedRun, graph: Path, scratch: Path) -> Classifier:
    """The fp32 graph as a package, before anything is chosen for it."""
    folder = scratch / "as-exported"
    folder.mkdir()
    shutil.copyfile(graph, folder / MODEL_FILE)
    shutil.copyfile(scratch / TOKENIZER_FILE, folder / TOKENIZER_FILE)
    seal_package(folder, _draft(run))
    return Classifier.load(folder)


def write_tokenizer(run: TrainedRun, path: Path) -> None:
    """`tokenizer.json` with truncation and padding written out.

    `save_pretrained` would write whatever the last call to the tokenizer left behind.
    """
    from transformers import AutoTokenizer

    fast = AutoTokenizer.from_pretrained(run.checkpoint, **loading(run))
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
    """Compare the checkpoint, loaded again, with what the Trainer saw of it while it was trained.

    Another path than parity, which compares what was saved with itself.

    Args:
        logits: of the windows of `encoded`, the validation texts.

    Raises:
        ExportError: the two differ by more than rounding explains.
    """
    kept = [e for e in run.record["evaluations"] if e["step"] == run.record["kept_step"]]
    if not kept:
        return
    rows, task = run.data.validation, run.data.task
    windows = [len(text.windows) for text in encoded]
    probs = aggregate_windows(probabilities(logits, task), windows, task, run.reading.aggregation)
    targets = make_targets(rows, run.data.labels, task)
    found = validation_metrics(probs, targets, task)["accuracy"]
    tolerance = max(ACCURACY_TOLERANCE, 1.5 / len(rows))
    if run.record.get("mixed_precision", "no") != "no":
        tolerance += undecided(probs, task)
    if abs(found - kept[0]["accuracy"]) > tolerance:
        raise ExportError(
            f"the checkpoint reaches accuracy {found:.4f} on the {len(rows)} validation rows, but "
            f"it reached {kept[0]['accuracy']:.4f} while it was trained: what was saved is not "
            "what was trained"
        )


def undecided(probs: FloatArray, task: Task) -> float:
    """The share of rows whose answer half the precision may change, of probabilities by label."""
    if task == "multi_label":
        near = np.abs(probs - 0.5).min(axis=1) < 1 / (1 + np.exp(-HALF_TIE)) - 0.5
    else:
        best = np.sort(probs, axis=1)
        near = best[:, -2] > best[:, -1] * np.exp(-HALF_TIE)
    return float(near.mean())


def _golden_texts(run: TrainedRun) -> list[Text]:
    """GOLDEN_TEXTS validation texts, spread over the labels; or those of `golden_file`; or none.

    Raises:
        DataError: `golden_file` cannot be used.
    """
    chosen = chosen_golden_texts(run.recipe.export.golden_file, run.recipe.data)
    if chosen is not None:
        return chosen
    seen: Counter[tuple[str, ...]] = Counter()
    turns = []
    for row, labels in enumerate(run.data.validation.labels):
        turns.append((seen[labels], row))
        seen[labels] += 1
    return [run.data.validation.texts[row] for _, row in sorted(turns)[:GOLDEN_TEXTS]]


def golden_answers(texts: list[Text], classifier: Classifier) -> list[GoldenAnswer]:
    """`texts` with this package's answers."""
    return [
        GoldenAnswer(
            text=text if isinstance(text, str) else text[0],
            text_pair=None if isinstance(text, str) else text[1],
            label=answer.label,
            labels=answer.labels,
            probs=tuple(answer.probs.tolist()),
        )
        for text, answer in zip(texts, classifier.classify(texts), strict=True)
    ]


def _draft(run: TrainedRun) -> Manifest:
    """A manifest before anything is chosen, hashed or measured."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(run.checkpoint, **loading(run))
    labels = tuple(config.id2label[index] for index in range(config.num_labels))
    windows = run.reading.window_stride is not None
    several = run.data.task == "multi_label"
    return Manifest.model_construct(
        name=run.recipe.data.name or "",
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        task=run.data.task,
        labels=labels,
        text_columns=("text", "text_pair") if run.data.has_pairs else ("text",),
        max_length=run.reading.max_length,
        long_text="window" if windows else "truncate",
        window_stride=run.reading.window_stride,
        window_aggregation=run.reading.aggregation,
        thresholds=dict.fromkeys(labels, DEFAULT_THRESHOLD) if several else {},
        precision="fp32",
        target_device=run.recipe.export.target_device,
        score_tolerance=FP32_SCORE_TOLERANCE,
        profile=Profile(),
        provenance=_provenance(run),
    )


def _profile(run: TrainedRun, classifier: Classifier, answers: list[Prediction]) -> Profile:
    """Label priors and token lengths of the training split, confidences on validation."""
    counts = Counter(label for labels in run.data.train.labels for label in labels)
    texts = run.data.train.texts
    # Part by part: the encodings of a million texts fill a memory, and only lengths are wanted.
    lengths = [
        sum(map(len, text.windows))
        for first in range(0, len(texts), TEXTS_AT_ONCE)
        for text in classifier.encode(texts[first : first + TEXTS_AT_ONCE])
    ]
    length_counts, length_edges = np.histogram(
        lengths, bins=LENGTH_BINS, range=(0, max(classifier.manifest.max_length, max(lengths)))
    )
    confidence_counts, confidence_edges = np.histogram(
        [answer.score for answer in answers], bins=CONFIDENCE_BINS, range=(0, 1)
    )
    return Profile(
        label_priors={
            label: counts[label] / len(run.data.train) for label in classifier.manifest.labels
        },
        token_length_edges=length_edges.tolist(),
        token_length_counts=length_counts.tolist(),
        confidence_edges=confidence_edges.tolist(),
        confidence_counts=confidence_counts.tolist(),
    )


def loading(run: TrainedRun) -> dict[str, Any]:
    """How `from_pretrained` and optimum load the checkpoint: from its folder, never a hub."""
    return {
        "trust_remote_code": run.recipe.model.trust_remote_code,
        "local_files_only": True,
    }


def _provenance(run: TrainedRun) -> dict[str, Any]:
    record, data = run.record, run.data
    return {
        "base_model": record["base_model"],
        "dataset": {
            "fingerprint": data.fingerprint(),
            "train_rows": len(data.train),
            "validation_rows": len(data.validation),
            "test_rows": len(data.test) if data.test else 0,
            "dropped_rows": data.dropped,
        },
        # Whoever compares it later can tell what it has seen: by training, or by what was chosen.
        leakage.KEY: leakage.fingerprint([*data.train.texts, *data.validation.texts]),
        "recipe": run.recipe.as_dict(),
        "training_arguments": record["training_arguments"],
        "evaluations": record["evaluations"],
        "device": record["device"],
        "training_seconds": record["seconds"],
        "git_commit": _git_commit(),
        "packages": {name: importlib.metadata.version(name) for name in VERSIONED_PACKAGES},
    }


def _git_commit() -> str | None:
    """The commit of the working folder: a team keeps its recipes in a repository."""
    git = shutil.which("git")
    if git is None:
        return None
    answer = subprocess.run(  # noqa: S603 - fixed arguments
        [git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return answer.stdout.strip() or None
