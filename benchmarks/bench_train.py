"""Whetstone's training beside the tutorial's: the same model, rows and device.

    make bench-train
    python -m benchmarks.bench_train --train_file FILE --test_file FILE

The tutorial's recipe is the one that most people start from: every text padded to 512 tokens, fp32,
batches of 8, a learning rate of 2e-5, three epochs. Whetstone's are its defaults. Speed is measured
in turn, round by round, each side in a process of its own, from the steps of some seconds after the
first ones; seconds per epoch are extrapolated from that. Then Whetstone trains to its end, the
tutorial's way as long, and both are measured on the test file.

With `--card`, which needs a CUDA GPU: BERT-base from its configuration (random weights are as fast)
at length 128, against the tutorial's recipe and against the card's own matrix rate; once more with
batches as large and compiled as someone sets them who wants all of the card.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from benchmarks.load import ROOT, machine, write_result, write_whole
from training.recipe.arguments import Recipe
from training.recipe.load import load_recipe

if TYPE_CHECKING:
    import torch

EXAMPLE = ROOT / "examples" / "support_tickets"
SIDES = ("tutorial", "whetstone")
TITLES = {
    "tutorial": "the tutorial's recipe",
    "whetstone": "Whetstone's defaults",
    "large": "batch 256, torch_compile",
}
TUTORIAL = {
    "per_device_train_batch_size": 8,
    "learning_rate": 2e-5,
    "num_train_epochs": 3,
    "weight_decay": 0.01,
}
TUTORIAL_LENGTH = 512
# Steps that count for nothing: memory is allocated, caches are filled.
WARM_UP = 2
PACKAGES = ("torch", "transformers", "accelerate", "datasets", "tokenizers")
CARD_LENGTH = 128
CARD_ROWS = 12_000
CARD_MATRIX = 8192
# Steps alone are measured; a last batch of another size would be compiled for.
CARD_KEYS = {
    "max_length": CARD_LENGTH,
    "eval_strategy": "no",
    "save_strategy": "no",
    "load_best_model_at_end": False,
    "dataloader_drop_last": True,
}
LARGE_KEYS = {"per_device_train_batch_size": 256, "torch_compile": True}
# Wanted, times the tutorial's rows a second; on a GPU also the share of the matrix rate.
FASTER = {"cpu": 80, "cuda": 10}
LEAST_OF_MATRIX_RATE = 0.4


def stopwatch(seconds: float, warm_up: int) -> Any:
    """A callback of the Trainer that stops after so many seconds, and knows the steps of them.

    `seconds` are of steps and of what feeds them; what passes between epochs, which one side
    evaluates and saves in and the other does not, is in `wall_seconds` alone.
    """
    import torch
    from transformers import TrainerCallback

    class Stopwatch(TrainerCallback):
        steps = 0
        began = last = paused = 0.0

        @property
        def wall_seconds(self) -> float:
            return self.last - self.began

        @property
        def seconds(self) -> float:
            return self.wall_seconds - self.paused

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.began = self.last = time.perf_counter()

        def on_epoch_begin(self, *_: Any, **__: Any) -> None:
            if self.steps:
                self.paused += time.perf_counter() - self.last

        def on_step_end(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
            now = time.perf_counter()
            enough = state.global_step > warm_up and now - self.began >= seconds
            # A GPU works on while the next step is prepared: it is waited for at both ends alone.
            if torch.cuda.is_available() and (enough or state.global_step == warm_up):
                torch.cuda.synchronize()
                now = time.perf_counter()
            self.last = now
            if state.global_step == warm_up:
                self.began = now
            if state.global_step > warm_up:
                self.steps = state.global_step - warm_up
                control.should_training_stop = enough

    return Stopwatch()


def trained_our_way(recipe: Recipe, callbacks: list[Any]) -> tuple[Path, int]:
    """The checkpoint, and rows a step."""
    from training.finetuning.train import train

    run = train(recipe, overwrite=True, callbacks=callbacks)
    arguments = run.record["training_arguments"]
    rows = arguments["per_device_train_batch_size"]
    return run.checkpoint, rows * arguments.get("gradient_accumulation_steps", 1)


def trained_as_in_the_tutorial(recipe: Recipe, callbacks: list[Any]) -> tuple[Path, int]:
    """The same rows and model as tutorials have it: `padding="max_length"`, then the Trainer."""
    from datasets import Dataset
    from transformers import Trainer, TrainingArguments

    from training.data.dataset import load_data
    from training.data.encoding import make_targets
    from training.finetuning.base_models import resolve_base_model

    data = load_data(recipe.data, 42)
    # With the head that transformers gives it.
    base = resolve_base_model(dataclasses.replace(recipe.model, pooling="model"))
    tokenizer, model = base.tokenizer(), base.classifier(data.labels, data.task, 42)
    texts = {
        "text": list(data.train.texts),
        "labels": make_targets(data.train, data.labels, data.task),
    }

    def tokenize(rows: dict[str, Any]) -> Any:
        return tokenizer(
            rows["text"], padding="max_length", truncation=True, max_length=TUTORIAL_LENGTH
        )

    table = Dataset.from_dict(texts).map(tokenize, batched=True)
    folder = recipe.output_dir / "tutorial"
    arguments = TrainingArguments(
        output_dir=str(folder), report_to="none", save_strategy="no", disable_tqdm=True, **TUTORIAL
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=table, callbacks=callbacks)
    trainer.train()
    trainer.save_model(str(folder))
    tokenizer.save_pretrained(folder)
    return folder, arguments.train_batch_size


def macro_f1(checkpoint: Path, recipe: Recipe) -> float:
    """Of a checkpoint on the test file, by torch."""
    import torch
    from transformers import AutoTokenizer

    from service.inference.decisions import probabilities
    from training.data.dataset import load_data
    from training.data.encoding import by_length, make_targets
    from training.evaluation.metrics import validation_metrics
    from training.finetuning.pooling import load_checkpoint

    data = load_data(recipe.data, 42)
    if data.test is None:
        raise SystemExit("bench_train: macro-F1 needs a test file: give --test_file")
    split = by_length(data.test)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_checkpoint(checkpoint).to(device)
    logits = []
    with torch.inference_mode():
        for start in range(0, len(split), 64):
            texts = list(split.texts[start : start + 64])
            batch = tokenizer(
                texts,
                padding=True,
                truncation=True,
                max_length=recipe.model.max_length,
                return_tensors="pt",
            )
            logits.append(model(**batch.to(device)).logits.float().cpu())
    probs = probabilities(torch.cat(logits).numpy(), data.task)
    targets = make_targets(split, data.labels, data.task)
    return validation_metrics(probs, targets, data.task)["macro_f1"]


def one_side(side: str, recipe: Recipe, seconds: float, whole: bool) -> dict[str, Any]:
    """Train one way, in this process: for so many seconds, or `whole`, to the end or as long."""
    import torch

    # What passes before the first step is the same for both.
    watch = stopwatch(seconds, 0 if whole else WARM_UP)
    train = trained_as_in_the_tutorial if side == "tutorial" else trained_our_way
    checkpoint, rows = train(recipe, [watch])
    cuda = torch.cuda.is_available()
    peak = (
        torch.cuda.max_memory_allocated()
        if cuda
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    found = {
        "steps": watch.steps,
        "seconds": watch.wall_seconds,
        "rows_per_step": rows,
        "rows_per_second": watch.steps * rows / watch.seconds,
        "peak_memory_mb": round(peak / 1e6),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
    }
    if whole:
        found["macro_f1"] = macro_f1(checkpoint, recipe)
    return found


def in_a_process(
    side: str, words: list[str], seconds: float, *, whole: bool = False
) -> dict[str, Any]:
    """The same in a process of its own, which begins with fresh memory."""
    with tempfile.TemporaryDirectory(prefix="whetstone-bench-") as folder:
        out = Path(folder) / "found.json"
        command = [sys.executable, "-m", "benchmarks.bench_train", *words, "--side", side]
        command += ["--seconds", str(seconds), "--out", str(out), "--work", folder]
        command += ["--whole"] if whole else []
        # As `whetstone` has it: threads that spin while they wait lose much on a shared machine.
        environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"bench_train: {side} failed:\n{done.stderr[-2000:]}")
        found: dict[str, Any] = json.loads(out.read_text("utf-8"))
        return found


def tokens_of(recipe: Recipe) -> tuple[int, float]:
    """Training rows, and their tokens on average, padding not counted."""
    from training.data.dataset import load_data
    from training.finetuning.base_models import resolve_base_model

    data = load_data(recipe.data, 42)
    tokenizer = resolve_base_model(recipe.model).tokenizer()
    encoded = tokenizer(list(data.train.texts), truncation=True, max_length=recipe.model.max_length)
    return len(data.train), statistics.mean(map(len, encoded["input_ids"]))


def measure(
    sides: tuple[str, ...], words: list[str], recipe: Recipe, rounds: int, seconds: float
) -> dict[str, Any]:
    """Speed of the sides, in turn."""
    rows, tokens = tokens_of(recipe)
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    with tqdm(total=rounds * len(sides), desc="speed", unit="run") as bar:
        for _ in range(rounds):
            for side in sides:
                bar.set_postfix_str(side)
                found[side].append(in_a_process(side, words, seconds))
                bar.update()
    ratios = [
        ours["rows_per_second"] / theirs["rows_per_second"]
        for theirs, ours in zip(*(found[side] for side in SIDES), strict=True)
    ]
    speed: dict[str, Any] = {}
    for side, runs in found.items():
        rate = statistics.median(run["rows_per_second"] for run in runs)
        speed[side] = {
            "rows_per_second": round(rate, 3),
            "tokens_per_second": round(rate * tokens, 1),
            "seconds_per_epoch": round(rows / rate, 1),
            "rows_per_step": runs[0]["rows_per_step"],
            "steps_measured": sum(run["steps"] for run in runs),
            "peak_memory_mb": max(run["peak_memory_mb"] for run in runs),
            "runs": runs,
        }
    return {
        "train_rows": rows,
        "tokens_per_row": round(tokens, 1),
        "device": found["whetstone"][0]["device"],
        "speed": speed,
        "times_faster": round(statistics.median(ratios), 1),
    }


def card_recipe(folder: Path) -> tuple[Path, Path]:
    """BERT-base from its configuration and rows of exactly CARD_LENGTH tokens: folder and file."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = [f"w{number}" for number in range(30_000)]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: number for number, word in enumerate([*special, *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=special[1]))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = zip(("pad", "unk", "cls", "sep", "mask"), special, strict=True)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=TUTORIAL_LENGTH,
        **{f"{name}_token": token for name, token in names},
    )
    base, file = folder / "bert-base", folder / "rows.jsonl"
    if not (base / "config.json").is_file():
        torch.manual_seed(0)
        BertModel(BertConfig(vocab_size=len(vocabulary))).save_pretrained(base)
        tokenizer.save_pretrained(base)
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(len(words), (CARD_ROWS, CARD_LENGTH - 2), generator=generator)
        lines = [
            json.dumps({"text": " ".join(words[n] for n in row), "label": f"l{index % 4}"})
            for index, row in enumerate(ids.tolist())
        ]
        write_whole(file, "\n".join(lines) + "\n")
    return base, file


def matrix_rate() -> float:
    """bf16 operations a second of this card in large matrix products: its measured best."""
    import torch

    a, b = (
        torch.randn(CARD_MATRIX, CARD_MATRIX, device="cuda", dtype=torch.bfloat16) for _ in "ab"
    )
    best = 0.0
    for _ in range(10):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(10):
            a @ b
        torch.cuda.synchronize()
        best = max(best, 10 * 2 * CARD_MATRIX**3 / (time.perf_counter() - began))
    return best


def operations_per_row(model: torch.nn.Module, length: int) -> float:
    """Of a training step: three times the forward pass's, which are two a weight and token.

    Kaplan et al. 2020 (arXiv:2001.08361), section 2.1, with attention's share; embeddings are read,
    not multiplied.
    """
    config: Any = model.config
    weights = sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if "embeddings" not in name
    )
    attention = 2 * 2 * config.num_hidden_layers * length * config.hidden_size
    return 3.0 * length * (2 * weights + attention)


def three_digits(value: float) -> str:
    """At least so many, and never an exponent."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def markdown(result: dict[str, Any]) -> str:
    """The result as a table."""
    head = ("", "rows/s", "tokens/s", "epoch", "peak memory", "macro-F1")
    lines = [
        f"{result['machine']['cores']} cores of {result['machine']['processor']}"
        + ("" if result["device"] == "cpu" else f", {result['device']}")
        + f"; {result['data']}: {result['train_rows']:,} rows of {result['tokens_per_row']} "
        f"tokens; {result['model']}. Epochs are extrapolated from the steps of "
        f"{result['seconds']:g} seconds"
        + (f", {result['rounds']} times in turn." if result["rounds"] > 1 else "."),
        "",
        f"| {' | '.join(head)} |",
        "|" + "---|" * len(head),
    ]
    for side, speed in result["speed"].items():
        quality = result.get("quality", {}).get(side)
        score = (
            f"{quality['macro_f1']:.3f} after {quality['seconds'] / 60:.1f} min" if quality else ""
        )
        seconds = speed["seconds_per_epoch"]
        epoch = f"{seconds:.1f} s"
        if seconds >= 60:
            epoch = f"{seconds / 3600:.1f} h" if seconds >= 7200 else f"{seconds / 60:.1f} min"
        cells = (
            TITLES[side],
            three_digits(speed["rows_per_second"]),
            f"{speed['tokens_per_second']:,.0f}",
            epoch,
            f"{speed['peak_memory_mb']:,} MB",
            score,
        )
        lines.append(f"| {' | '.join(cells)} |")
    wanted = result["target"]["times_faster"]
    met = "met" if result["target"]["met"] else "missed"
    lines += ["", f"{result['times_faster']} times as fast per epoch (wanted: {wanted}; {met})."]
    if shares := result.get("share_of_matrix_rate"):
        lines.append(
            f"This card multiplies bf16 matrices at {result['matrix_rate'] / 1e12:.0f} TFLOP/s. "
            "Share that is used: "
            + ", ".join(f"{TITLES[side]} {share:.1%}" for side, share in shares.items())
            + f" (wanted: {LEAST_OF_MATRIX_RATE:.0%})."
        )
    return "\n".join(lines) + "\n"


def draw(result: dict[str, Any], path: Path) -> None:
    """Rows a second and memory of each side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from training.common.figures import save_figure

    figure, axes = pyplot.subplots(1, 2, figsize=(8, 1.8))
    for axis, key, label in zip(
        axes,
        ("rows_per_second", "peak_memory_mb"),
        ("rows a second", "peak memory, MB"),
        strict=True,
    ):
        values = [speed[key] for speed in result["speed"].values()]
        colors = ["#b5b9bd", "#1f6f8b", "#1f6f8b"][: len(values)]
        bars = axis.barh([TITLES[side] for side in result["speed"]], values, color=colors)
        axis.bar_label(bars, [three_digits(value) for value in values], padding=3, fontsize=8)
        axis.set_xlim(0, max(values) * 1.2)
        axis.set_xlabel(label, fontsize=9)
        axis.invert_yaxis()
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[1].set_yticklabels([])
    figure.tight_layout()
    save_figure(figure, path)


def main() -> None:
    """Measure, print the table, write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train_file", type=Path, default=EXAMPLE / "train.csv")
    parser.add_argument("--test_file", type=Path, default=EXAMPLE / "test.csv")
    parser.add_argument("--model_name_or_path", help="default: the embedded base model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60, help="of steps in each round")
    parser.add_argument("--no_quality", action="store_true", help="speed only")
    parser.add_argument("--card", action="store_true", help="BERT-base on a CUDA GPU, speed only")
    parser.add_argument("--out", type=Path, help="the JSON file; .md and .png go beside it")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "bench-train")
    parser.add_argument("--side", choices=TITLES, help=argparse.SUPPRESS)
    parser.add_argument("--whole", action="store_true", help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.card and not parsed.side:
        import torch

        if not torch.cuda.is_available():
            sys.exit("bench_train: --card needs a CUDA GPU and torch's build for it: there is none")
        parsed.model_name_or_path, parsed.train_file = map(str, card_recipe(parsed.work))
    keys = {
        "name": "bench-train",
        "train_file": str(parsed.train_file),
        "output_dir": str(parsed.work / "run"),
        # As much as the tutorial reads; no text of the example is so long.
        "max_length": str(TUTORIAL_LENGTH),
    }
    if parsed.card:
        more = CARD_KEYS | (LARGE_KEYS if parsed.side == "large" else {})
        keys |= {key: str(value) for key, value in more.items()}
    else:
        keys["test_file"] = str(parsed.test_file)
    if parsed.model_name_or_path:
        keys["model_name_or_path"] = parsed.model_name_or_path
    recipe = load_recipe(None, keys)
    if parsed.side:
        found = one_side(parsed.side, recipe, parsed.seconds, parsed.whole)
        write_result(parsed.out, found)
        return
    words = ["--train_file", str(parsed.train_file), "--test_file", str(parsed.test_file)]
    words += (
        ["--model_name_or_path", parsed.model_name_or_path] if parsed.model_name_or_path else []
    )
    words += ["--card"] if parsed.card else []
    sides = (*SIDES, "large") if parsed.card else SIDES
    result: dict[str, Any] = {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(PACKAGES),
        "data": "random words" if parsed.card else parsed.train_file.parent.name,
        "model": "BERT-base from its configuration"
        if parsed.card
        else recipe.model.model_name_or_path,
        "rounds": parsed.rounds,
        "seconds": parsed.seconds,
        **measure(sides, words, recipe, parsed.rounds, parsed.seconds),
    }
    wanted = FASTER["cpu" if result["device"] == "cpu" else "cuda"]
    result["target"] = {"times_faster": wanted, "met": result["times_faster"] >= wanted}
    if parsed.card:
        from transformers import AutoModelForSequenceClassification

        model = AutoModelForSequenceClassification.from_pretrained(parsed.model_name_or_path)
        result["matrix_rate"] = matrix_rate()
        result["operations_per_row"] = operations_per_row(model, CARD_LENGTH)
        result["share_of_matrix_rate"] = {
            side: result["speed"][side]["rows_per_second"]
            * result["operations_per_row"]
            / result["matrix_rate"]
            for side in ("whetstone", "large")
        }
    elif not parsed.no_quality:
        ours = in_a_process("whetstone", words, float("inf"), whole=True)
        theirs = in_a_process("tutorial", words, ours["seconds"], whole=True)
        result["quality"] = {"tutorial": theirs, "whetstone": ours}
    out = (
        parsed.out
        or ROOT / "benchmarks" / "results" / f"train{'-card' if parsed.card else ''}.json"
    )
    write_result(out, result)
    write_whole(out.with_suffix(".md"), markdown(result))
    draw(result, out.with_suffix(".png"))
    print(markdown(result))
    print(f"written: {out}, {out.with_suffix('.md')}, {out.with_suffix('.png')}")


if __name__ == "__main__":
    main()
