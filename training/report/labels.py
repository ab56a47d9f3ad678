"""The report's sections about labels: metrics, errors, confusions."""

from __future__ import annotations

import numpy as np

from training.report.page import (
    Column,
    Html,
    Section,
    count,
    counted,
    element,
    join,
    label_name,
    labelled,
    paragraph,
    plural,
    score,
    scored,
    scrolling,
    table,
    user_text,
    words,
)
from training.report.rows import Measured, confusions

# A cell a pair of labels; of more labels only the pairs that are confused.
MATRIX_LABELS = 150
# Of more labels the cells are small.
DENSE_LABELS = 20
LISTED_CONFUSIONS = 15
# From which share on digits of another colour stand out better: on a dark page, on a light one too.
MIDDLE_SHARE, DEEP_SHARE = 0.5, 0.7


def labels(found: Measured) -> Section:
    """Precision, recall and F1 of every label."""
    columns = [
        Column("Label", numeric=False),
        Column("Precision", "share of the rows with this answer that have the label"),
        Column("Recall", "share of the rows with the label that get it"),
        Column("F1", "harmonic mean of precision and recall"),
    ]
    if found.several:
        columns += [Column("Average precision"), Column("Threshold")]
    columns += [Column("Rows", "rows with the label"), Column("Training share")]
    priors = found.manifest.profile.label_priors
    ranked = sorted(found.metrics["per_label"].items(), key=lambda item: item[1]["f1"])
    rows = []
    for label, row in ranked:
        size = row["support"]
        cells = [labelled(label), scored(row["precision"], size), scored(row["recall"], size)]
        cells.append(scored(row["f1"], size, bar="good"))
        if found.several:
            cells += [scored(row["average_precision"], size), scored(row["threshold"])]
        rows.append([*cells, counted(row["support"]), scored(priors.get(label))])
    return Section(
        "labels",
        "Labels",
        "Every label",
        "The weakest label first; a heading sorts by its column. The numbers of labels "
        "with few rows are rough.",
        table(columns, rows, "Precision, recall and F1 by label", sorted_by=(3, "ascending")),
    )


def label_errors(found: Measured) -> Section:
    """False negatives and false positives of every label, where a row may have several."""
    missed, extra = found.truth & ~found.answered, found.answered & ~found.truth
    order = np.argsort(-(missed.sum(axis=0) + extra.sum(axis=0)), kind="stable")
    columns = [
        Column("Label", numeric=False),
        Column("Errors", "missed and wrongly given"),
        Column("Missed", "false negatives: rows that have the label and do not get it"),
        Column("Wrongly given", "false positives: rows that get the label and do not have it"),
        Column("Right", "rows that have the label and get it"),
        Column("Missed of all", "false negatives as a share of the rows with the label"),
        Column("Wrong of given", "false positives as a share of the rows that get the label"),
    ]
    rows = []
    for place in order:
        lost, false = int(missed[:, place].sum()), int(extra[:, place].sum())
        having, given = int(found.truth[:, place].sum()), int(found.answered[:, place].sum())
        cells = [labelled(found.manifest.labels[place]), counted(lost + false)]
        cells += [counted(lost), counted(false)]
        cells.append(counted(having - lost))
        cells += [
            scored(part / whole if whole else None, whole, bar="bad")
            for part, whole in ((lost, having), (false, given))
        ]
        rows.append(cells)
    return Section(
        "errors",
        "Errors by label",
        "Errors by label",
        "Labels that rows should have got, and labels that they should not have got; most errors "
        "first.",
        table(
            columns,
            rows,
            "False negatives and false positives by label",
            sorted_by=(1, "descending"),
        ),
    )


def confused(found: Measured) -> Section:
    """The pairs that are confused, and the matrix."""
    pairs = confusions(found.metrics)
    parts: list[Html] = []
    if pairs:
        columns = [Column("Label", numeric=False), Column("Answered", numeric=False)]
        columns += [Column("Rows"), Column("Share", "of all rows with the label")]
        rows = [
            [
                labelled(p.label),
                words(label_name(p.answer)),
                counted(p.rows),
                scored(p.share, round(p.rows / p.share), bar="bad"),
            ]
            for p in pairs[:LISTED_CONFUSIONS]
        ]
        parts.append(element("h3", "Most confused"))
        parts.append(table(columns, rows, "Most confused pairs"))
        if len(pairs) > LISTED_CONFUSIONS:
            others = len(pairs) - LISTED_CONFUSIONS
            parts.append(paragraph(f"{plural(others, 'more pair')} in the matrix.", class_="note"))
    else:
        parts.append(paragraph("No label is taken for another."))
    parts.append(element("h3", "All answers"))
    parts.append(_matrix(found))
    return Section(
        "confusions",
        "Confusions",
        "Confusions",
        "Which label is taken for which. In the matrix a line is what a row is, a column what it "
        "was answered: off the diagonal are mistakes.",
        join(parts),
    )


def _matrix(found: Measured) -> Html:
    counts = np.asarray(found.metrics["confusion"])
    occurring = np.flatnonzero(counts.any(axis=0) | counts.any(axis=1))
    labels = [found.metrics["labels"][place] for place in occurring]
    if len(labels) > MATRIX_LABELS:
        return paragraph(f"A matrix of {plural(len(labels), 'label')} would not be readable.")
    counts = counts[np.ix_(occurring, occurring)]
    heads = [element("th", user_text(label), scope="col", title=label) for label in labels]
    body = [
        element("tr", labelled(label), *_matrix_cells(labels, place, counts[place]))
        for place, label in enumerate(labels)
    ]
    caption = "Confusion matrix: label by line, answer by column"
    corner = element("td", "label ↓ answer →", class_="corner")
    matrix = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", corner, *heads)),
        element("tbody", *body),
        class_="matrix dense" if len(labels) > DENSE_LABELS else "matrix",
        style=f"--labels:{len(labels)}",
    )
    hidden = len(found.metrics["labels"]) - len(labels)
    readout = element("output", "Touch a cell to read it in full.", class_="readout scripted")
    note = f" {plural(hidden, 'label')} that no row has or gets left out." if hidden else ""
    return join(
        [
            scrolling(matrix, caption, tall=len(labels) > DENSE_LABELS),
            readout,
            paragraph(note, class_="note"),
        ]
        if note
        else [scrolling(matrix, caption, tall=len(labels) > DENSE_LABELS), readout]
    )


def _matrix_cells(labels: list[str], line: int, counts: np.ndarray) -> list[Html]:
    total = max(int(counts.sum()), 1)
    cells = []
    for place, rows in enumerate(counts.tolist()):
        if not rows:
            cells.append(element("td"))
            continue
        share = rows / total
        kind = "hit" if place == line else "miss"
        title = (
            f"{labels[line]} answered {labels[place]}: {plural(rows, 'row')}, "
            f"{score(share, total)} of the label"
        )
        depth = " deep" if share >= DEEP_SHARE else " mid" if share >= MIDDLE_SHARE else ""
        cells.append(
            element("td", count(rows), class_=kind + depth, title=title, style=f"--s:{share:.2f}")
        )
    return cells
