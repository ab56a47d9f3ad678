"""Checkpoint → ONNX → model package, refused unless it answers as the checkpoint does.

    whetstone export examples/support_tickets/recipe.yaml --precision int8

The only module that knows optimum.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import logging
import shutil
import subprocess
import tempfile
import warnings
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from service.classifier import Classifier, Prediction
from service.decisions import FloatArray
from service.model_package import (
    CARD_FILE,
    GOLDEN_FILE,
    HASHED_FILES,
    MODEL_FILE,
    TOKENIZER_FILE,
    GoldenAnswer,
    Manifest,
    Precision,
    Profile,
    Text,
    file_record,
    package_version,
    replacing_folder,
    write_golden,
    write_manifest,
    write_text,
)
from training.calibrate import DEFAULT_THRESHOLD, with_abstention, with_choices
from training.card import model_card
from training.encoding import make_targets
from training.errors import BaseModelError, ExportError
from training.evaluate import evaluate, headline
from training.layout import PACKAGE
from training.metrics import validation_metrics
from training.progress import progress

if TYPE_CHECKING:
    from training.train import TrainedRun

logger = logging.getLogger(__name__)

PARITY_TEXTS = 200
PARITY_BATCH_SIZES = (1, 2, 7, 32)
LOGIT_TOLERANCE = 1e-3
# bf16 on a GPU flips a row now and then.
ACCURACY_TOLERANCE = 0.01
# What one copy of an fp32 package may differ from another by: the order of float32 sums.
FP32_SCORE_TOLERANCE = 1e-5
GOLDEN_TEXTS = 32
# int8 weights of these operators hold nearly all of an encoder's parameters.
QUANTISED_OPERATORS = ["MatMul", "Attention", "Gemm", "Gather"]
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
    with (
        replacing_folder(target) as folder,
        tempfile.TemporaryDirectory(prefix="whetstone-") as scratch,
        progress(4, "export", "step") as steps,
    ):
        graph = export_graph(run, Path(scratch) / "fp32")
        shutil.copyfile(graph, folder / MODEL_FILE)
        write_tokenizer(run, folder / TOKENIZER_FILE)
        _seal(folder, _draft(run, "fp32"))
        steps.update()

        classifier = Classifier.load(folder)
        evidence = {"fp32": check_parity(run, classifier)}
        fp32_answers = check_accuracy(run, classifier)
        draft = _draft(run, run.recipe.export.precision)
        steps.update()

        if draft.precision == "int8":
            draft, evidence["int8"] = _replace_with_int8(
                run, folder, graph.parent, draft, fp32_answers
            )
        steps.update()

        draft, metrics, answers = _choose(run, folder, draft)
        classifier = Classifier.load(folder)
        write_golden(folder, golden_answers(run, classifier))
        manifest = draft.model_copy(
            update={
                "metrics": {"validation": headline(metrics)},
                "parity": evidence,
                "profile": _profile(run, classifier, answers),
            }
        )
        manifest = _seal(folder, manifest)
        write_text(folder / CARD_FILE, model_card(manifest))
        Classifier.load(folder).check_golden(folder)
        steps.update()
    return target


def _choose(
    run: TrainedRun, folder: Path, draft: Manifest
) -> tuple[Manifest, dict[str, Any], list[Prediction]]:
    """Thresholds, then abstention, each chosen on the answers that the package gives before it."""
    validation, arguments = run.data.validation, run.recipe.export
    metrics, answers = evaluate(Classifier.load(folder), validation, "validation split")
    chosen = _seal(folder, with_choices(draft, arguments, validation.labels, answers))
    if chosen.thresholds != draft.thresholds:
        metrics, answers = evaluate(Classifier.load(folder), validation, "validation split")
    abstaining = with_abstention(chosen, arguments, validation.labels, answers)
    if abstaining != chosen:
        chosen = _seal(folder, abstaining)
        metrics, answers = evaluate(Classifier.load(folder), validation, "validation split")
    return chosen, metrics, answers


def export_graph(run: TrainedRun, folder: Path) -> Path:
    """The checkpoint as an fp32 ONNX graph with free batch and length, through optimum.

    Raises:
        ExportError: optimum cannot export this kind of model.
    """
    from optimum.exporters.onnx import main_export

    # The tracer warns of constants and of its own age; whether the graph is right is for
    # `check_parity` to say, on real texts, batches and lengths.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            main_export(
                str(run.checkpoint),
                folder,
                task="text-classification",
                device="cpu",
                do_validation=False,
                **_loading(run),
            )
        except (ValueError, KeyError, RuntimeError, NotImplementedError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ExportError(
                f"optimum cannot export {run.checkpoint}: {reason}: choose another base model"
            ) from error
    return folder / MODEL_FILE


def refuse_unexportable_family(name: str, model_type: str) -> None:
    """Refuse, before training, a kind of model that optimum has no exporter for.

    Raises:
        BaseModelError: optimum does not export `model_type` for text classification.
    """
    # Importing it registers the exporters.
    import optimum.exporters.onnx.model_configs  # noqa: F401
    from optimum.exporters.tasks import TasksManager

    try:
        tasks = TasksManager.get_supported_tasks_for_model_type(
            model_type.replace("_", "-"), "onnx", library_name="transformers"
        )
    except KeyError:
        tasks = {}
    if "text-classification" not in tasks:
        raise BaseModelError(
            f"{name} is of the kind {model_type!r}, which optimum cannot export to ONNX for text "
            "classification: choose another base model, such as a BERT, RoBERTa, DeBERTa-v2, "
            "ELECTRA, MPNet or ModernBERT"
        )


def quantise(fp32_folder: Path, target: Path) -> None:
    """Dynamic int8, per channel, of the graph that optimum has optimised first.

    `reduce_range` keeps weights to 7 bits: on AVX2 without VNNI, sums of 8-bit products saturate
    (ONNX Runtime's documentation, "Quantize ONNX models").
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from optimum.onnxruntime import ORTModelForSequenceClassification, ORTOptimizer
    from optimum.onnxruntime.configuration import OptimizationConfig

    optimised = fp32_folder / "optimised"
    model = ORTModelForSequenceClassification.from_pretrained(fp32_folder)
    ORTOptimizer.from_pretrained(model).optimize(
        save_dir=optimised, optimization_config=OptimizationConfig(optimization_level=2)
    )
    (graph,) = optimised.glob("*.onnx")
    quantize_dynamic(
        graph,
        target,
        per_channel=True,
        reduce_range=True,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=QUANTISED_OPERATORS,
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT, "MatMulConstBOnly": True},
    )


def write_tokenizer(run: TrainedRun, path: Path) -> None:
    """`tokenizer.json` with truncation and padding written out.

    `save_pretrained` would write whatever the last call to the tokenizer left behind.
    """
    from transformers import AutoTokenizer

    fast = AutoTokenizer.from_pretrained(run.checkpoint, **_loading(run))
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


def check_parity(run: TrainedRun, classifier: Classifier) -> dict[str, Any]:
    """Compare the package with the torch checkpoint on validation texts.

    Token ids must be equal; logits within LOGIT_TOLERANCE, for texts of mixed length in batches
    of PARITY_BATCH_SIZES.

    Raises:
        ExportError: they are not.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(run.checkpoint, **_loading(run))
    model = AutoModelForSequenceClassification.from_pretrained(
        run.checkpoint, **_loading(run)
    ).eval()
    # Some tokenizers give what their model does not take.
    taken = set(inspect.signature(model.forward).parameters)
    texts = parity_texts(run.data.validation.texts, run.record["max_length"])
    encodings = [window for text in classifier.encode(texts) for window in text.windows]
    pairs = [text[1] for text in texts if isinstance(text, tuple)]
    expected_ids = tokenizer(
        [text if isinstance(text, str) else text[0] for text in texts],
        pairs or None,
        **run.reading.tokenizer_options(),
    )
    expected_ids.pop("overflow_to_sample_mapping", None)
    if [encoding.ids for encoding in encodings] != expected_ids["input_ids"]:
        raise ExportError(
            "tokenizer.json gives other token ids than the checkpoint's tokenizer: this tokenizer "
            "cannot be shipped"
        )
    largest = 0.0
    for size in PARITY_BATCH_SIZES:
        for start in range(0, len(encodings), size):
            rows = slice(start, start + size)
            batch = tokenizer.pad(
                {name: column[rows] for name, column in expected_ids.items() if name in taken},
                return_tensors="pt",
            )
            with torch.inference_mode():
                expected = model(**batch).logits.float().numpy()
            got = classifier.logits(encodings[rows])
            largest = max(largest, float(np.abs(expected - got).max()))
    # `not <=` also refuses NaN.
    if not largest <= LOGIT_TOLERANCE:
        raise ExportError(
            f"the ONNX graph's logits differ from the checkpoint's by {largest:.2g}, more than "
            f"{LOGIT_TOLERANCE:g}: this model cannot be shipped with these versions"
        )
    return {
        "texts": len(texts),
        "windows": len(encodings),
        "batch_sizes": list(PARITY_BATCH_SIZES),
        "token_ids_equal": True,
        "largest_logit_difference": largest,
        "tolerance": LOGIT_TOLERANCE,
    }


def check_accuracy(run: TrainedRun, classifier: Classifier) -> list[Prediction]:
    """Compare the package with what the Trainer saw of the kept checkpoint; validation's answers.

    Another path than `check_parity`: the Trainer's own model and batches, not one loaded again.

    Raises:
        ExportError: the two differ by more than rounding on a GPU explains.
    """
    rows = run.data.validation
    answers = classifier.classify(rows.texts)
    kept = [e for e in run.record["evaluations"] if e["step"] == run.record["kept_step"]]
    if not kept:
        return answers
    targets = make_targets(rows, run.data.labels, run.data.task)
    found = validation_metrics(_probabilities(answers), targets, run.data.task)["accuracy"]
    if abs(found - kept[0]["accuracy"]) > max(ACCURACY_TOLERANCE, 1.5 / len(rows)):
        raise ExportError(
            f"the package reaches accuracy {found:.4f} on the {len(rows)} validation rows, but the "
            f"checkpoint reached {kept[0]['accuracy']:.4f} while it was trained: what was saved is "
            "not what was trained"
        )
    return answers


def parity_texts(texts: list[Text], max_length: int) -> list[Text]:
    """Up to PARITY_TEXTS texts over the whole range of lengths, an over-long one, shuffled.

    Shuffled, so that batches mix lengths and padding is part of the comparison.
    """

    def characters(text: Text) -> int:
        return len(text) if isinstance(text, str) else sum(map(len, text))

    def over_long(text: str) -> str:
        # A word is one token at least.
        return " ".join((text + " word").split() * max_length)[: 20 * max_length]

    by_length = sorted(texts, key=characters)
    chosen = np.unique(np.linspace(0, len(by_length) - 1, PARITY_TEXTS - 1).astype(int))
    picked = [by_length[index] for index in chosen]
    longest = by_length[-1]
    if isinstance(longest, str):
        picked.append(over_long(longest))
    else:
        first, second = longest
        # Long in either place: truncation takes from the longer one.
        picked += [(over_long(first), second), (first, over_long(second))]
        picked.append((over_long(first), over_long(second)))
    order = np.random.default_rng(0).permutation(len(picked))
    return [picked[index] for index in order]


def golden_answers(run: TrainedRun, classifier: Classifier) -> list[GoldenAnswer]:
    """GOLDEN_TEXTS validation texts, spread over the labels, with this package's answers."""
    seen: Counter[tuple[str, ...]] = Counter()
    turns = []
    for row, labels in enumerate(run.data.validation.labels):
        turns.append((seen[labels], row))
        seen[labels] += 1
    texts = [run.data.validation.texts[row] for _, row in sorted(turns)[:GOLDEN_TEXTS]]
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


def neighbour_effect(classifier: Classifier, texts: list[Text]) -> float:
    """The largest change of a probability between a text alone and the same text in a batch.

    Dynamic int8 quantises activations over the whole batch, so neighbours matter a little.
    """
    texts = texts[:PARITY_TEXTS]
    together = _probabilities(classifier.classify(texts))
    alone = _probabilities(classifier.classify(texts, batch_size=1))
    return float(np.abs(together - alone).max())


def _replace_with_int8(
    run: TrainedRun,
    folder: Path,
    fp32_folder: Path,
    draft: Manifest,
    before: list[Prediction],
) -> tuple[Manifest, dict[str, Any]]:
    """Put the int8 graph in place of the fp32 one; its draft manifest and how it compares."""
    texts = run.data.validation.texts
    quantise(fp32_folder, folder / MODEL_FILE)
    draft = _seal(folder, draft)
    classifier = Classifier.load(folder)
    after = classifier.classify(texts)
    agreement = np.mean([_decision(a) == _decision(b) for a, b in zip(before, after, strict=True)])
    differences = np.abs(_probabilities(before) - _probabilities(after))
    # Half the L1 distance of two distributions; of independent probabilities the mean change.
    drift = (
        differences.sum(axis=1) / 2 if draft.task == "single_label" else differences.mean(axis=1)
    )
    tolerance = max(neighbour_effect(classifier, texts), FP32_SCORE_TOLERANCE)
    comparison = {
        "texts": len(texts),
        "label_agreement_with_fp32": float(agreement),
        "mean_probability_drift": float(drift.mean()),
        "largest_probability_drift": float(drift.max()),
        "largest_change_by_neighbours": tolerance,
    }
    return draft.model_copy(update={"score_tolerance": tolerance}), comparison


def _decision(answer: Prediction) -> str | set[str]:
    return answer.label if answer.labels is None else set(answer.labels)


def _probabilities(answers: list[Prediction]) -> FloatArray:
    return np.stack([answer.probs for answer in answers])


def _draft(run: TrainedRun, precision: Precision) -> Manifest:
    """A manifest before its files are hashed and its package is measured."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(run.checkpoint, **_loading(run))
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
        precision=precision,
        score_tolerance=FP32_SCORE_TOLERANCE,
        profile=Profile(),
        provenance=_provenance(run),
    )


def _seal(folder: Path, manifest: Manifest) -> Manifest:
    """Hash the files of `folder` into the manifest, give it its version, write it."""
    (folder / GOLDEN_FILE).touch()
    files = {name: file_record(folder / name) for name in HASHED_FILES}
    sealed = manifest.model_copy(
        update={"files": files, "version": package_version(files, manifest)}
    )
    sealed = Manifest.model_validate(sealed.model_dump())
    write_manifest(folder, sealed)
    return sealed


def _profile(run: TrainedRun, classifier: Classifier, answers: list[Prediction]) -> Profile:
    """Label priors and token lengths of the training split, confidences on validation."""
    counts = Counter(label for labels in run.data.train.labels for label in labels)
    lengths = [sum(map(len, text.windows)) for text in classifier.encode(run.data.train.texts)]
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


def _loading(run: TrainedRun) -> dict[str, Any]:
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
