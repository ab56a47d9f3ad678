"""The one reader of files: whatever is named → blocks of rows, each row whole or with its reason.

| content | told by |
|---|---|
| CSV with `,` `;` tab, vertical bar | `.csv`, `.tsv`, or nothing else fits; a first line `sep=;` |
| a JSON object on each line | `.jsonl`, `.ndjson`, `.json`, or it begins with `{` |
| a JSON list, `{"data": [rows]}`, pandas' `to_json` | the same, or it begins with `[` |
| fastText's `__label__x text` | its first line |
| Parquet, Arrow, Feather | its first bytes |

Each may be compressed (`.gz`, `.zst`), in any encoding, and lie wherever fsspec reaches.
"""

from __future__ import annotations

import codecs
import io
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

from training.common.errors import DataError
from training.common.progress import progress
from training.data.arrow_files import read_arrow
from training.data.blocks import ROW_CHARACTERS, TOO_LONG, Block
from training.data.csv_files import SEPARATOR_NAMES, detect_format, read_csv
from training.data.json_files import Row, in_blocks, read_json
from training.data.sources import ENDINGS, Content, Source, find_sources
from training.data.text_files import (
    WINDOWS,
    check_encoding,
    find_encoding,
    lines_of,
    open_text,
    refuse_other_kinds,
    refuse_utf8,
)

logger = logging.getLogger(__name__)

FASTTEXT = "__label__"
FASTTEXT_LABELS = re.compile(rf"(?:{FASTTEXT}\S+\s*)+")
# Seconds after which a bar is shown.
BAR_SECONDS = 2.0


@dataclass(frozen=True)
class ReadingKeys:
    """How a user says that files are written; None where the files themselves show it."""

    delimiter: str | None = None
    encoding: str | None = None


def read_blocks(
    named: str | Sequence[str],
    wanted: Sequence[str] | None,
    keys: ReadingKeys = ReadingKeys(),
    *,
    looked_for: Sequence[str] = (),
) -> Iterator[Block]:
    """Every row of the files, in order, with a bar.

    Args:
        named: as `find_sources` takes it.
        wanted: columns to read where a format can leave others out; all when None.
        looked_for: columns by which the format is recognized; `wanted` when empty.

    Raises:
        DataError: a file is missing, is no table, has no header, or changed while it was read.
    """
    sources = find_sources(named)
    with progress(bytes_of(sources), "read", "B", leave=False, delay=BAR_SECONDS) as bar:
        for block in read_sources(sources, wanted, keys, looked_for=looked_for or wanted or ()):
            bar.update(block.position - bar.n)
            yield block


def bytes_of(sources: Sequence[Source]) -> int | None:
    """The bytes of the files, as they are stored; None where their number is not known."""
    sizes = [source.size for source in sources]
    return None if None in sizes else sum(size or 0 for size in sizes)


def read_sources(
    sources: Sequence[Source],
    wanted: Sequence[str] | None,
    keys: ReadingKeys,
    *,
    looked_for: Sequence[str],
) -> Iterator[Block]:
    """Every row of files, in order, without a bar."""
    done = 0
    for source in sources:
        with closing(source.open()) as content:
            for block in read_content(content, source, wanted, looked_for, keys):
                block.position = done + content.position
                yield block
        done += source.size or 0
        source.refuse_change()


def read_content(
    content: Content,
    source: Source,
    wanted: Sequence[str] | None,
    looked_for: Sequence[str],
    keys: ReadingKeys,
) -> Iterator[Block]:
    """The rows of one file. The first block may be empty: it carries the columns."""
    head = content.head
    if not head:
        raise DataError(f"{source.name} is empty")
    format_ = source.format
    if format_ is None:
        refuse_other_kinds(head, source.name)
        raise DataError(f"{source.name}: the names of files end in {ENDINGS}, or in .gz or .zst")
    if format_ == "parquet" or (format_ == "text" and head.startswith(b"PAR1")):
        return read_arrow(content.as_file(), "parquet", source.name, wanted, source.rows)
    if format_ == "arrow" or (format_ == "text" and head.startswith(b"ARROW1")):
        return read_arrow(content.as_file(), "arrow", source.name, wanted)
    return _read_text(content, format_, source, looked_for, keys)


def _read_text(
    content: Content, format_: str, source: Source, wanted: Sequence[str], keys: ReadingKeys
) -> Iterator[Block]:
    refuse_other_kinds(content.head, source.name)
    detected = find_encoding(content.head)
    if detected is None and not keys.encoding:
        raise DataError(
            f"{source.name} holds bytes that are no text in UTF-8, UTF-16 or Windows-1252: name "
            "its encoding (key encoding), such as utf-32"
        )
    encoding = check_encoding(keys.encoding) if keys.encoding else str(detected)
    if detected is not None and detected.startswith(encoding):
        # With what a byte order mark says, or zero bytes say of one that is missing.
        encoding = detected
    elif encoding == "utf-16":
        encoding = "utf-16-le"
    if not keys.encoding and detected not in ("utf-8", "utf-8-sig"):
        logger.warning("%s: read as %s (key encoding)", source.name, _shown(encoding))
    text = open_text(io.BufferedReader(content), encoding)
    # Cut in the middle of a character, it may not be whole.
    head = codecs.getincrementaldecoder(encoding)("replace").decode(content.head)
    if head.startswith(FASTTEXT):
        return in_blocks(_fasttext_rows(text), source.name)
    if format_ in ("json", "lines") or (format_ == "text" and head.lstrip()[:1] in ("{", "[")):
        return read_json(text, head, source.name, wanted, lines=format_ == "lines")
    csv_format = detect_format(head, wanted, keys.delimiter or ("\t" if source.is_tabbed else None))
    if csv_format.separator != "," and not keys.delimiter and not source.is_tabbed:
        name = SEPARATOR_NAMES.get(csv_format.separator, repr(csv_format.separator))
        logger.warning("%s: %s separate its columns (key delimiter)", source.name, name)
    lines = lines_of(text, ROW_CHARACTERS)
    if encoding == WINDOWS and not keys.encoding:
        lines = refuse_utf8(lines, source.name)
    return read_csv(lines, csv_format, source.name)


def _shown(encoding: str) -> str:
    return {WINDOWS: "Windows-1252"}.get(encoding, encoding.upper())


def _fasttext_rows(text: io.TextIOBase) -> Iterator[Row]:
    """Rows of a text, and a label or a list of them."""
    for number, line in enumerate(lines_of(text, ROW_CHARACTERS), start=1):
        if len(line) > ROW_CHARACTERS:
            yield number, None, TOO_LONG, 0
        elif line.strip():
            labels = FASTTEXT_LABELS.match(line)
            names = [name.removeprefix(FASTTEXT) for name in labels[0].split()] if labels else []
            rest = line[labels.end() if labels else 0 :].strip()
            label = names[0] if len(names) == 1 else names or None
            yield number, {"text": rest, "label": label}, None, len(line)
