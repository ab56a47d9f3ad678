"""The trials of a search as a table on the screen, and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.table import Table

from training.finetuning.study import WORKER

if TYPE_CHECKING:
    from training.finetuning.tune import Tuned


def print_trials(tuned: Tuned) -> None:
    """All trials as a table, the best one marked."""
    keys = list(tuned.best.params)
    table = Table(title=f"{len(tuned.trials)} trials, {tuned.measure} of the best epoch")
    # Where processes have shared the study, which of them trained what.
    by = [WORKER] if WORKER in tuned.best.user_attrs else []
    for name in ("trial", tuned.measure, *keys, "minutes", *by):
        table.add_column(name, justify="right")
    for trial in tuned.trials:
        score = _score(trial)
        shown = "" if score is None else f"{score:.4f}"
        pruned = " (stopped)" if trial.state == TrialState.PRUNED else ""
        mark = "→ " if trial.number == tuned.best.number else ""
        seconds = trial.duration.total_seconds() if trial.duration else 0.0
        table.add_row(
            f"{mark}{trial.number + 1}",
            f"{shown}{pruned}",
            *(f"{trial.params[key]:.3g}" if key in trial.params else "" for key in keys),
            f"{seconds / 60:.1f}",
            *(str(trial.user_attrs.get(name, "")) for name in by),
        )
    Console().print(table)
    trained_by = "".join(f", trained by {tuned.best.user_attrs[name]}" for name in by)
    print(
        f"best: trial {tuned.best.number + 1}, {tuned.measure} {tuned.best.value:.4f}{trained_by}"
    )


def _score(trial: FrozenTrial) -> float | None:
    """The score of a trial; of a stopped one that of its last evaluation, if it had any."""
    if trial.value is not None:
        return trial.value
    scores = trial.intermediate_values
    return scores[max(scores)] if scores else None


def draw_trials(tuned: Tuned, path: Path) -> None:
    """Draw the progress of the search, and every trial's score by its learning rate."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from training.common.figures import save_figure

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    scored = [trial for trial in tuned.trials if trial.value is not None]
    numbers = [trial.number + 1 for trial in scored]
    scores = [float(trial.value or 0.0) for trial in scored]
    left.plot(numbers, scores, "o", color="#8aa0a8", label="trial")
    better = max if tuned.best.value == max(scores) else min
    best = [better(scores[: place + 1]) for place in range(len(scores))]
    left.plot(numbers, best, color="#1f6f8b", label="best so far")
    left.set_xlabel("trial")
    left.set_ylabel(tuned.measure)
    left.legend(frameon=False)
    rated = [(t.params["learning_rate"], t.value) for t in scored if "learning_rate" in t.params]
    if rated:
        right.semilogx(*zip(*rated, strict=True), "o", color="#1f6f8b")
        right.set_xlabel("learning_rate")
    else:
        right.set_visible(False)
    save_figure(figure, path)
