"""Every kind of classification is trained, evaluated, predicted and served."""

from __future__ import annotations

import asyncio
import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.testclient import TestClient

from service.http.routes import Routes
from service.inference.classifier import Classifier, Prediction
from service.package.manifest import Manifest, Text
from tests.conftest import example_rows, write_csv
from tests.servers import routes_of
from training.common.errors import RecipeError
from training.export.package import export
from training.finetuning.record import open_run
from training.finetuning.train import train
from training.recipe.load import load_recipe
from whetstone.main import main

# The last digits of fp32 sums depend on the batch.
SAME_SCORE = 1e-5
Row = dict[str, str]
FIELDS = ("input", "text_pair")


@dataclass(frozen=True)
class Shape:
    """A trained and exported tiny model of one kind, and the rows for its questions."""

    name: str
    recipe: Path
    folder: Path
    test_file: Path
    texts: list[Text]
    classifier: Classifier

    @property
    def manifest(self) -> Manifest:
        return self.classifier.manifest


def several_labels(split: str, count: int) -> list[Row]:
    """Messages of one topic or of two, and messages without a labeled topic."""
    delivery, praise, returns = (
        [row["text"] for row in example_rows(split, (label,))][:count]
        for label in ("delivery", "praise", "returns")
    )
    rows = [{"text": text, "label": "delivery"} for text in delivery]
    rows += [{"text": text, "label": "praise"} for text in praise]
    rows += [{"text": text, "label": ""} for text in returns]
    both = zip(delivery[::2], praise[::2], strict=True)
    rows += [{"text": f"{one} {two}", "label": "praise|delivery"} for one, two in both]
    return rows


def pairs(split: str, count: int) -> list[Row]:
    """Two messages, of the same topic or, more often, of different ones."""
    rows = example_rows(split)[:: max(1, len(example_rows(split)) // count)][:count]
    made = []
    for shift in (1, 5, 9, 13):
        for one, two in zip(rows, rows[shift:] + rows[:shift], strict=True):
            label = "same" if one["label"] == two["label"] else "different"
            made.append({"text": one["text"], "second": two["text"], "label": label})
    return made


def two_labels(split: str, count: int) -> list[Row]:
    """Few messages of praise among many of another topic."""
    rows = example_rows(split, ("delivery", "returns"))[: 3 * count]
    other = [{"text": row["text"], "label": "other"} for row in rows]
    return other + example_rows(split, ("praise",))[:count]


def long_texts(split: str, count: int) -> list[Row]:
    """Short messages, and some that join messages of the same label."""
    made = []
    for label in ("delivery", "praise", "returns"):
        texts = [row["text"] for row in example_rows(split, (label,))][:count]
        made += [{"text": text, "label": label} for text in texts]
        made += [{"text": " ".join(texts[n : n + 4]), "label": label} for n in range(0, count, 4)]
    return made


SHAPES: dict[str, tuple[Any, dict[str, str]]] = {
    "several labels": (several_labels, {"label_separator": '"|"', "threshold_precision": "0.8"}),
    "pairs": (
        pairs,
        {"text_pair_column": "second", "class_weights": "balanced", "max_length": "64"},
    ),
    "binary": (
        two_labels,
        {"positive_label": "praise", "abstain_precision": "0.9", "num_train_epochs": "10"},
    ),
    "windows": (long_texts, {"long_text": "window", "max_length": "16", "window_stride": "4"}),
    "windows of several labels": (
        several_labels,
        {
            "label_separator": '"|"',
            "long_text": "window",
            "max_length": "16",
            "window_aggregation": "max",
            "class_weights": '{"praise": 2}',
        },
    ),
}


@pytest.fixture(scope="module", params=SHAPES)
def shape(
    request: pytest.FixtureRequest, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Shape:
    make_rows, keys = SHAPES[request.param]
    folder = tmp_path_factory.mktemp("shape")
    write_csv(folder / "train.csv", make_rows("train", 40))
    test_rows = make_rows("test", 8)
    test_file = write_csv(folder / "test.csv", test_rows)
    values = {
        "name": "tiny",
        "model_name_or_path": str(tiny_base),
        "max_length": "32",
        "train_file": "train.csv",
        "validation_share": "0.25",
        "learning_rate": "0.003",
        "num_train_epochs": "4",
        "per_device_train_batch_size": "16",
        "train_on_all_rows": "false",
        "use_cpu": "true",
    } | keys
    recipe = folder / "recipe.yaml"
    recipe.write_text("".join(f"{key}: {value}\n" for key, value in values.items()), "utf-8")
    run_folder = folder / "run"
    package = export(train(load_recipe(recipe, {"output_dir": str(run_folder)})))
    texts: list[Text] = [
        (row["text"], row["second"]) if "second" in row else row["text"] for row in test_rows
    ]
    classifier = Classifier.load(package, threads=1)
    return Shape(request.param, recipe, run_folder, test_file, texts, classifier)


@pytest.fixture
def client(shape: Shape) -> Iterator[TestClient]:
    with routes_of(shape.classifier, threads=2) as routes:
        yield TestClient(routes)


def request_of(texts: list[Text]) -> dict[str, Any]:
    if isinstance(texts[0], str):
        return {"input": texts}
    return {"input": [text[0] for text in texts], "text_pair": [text[1] for text in texts]}


def test_the_package_describes_its_shape(shape: Shape) -> None:
    manifest = shape.manifest
    several = "several" in shape.name
    windows = shape.name.startswith("windows")
    assert manifest.task == ("multi_label" if several else "single_label")
    assert manifest.has_pairs == (shape.name == "pairs")
    assert manifest.long_text == ("window" if windows else "truncate")
    assert manifest.window_stride == (4 if shape.name == "windows" else 3 if windows else None)
    assert manifest.window_aggregation == (("max" if several else "mean") if windows else None)
    thresholds = {"delivery", "praise"} if several else {"praise"} if shape.name == "binary" else ()
    assert set(manifest.thresholds) == set(thresholds)
    assert (manifest.abstain_threshold is not None) == (shape.name == "binary")
    assert manifest.parity["fp32"]["largest_logit_difference"] <= 1e-3
    assert shape.classifier.check_golden(shape.folder / "package") > 10


def test_evaluate_predict_and_http_give_the_same_answers(
    shape: Shape, client: TestClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package, out = str(shape.folder / "package"), tmp_path / "out.jsonl"
    expected = shape.classifier.classify(shape.texts)
    words = [str(shape.test_file), "--out", str(out)]
    assert main(["predict", package, *words, "--all_scores"]) == 0
    predicted = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    served = client.post("/classify", json=request_of(shape.texts)).json()["data"]
    labels = shape.manifest.labels
    for answer, row, item in zip(expected, predicted, served, strict=True):
        assert row["predicted_label"] == item["label"] == answer.label
        assert row["score"] == pytest.approx(answer.score, abs=SAME_SCORE)
        assert item["score"] == pytest.approx(answer.score, abs=SAME_SCORE)
        assert item["probs"] == pytest.approx(answer.probs.tolist(), abs=SAME_SCORE)
        scores = [row[f"score_{label}"] for label in labels]
        assert scores == pytest.approx(answer.probs.tolist(), abs=SAME_SCORE)
        chosen = None if answer.labels is None else list(answer.labels)
        assert row.get("labels") == item.get("labels") == chosen
        assert row.get("abstained") == item.get("abstained") == answer.abstained
        windows = answer.windows if shape.manifest.long_text == "window" else None
        assert item.get("windows") == windows
    assert main(["evaluate", package, str(shape.test_file), "--output_dir", str(tmp_path)]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text("utf-8"))
    truth = [row["label"] for row in read_csv(shape.test_file)]
    right = [is_right(answer, label) for answer, label in zip(expected, truth, strict=True)]
    assert metrics["accuracy"] == pytest.approx(np.mean(right))
    assert metrics["accuracy"] > 0


def read_csv(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def is_right(answer: Prediction, label: str) -> bool:
    if answer.labels is None:
        return answer.label == label
    return set(answer.labels) == set(filter(None, label.split("|")))


def test_an_answer_depends_on_its_whole_input_and_not_on_its_neighbors(shape: Shape) -> None:
    together = shape.classifier.classify(shape.texts)
    for text, answer in zip(shape.texts[::5], together[::5], strict=True):
        (alone,) = shape.classifier.classify([text])
        assert alone.probs == pytest.approx(answer.probs, abs=SAME_SCORE)
        assert (alone.windows, alone.tokens) == (answer.windows, answer.tokens)
    if shape.manifest.has_pairs:
        first, second = shape.texts[0]
        changed = (first, shape.texts[1][1])
        ((one,), _), ((other,), _) = shape.classifier.encode([(first, second), changed])
        assert one.ids != other.ids
        assert set(one.type_ids) == {0, 1}
        answers = shape.classifier.classify([(first, second), changed])
        assert (answers[0].probs != answers[1].probs).any()


def test_predict_writes_labels_into_any_format(shape: Shape, tmp_path: Path) -> None:
    from pyarrow import parquet

    package, source = str(shape.folder / "package"), str(shape.test_file)
    for ending in ("csv", "parquet"):
        assert main(["predict", package, source, "--out", str(tmp_path / f"out.{ending}")]) == 0
    written = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    for row, text in zip(written, read_csv(tmp_path / "out.csv"), strict=True):
        assert text["predicted_label"] == row["predicted_label"]
        if "several" in shape.name:
            assert text["labels"] == "|".join(row["labels"])
        if shape.name == "binary":
            assert text["abstained"] == str(row["abstained"])


def test_text_embeddings_inference_schema(shape: Shape, client: TestClient) -> None:
    texts = [[text] if isinstance(text, str) else list(text) for text in shape.texts[:3]]
    ranked = client.post("/predict", json={"inputs": texts}).json()
    for answer, scores in zip(shape.classifier.classify(shape.texts[:3]), ranked, strict=True):
        expected = sorted(answer.probs.tolist(), reverse=True)
        assert [item["score"] for item in scores] == pytest.approx(expected, abs=SAME_SCORE)
        by_label = {item["label"]: item["score"] for item in scores}
        labels = shape.manifest.labels
        assert [by_label[x] for x in labels] == pytest.approx(answer.probs.tolist(), abs=SAME_SCORE)
    alone = texts[0] if len(texts[0]) == 2 else texts[0][0]
    assert client.post("/predict", json={"inputs": alone}).json() == [
        {"label": item["label"], "score": pytest.approx(item["score"], abs=SAME_SCORE)}
        for item in ranked[0]
    ]
    raw = client.post("/predict", json={"inputs": alone, "raw_scores": True}).json()
    assert {item["score"] for item in raw} != {item["score"] for item in ranked[0]}
    wrong = ["a"] if shape.manifest.has_pairs else ["a", "b"]
    refused = client.post("/predict", json={"inputs": wrong})
    assert refused.status_code == 422
    assert set(refused.json()) == {"error", "error_type"}


def odds(shape: Shape, text: Text, label: str) -> float:
    """The log-odds of the probability that the classifier gives a label."""
    (answer,) = shape.classifier.classify([text])
    prob = float(answer.probs[shape.manifest.labels.index(label)])
    return float(np.log(prob) - np.log1p(-prob))


def contributions(
    shape: Shape, text: Text, words: list[dict[str, Any]], label: str, *, given: bool
) -> list[float]:
    """The mean of what each word changes: in the whole text, alone, and without the other ones.

    The third holds for the better half of the words.
    """

    # What the model did not read stays out.
    ends = {word["field"]: word["end"] for word in words}
    read: Text = (
        text[: ends["input"]]
        if isinstance(text, str)
        else (text[0][: ends["input"]], text[1][: ends["text_pair"]])
    )

    def asked(gone: list[dict[str, Any]]) -> float:
        return odds(shape, replaced(read, gone) if gone else text, label)

    def all_but(word: dict[str, Any], among: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [each for each in among if each is not word]

    whole, nothing = asked([]), asked(words)
    effects = [[whole - asked([word]), asked(all_but(word, words)) - nothing] for word in words]
    sign = 1 if given else -1
    ranked = sorted(range(len(words)), key=lambda place: -sign * sum(effects[place]))
    half = [words[place] for place in ranked[: (len(ranked) + 1) // 2]]
    if len(half) > 1:
        for place in ranked[: len(half)]:
            effects[place].append(asked(all_but(words[place], half)) - asked(half))
    return [sum(own) / len(own) for own in effects]


def replaced(text: Text, words: list[dict[str, Any]]) -> Text:
    """The text or pair with a space in place of words of an explanation."""
    parts = {"input": text} if isinstance(text, str) else dict(zip(FIELDS, text, strict=True))
    for word in sorted(words, key=lambda each: -each["start"]):
        part = parts[word["field"]]
        assert part[word["start"] : word["end"]] == word["word"]
        parts[word["field"]] = part[: word["start"]] + " " + part[word["end"] :]
    return parts["input"] if isinstance(text, str) else (parts["input"], parts["text_pair"])


def has_pairs(text: Text) -> bool:
    return not isinstance(text, str)


def is_given(answer: Prediction, label: str) -> bool:
    return label in answer.answer


def test_explanations_are_those_of_brute_force(shape: Shape) -> None:
    found = 0
    limits = {"explain_max_words": 200, "explain_max_windows": 4096}
    with routes_of(shape.classifier, threads=2, explain=True, **limits) as routes:
        client = TestClient(routes)
        for text in shape.texts[::6]:
            body = request_of([text]) | {"label": shape.manifest.labels[0]}
            for asked in (request_of([text]), body):
                (item,) = client.post("/explain", json=asked).json()["data"]
                (answer,) = shape.classifier.classify([text])
                label = asked.get("label", answer.label)
                assert (item["label"], item["given"]) == (label, is_given(answer, label))
                prob = answer.probs[shape.manifest.labels.index(label)]
                assert item["score"] == pytest.approx(prob, abs=SAME_SCORE)
                before = odds(shape, text, label)
                # Every word is weighed, or `contributions` would not know the others.
                assert "sentences" not in item
                assert item["log_odds"] == pytest.approx(before, abs=1e-3)
                assert [word["contribution"] for word in item["words"]] == pytest.approx(
                    contributions(shape, text, item["words"], label, given=item["given"]), abs=1e-3
                )
                if item["counterfactual"] is None:
                    for word in item["words"]:
                        (same,) = shape.classifier.classify([replaced(text, [word])])
                        assert is_given(same, label) == item["given"]
                    continue
                found += 1
                gone = [item["words"][place] for place in item["counterfactual"]["words"]]
                (other,) = shape.classifier.classify([replaced(text, gone)])
                assert is_given(other, label) != item["given"]
                assert item["counterfactual"]["label"] == other.label
                assert item["counterfactual"]["score"] == pytest.approx(other.score, abs=1e-4)
                chosen = None if other.labels is None else list(other.labels)
                assert item["counterfactual"].get("labels") == chosen
                # Each of the words is needed.
                for word in gone if len(gone) > 1 else []:
                    fewer = replaced(text, [each for each in gone if each is not word])
                    (same,) = shape.classifier.classify([fewer])
                    assert is_given(same, label) == item["given"]
    # The tiny model of pairs gives all of them the same label.
    assert found or shape.manifest.has_pairs


def test_words_are_all_that_the_model_reads(shape: Shape) -> None:
    long: list[Text] = [
        "where is my parcel? " * 30 if isinstance(text, str) else (text[0], text[1] * 30)
        for text in shape.texts[:1]
    ]
    limits = {"explain_max_words": 200, "explain_max_windows": 8192}
    with routes_of(shape.classifier, explain=True, **limits) as routes:
        answer = TestClient(routes).post("/explain", json=request_of(long)).json()
    (item,) = answer["data"]
    by_windows = shape.manifest.long_text == "window"
    assert ("truncated" in item) == (not by_windows)
    assert "sentences" not in item
    (text,) = long
    last = max(word["end"] for word in item["words"] if word["field"] == FIELDS[-has_pairs(text)])
    # Windows read all of it, others the first tokens.
    assert (last >= len("where is my parcel? " * 30) - 2) == by_windows
    assert len(item["words"]) == 150 if by_windows else 10 < len(item["words"]) < 64
    assert answer["usage"]["windows"] <= 8192


def test_pairs_are_required_or_refused(shape: Shape, client: TestClient) -> None:
    bodies: list[dict[str, Any]]
    if shape.manifest.has_pairs:
        bodies = [
            {"input": "a"},
            {"input": ["a"], "text_pair": "b"},
            {"input": ["a", "b"], "text_pair": ["c"]},
            {"input": ["a"], "text_pair": [""]},
            {"input": "a", "text_pair": 7},
        ]
        assert client.post("/classify", json={"input": "a", "text_pair": "b"}).status_code == 200
    else:
        bodies = [{"input": "a", "text_pair": "b"}]
    for body in bodies:
        answer = client.post("/classify", json=body)
        assert answer.status_code == 422
        assert answer.json()["error"]["param"].startswith("text_pair")


@pytest.mark.parametrize("shape", ["binary"], indirect=True)
def test_thresholds_and_abstention_can_be_chosen_again_without_training(shape: Shape) -> None:
    overrides = {"output_dir": str(shape.folder), "threshold_precision": "0.99"}
    run = open_run(load_recipe(shape.recipe, overrides))
    assert run.record["finished"]


# Windows


@pytest.mark.parametrize("shape", ["windows"], indirect=True)
def test_a_long_text_is_read_to_its_end(shape: Shape) -> None:
    ending = "thank you so much, wonderful service, I am delighted"
    text = "where is my parcel? " * 30
    short, long = shape.classifier.classify([text, text + ending])
    assert (short.truncated, long.truncated) == (False, False)
    assert long.windows > short.windows > 5
    assert not np.allclose(short.probs, long.probs, atol=1e-4)
    # The mean over windows that differ only at the end.
    ((encoded, _),) = shape.classifier.encode([text])
    assert all(len(window) <= 16 for window in encoded)
    # 14 tokens of text in each, of which neighbors share 4.
    assert encoded[1].ids[1:5] == encoded[0].ids[-5:-1]


@pytest.mark.parametrize("shape", ["windows"], indirect=True)
def test_a_request_of_too_many_windows_is_refused(shape: Shape, client: TestClient) -> None:
    answer = client.post("/classify", json={"input": ["a", "parcel " * 14_000]})
    assert answer.status_code == 422
    assert "the limit is 512" in answer.json()["error"]["message"]


@pytest.mark.parametrize("shape", ["windows"], indirect=True)
def test_a_text_of_many_windows_does_not_delay_others(shape: Shape) -> None:
    batches: list[int] = []

    class Watched(Classifier):
        def logits(self, encodings: Any) -> Any:
            batches.append(len(encodings))
            return super().logits(encodings)

    watched = Watched.__new__(Watched)
    watched.__dict__.update(shape.classifier.__dict__)
    long = " ".join(["where is my parcel?"] * 800)
    order: list[str] = []

    async def ask(client: httpx.AsyncClient, name: str, text: str) -> None:
        answer = await client.post("/classify", json={"input": text})
        assert answer.status_code == 200
        order.append(name)

    async def both(routes: Routes) -> None:
        transport = httpx.ASGITransport(app=routes)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            slow = asyncio.create_task(ask(client, "long", long))
            while not batches:
                await asyncio.sleep(0)
            await ask(client, "short", "lovely")
            await slow

    # The order is tested, not the speed: a busy machine must not refuse either text.
    with routes_of(watched, batch_tokens=64, timeout_ms=600_000) as routes:
        asyncio.run(both(routes))
    assert sum(batches) > 300
    assert len(batches) > 10
    # The only thread computed the short text in between.
    assert order == ["short", "long"]
    # Four windows of 16 tokens fill a batch.
    assert max(batches) == 4


# Contradictions


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("several labels", {"positive_label": "praise"}, "positive_label is for two labels"),
        ("several labels", {"abstain_precision": "0.9"}, "abstain_precision is for one label"),
        ("several labels", {"label_smoothing_factor": "0.1"}, "label_smoothing_factor"),
        ("windows", {"positive_label": "praise"}, "must be one of two labels"),
        ("windows", {"threshold_precision": "0.9"}, "threshold_precision needs positive_label"),
        ("windows", {"class_weights": '{"prais": 2}'}, "class_weights names 'prais'"),
        ("windows", {"window_stride": "14"}, "choose a stride below 14"),
        ("binary", {"positive_label": "Praise"}, "'Praise' must be one of two labels"),
    ],
)
def test_keys_that_do_not_fit_the_data_are_refused_before_training(
    tiny_base: Path, tmp_path: Path, name: str, keys: dict[str, str], message: str
) -> None:
    make_rows, own = SHAPES[name]
    write_csv(tmp_path / "train.csv", make_rows("train", 8))
    own = {key: value for key, value in own.items() if key != "threshold_precision"}
    values = {"name": "tiny", "model_name_or_path": str(tiny_base), "max_length": "32"} | own
    recipe = tmp_path / "recipe.yaml"
    lines = [f"{key}: {value}\n" for key, value in {**values, "train_file": "train.csv"}.items()]
    recipe.write_text("".join(lines), "utf-8")
    output = {"output_dir": str(tmp_path / "run")}
    with pytest.raises(RecipeError, match=message):
        train(load_recipe(recipe, keys | output))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_real_weights_learn_several_labels(tmp_path: Path) -> None:
    """Two joined messages have both labels; some of the others have none."""
    labels = ("billing", "delivery", "praise", "returns")

    def strung(split: str, step: int) -> list[Row]:
        rows = example_rows(split, labels)[::step]
        made = [{"text": row["text"], "label": row["label"]} for row in rows]
        for one, two in zip(rows, rows[len(rows) // 3 :], strict=False):
            both = "|".join(dict.fromkeys([one["label"], two["label"]]))
            made.append({"text": f"{one['text']} {two['text']}", "label": both})
        other = example_rows(split, ("technical_fault",))[::step]
        return made + [{"text": row["text"], "label": ""} for row in other]

    write_csv(tmp_path / "train.csv", strung("train", 3))
    test_file = write_csv(tmp_path / "test.csv", strung("test", 2))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "name: several\ntrain_file: train.csv\nlabel_separator: '|'\nnum_train_epochs: 5\n"
        "train_on_all_rows: false\n",
        "utf-8",
    )
    package = export(train(load_recipe(recipe, {"output_dir": str(tmp_path / "run")})))
    words = [str(package), str(test_file), "--output_dir", str(tmp_path)]
    assert main(["evaluate", *words]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text("utf-8"))
    assert metrics["average_precision"] >= 0.85
    assert metrics["macro_f1"] >= 0.75
