"""The flags that several verbs share, and how their values are read."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from training.recipe.arguments import COLUMN_KEYS

if TYPE_CHECKING:
    # The standard library has no public name for it.
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

# What is detected in the file itself if the flag is absent.
DETECTED_KEYS = ("delimiter", "encoding")
# How the file of a finished package is read. The package's recipe has the defaults.
INPUT_KEYS = (*COLUMN_KEYS, "label_columns", *DETECTED_KEYS)
# The bounds of a comparison. The challenger's recipe has them as `compare:`.
BOUND_TEXTS = {
    "max_macro_f1_drop": "refuse if macro-F1 drops by more (default: 0.01)",
    "max_half_width": "inconclusive if half the interval is wider (default: 0.02)",
    "min_macro_f1": "refuse if macro-F1 is lower (default: no floor)",
    "max_ece": "refuse if the calibration error is higher (default: no bound)",
}
PACKAGE_TEXT = "folder, tag or version of the model store, or published address"
DATA_TEXT = "labeled rows that neither package has seen"


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse.

    Raises:
        ArgumentTypeError: it is none.
    """
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} is no whole number of at least 1")
    return int(text)


def add_verb(
    verbs: Verbs, verb: Callable[[argparse.Namespace], int | None], text: str
) -> argparse.ArgumentParser:
    """Add the subcommand that calls `verb`, under the function's name."""
    command = verbs.add_parser(verb.__name__, help=text, description=text, allow_abbrev=False)
    command.set_defaults(verb=verb, command=command)
    return command


def add_input_keys(command: argparse.ArgumentParser, keys: Sequence[str] = INPUT_KEYS) -> None:
    """Add a flag for each key that says how a file is read."""
    for key in keys:
        text = "detected by default" if key in DETECTED_KEYS else "default: the package's recipe"
        if key == "label_columns":
            command.add_argument(f"--{key}", nargs="+", help=text)
        else:
            command.add_argument(f"--{key}", help=text)


def read_input_keys(parsed: argparse.Namespace) -> dict[str, Any]:
    """The value of each key that says how a file is read; None where it is not given."""
    return {key: getattr(parsed, key, None) for key in INPUT_KEYS}


def add_drop_invalid(command: argparse.ArgumentParser) -> None:
    """Add the flag that leaves out rows which cannot be used."""
    command.add_argument(
        "--drop_invalid", action="store_true", help="leave out rows without a text or a label"
    )


def add_comparison(command: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add the flags of a comparison: data, bounds, and how the rows are read.

    Args:
        required: whether the parser asks for the data; else the command does.
    """
    command.add_argument("--data", required=required, metavar="FILE", help=DATA_TEXT)
    for name, text in BOUND_TEXTS.items():
        command.add_argument(f"--{name}", metavar="SHARE", help=text)
    command.add_argument(
        "--allow_label_change", action="store_true", help="allow another set of labels"
    )
    add_input_keys(command)
    add_drop_invalid(command)


def read_bounds(parsed: argparse.Namespace) -> dict[str, str | None]:
    """The bounds of a comparison; None where one is not given."""
    return {name: getattr(parsed, name) for name in BOUND_TEXTS}


def read_columns(parsed: argparse.Namespace) -> dict[str, Any]:
    """How the rows of a comparison are read."""
    return {**read_input_keys(parsed), "drop_invalid": parsed.drop_invalid}
