"""Writes what the documentation takes from the code and from the results of benchmarks.

    python docs/generate.py           # rewrite the regions and copy the pictures
    python docs/generate.py --check   # exit status 1 where a page would change

A region stands between `<!-- generated: NAME -->` and `<!-- end -->` in any page of `docs/` or in
README.md. The text around it is written by hand.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

ROOT = Path(__file__).resolve().parents[1]
# The script lies beside the pages: without this, Python looks for the packages in docs/.
sys.path.insert(0, str(ROOT))

# Everything that the pages take from the code. Where a module moves, change it here alone.
from benchmarks import (  # noqa: E402
    bench_kills,
    bench_predict,
    bench_soak,
    bench_threads,
    bench_train,
    canary,
    capture,
    champions,
    checkpoint_choices,
    drift,
    explain,
    few_rows_report,
    loop_report,
    optimism,
    promises,
    quality_report,
    scale,
    scoring,
    serve_report,
    sizing,
)
from service.http import explain_schemas, openapi, schemas  # noqa: E402
from service.http import fields as http_fields  # noqa: E402
from service.metrics import metrics_table  # noqa: E402
from service.package.files import FileRecord  # noqa: E402
from service.package.manifest import Manifest, Profile  # noqa: E402
from service.settings import Settings, settings_table  # noqa: E402
from training.common.exit_status import (  # noqa: E402
    EXIT_ERROR,
    EXIT_INTERRUPTED,
    EXIT_OF_VERDICT,
)
from training.recipe.arguments import (  # noqa: E402
    DataArguments,
    ExportArguments,
    FineTuningArguments,
    ModelArguments,
)
from training.recipe.refused_keys import REFUSED  # noqa: E402
from whetstone.main import build_parser  # noqa: E402

DOCS = ROOT / "docs"
RESULTS = ROOT / "benchmarks" / "results"
IMAGES = DOCS / "images"
# Figures that a benchmark draws; MkDocs reads pictures below docs/ only.
FIGURES = (
    "serve.png",
    "soak.png",
    "train.png",
    "quality.png",
    "few_rows.png",
    "loop.png",
    "scoring.png",
)
REGION = re.compile(r"(<!-- generated: ([a-z0-9 _-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def cell(text: str) -> str:
    """`text` so that a table can hold it: one line, no bar, no tag."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def code(value: object) -> str:
    """`value` as code in a table."""
    return f"`{value}`".replace("|", "\\|")


# ---------------------------------------------------------------- recipe keys

KEY_GROUPS = {
    "The labelled text": DataArguments,
    "The pre-trained model": ModelArguments,
    "The fine-tuning": FineTuningArguments,
    "The package": ExportArguments,
}


def recipe_keys() -> str:
    """Every key of a recipe that Whetstone adds to `TrainingArguments`."""
    parts = []
    for title, arguments in KEY_GROUPS.items():
        # Not `key.type`, which transformers' parser of arguments overwrites.
        hints = get_type_hints(arguments)
        rows = [
            (
                code(key.name),
                code(key_type(hints[key.name])),
                key_default(key),
                cell(key.metadata["help"]),
            )
            for key in dataclasses.fields(arguments)
        ]
        parts.append(f"### {title}\n\n{table(('key', 'type', 'default', 'meaning'), rows)}")
    return "\n\n".join(parts)


def key_type(hint: Any) -> str:
    """A type in the words of YAML."""
    if get_origin(hint) is Literal:
        return " | ".join(map(str, get_args(hint)))
    if get_origin(hint) is list:
        return f"list of {key_type(get_args(hint)[0])}"
    if get_args(hint):
        return " | ".join(key_type(each) for each in get_args(hint) if each is not type(None))
    names = {str: "text", int: "integer", float: "number", bool: "true | false"}
    return names.get(hint, str(hint))


def key_default(key: dataclasses.Field[Any]) -> str:
    """The default of a key; nothing where there is none."""
    if key.default is None:
        return ""
    return code(str(key.default).lower() if isinstance(key.default, bool) else key.default)


def refused_keys() -> str:
    """Keys of `TrainingArguments` that a recipe must not have, grouped by reason."""
    reasons: dict[str, list[str]] = {}
    for key, reason in REFUSED.items():
        reasons.setdefault(reason, []).append(code(key))
    rows = [(", ".join(keys), cell(reason)) for reason, keys in reasons.items()]
    return table(("keys", "reason"), rows)


# ---------------------------------------------------------------- commands


def commands() -> str:
    """Every verb of `whetstone` with its arguments, from the parser."""
    parser = build_parser()
    (verbs,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return "\n\n".join(verb_section(name, command) for name, command in verbs.choices.items())


def verb_section(name: str, command: argparse.ArgumentParser) -> str:
    """One verb: what it does, how it is called, every argument."""
    shown = [a for a in command._actions if a.help is not argparse.SUPPRESS and a.dest != "help"]
    takes_keys = any(a.nargs == argparse.REMAINDER for a in command._actions)
    words = [f"whetstone {name}"]
    words += [positional(a) for a in shown if not a.option_strings]
    words += [
        f"{a.option_strings[0]} {value_of(a)}".strip()
        for a in shown
        if a.required and a.option_strings
    ]
    words += ["[options]"] if any(a.option_strings and not a.required for a in shown) else []
    words += ["[--key value ...]"] if takes_keys else []
    text = f"### {name}\n\n{sentence(command.description or '')}\n\n"
    text += f"```text\n{' '.join(words)}\n```\n\n"
    rows = [(argument(a), cell(a.help or "")) for a in shown]
    text += table(("argument", "meaning"), rows)
    if takes_keys:
        text += "\n\nEvery [key of a recipe](recipe.md) is an option, too."
    elif command.epilog:
        text += f"\n\n{' '.join(command.epilog.split())}"
    return text


def sentence(text: str) -> str:
    """`text` with a capital letter and a full stop."""
    end = "" if text.endswith((".", "?")) else "."
    return f"{text[:1].upper()}{text[1:]}{end}"


def value_of(action: argparse.Action) -> str:
    """The placeholder for the value of an option; nothing for a switch."""
    if action.nargs == 0:
        return ""
    if isinstance(action.metavar, str):
        return action.metavar
    return "VALUE ..." if action.nargs == "+" else "VALUE"


def positional(action: argparse.Action) -> str:
    """A positional argument as a usage line shows it."""
    name = str(action.metavar or action.dest).upper()
    if action.nargs == "?":
        return f"[{name}]"
    return f"{name} ..." if action.nargs == "+" else name


def argument(action: argparse.Action) -> str:
    """An argument as the table shows it."""
    if not action.option_strings:
        return code(positional(action))
    return code(f"{action.option_strings[0]} {value_of(action)}".strip())


def exit_codes() -> str:
    """The exit status of every command."""
    verdict = EXIT_OF_VERDICT
    rows = [
        ("0", "the command did its work; `compare` and `release`: promote"),
        (
            str(EXIT_ERROR),
            "an error, named in one sentence; `check`: an error in the data; `release`: the "
            "release failed, and the previous version runs",
        ),
        ("2", "the command line is wrong"),
        (
            str(verdict["refuse"]),
            "`compare`, `release`: refused; `drift`: a drift",
        ),
        (
            str(verdict["inconclusive"]),
            "`compare`, `release`, `drift`: too few rows to decide",
        ),
        (str(EXIT_INTERRUPTED), "interrupted by Ctrl-C; the message says how to continue"),
    ]
    return table(("status", "meaning"), rows)


# ---------------------------------------------------------------- HTTP


def sample_manifest() -> Manifest:
    """A package's manifest, for documents that depend on one."""
    record = FileRecord(sha256="0" * 64, size=1)
    names = ("model.onnx", "tokenizer.json", "golden.jsonl")
    return Manifest(
        labels=("a", "b"),
        max_length=256,
        name="tickets",
        version="0" * 12,
        created_at="2026-01-01T00:00:00+00:00",
        precision="int8",
        score_tolerance=0.01,
        profile=Profile(),
        files=dict.fromkeys(names, record),
    )


def http_routes() -> str:
    """Every route, from the OpenAPI document."""
    document = openapi.document(
        sample_manifest(), Settings(ui=True, explain=True), with_keys=False, special_tokens=2
    )
    rows = [
        (code(f"{method.upper()} {path}"), cell(operation["summary"]))
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    ]
    return table(("route", "answer"), rows)


def http_statuses() -> str:
    """Statuses of refusals and failures."""
    return table(
        ("status", "meaning"),
        [(str(status), cell(meaning)) for status, meaning in openapi.REFUSALS.items()],
    )


def type_of(schema: Mapping[str, Any]) -> str:
    """The type of a JSON schema in a few words."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(type_of(each) for each in schema["anyOf"]))
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "enum" in schema:
        return " or ".join(json.dumps(value) for value in schema["enum"])
    if "const" in schema:
        return json.dumps(schema["const"])
    if schema.get("type") == "array":
        items = schema.get("items")
        return f"list of {type_of(items)}" if items else "list"
    if schema.get("type") == "object":
        values = schema.get("additionalProperties")
        return f"mapping to {type_of(values)}" if isinstance(values, dict) else "mapping"
    names = {"string": "text", "boolean": "true or false"}
    return names.get(schema["type"], str(schema["type"]))


# Meanings that the code states in a docstring for the whole class, not field by field.
MEANINGS = {
    "PredictRequest": {
        "inputs": "a text, a pair, or a list of one-text lists and pairs",
        "truncate": "false: refuse a text that is too long",
        "truncation_direction": "the end of a long text that is cut off",
        "raw_scores": "return logits instead of probabilities",
        "parameters": "`top_k`, `function_to_apply` and `truncation`, as Hugging Face's clients "
        "send them",
    },
    "Classification": {
        "index": "position of the text in `input`",
        "label": "the answer; for several labels a row the most probable one",
        "score": "the probability of `label`",
        "labels": "several labels a row: the labels above their thresholds",
        "abstained": "the score is below the abstention threshold, where the package has one",
        "truncated": "a part of the text was not read",
        "windows": "number of windows, where the model reads long texts in windows",
        "probs": "the probability of every label, in the order of `/info`",
        "num_classes": "number of labels",
        "scores": "labels with probabilities, highest first, where `top_k` asks for them",
        "logits": "the model's outputs before calibration, where `return_logits` asks for them",
    },
    "ClassifyResponse": {
        "id": "`classify-` and the request's id",
        "object": "",
        "created": "Unix time in seconds",
        "model": "`name:version` of the package that answered",
        "data": "one entry a text",
        "usage": "`prompt_tokens` and `total_tokens`: tokens read, after truncation",
    },
    "Manifest": {
        "task": "one label a row, or any number",
        "labels": "the labels, in the order of the model's outputs",
        "text_columns": "a text, or a text and its pair",
        "max_length": "tokens that the model reads at once",
        "long_text": "what happens to a longer text",
        "window_stride": "tokens that neighboring windows share",
        "window_aggregation": "how the windows of a text become one answer",
        "thresholds": "probability from which a label is answered",
        "abstain_threshold": "score below which an answer is marked as abstained",
        "temperature": "calibration of one label a row: the divisor of the logits",
        "platt": "calibration of several labels: slope and intercept for each label",
        "target_device": "device that the graph was made for",
        "format_version": "version of this schema",
        "name": "name of the classifier",
        "version": "digest of the model, the tokenizer and the fields from `task` to "
        "`target_device`: equal content has an equal version",
        "created_at": "time of the export",
        "precision": "number format of the graph",
        "score_tolerance": "largest difference of a score between two copies",
        "metrics": "measured scores, with the rows that each rests on",
        "parity": "how far the graph is from the checkpoint",
        "selection": "the candidates, their gates, and the reason for the choice",
        "calibration": "how the calibration was fitted, and the precision that is promised",
        "provenance": "base model with hash, data fingerprint, recipe, commit, package versions",
        "profile": "label shares, token lengths and confidences of the training data",
        "files": "SHA-256 and size of each file that serving reads",
    },
}


def fields(name: str, model: type[Any]) -> str:
    """The fields of a pydantic model as a table."""
    schema = model.model_json_schema()
    required, rows = schema.get("required", []), []
    for key, value in schema["properties"].items():
        meaning = value.get("description") or MEANINGS.get(name, {}).get(key)
        if name in MEANINGS:
            meaning = MEANINGS[name].get(key, meaning)
        if meaning is None:
            raise SystemExit(f"{name}.{key} has no description in the code and none in MEANINGS")
        default = code(json.dumps(value["default"])) if "default" in value else "empty"
        default = "required" if key in required else default
        rows.append((code(key), cell(type_of(value)), default, cell(meaning)))
    for key in MEANINGS.get(name, {}):
        if key not in schema["properties"]:
            raise SystemExit(f"MEANINGS has {name}.{key}, which the code no longer has")
    return table(("field", "type", "default", "meaning"), rows)


def refused_fields() -> str:
    """Fields of other servers that `/classify` refuses."""
    rows = [
        (code(name), ", ".join(code(json.dumps(v)) for v in refused.harmless), cell(refused.advice))
        for name, refused in http_fields.UNSUPPORTED.items()
    ]
    return table(("field", "accepted values", "instead"), rows)


# ---------------------------------------------------------------- results of benchmarks


def result(name: str) -> Any:
    """A results file of the benchmarks."""
    return json.loads((RESULTS / f"{name}.json").read_text("utf-8"))


def written_by(report: Callable[[Any], str], name: str) -> Callable[[], str]:
    """A region that a benchmark's own report writes."""
    return lambda: report(result(name)).strip()


def gates_table() -> str:
    """How often the export gates err."""
    cases = {(v["task"], v["rows"], v["points_worse"]): v for v in result("gates")["verdicts"]}
    rows = []
    for count in (100, 300, 1000, 3000):
        found = [cases["single_label", count, points] for points in (0.0, 1.0, 2.0, 3.0)]
        cells = [f"{row['passed']:.0%} pass, {row['refused']:.0%} refused" for row in found]
        rows.append((f"{count:,}", *cells))
    worse = (f"{points} point{'s' * (points > 1)} worse" for points in (1, 2, 3))
    return table(("validation rows", "as good", *worse), rows)


def promotion_table() -> str:
    """How often each verdict of a comparison falls."""
    cases = {(v["rows"], v["points"]): v for v in result("promotion")["verdicts"]}
    rows = []
    for count in (200, 1000, 3000):
        found = [cases[count, points] for points in (-3.0, -2.0, 0.0, 2.0)]
        cells = [f"{v['promote']:.0%} / {v['refuse']:.0%} / {v['inconclusive']:.0%}" for v in found]
        rows.append((f"{count:,}", *cells))
    return table(("rows", "3 points worse", "2 points worse", "as good", "2 points better"), rows)


def speed_summary() -> str:
    """The first table of the serving benchmark."""
    lines = serve_report.summary(result("serve")).splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("|"))
    end = next(index for index in range(start, len(lines)) if not lines[index].startswith("|"))
    return "\n".join([lines[0], "", *lines[start:end]])


def overload_sentence() -> str:
    """How much of its deadline an accepted request takes in an overload."""
    found = []
    for kind, overload in result("serve")["overload"].items():
        deadline = overload["deadline_ms"]
        half, most = (overload[f"in_time_p{share}_ms"] / deadline for share in (50, 99))
        found.append(
            f"At {overload['times_capacity']} times the capacity and a deadline of "
            f"{deadline:,.0f} ms, an answer to {kind} texts took {half:.0%} of the deadline "
            f"(median) and {most:.0%} (p99)."
        )
    return "\n".join(found)


def quality_summary() -> str:
    """Score and size of every data set, in short."""
    rows = [
        (
            f"`{entry['set']}`",
            str(entry["labels"]),
            f"{entry['rows']['train']:,}",
            f"{entry['rows']['test']:,}",
            entry["shipped"],
            f"{entry['accuracy']:.3f}",
            f"{entry['macro_f1']:.3f}",
            f"{entry['minutes']['in_all']:.1f}",
        )
        for entry in result("quality")["entries"].values()
    ]
    head = ("data set", "labels", "training rows", "test rows", "ships", "accuracy", "macro-F1")
    return table((*head, "minutes"), rows)


def int8_table() -> str:
    """int8 with a scale for each token beside int8 with a scale for each batch."""
    graphs = result("int8")["graphs"]
    columns = [graphs["fp32"], graphs["int8 by token"], graphs["int8 by batch"]]
    rows = [
        ("megabytes", *(f"{graph['bytes'] / 1e6:.0f}" for graph in columns)),
        (
            "answers that agree with fp32",
            *(f"{graph['label_agreement_with_fp32']:.1%}" for graph in columns),
        ),
        (
            "mean drift of a probability",
            *(f"{graph['mean_probability_drift']:.4f}" for graph in columns),
        ),
        (
            "largest change by the other texts of a batch",
            *(f"{graph['largest_change_by_neighbours']:.2f}" for graph in columns),
        ),
        *(
            (
                f"CPU-milliseconds of a text of {length} tokens",
                *(f"{graph['cpu_ms_per_text'][length]:.1f}" for graph in columns),
            )
            for length in ("16", "64", "256")
        ),
    ]
    return table(("", "fp32", "scale by token", "scale by batch"), rows)


def few_rows() -> str:
    """Scores with few rows a label."""
    return few_rows_report.summary(result("few_rows")["entries"]).strip()


def loop() -> str:
    """Scores by labeled rows, picked and random."""
    return loop_report.summary(result("loop")["entries"]).strip()


REGIONS: dict[str, Callable[[], str]] = {
    "recipe keys": recipe_keys,
    "refused keys": refused_keys,
    "commands": commands,
    "exit codes": exit_codes,
    "settings": settings_table,
    "metrics": metrics_table,
    "routes": http_routes,
    "statuses": http_statuses,
    "classify request": lambda: fields("ClassifyRequest", schemas.ClassifyRequest),
    "classify response": lambda: fields("ClassifyResponse", schemas.ClassifyResponse),
    "classification": lambda: fields("Classification", schemas.Classification),
    "explain request": lambda: fields("ExplainRequest", explain_schemas.ExplainRequest),
    "explained text": lambda: fields("ExplainedText", explain_schemas.ExplainedText),
    "explained word": lambda: fields("ExplainedWord", explain_schemas.ExplainedWord),
    "explain counterfactual": lambda: fields(
        "ExplainCounterfactual", explain_schemas.ExplainCounterfactual
    ),
    "predict request": lambda: fields("PredictRequest", schemas.PredictRequest),
    "refused fields": refused_fields,
    "manifest": lambda: fields("Manifest", Manifest),
    "speed summary": speed_summary,
    "quality summary": quality_summary,
    "gates": gates_table,
    "promotion": promotion_table,
    "few rows": few_rows,
    "choices": written_by(checkpoint_choices.markdown, "choices"),
    "int8": int8_table,
    "serve": written_by(serve_report.summary, "serve"),
    "overload": overload_sentence,
    "sizing": written_by(sizing.markdown, "sizing"),
    "soak": written_by(bench_soak.sentence, "soak"),
    "champions": written_by(champions.markdown, "champions"),
    "train": written_by(bench_train.markdown, "train"),
    "train-card": written_by(bench_train.markdown, "train-card"),
    "threads": written_by(bench_threads.markdown, "threads"),
    "scale": written_by(scale.markdown, "scale"),
    "scale sentence": lambda: scale.most_cores(result("scale"), result("sizing")),
    "kills": written_by(bench_kills.sentence, "kills"),
    "predict": written_by(bench_predict.markdown, "predict"),
    "predict-memory": written_by(bench_predict.markdown, "predict-memory"),
    "scoring": written_by(scoring.markdown, "scoring"),
    "quality": written_by(quality_report.summary, "quality"),
    "promises": written_by(promises.markdown, "promises"),
    "drift": written_by(drift.markdown, "drift"),
    "canary": written_by(canary.markdown, "canary"),
    "loop": loop,
    "loop sentences": lambda: loop_report.sentences(result("loop")["entries"]),
    "capture": written_by(capture.sentence, "capture"),
    "explain": written_by(explain.markdown, "explain"),
    "optimism": written_by(optimism.markdown, "optimism"),
}


def pages() -> list[Path]:
    """Every page that may have regions."""
    return [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


def regenerated(text: str) -> str:
    """`text` of a page with today's content of every region."""

    def replace(match: re.Match[str]) -> str:
        return f"{match[1]}\n{REGIONS[match[2]]()}\n\n{match[4]}"

    return REGION.sub(replace, text)


def outdated() -> list[Path]:
    """Pages and figures that are not what the code and the results make of them."""
    changed = [
        page for page in pages() if regenerated(page.read_text("utf-8")) != page.read_text("utf-8")
    ]
    copies = [IMAGES / name for name in FIGURES]
    return changed + [
        copy
        for copy in copies
        if not copy.is_file() or copy.read_bytes() != (RESULTS / copy.name).read_bytes()
    ]


def write() -> None:
    """Rewrite every region and copy the figures."""
    for page in pages():
        page.write_text(regenerated(page.read_text("utf-8")), "utf-8")
    for name in FIGURES:
        shutil.copyfile(RESULTS / name, IMAGES / name)


def main() -> int:
    """Rewrite the pages, or with `--check` name those that would change."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit status 1 if out of date"
    )
    if not parser.parse_args().check:
        write()
        return 0
    for path in outdated():
        print(f"out of date: {path.relative_to(ROOT)}; run make reference")  # noqa: T201
    return 1 if outdated() else 0


if __name__ == "__main__":
    sys.exit(main())
