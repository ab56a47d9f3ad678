"""The whole way: recipe → checkpoint → proven package → measured → registered → published."""

from __future__ import annotations

from pathlib import Path

from service.classifier import Classifier
from service.model_package import CARD_FILE, read_manifest, write_manifest, write_text
from training.candidates import print_selection
from training.card import model_card
from training.config import Recipe
from training.distributed import is_first
from training.evaluate import (
    draw_metrics,
    evaluate,
    evaluate_validation,
    headline,
    print_metrics,
    summary,
    write_metrics,
)
from training.export import export
from training.full_disk import full_disk_in_a_sentence
from training.layout import METRICS_FILE, REPORT, REPORT_FILE
from training.publish import check_place, publish
from training.register import register
from training.report import write_report
from training.run_lock import alone_in
from training.seen import nearly_seen
from training.train import TrainedRun, train


def run_chain(
    recipe: Recipe, *, overwrite: bool = False, publish_to: str | None = None
) -> str | None:
    """Train, export, evaluate, register, publish if asked to; the summary for the screen.

    Of several processes that train together the first one goes on after training; None in the
    others.

    Raises:
        WhetstoneError: a step was refused; what earlier steps made is kept.
    """
    if publish_to is not None and is_first():
        check_place(publish_to)
    # The package is made from the checkpoint that another `--overwrite` would delete.
    with alone_in(recipe.output_dir):
        run = train(recipe, overwrite=overwrite)
        if not is_first():
            return None
        with full_disk_in_a_sentence(run.folder, "give the same command again"):
            return _go_on(run, publish_to)


def _go_on(run: TrainedRun, publish_to: str | None) -> str:
    """Everything after training; the summary."""
    package = export(run)
    print_selection(read_manifest(package).selection)
    measured = _measure(run, package)
    tag, new = register(package)
    published = []
    if publish_to is not None:
        address, first = publish(package, publish_to)
        published = [f"published:  {address}{_again(first)}"]
    return "\n".join(
        [
            "",
            f"package:    {package} ({read_manifest(package).selection['chosen']})",
            f"measured:   {measured}",
            f"registered: {tag}{_again(new)}",
            *published,
            f"next:       bentoml serve service.service:TextClassifier --arg model={tag}",
            f"or:         bentoml build --arg model={tag}",
        ]
    )


def _again(new: bool) -> str:
    return "" if new else " (was there already)"


def _measure(run: TrainedRun, package: Path) -> str:
    """Metrics of the finished package on the test split, else on validation; one line."""
    name, split = ("test", run.data.test) if run.data.test else ("validation", run.data.validation)
    classifier = Classifier.load(package)
    if run.data.test:
        seen = nearly_seen(run.data.similar)
        metrics, answers = evaluate(classifier, split, "test split", seen)
    else:
        metrics, answers = evaluate_validation(classifier, run.recipe.export, split)
    metrics = {"split": name, **metrics}
    print_metrics(metrics, f"{classifier.manifest.name} on its {name} split")
    write_metrics(metrics, run.folder / METRICS_FILE)
    draw_metrics(metrics, run.folder / REPORT)
    report = run.folder / REPORT / REPORT_FILE
    manifest = classifier.manifest.model_copy(
        update={"metrics": classifier.manifest.metrics | {name: headline(metrics)}}
    )
    write_manifest(package, manifest)
    write_text(package / CARD_FILE, model_card(manifest))
    write_report(report, manifest, split, answers, metrics, where=f"its {name} split")
    flattered = "" if run.data.test else " (no test split; the checkpoint was chosen by this one)"
    return f"{summary(metrics)} on {metrics['rows']} {name} rows{flattered}; {report}"
