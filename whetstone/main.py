"""The command `whetstone`: it reads the arguments, calls the verb, and reports what went wrong."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings

from training.common.distributed import is_main_process
from training.common.errors import InterruptedRunError, WhetstoneError, install_command
from training.common.exit_status import EXIT_ERROR, EXIT_INTERRUPTED
from training.common.threads import limit_threads
from whetstone import package, production, release, train


def main(arguments: list[str] | None = None) -> int:
    """Run one verb and return the exit status."""
    parsed = build_parser().parse_args(arguments)
    quiet_libraries()
    limit_threads()
    try:
        return parsed.verb(parsed) or 0
    except InterruptedRunError as error:
        print(f"whetstone: {error}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except KeyboardInterrupt:
        print("whetstone: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:
        sentence = _sentence(error)
        if sentence is None:
            raise
        print(f"whetstone: {sentence}", file=sys.stderr)
        return EXIT_ERROR


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line; `verb` of what it parses is the function to call."""
    parser = argparse.ArgumentParser(
        prog="whetstone",
        description="Fine-tune a text classifier on your labeled text, prove it, package it.",
        allow_abbrev=False,
    )
    verbs = parser.add_subparsers(metavar="verb", required=True)
    for group in (train, package, release, production):
        group.add_arguments(verbs)
    return parser


def quiet_libraries() -> None:
    """Let libraries log warnings only, so that the screen shows the command's own lines.

    Of several processes that train together, only the main one logs warnings.
    """
    level = logging.WARNING if is_main_process() else logging.ERROR
    logging.basicConfig(level=level, format="%(message)s")
    if not is_main_process():
        os.environ["TQDM_DISABLE"] = "1"
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("DATASETS_VERBOSITY", "critical")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def _sentence(error: Exception) -> str | None:
    """What the user is told about an error that they can mend; None for a fault of Whetstone."""
    from service.inference.errors import NotFiniteError
    from service.package.files import PackageError
    from service.package.golden import GoldenMismatchError

    if isinstance(error, WhetstoneError | PackageError | GoldenMismatchError | NotFiniteError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        return f"this needs the package {error.name}: {install_command('train')}"
    if isinstance(error, OSError) and error.strerror:
        place = f" {error.filename}" if error.filename else ""
        return f"cannot use{place}: {error.strerror}"
    return None
