"""Checks before any training: a base model has to fit its tokenizer, the rows and a package.

Most checks need no weights, so that `whetstone check` makes them, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from training.common.errors import BaseModelError
from training.export.onnx import graph_inputs, refuse_unexportable_family
from training.recipe.arguments import Recipe

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

# The limit of protobuf, and of one ONNX file with it.
LARGEST_GRAPH_BYTES = 2**31
# The number of tokens that a message names.
NAMED = 3


def refuse_misfit(
    recipe: Recipe, tokenizer: PreTrainedTokenizerFast, config: PretrainedConfig
) -> None:
    """Refuse a base model by its configuration and its tokenizer, without its weights.

    Raises:
        BaseModelError: it is an encoder-decoder, cannot be exported or batched, or has no
            embeddings for some tokens or token types of its tokenizer.
    """
    name = recipe.model.model_name_or_path
    if config.is_encoder_decoder:
        raise BaseModelError(
            f"{name} is an encoder-decoder ({config.model_type}), made to write texts, and a "
            "package holds one of the two alone: choose an encoder, such as a BERT or RoBERTa"
        )
    refuse_unexportable_family(name, config.model_type)
    if tokenizer.pad_token is None:
        raise BaseModelError(
            f"the tokenizer of {name} has no padding token, which batches need: choose a model "
            "that has one"
        )
    size = getattr(config, "vocab_size", None)
    if size is not None:
        added = set(recipe.model.added_tokens or ())
        refuse_unknown_tokens(name, tokens_beyond(tokenizer, size) - added, size)
    _refuse_types(recipe, tokenizer, config)


def tokens_beyond(tokenizer: PreTrainedTokenizerFast, size: int) -> set[str]:
    """The tokens whose numbers are not below `size`, the number of embeddings."""
    return {token for token, number in tokenizer.get_vocab().items() if number >= size}


def refuse_unknown_tokens(name: str, tokens: set[str], size: int) -> None:
    """Refuse a base model whose tokenizer has tokens beyond its embeddings.

    Args:
        tokens: those that the recipe does not add.
        size: the number of embeddings.

    Raises:
        BaseModelError: there are such tokens.
    """
    if tokens:
        first = sorted(tokens)[:NAMED]
        more = f" and {len(tokens) - NAMED} more" if len(tokens) > NAMED else ""
        raise BaseModelError(
            f"the tokenizer of {name} has tokens that its {size} embeddings lack "
            f"({', '.join(first)}{more}), so that a text with one of them cannot be answered: give "
            "them new embeddings by naming them in added_tokens, or choose the tokenizer and "
            "weights that belong together"
        )


def _refuse_types(
    recipe: Recipe, tokenizer: PreTrainedTokenizerFast, config: PretrainedConfig
) -> None:
    """Refuse token types beyond the model's embeddings; a model with one type or none reads none.

    Raises:
        BaseModelError: the tokenizer gives such a type, or pads with it.
    """
    types = getattr(config, "type_vocab_size", None) or 0
    if types < 2:
        return
    pair = "a" if recipe.data.text_pair_column is not None else None
    largest = max([tokenizer.pad_token_type_id, *tokenizer("a", pair).encodings[0].type_ids])
    if largest >= types:
        raise BaseModelError(
            f"the tokenizer of {recipe.model.model_name_or_path} gives tokens the type {largest}, "
            f"and the model has embeddings for {types} types: choose another base model"
        )


def fit_together(tokenizer: PreTrainedTokenizerFast, model: PreTrainedModel) -> None:
    """Train the model on the inputs of its graph, and let it know the padding token."""
    fed = graph_inputs(model)
    known = ("input_ids", "token_type_ids", "attention_mask")
    tokenizer.model_input_names = [name for name in known if name in fed]
    # A decoder answers from a text's last token, which it finds by the padding token.
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id


def refuse_weights(name: str, model: PreTrainedModel) -> None:
    """Refuse weights that cannot be trained, or would not fit into a package.

    Raises:
        BaseModelError: a weight is not a finite number, or they are too many for an fp32 graph.
    """
    parameters = model.num_parameters()
    if parameters * 4 >= LARGEST_GRAPH_BYTES:
        raise BaseModelError(
            f"{name} has {parameters / 1e6:.0f} million parameters; an fp32 graph of 2 GB or "
            "more does not fit into one file: choose a smaller model"
        )
    for weight, values in model.named_parameters():
        if not values.isfinite().all():
            raise BaseModelError(
                f"the weight {weight} of {name} holds a value that is not a finite number, and so "
                "would every answer be: fetch the base model again, or choose another one"
            )
