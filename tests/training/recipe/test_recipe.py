"""Recipes: where each key's value comes from, and what is said of a wrong one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from training.common.errors import RecipeError
from training.recipe.arguments import DEFAULT_BASE_MODEL, Recipe
from training.recipe.checks import parse_class_weights
from training.recipe.load import load_recipe, parse_overrides, parse_training_arguments

FILES = "name: tiny\ntrain_file: train.csv\n"
# Ten times ten times ten.
MANY_ANCHORS = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n"
    for old, new in zip("abcdef", "bcdefg", strict=True)
)
HUB = """name: tiny
dataset_name: owner/messages
dataset_config_name: plain
dataset_revision: abc
text_column: sms
label_column: kind
"""


def load(folder: Path, text: str, *words: str) -> Recipe:
    """The recipe of YAML `text` in `folder`, with `words` after it on the command line."""
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return load_recipe(path, parse_overrides(list(words)))


def refusal(folder: Path, text: str, *words: str) -> str:
    """What is said of a recipe that must be refused: one line."""
    with pytest.raises(RecipeError) as caught:
        load(folder, text, *words)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def training_arguments(recipe: Recipe) -> Any:
    """The transformers.TrainingArguments that the recipe's own keys make."""
    return parse_training_arguments({**recipe.training, "output_dir": str(recipe.output_dir)})


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], {}),
        (["--seed", "7"], {"seed": "7"}),
        (["--seed=7"], {"seed": "7"}),
        (["--seed", "-7"], {"seed": "-7"}),
        (["--base=a=b"], {"base": "a=b"}),
        (["--train-file", "a.csv"], {"train_file": "a.csv"}),
        (["--drop_invalid"], {"drop_invalid": "true"}),
        (["--drop_invalid", "--seed", "7"], {"drop_invalid": "true", "seed": "7"}),
        (["--report_to", "a", "b"], {"report_to": ["a", "b"]}),
        (["--seed", "7", "--seed", "8"], {"seed": "8"}),
        (["--text_column="], {"text_column": ""}),
    ],
)
def test_command_line_words_become_keys(words: list[str], expected: dict[str, Any]) -> None:
    assert parse_overrides(words) == expected


@pytest.mark.parametrize("words", [["seed", "7"], ["-s", "7"], ["--"], ["--seed=7", "8"]])
def test_a_word_that_belongs_to_no_key_is_refused(words: list[str]) -> None:
    with pytest.raises(RecipeError, match="is not a key: write --key value"):
        parse_overrides(words)


def test_the_command_line_wins_over_the_recipe(tmp_path: Path) -> None:
    text = FILES + "max_length: 64\nseed: 1\nprecision: fp32\nlearning_rate: 0.1\n"
    words = ("--max_length", "32", "--seed=2", "--precision", "int8")
    recipe = load(tmp_path, text, *words)
    assert (recipe.model.max_length, recipe.export.precision) == (32, "int8")
    arguments = training_arguments(recipe)
    assert (arguments.seed, arguments.learning_rate) == (2, 0.1)


def test_a_hub_data_set_on_the_command_line_wins_over_the_recipes_files(tmp_path: Path) -> None:
    data = load(tmp_path, FILES, "--dataset_name", "owner/messages").data
    assert (data.dataset_name, data.train_file) == ("owner/messages", None)


def test_keys_that_are_not_given_have_their_defaults(tmp_path: Path) -> None:
    recipe = load(tmp_path, FILES + "max_length:\n")
    assert recipe.model.model_name_or_path == DEFAULT_BASE_MODEL
    assert (recipe.model.max_length, recipe.model.trust_remote_code) == (256, False)
    assert (recipe.data.text_column, recipe.data.label_column) == ("text", "label")
    assert recipe.training == {}


def test_a_recipe_survives_being_stated_and_read_again(tmp_path: Path) -> None:
    text = FILES + "drop_invalid: true\nlr_scheduler_kwargs: {num_cycles: 2}\nseed: 3\n"
    recipe = load(tmp_path, text, "--learning_rate", "1e-4")
    again = load(tmp_path, yaml.safe_dump(recipe.as_dict()))
    assert again == recipe


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("learning_rat", "learning_rate"),
        ("num_epochs", "num_train_epochs"),
        ("max_lenght", "max_length"),
        ("train_fil", "train_file"),
        ("precison", "precision"),
    ],
)
def test_unknown_key_names_the_nearest(tmp_path: Path, key: str, nearest: str) -> None:
    said = refusal(tmp_path, f"{FILES}{key}: 1\n")
    assert f"{key!r} in {tmp_path / 'recipe.yaml'}" in said
    assert f"did you mean {nearest!r}?" in said
    said = refusal(tmp_path, FILES, f"--{key}", "1")
    assert f"{key!r} on the command line" in said
    assert f"did you mean {nearest!r}?" in said


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_length", "many"),
        ("learning_rate", "fast"),
        ("seed", "1.5"),
        ("drop_invalid", "maybe"),
        ("precision", "int4"),
        ("eval_strategy", "sometimes"),
        ("validation_share", "0"),
        ("validation_share", "1.5"),
    ],
)
def test_impossible_value_names_the_key_and_the_value(tmp_path: Path, key: str, value: str) -> None:
    for said in (
        refusal(tmp_path, f"{FILES}{key}: {value}\n"),
        refusal(tmp_path, FILES, f"--{key}", value),
    ):
        assert key in said
        assert value in said


def test_several_values_for_a_key_of_one_are_refused(tmp_path: Path) -> None:
    assert "max_length" in refusal(tmp_path, FILES + "max_length: [16, 32]\n")
    assert "text_column" in refusal(tmp_path, FILES, "--text_column", "my", "text")


def test_keys_that_contradict_each_other_are_refused_in_one_line(tmp_path: Path) -> None:
    text = FILES + "load_best_model_at_end: true\neval_strategy: steps\nsave_strategy: epoch\n"
    assert "load_best_model_at_end" in refusal(tmp_path, text)


def test_a_key_that_only_restates_a_careful_default_is_taken(tmp_path: Path) -> None:
    recipe = load(tmp_path, FILES + "load_best_model_at_end: true\n")
    assert recipe.training == {"load_best_model_at_end": True}


@pytest.mark.parametrize(
    ("text", "line"),
    [("name: tiny\ntrain_file: [a\nseed: 1\n", 3), ("name: tiny\n\tseed: 1\n", 2)],
)
def test_text_that_is_not_yaml_names_the_line(tmp_path: Path, text: str, line: int) -> None:
    assert f"recipe.yaml is not YAML at line {line}: " in refusal(tmp_path, text)


@pytest.mark.parametrize("text", ["", "- name: tiny\n", "name\n"])
def test_yaml_without_keys_is_not_a_recipe(tmp_path: Path, text: str) -> None:
    assert "is not a recipe" in refusal(tmp_path, text)


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"there is no recipe .*nowhere\.yaml"):
        load_recipe(tmp_path / "nowhere.yaml", {})


def test_a_recipe_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"name: caf\xe9\n")
    with pytest.raises(RecipeError, match=r"recipe\.yaml, line 1: it is not UTF-8"):
        load_recipe(path, {})


def test_a_recipe_without_a_name_says_how_to_add_one(tmp_path: Path) -> None:
    assert "has no `name`: add one" in refusal(tmp_path, "train_file: train.csv\n")


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", "two words", "''"])
def test_a_name_that_cannot_name_a_folder_is_refused(tmp_path: Path, name: str) -> None:
    said = refusal(tmp_path, f"name: {name}\ntrain_file: train.csv\n")
    assert repr(name.strip("'")) in said


@pytest.mark.parametrize("name", ["tiny", "2024", "v1.2_final-a"])
def test_a_name_names_the_run_folder(tmp_path: Path, name: str) -> None:
    recipe = load(tmp_path, f"name: {name}\ntrain_file: train.csv\n")
    assert recipe.output_dir == Path("runs") / name


@pytest.mark.parametrize("text", ["name: tiny\n", "name: tiny\ntest_file: test.csv\n"])
def test_a_recipe_without_training_data_says_what_to_add(tmp_path: Path, text: str) -> None:
    assert "add `train_file` or `dataset_name`" in refusal(tmp_path, text)


def test_paths_in_a_recipe_are_relative_to_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "base").mkdir()
    monkeypatch.chdir(tmp_path / "data")
    text = "name: tiny\ntrain_file: data/a.csv\nvalidation_file: b.csv\ntest_file: ../c.csv\n"
    recipe = load(tmp_path, text + "output_dir: out\nmodel_name_or_path: base\n")
    assert recipe.data.train_file == [str(tmp_path / "data" / "a.csv")]
    assert recipe.data.validation_file == [str(tmp_path / "b.csv")]
    assert Path((recipe.data.test_file or [""])[0]).resolve() == tmp_path.parent / "c.csv"
    assert recipe.output_dir == tmp_path / "out"
    assert recipe.model.model_name_or_path == str(tmp_path / "base")


def test_an_absolute_path_and_a_hub_name_in_a_recipe_stay(tmp_path: Path) -> None:
    text = "name: tiny\ntrain_file: /data/a.csv\nmodel_name_or_path: owner/model\n"
    recipe = load(tmp_path, text)
    assert recipe.data.train_file == ["/data/a.csv"]
    assert recipe.model.model_name_or_path == "owner/model"


def test_paths_on_the_command_line_are_relative_to_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    recipe = load(tmp_path, FILES, "--train_file", "mine.csv", "--output_dir", "out")
    assert Path((recipe.data.train_file or [""])[0]).resolve() == here / "mine.csv"
    assert recipe.output_dir.resolve() == here / "out"


def test_files_on_the_command_line_replace_the_hub_data_set_and_its_columns(
    tmp_path: Path,
) -> None:
    data = load(tmp_path, HUB, "--train_file", "train.csv").data
    assert (data.train_file, data.text_column, data.label_column) == (
        ["train.csv"],
        "text",
        "label",
    )
    assert (data.dataset_name, data.dataset_config_name, data.dataset_revision) == (None,) * 3


def test_columns_on_the_command_line_stay_beside_files(tmp_path: Path) -> None:
    data = load(tmp_path, HUB, "--train_file", "train.csv", "--text_column", "body").data
    assert (data.dataset_name, data.text_column, data.label_column) == (None, "body", "label")


def test_columns_of_a_recipe_with_files_stay_beside_other_files(tmp_path: Path) -> None:
    data = load(tmp_path, FILES + "text_column: body\n", "--train_file", "other.csv").data
    assert (data.train_file, data.text_column) == (["other.csv"], "body")


def test_a_hub_recipe_keeps_its_columns(tmp_path: Path) -> None:
    data = load(tmp_path, HUB, "--seed", "1").data
    assert (data.dataset_name, data.text_column, data.label_column) == (
        "owner/messages",
        "sms",
        "kind",
    )


def test_a_number_that_yaml_takes_for_text_becomes_a_float(tmp_path: Path) -> None:
    # YAML 1.1 reads 3e-4, without a point, as a string.
    in_recipe = load(tmp_path, FILES + "learning_rate: 3e-4\n")
    on_command_line = load(tmp_path, FILES, "--learning_rate", "3e-4")
    for recipe in (in_recipe, on_command_line):
        assert training_arguments(recipe).learning_rate == 0.0003


@pytest.mark.parametrize(
    ("value", "expected"), [("true", True), ("yes", True), ("false", False), ("no", False)]
)
def test_a_switch_takes_yaml_and_command_line_words(
    tmp_path: Path, value: str, expected: bool
) -> None:
    assert load(tmp_path, f"{FILES}drop_invalid: {value}\n").data.drop_invalid is expected
    assert load(tmp_path, FILES, "--drop_invalid", value).data.drop_invalid is expected


def test_a_flag_without_a_value_is_true(tmp_path: Path) -> None:
    recipe = load(tmp_path, FILES, "--drop_invalid", "--use_cpu")
    assert recipe.data.drop_invalid is True
    assert training_arguments(recipe).use_cpu is True


def test_a_key_that_holds_keys_reaches_transformers(tmp_path: Path) -> None:
    recipe = load(tmp_path, FILES + "lr_scheduler_kwargs: {num_cycles: 2}\n")
    assert training_arguments(recipe).lr_scheduler_kwargs == {"num_cycles": 2}
    recipe = load(tmp_path, FILES, "--lr_scheduler_kwargs", '{"num_cycles": 3}')
    assert training_arguments(recipe).lr_scheduler_kwargs == {"num_cycles": 3}


def test_a_key_that_holds_a_list_reaches_transformers(tmp_path: Path) -> None:
    recipe = load(tmp_path, FILES + "optim_target_modules: [attn, mlp]\n")
    assert training_arguments(recipe).optim_target_modules == ["attn", "mlp"]
    recipe = load(tmp_path, FILES + "report_to: [tensorboard, mlflow]\n")
    assert training_arguments(recipe).report_to == ["tensorboard", "mlflow"]


def test_weights_that_can_carry_code_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"save_safetensors: false .* leave it out"):
        load(tmp_path, FILES + "save_safetensors: false\n")


def test_a_token_does_not_belong_in_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: a\ntrain_file: a.csv\nhub_token: hf_secret\n", "utf-8")
    with pytest.raises(RecipeError, match="HF_TOKEN") as caught:
        load_recipe(path, {})
    assert "hf_secret" not in str(caught.value)


def test_a_value_is_the_same_however_it_is_spelt(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: a\ntrain_file: a.csv\nlearning_rate: 3e-4\nuse_cpu: true\n", "utf-8")
    spelt = {"learning_rate": "0.0003", "use_cpu": "True"}
    assert load_recipe(path, {}).training == load_recipe(path, spelt).training


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "positive_label: 2024-13-45",
            'YAML takes 2024-13-45 for a date, and it is none: write it in quotes, as "2024-13-45"',
        ),
        ("learning_rate: 2024-13-45", "YAML takes 2024-13-45 for a date"),
        ("class_weights: {2024-13-01: 2}", "YAML takes 2024-13-01 for a date"),
        ("seed: !!int many", "YAML takes many for a number"),
        ("seed: !!bool perhaps", "YAML takes perhaps for a truth value"),
        ("seed: !!timestamp now", "YAML takes now for a date"),
        ("class_weights: {~: 2}", 'write `class_weights: {"~": ...}`'),
        ("label_columns: [a, null]", 'write `label_columns: ["null", ...]`'),
        ("? [a]\n: 1", "line 3: a key is a name, no list or mapping"),
        ("class_weights: {? {a: b} : 2}", "line 3: a key is a name, no list or mapping"),
        (
            "class_weights: {1: 2, 1.0: 3}",
            "key '1.0' comes twice (as 1 and as 1.0), in lines 3 and 3: leave one out, or put both "
            "in quotes",
        ),
        ('class_weights: {1: 2, "1": 3}', "key '1' comes twice, in lines 3 and 3"),
        ("class_weights: &all {x: *all}", "line 3: what this anchor names holds itself"),
        ("validation_file: &all [*all]", "line 3: what this anchor names holds itself"),
        ("<<: {positive_label: yes}", 'write `positive_label: "yes"`'),
        ("class_weights: {<<: {yes: 2}, b: 1}", 'write `class_weights: {"yes": ...}`'),
        ("<<: 3", "is not YAML at line 3"),
        (
            MANY_ANCHORS,
            "holds more than 10,000 values: is it a recipe?",
        ),
    ],
)
def test_yaml_that_cannot_be_read_is_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    assert said in refusal(tmp_path, f"name: x\ntrain_file: a.csv\n{text}\n")


def test_anchors_dates_and_merges_that_can_be_read_are_read(tmp_path: Path) -> None:
    text = (
        "name: x\ntrain_file: &one a.csv\ntest_file: *one\n"
        "class_weights: {2024-01-01: 2, <<: {b: 1}}\n"
        "<<: {label_column: date, text_column: body}\ntext_column: message\n"
    )
    data = load(tmp_path, text).data
    assert data.test_file == data.train_file
    assert parse_class_weights(data.class_weights) == {"2024-01-01": 2, "b": 1}
    assert (data.label_column, data.text_column) == ("date", "message")
