"""`whetstone run` and `whetstone check`.

A run goes from the recipe to a checkpoint, a proven package, its metrics, the model store, and a
place for packages.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from service.inference.classifier import Classifier
from service.package.files import write_text
from service.package.manifest import CARD_FILE, read_manifest, write_manifest
from training.common.distributed import is_main_process
from training.common.errors import DataError
from training.common.full_disk import full_disk_in_a_sentence
from training.common.layout import METRICS_FILE, REPORT, REPORT_FILE
from training.data.checks import look_at
from training.data.dataset import read_rows, usable_data
from training.data.encoding import resolve_text_encoding
from training.data.findings import Errors, Finding, Rows, find_errors, make_finding
from training.data.near_duplicates import Groups
from training.data.output import draw_data, print_dropped, print_findings, write_findings
from training.evaluation.evaluate import (
    evaluate,
    evaluate_validation,
    headline,
    summary,
    write_metrics,
)
from training.evaluation.output import print_metrics
from training.evaluation.report.report import write_report
from training.evaluation.seen import nearly_seen
from training.export.model_card import model_card
from training.export.output import print_selection
from training.export.package import export, held_out_logits
from training.finetuning.base_checks import refuse_misfit
from training.finetuning.base_models import resolve_base_model
from training.finetuning.lock import run_lock
from training.finetuning.record import TrainedRun
from training.finetuning.train import train
from training.recipe.arguments import Recipe, recipe_seed
from training.registry.publish import check_place, publish
from training.registry.register import register


def run_chain(
    recipe: Recipe, *, overwrite: bool = False, publish_to: str | None = None
) -> str | None:
    """Train, export, evaluate and register a recipe's model, and publish it where asked to.

    Of several processes that train together the main process takes the steps after training.

    Args:
        publish_to: a folder or address for packages.

    Returns:
        The summary for the screen; None in the other processes.

    Raises:
        WhetstoneError: a step failed; the results of earlier steps are kept.
    """
    if publish_to is not None and is_main_process():
        check_place(publish_to)
    # The package is made from the checkpoint that another `--overwrite` would delete.
    with run_lock(recipe.output_dir):
        run = train(recipe, overwrite=overwrite)
        if not is_main_process():
            return None
        with full_disk_in_a_sentence(run.folder, "give the same command again"):
            return _ship(run, publish_to)


def _ship(run: TrainedRun, publish_to: str | None) -> str:
    """Every step after training; returns the summary."""
    package = export(run)
    print_selection(read_manifest(package).selection)
    measured = _measure(run, package)
    tag, new = register(package)
    published = []
    if publish_to is not None:
        address, new_there = publish(package, publish_to)
        published = [f"published:  {address}{_already_present(new_there)}"]
    return "\n".join(
        [
            "",
            f"package:    {package} ({read_manifest(package).selection['chosen']})",
            f"measured:   {measured}",
            f"registered: {tag}{_already_present(new)}",
            *published,
            f"next:       bentoml serve service.service:TextClassifier --arg model={tag}",
            f"or:         bentoml build --arg model={tag}",
        ]
    )


def _already_present(new: bool) -> str:
    return "" if new else " (was there already)"


def _measure(run: TrainedRun, package: Path) -> str:
    """Measure the package on the test split, else on validation, and write the results.

    Returns:
        One line for the summary.
    """
    name, split = ("test", run.data.test) if run.data.test else ("validation", run.data.validation)
    classifier = Classifier.load(package)
    if run.data.test:
        seen = nearly_seen(run.data.similar)
        metrics, answers = evaluate(classifier, split, "test split", seen)
    else:
        held_out = held_out_logits(run, classifier.encode(split.texts))
        metrics, answers = evaluate_validation(classifier, run.recipe.export, split, held_out)
    metrics = {"split": name, **metrics}
    print_metrics(metrics, f"{classifier.manifest.name} on its {name} split")
    write_metrics(metrics, run.folder / METRICS_FILE)
    report = run.folder / REPORT / REPORT_FILE
    manifest = classifier.manifest.model_copy(
        update={"metrics": classifier.manifest.metrics | {name: headline(metrics)}}
    )
    write_manifest(package, manifest)
    write_text(package / CARD_FILE, model_card(manifest))
    where = f"its {name} split"
    # The words that decide are of the model that answered.
    explained = None if metrics.get("of_another_model") else classifier
    write_report(report, manifest, split, answers, metrics, where=where, classifier=explained)
    flattered = ""
    if not run.data.test:
        flattered = " (no test split; the checkpoint was chosen by this one)"
        if run.held_out_checkpoint is not None:
            flattered = " (no test split; a model that was trained without these rows answered)"
    return f"{summary(metrics)} on {metrics['rows']} {name} rows{flattered}; {report}"


def check(recipe: Recipe, *, strict: bool, json_file: Path | None, plot_file: Path | None) -> bool:
    """Show the findings about a recipe's data; return whether it can be trained on.

    Args:
        strict: warnings count as errors.
        json_file: the file for the findings, as JSON.
        plot_file: the file for the histograms, as PNG.

    Raises:
        WhetstoneError: a file or column cannot be read, or the tokenizer cannot be had.
    """
    rows = read_rows(recipe.data)
    errors = find_errors(rows)
    of_split, similar = _try_split(recipe, rows, errors)
    base = resolve_base_model(recipe.model)
    tokenizer, config = base.tokenizer(), base.config()
    preflight = look_at(recipe, rows, errors, tokenizer, of_split, similar)
    if strict:
        strictly = [
            dataclasses.replace(finding, severity="error") for finding in preflight.findings
        ]
        preflight = dataclasses.replace(preflight, findings=strictly)
    print_findings(preflight)
    if json_file is not None:
        write_findings(preflight, json_file)
    if plot_file is not None:
        draw_data(preflight, plot_file, recipe.model.max_length)
    # After the findings, which help in any case.
    refuse_misfit(recipe, tokenizer, config)
    resolve_text_encoding(recipe, tokenizer, config)
    if errors.rows and recipe.data.drop_invalid:
        print_dropped(errors.rows)
    if strict and preflight.findings:
        return False
    cannot_split = any(finding.severity == "error" for finding in of_split)
    return not cannot_split and not errors.fatal(recipe.data.drop_invalid)


def _try_split(
    recipe: Recipe, rows: Mapping[str, Rows], errors: Errors
) -> tuple[Sequence[Finding], Groups | None]:
    """The findings about the validation split of a training, and the groups of near-duplicates."""
    if errors.fatal(recipe.data.drop_invalid):
        return (), None
    try:
        data = usable_data(rows, errors, recipe.data, recipe_seed(recipe))
    except DataError as error:
        finding = make_finding("no_validation", "error", "train", rows["train"], [], str(error))
        return (finding,), None
    return data.findings, data.similar
