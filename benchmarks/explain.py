"""How faithful explanations are, what they cost, and what they cost others.

    make bench-explain DATA=FOLDER
    python -m benchmarks.explain --data FOLDER --sets sms_spam

FOLDER holds a folder for each set with train.csv and test.csv. A small model of each set is trained
once (`benchmarks.explain_models`). The words of test texts are ordered by `service.explanation`, by
leave-one-out alone, by SHAP's text masker in its own environment, and at random. In this order they
are removed in ten steps. The area under the deletion curve is the mean probability of the answered
label over the steps: the lower, the more faithful (Samek et al. 2015, "Evaluating the visualization
of what a Deep Neural Network has learned", arXiv:1509.06321; DeYoung et al. 2020, "ERASER"). What
is in the result already is not measured again.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.bench_quality import SetError, folder_of, read_json
from benchmarks.explain_models import ROWS, package_of
from benchmarks.explain_serving import serve_costs
from benchmarks.load import ROOT, end_by_signals, machine, write_result
from service.explanation.explain import Explanation
from service.explanation.local import explain_text, judge
from service.explanation.words import Passage, read_passage
from service.inference.classifier import Classifier

TEXTS = 40
FEWEST_WORDS, MOST_WORDS = 5, 40
PARTS = 10
RESAMPLES = 2000
PEER = ROOT / "benchmarks" / "shap_peer.py"
PEER_PACKAGES = ROOT / "benchmarks" / "peers" / "shap.txt"
PACKAGES = ("whetstone", "onnxruntime", "tokenizers", "numpy")
METHODS = ("explain", "leave-one-out", "shap", "random")
Orders = dict[str, list[Sequence[int]]]


def texts_of(source: Path, classifier: Classifier) -> list[str]:
    """Test texts of a moderate number of words, the same in each run."""
    with (source / "test.csv").open(newline="", encoding="utf-8") as handle:
        texts = list(dict.fromkeys(row["text"] for row in csv.DictReader(handle)))
    random.Random(0).shuffle(texts)  # noqa: S311 - no secret
    sizes = ((text, len(read_passage(classifier.encoder, text).words)) for text in texts)
    fitting = (text for text, size in sizes if FEWEST_WORDS <= size <= MOST_WORDS)
    return [text for text, _ in zip(fitting, range(TEXTS), strict=False)]


def make_environment(work: Path) -> Path:
    """The interpreter of SHAP's own environment, which is made once.

    Raises:
        SetError: SHAP cannot be installed.
    """
    folder = work / "shap"
    python = folder / "bin" / "python"
    if (folder / ".installed").exists():
        return python
    shutil.rmtree(folder, ignore_errors=True)
    install = [folder / "bin" / "pip", "install", "--quiet", "-r", PEER_PACKAGES]
    for command in ([sys.executable, "-m", "venv", folder], install):
        if subprocess.run(command, check=False).returncode:
            raise SetError("SHAP cannot be installed: see above")
    (folder / ".installed").touch()
    return python


def by_shap(
    package: Path,
    classifier: Classifier,
    passages: Sequence[Passage],
    labels: Sequence[int],
    work: Path,
) -> list[Mapping[str, Any]]:
    """The values of every word, and how often the model was asked, for each text.

    Raises:
        SetError: SHAP cannot be installed, or failed.
    """
    source, target = work / "texts.json", work / "values.json"
    items = [
        {
            "text": passage.texts[0],
            "words": [[span.start, span.end] for span in passage.words],
            "label": label,
            "temperature": classifier.manifest.temperature,
        }
        for passage, label in zip(passages, labels, strict=True)
    ]
    source.write_text(json.dumps(items), "utf-8")
    python = make_environment(work)
    if subprocess.run([python, PEER, package, source, target], check=False).returncode:
        raise SetError("SHAP failed: see above")
    answers: list[Mapping[str, Any]] = json.loads(target.read_text("utf-8"))
    return answers


def ranked(values: Sequence[float]) -> list[int]:
    """Places by value, the largest first."""
    return sorted(range(len(values)), key=lambda place: -values[place])


def area(classifier: Classifier, passage: Passage, order: Sequence[int], label: int) -> float:
    """The mean probability of a label while words are removed in ten steps; never the last one."""
    counts = [round(len(order) * part / PARTS) for part in range(1, PARTS)]
    texts = [
        passage.without([passage.words[place] for place in order[: min(count, len(order) - 1)]])
        for count in counts
    ]
    return float(np.mean([answer.probs[label] for answer in classifier.classify(texts)]))


def leave_one_out(classifier: Classifier, passage: Passage, label: int) -> list[int]:
    """The places of the words, that whose removal lowers the log-odds of the label most first."""
    texts = [passage.without([word]) for word in passage.words]
    encoded = classifier.encode(texts)
    judged = judge(classifier.manifest, encoded, classifier.window_logits(encoded))
    return ranked([-float(each.log_odds[label]) for each in judged])


def compare(
    explanations: Sequence[Explanation],
    values: Sequence[Mapping[str, Any]],
    by_leaving_out: Sequence[Sequence[int]],
) -> tuple[Orders, dict[str, list[int]]]:
    """For each method, the order of the words of each text, and how often the model was asked."""
    chance = random.Random(0)  # noqa: S311 - no secret
    sizes = [len(one.words) for one in explanations]
    orders: Orders = {
        "explain": [one.order for one in explanations],
        "leave-one-out": list(by_leaving_out),
        "shap": [ranked(each["values"]) for each in values],
        "random": [chance.sample(range(size), size) for size in sizes],
    }
    calls = {
        "explain": [one.texts_asked + 1 for one in explanations],
        "leave-one-out": [size + 1 for size in sizes],
        "shap": [int(each["asked"]) for each in values],
        "random": [0] * len(sizes),
    }
    return orders, calls


def difference(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Mean of `ours` minus `theirs`, and its 95 % interval by the bootstrap over texts."""
    gaps = np.asarray(ours) - np.asarray(theirs)
    draws = np.random.default_rng(0).integers(0, len(gaps), (RESAMPLES, len(gaps)))
    low, high = np.percentile(gaps[draws].mean(axis=1), [2.5, 97.5])
    return [float(gaps.mean()), float(low), float(high)]


def measure(name: str, data: Path, work: Path) -> dict[str, Any]:
    """The entry of one set.

    Raises:
        SetError, OSError, ValueError: it cannot be measured.
    """
    package = package_of(name, data, work)
    classifier = Classifier.load(package, threads=1)
    texts = texts_of(folder_of(name, data), classifier)
    passages = [read_passage(classifier.encoder, text) for text in texts]
    explanations = [explain_text(classifier, text) for text in tqdm(texts, unit="text")]
    names = classifier.manifest.labels
    labels = [names.index(one.label) for one in explanations]
    values = by_shap(package, classifier, passages, labels, work)
    alone = [leave_one_out(classifier, *each) for each in zip(passages, labels, strict=True)]
    orders, calls = compare(explanations, values, alone)
    areas = {
        method: [
            area(classifier, passage, order, label)
            for passage, order, label in zip(passages, orders[method], labels, strict=True)
        ]
        for method in METHODS
    }
    return {
        "texts": len(texts),
        "words": float(np.mean([len(passage.words) for passage in passages])),
        "training_rows": ROWS[name],
        "precision": classifier.manifest.precision,
        "area": {method: float(np.mean(areas[method])) for method in METHODS},
        "calls": {method: float(np.mean(calls[method])) for method in METHODS},
        "minus_shap": difference(areas["explain"], areas["shap"]),
        "counterfactuals": sum(one.counterfactual is not None for one in explanations),
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def markdown(result: Mapping[str, Any]) -> str:
    """The tables of the documentation."""
    lines = [
        "| set | " + " | ".join(f"{method}: area (calls)" for method in METHODS) + " |",
        "|---|" + "---|" * len(METHODS),
    ]
    for name, entry in result["sets"].items():
        cells = [
            f"{entry['area'][method]:.3f} ({entry['calls'][method]:.0f})" for method in METHODS
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines.append("")
    for name, entry in result["sets"].items():
        mean, low, high = entry["minus_shap"]
        lines.append(
            f"- {name}: {entry['texts']} texts of {entry['words']:.0f} words on average. The area "
            f"minus that of SHAP is {mean:+.3f} (95 % interval {low:+.3f} to {high:+.3f}). For "
            f"{entry['counterfactuals']} texts, words were found whose removal changes the label."
        )
    serving = result.get("serving")
    if serving:
        lines += [
            "",
            f"A text of {serving['words']} words takes {serving['explain_p50_ms']:.0f} ms (p50) on "
            f"{serving['cores']} cores. Plain requests over "
            f"{serving['connections']} connections have a p99 of {serving['plain_p99_ms']:.0f} ms, "
            f"and of {serving['beside_p99_ms']:.0f} ms while explanations are asked for.",
        ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Measure what the result lacks; 1 where a part failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=lambda text: Path(text).resolve(), required=True)
    parser.add_argument("--sets", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "explain")
    out = ROOT / "benchmarks" / "results" / "explain.json"
    parser.add_argument("--out", type=Path, default=out)
    given = parser.parse_args(arguments)
    work = given.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    result = read_json(given.out) or {"sets": {}}
    failed = 0
    for name in given.sets:
        try:
            if name not in result["sets"]:
                result["sets"][name] = measure(name, given.data, work)
                write_result(given.out, result | {"machine": machine(PACKAGES)})
        except (SetError, OSError, ValueError) as error:
            failed += 1
            print(f"{name}: {error}", file=sys.stderr)
    if "serving" not in result and not failed:
        texts = folder_of(given.sets[0], given.data) / "test.csv"
        result["serving"] = serve_costs(package_of(given.sets[0], given.data, work), texts)
        write_result(given.out, result | {"machine": machine(PACKAGES)})
    print(markdown(result))
    return 1 if failed else 0


if __name__ == "__main__":
    end_by_signals()
    sys.exit(main())
