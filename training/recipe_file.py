"""A recipe's YAML → keys and values; what YAML reads otherwise than people mean is refused."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import yaml

from training.errors import RecipeError

KINDS = {"bool": "a truth value", "int": "a number", "float": "a number", "timestamp": "a date"}


def read_yaml(path: Path, names: Collection[str]) -> dict[str, Any]:
    """The keys of a recipe that have a value.

    Args:
        path: a file of UTF-8, or of UTF-16 with a byte order mark.
        names: keys whose values, or the keys of whose mapping, are text: `yes`, `NO` and `1.10`
            would not be what stands there.

    Raises:
        RecipeError: it cannot be read, a key comes twice, or YAML reads a name as something else.
    """
    try:
        content = path.read_bytes()
        root = yaml.compose(content, Loader=yaml.SafeLoader)
        if not isinstance(root, yaml.MappingNode):
            raise RecipeError(f"{path} is not a recipe: it should hold lines of `key: value`")
        _refuse_doubled(root, path)
        for key, value in root.value:
            if key.value in names:
                _refuse_misread(key.value, value, path)
        values: dict[Any, Any] = yaml.load(content, Loader=yaml.SafeLoader)
    except FileNotFoundError:
        raise RecipeError(f"there is no recipe {path}") from None
    except yaml.reader.ReaderError as error:
        if error.encoding == "unicode":
            raise RecipeError(f"{path} holds a character that YAML does not allow") from None
        line = content[: error.position].count(b"\n") + 1
        raise RecipeError(f"{path}, line {line}: it is not UTF-8: save it as UTF-8") from None
    except OSError as error:
        raise RecipeError(f"the recipe {path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "malformed"
        raise RecipeError(f"{path} is not YAML{where}: {problem}") from None
    return {str(key): value for key, value in values.items() if value is not None}


def _refuse_doubled(node: yaml.Node, path: Path) -> None:
    """Of a key that comes twice, YAML would take the last without a word."""
    if isinstance(node, yaml.SequenceNode):
        for part in node.value:
            _refuse_doubled(part, path)
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if str(key.value) in lines:
            raise RecipeError(
                f"{path}: key {key.value!r} comes twice, in lines {lines[key.value]} and {line}: "
                "leave one out"
            )
        lines[str(key.value)] = line
        _refuse_doubled(value, path)


def _refuse_misread(key: str, value: yaml.Node, path: Path) -> None:
    for node in _names_in(value):
        kind = node.tag.rpartition(":")[2]
        read = yaml.SafeLoader("").construct_object(node)
        if kind in ("str", "null") or str(read) == node.value:
            continue
        quoted = f'"{node.value}"'
        if isinstance(value, yaml.MappingNode):
            quoted = f"{{{quoted}: ...}}"
        elif isinstance(value, yaml.SequenceNode):
            quoted = f"[{quoted}, ...]"
        raise RecipeError(
            f"{path}, line {node.start_mark.line + 1}: YAML reads {node.value} as {read}, "
            f"{KINDS.get(kind, kind)}: write `{key}: {quoted}`"
        )


def _names_in(value: yaml.Node) -> Iterator[yaml.ScalarNode]:
    if isinstance(value, yaml.ScalarNode):
        yield value
    elif isinstance(value, yaml.SequenceNode):
        yield from (part for part in value.value if isinstance(part, yaml.ScalarNode))
    elif isinstance(value, yaml.MappingNode):
        yield from (key for key, _ in value.value if isinstance(key, yaml.ScalarNode))
