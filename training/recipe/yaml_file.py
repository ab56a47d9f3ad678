"""A recipe's YAML → keys and values; a name that YAML would misread is refused."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import yaml

from training.common.errors import RecipeError

KINDS = {
    **{"bool": "a truth value", "int": "a number", "float": "a number", "timestamp": "a date"},
    "null": "no value",
}
# A recipe has about fifty values; anchors and aliases can make millions of a few lines.
MOST_VALUES = 10_000
MERGE = "tag:yaml.org,2002:merge"


def read_yaml(path: Path, names: Collection[str]) -> dict[str, Any]:
    """The keys of a recipe that have a value.

    Args:
        path: a file of UTF-8, or of UTF-16 with a byte order mark.
        names: keys whose values, or the keys of whose mapping, are text, which YAML would change
            where they are `yes`, `NO` or `1.10`.

    Raises:
        RecipeError: it cannot be read, a key comes twice, or YAML reads a name as something else.
    """
    try:
        content = path.read_bytes()
        root = yaml.compose(content, Loader=yaml.SafeLoader)
        if not isinstance(root, yaml.MappingNode):
            raise RecipeError(f"{path} is not a recipe: it should hold lines of `key: value`")
        _refuse_unreadable(root, path)
        _refuse_doubled(root, path)
        loader = yaml.SafeLoader("")
        for node in (root, *(part for _, part in root.value)):
            if isinstance(node, yaml.MappingNode):
                loader.flatten_mapping(node)
        for key, value in root.value:
            if key.value in names:
                _refuse_misread(key.value, value, path)
        values: dict[Any, Any] = loader.construct_document(root)
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


def _refuse_unreadable(root: yaml.Node, path: Path) -> None:
    """Refuse values that cannot be read, such as a date that does not exist, and endless ones."""
    seen = 0
    waiting: list[tuple[yaml.Node, tuple[yaml.Node, ...]]] = [(root, ())]
    while waiting:
        node, above = waiting.pop()
        seen += 1
        line = node.start_mark.line + 1
        if any(node is parent for parent in above):
            raise RecipeError(f"{path}, line {line}: what this anchor names holds itself")
        if seen > MOST_VALUES:
            raise RecipeError(f"{path} holds more than {MOST_VALUES:,} values: is it a recipe?")
        parts: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            parts = node.value
        elif isinstance(node, yaml.MappingNode):
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    where = key.start_mark.line + 1
                    raise RecipeError(f"{path}, line {where}: a key is a name, no list or mapping")
            parts = [part for pair in node.value for part in pair]
        elif node.tag != MERGE:
            _read(node, path)
        waiting += [(part, (*above, node)) for part in parts]


def _read(node: yaml.Node, path: Path) -> Any:
    """The value that YAML reads from a plain node."""
    try:
        return yaml.SafeLoader("").construct_object(node)
    except (ValueError, KeyError, AttributeError, OverflowError):
        kind = node.tag.rpartition(":")[2]
        raise RecipeError(
            f"{path}, line {node.start_mark.line + 1}: YAML takes {node.value} for "
            f'{KINDS.get(kind, kind)}, and it is none: write it in quotes, as "{node.value}"'
        ) from None


def _refuse_doubled(node: yaml.Node, path: Path) -> None:
    """Refuse a key that comes twice: YAML would silently take the last."""
    if isinstance(node, yaml.SequenceNode):
        for part in node.value:
            _refuse_doubled(part, path)
    if not isinstance(node, yaml.MappingNode):
        return
    known: dict[Any, yaml.Node] = {}
    for key, value in node.value:
        # 1 and 1.0 are one key, as Python has them; 1 and "1" are, as names of labels.
        read = key.value if key.tag == MERGE else _read(key, path)
        first = known.get(read) or known.get(str(read))
        if first is not None:
            also = "" if first.value == key.value else f" (as {first.value} and as {key.value})"
            raise RecipeError(
                f"{path}: key {key.value!r} comes twice{also}, in lines "
                f"{first.start_mark.line + 1} and {key.start_mark.line + 1}: leave one out"
                f"{', or put both in quotes' if also else ''}"
            )
        known |= {read: key, str(read): key}
        _refuse_doubled(value, path)


def _refuse_misread(key: str, value: yaml.Node, path: Path) -> None:
    """Refuse a name that YAML reads as something else than its letters."""
    for node in _names_in(value):
        kind = node.tag.rpartition(":")[2]
        read = _read(node, path)
        is_unset = kind == "null" and node is value
        if kind == "str" or is_unset or str(read) == node.value:
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
