"""A decoded JSON body → a checked request.

The texts are checked before pydantic sees them: it would write an error for each of half a million
items that are not texts.
"""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from service.http.errors import EmptyTextError, UnacceptableRequestError
from service.http.fields import refuse_other_tasks, refuse_unsupported
from service.http.limits import Limits
from service.http.schemas import ClassifyRequest, PredictParameters, PredictRequest
from service.package.manifest import Text


def parse_request(content: Any, limits: Limits, *, has_pairs: bool) -> ClassifyRequest:
    """The body of `/classify`, for a model that reads texts, or pairs.

    Raises:
        UnacceptableRequestError: a field is missing, has a wrong type, exceeds a limit, or asks
            for something that this server does not do.
    """
    check_body(content, limits, has_pairs=has_pairs)
    try:
        return ClassifyRequest.model_validate(content)
    except ValidationError as error:
        raise first_problem(error) from None


def check_body(content: Any, limits: Limits, *, has_pairs: bool) -> None:
    """Check the texts of `/classify` and `/explain`, for a model that reads texts, or pairs.

    Raises:
        UnacceptableRequestError: as `parse_request`, except for the types of the other fields.
    """
    if not isinstance(content, dict):
        raise UnacceptableRequestError("the body must be a JSON object", None)
    refuse_unsupported(content)
    if "input" not in content:
        raise UnacceptableRequestError("input is missing: send a text or a list of texts", "input")
    _check_texts(content["input"], "input", limits)
    pair = content.get("text_pair")
    if has_pairs:
        _check_pairs(content["input"], pair, limits)
    elif pair is not None:
        raise UnacceptableRequestError(
            "this model reads single texts: leave text_pair out", "text_pair"
        )


def parse_predict_request(
    content: Any, limits: Limits, *, has_pairs: bool
) -> tuple[PredictRequest, list[Text]]:
    """The body of `/predict`, and its texts or pairs.

    Raises:
        UnacceptableRequestError: a field is missing, has a wrong type, exceeds a limit, or asks
            for another task.
    """
    if isinstance(content, dict):
        refuse_other_tasks(content, "")
    if not isinstance(content, dict) or "inputs" not in content:
        raise UnacceptableRequestError("inputs is missing: send a text, a pair or a list", "inputs")
    texts = _texts_of_inputs(content["inputs"], limits, has_pairs=has_pairs)
    _check_parameters(content.get("parameters"))
    try:
        return PredictRequest.model_validate(content), texts
    except ValidationError as error:
        raise first_problem(error) from None


def _texts_of_inputs(inputs: Any, limits: Limits, *, has_pairs: bool) -> list[Text]:
    """The texts or pairs of `inputs`: one text, one pair, or a list of lists."""
    if inputs == []:
        raise EmptyTextError("inputs is an empty list: send at least one text", "inputs")
    if isinstance(inputs, dict):
        refuse_other_tasks(inputs, "inputs.")
    if not isinstance(inputs, str | list):
        raise UnacceptableRequestError("inputs must be a text, a pair or a list", "inputs")
    is_batch = isinstance(inputs, list) and isinstance(inputs[0], list)
    alone = [inputs] if isinstance(inputs, str) else inputs
    items: list[Any] = alone if is_batch else [alone]
    _check_count(items, "inputs", limits)
    return [
        _text_of_item(item, f"inputs[{index}]" if is_batch else "inputs", limits, has_pairs)
        for index, item in enumerate(items)
    ]


def _text_of_item(item: Any, place: str, limits: Limits, has_pairs: bool) -> Text:
    """The text or pair of a list that holds it."""
    if not isinstance(item, list):
        raise UnacceptableRequestError(f"{place} is not a list, as the first one is", place)
    expected = 2 if has_pairs else 1
    if len(item) != expected:
        raise UnacceptableRequestError(
            f"{place} holds {len(item)} texts, this model reads {expected}: a pair is "
            '["a", "b"], several texts are [["a"], ["b"]]',
            place,
        )
    for text in item:
        _check_text(text, place, limits)
    return (item[0], item[1]) if has_pairs else item[0]


def _check_parameters(parameters: Any) -> None:
    """Refuse unknown parameters, before pydantic, which would repeat their names.

    A parameter without a value counts as absent.
    """
    if not isinstance(parameters, dict):
        return
    refuse_other_tasks(parameters, "parameters.")
    for name in [name for name, value in parameters.items() if value is None]:
        del parameters[name]
    if parameters.keys() - PredictParameters.model_fields.keys():
        raise UnacceptableRequestError(
            "parameters holds one that this server does not have: it has top_k and "
            "function_to_apply",
            "parameters",
        )


def first_problem(error: ValidationError) -> UnacceptableRequestError:
    """The refusal for the first field that has a wrong type or value."""
    first = error.errors(include_input=False, include_url=False)[0]
    # After the field's name come indices, and the names of the types that were tried.
    steps = first["loc"][: 2 if first["loc"][0] == "parameters" else 1]
    field = ".".join(map(str, steps))
    return UnacceptableRequestError(f"{field}: {first['msg']}", field)


def _check_pairs(texts: Any, pairs: Any, limits: Limits) -> None:
    """Refuse `pairs` that do not hold one second text for each first text."""
    if pairs is None:
        raise UnacceptableRequestError(
            "text_pair is missing: this model reads pairs of input and text_pair", "text_pair"
        )
    _check_texts(pairs, "text_pair", limits)
    if isinstance(texts, str) != isinstance(pairs, str) or (
        isinstance(texts, list) and len(texts) != len(pairs)
    ):
        raise UnacceptableRequestError(
            "text_pair must be a text where input is one, or a list as long as input", "text_pair"
        )


def _check_texts(value: Any, field: str, limits: Limits) -> None:
    """Refuse a value that is neither a text nor a list of texts, naming the place."""
    if isinstance(value, str):
        _check_text(value, field, limits)
        return
    if not isinstance(value, list):
        raise UnacceptableRequestError(f"{field} must be a text or a list of texts", field)
    if not value:
        raise EmptyTextError(f"{field} is an empty list: send at least one text", field)
    _check_count(value, field, limits)
    for index, text in enumerate(value):
        _check_text(text, f"{field}[{index}]", limits)


def _check_count(items: list[Any], field: str, limits: Limits) -> None:
    if len(items) > limits.max_texts:
        raise UnacceptableRequestError(
            f"{field} has {len(items)} texts, the limit is {limits.max_texts}: "
            "send several requests",
            field,
        )


def _check_text(text: Any, place: str, limits: Limits) -> None:
    if isinstance(text, int | list) and not isinstance(text, bool):
        raise UnacceptableRequestError(
            f"{place} is not a string: token ids are not read here, send the text", place
        )
    if not isinstance(text, str):
        raise UnacceptableRequestError(f"{place} is not a string", place)
    if not text.strip():
        raise EmptyTextError(f"{place} is empty", place)
    if len(text) > limits.max_characters:
        raise UnacceptableRequestError(
            f"{place} has {len(text)} characters, the limit is {limits.max_characters}", place
        )
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UnacceptableRequestError(f"{place} holds a lone surrogate", place) from None
