"""The sets of `bench_quality`: what is wanted of them, what was published, the table, the plot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

# Of sets that look for one label of two.
POSITIVE = {"sms_spam": "spam"}
MEASURES = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "micro_f1": "micro-F1",
    "positive_f1": "F1 of the positive label",
}
AIMS = {
    "sms_spam": ("positive_f1", 0.97),
    "banking77": ("accuracy", 0.93),
    "sst2": ("accuracy", 0.90),
    "go_emotions": ("macro_f1", 0.40),
}


class Reference(NamedTuple):
    """A published result; `source` says how its figure was found and what differs from ours."""

    model: str
    measure: str
    score: float
    source: str


REFERENCES = {
    "sms_spam": [
        Reference(
            "BERT", "accuracy", 0.9928, "Sahmoud & Mikki 2022, read in the abstract; another split"
        )
    ],
    "banking77": [
        Reference("BERT-large", "accuracy", 0.9366, "Casanueva et al. 2020, from memory"),
        Reference("RoBERTa-base", "accuracy", 0.9351, "philschmid's model card, read"),
        Reference("distilroberta", "accuracy", 0.896, "mrm8488's model card, read"),
    ],
    "sst2": [
        Reference("BERT-base", "accuracy", 0.935, "Devlin et al. 2019, read in a listing"),
        Reference("DistilBERT", "accuracy", 0.913, "Sanh et al. 2019, from memory; on validation"),
    ],
    "ag_news": [
        Reference(
            "BERT-base",
            "accuracy",
            0.952,
            "Sun et al. 2019, read in a listing; 120,000 training rows and further pre-training",
        )
    ],
    "go_emotions": [
        Reference("BERT-base", "macro_f1", 0.46, "Demszky et al. 2020, read in the abstract")
    ],
    "unfair_tos": [
        Reference(
            "BERT",
            "macro_f1",
            0.813,
            "Chalkidis et al. 2022, read; LexGLUE's older documents, 8 labels and none, other rows",
        )
    ],
}


def aim(found: Mapping[str, Any]) -> str:
    """What was wanted of a set, and whether it was reached."""
    if found["set"] not in AIMS:
        return "-"
    measured, wanted = AIMS[found["set"]]
    score, title = found[measured], MEASURES[measured]
    if measured == "positive_f1":
        # The table has no column for it; three digits would round a near miss up to what is wanted.
        title = f"F1 of {POSITIVE[found['set']]} {score:.4f},"
    return f"{title} ≥ {wanted:.2f}: {'met' if score >= wanted else 'missed'}"


def published(found: Mapping[str, Any]) -> str:
    """The references of a set in words."""
    texts = [
        f"{MEASURES[one.measure]} {one.score:.3f}, {one.model} ({one.source})"
        for one in REFERENCES.get(found["set"], [])
    ]
    if texts and found["drawn"]:
        texts.append("with all training rows, ours with fewer")
    return "; ".join(texts) or "-"


def _or_dash(score: float | None) -> str:
    return "-" if score is None else f"{score:.3f}"


def summary(result: Mapping[str, Any]) -> str:
    """The table for the README."""
    head = ("set", "rows: training + validation / test", "minutes: training / in all", "ships")
    head += ("accuracy", "macro-F1", "on validation", "micro-F1", "ECE", "aim", "published")
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for found in result["entries"].values():
        rows, minutes = found["rows"], found["minutes"]
        device = found["device"]
        if device == "cpu":
            device = f"{found['machine']['cores']} cores"
            device += f", {found['threads']} thread(s)" if found["threads"] else ""
        title = f"`{found['set']}`, {device}"
        if found["keys"]:
            stated = ", ".join(f"{key}={value}" for key, value in found["keys"].items())
            title += f", **not the defaults**: {stated}"
        drawn = f" ({found['drawn']:,} drawn)" if found["drawn"] else ""
        least = "> " if found["resumed"] else ""
        cells = [
            title,
            f"{rows['train']:,} + {rows['validation']:,} / {rows['test']:,}{drawn}",
            f"{least}{minutes['training']:.1f} / {least}{minutes['in_all']:.1f}",
            found["shipped"],
            *(f"{found[key]:.3f}" for key in ("accuracy", "macro_f1")),
            _or_dash(found["on_validation"][found["shipped"]]["macro_f1"]),
            f"{found['micro_f1']:.3f}" if "micro_f1" in found else "-",
            f"{found['ece']:.3f}",
            aim(found),
            published(found),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    entries = result["entries"].values()
    if any(found["task"] == "multi_label" for found in entries):
        lines += ["", "With several labels a row, accuracy is the share with exactly those."]
    if any(found["resumed"] for found in entries):
        lines += ["", "`>`: the training was interrupted; its time since it went on."]
    return "\n".join(lines)


def plotted_measure(found: Mapping[str, Any]) -> str:
    """The measure of a set's references; without any, the one its task is judged by."""
    references = REFERENCES.get(found["set"])
    if references:
        return references[0].measure
    return "macro_f1" if found["task"] == "multi_label" else "accuracy"


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Each entry's score beside the published ones of its set."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from training.common.figures import plain, save_figure

    entries = list(result["entries"].values())
    size = (8, 1.2 + 0.5 * len(entries))
    figure, axis = pyplot.subplots(figsize=size, layout="constrained")
    titles, lowest = [], 1.0
    for place, found in enumerate(entries):
        measured = plotted_measure(found)
        references = REFERENCES.get(found["set"], [])
        lowest = min([lowest, found[measured], *(one.score for one in references)])
        others = ", not the defaults" if found["keys"] else ""
        titles.append(plain(f"{found['set']}, {found['device']}{others}\n{MEASURES[measured]}"))
        for one in references:
            axis.plot(one.score, place, "|", color="#6b7075", markersize=14, markeredgewidth=2)
        axis.plot(found[measured], place, "o", color="#1f6f8b")
        # Beside the plot: scores are too near each other for names at their marks.
        axis.text(
            1.01,
            place,
            "\n".join(f"{one.model} {one.score:.3f}" for one in references),
            transform=axis.get_yaxis_transform(),
            fontsize=7,
            va="center",
            color="#6b7075",
        )
    axis.plot([], [], "o", color="#1f6f8b", label="Whetstone")
    axis.plot([], [], "|", color="#6b7075", markersize=12, markeredgewidth=2, label="published")
    axis.set_yticks(range(len(titles)), titles, fontsize=8)
    axis.set_ylim(len(titles) - 0.4, -0.6)
    axis.set_xlim(max(0.0, lowest - 0.05), 1.0)
    axis.set_xlabel("score on the test rows", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(axis="y", color="#e3e5e7")
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, fontsize=8, ncols=2, loc="outside upper center")
    save_figure(figure, path)
