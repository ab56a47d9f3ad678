"""The fields of a body that this server does not read: ignored, or refused by name.

A field is refused where silence would deceive: it changes the answer of another server with the
same schema, it asks for another task, or it looks like a misspelled field.
"""

from __future__ import annotations

import difflib
from functools import cache
from itertools import islice
from typing import Any, NamedTuple

from pydantic import BaseModel

from service.http.errors import UnacceptableRequestError


class Unsupported(NamedTuple):
    """A field that other servers support: its harmless values, and what to send instead."""

    harmless: tuple[Any, ...]
    advice: str


# The fields of /classify that change the answer of vLLM or SGLang.
UNSUPPORTED = {
    "messages": Unsupported((None,), "send the text as input"),
    "activation": Unsupported((None, True), "send use_activation: false for logits"),
    "softmax": Unsupported((None, True), "send use_activation: false for logits"),
    "normalize": Unsupported((None, True), "send use_activation: false for logits"),
    "raw_scores": Unsupported((None, False), "send use_activation: false for logits"),
    "truncation_direction": Unsupported((None, "Right", "right"), "send truncation_side"),
    "padding": Unsupported((None, "do_not_pad"), "leave it out, texts are read without padding"),
    "mm_processor_kwargs": Unsupported((None, {}), "leave it out, this model reads text only"),
}
# Fields of vLLM and SGLang that do not change the answer. They are not counted as ignored.
HARMLESS = frozenset({"user", "priority", "cache_salt", *UNSUPPORTED})
# The same for /predict.
PREDICT_HARMLESS = frozenset({"model", "options"})
# Fields and parameters of the other tasks that Hugging Face's clients know.
OTHER_TASKS = frozenset(
    {
        "candidate_labels",
        "hypothesis_template",
        "multi_label",
        "question",
        "context",
        "source_sentence",
        "sentences",
        "query",
        "table",
        "texts",
        "messages",
        "max_new_tokens",
        "temperature",
        "aggregation_strategy",
        "normalize",
        "prompt_name",
        "src_lang",
        "tgt_lang",
    }
)
# Fields that do not change the answer, so a misspelling of them is ignored.
WITHOUT_INFLUENCE = frozenset({"model", "request_id", "rid"})
# The spelling of only so many unknown fields is checked: a body may hold a hundred thousand.
CHECKED_FIELDS = 16
# "topk" is taken for top_k and "truncationSide" for truncation_side, but OpenAI's top_p is not.
LIKENESS = 0.85


def ignored_fields(content: Any, model: type[BaseModel], harmless: frozenset[str]) -> int:
    """The number of fields of a decoded body that are ignored.

    Args:
        content: the decoded body.
        model: the fields that are read.
        harmless: fields that are not read and not counted.

    Raises:
        UnacceptableRequestError: a field looks like a misspelled field of `model`. The message
            names the field of `model`, because the other name is a part of the request.
    """
    if not isinstance(content, dict) or content.keys() <= _accepted_names(model, harmless):
        return 0
    unknown = content.keys() - _accepted_names(model, harmless)
    fields = [name for name in model.model_fields if name not in WITHOUT_INFLUENCE]
    # In the order of the body; the set has none.
    for name in islice((name for name in content if name in unknown), CHECKED_FIELDS):
        spelling = name[:64].lower().replace("-", "_")
        nearest = difflib.get_close_matches(spelling, fields, n=1, cutoff=LIKENESS)
        if nearest:
            raise UnacceptableRequestError(
                f"a field of the body is unknown and looks like {nearest[0]}: "
                f"call it {nearest[0]}, or leave it out",
                nearest[0],
            )
    return len(unknown)


@cache
def _accepted_names(model: type[BaseModel], harmless: frozenset[str]) -> frozenset[str]:
    return harmless | model.model_fields.keys()


def refuse_unsupported(content: dict[str, Any]) -> None:
    """Refuse a field of `/classify` that changes the answer of another server.

    Raises:
        UnacceptableRequestError: the message names the field, and says what to send instead.
    """
    if UNSUPPORTED.keys().isdisjoint(content):
        return
    for name, unsupported in UNSUPPORTED.items():
        if name in content and content[name] not in unsupported.harmless:
            raise UnacceptableRequestError(
                f"{name} is not supported with this value: {unsupported.advice}", name
            )


def refuse_other_tasks(content: dict[str, Any], prefix: str) -> None:
    """Refuse a field that asks for another task than text classification.

    Args:
        prefix: the place of `content` in the body, such as `parameters.`.

    Raises:
        UnacceptableRequestError: the message names the field.
    """
    for name in sorted(OTHER_TASKS & content.keys()):
        if content[name] is not None:
            raise UnacceptableRequestError(
                f"{prefix}{name} belongs to another task: this server classifies texts, send them "
                "as inputs",
                f"{prefix}{name}",
            )
