"""Text files of any encoding → their lines; bytes that cannot be decoded are marked."""

from __future__ import annotations

import codecs
import io
import re
from collections import Counter
from collections.abc import Iterator

from training.common.errors import DataError

# A file that begins with one of these is no text, whatever its name says.
BEGINNINGS = {
    b"PK\x03\x04": "a ZIP archive (as Excel's .xlsx are): unpack it, or save the table as CSV",
    b"PAR1": "a Parquet file: name it .parquet",
    b"ARROW1": "an Arrow file: name it .arrow",
    b"\x1f\x8b": "compressed by gzip: name it .gz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: name it .zst",
    b"BZh": "compressed by bzip2: decompress it first",
    b"\xfd7zXZ\x00": "compressed by xz: decompress it first",
    b"%PDF": "a PDF: give the text itself",
    b"\xd0\xcf\x11\xe0": "an old Excel or Word file: save the table as CSV",
    b"SQLite format 3": "an SQLite data base: export the table as CSV",
}
HTML = re.compile(
    rb"(?:\xef\xbb\xbf)?(?:\s|<!--.*?-->)*<(?:!doctype\s+html|html|head|body|script|\?xml)\b",
    re.IGNORECASE | re.DOTALL,
)
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
WINDOWS = "cp1252"
# A file with this many lines that are not UTF-8, where no line but of ASCII is, is Windows-1252.
WINDOWS_LINES = 3


LINE_END = re.compile(rb"\r\n?|\n")
# Characters that separate in every table. In UTF-16 the place of their zero byte tells its order.
SEPARATING = b'\t\n\r ",:;|'
# In UTF-16 the bytes at even places differ from those at odd places: at least this share of them in
# every script (two thirds and more are measured), and none but by chance in other text.
UTF16_DIFFERENCE = 0.5
LOOKED_AT = 1 << 16


def _mark(error: UnicodeError) -> tuple[str, int]:
    """Bytes that cannot be decoded as `surrogateescape` has them, in every encoding."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    bad = error.object[error.start : error.end]
    return "".join(chr(0xDC00 + byte) if byte >= 0x80 else "\udc80" for byte in bad), error.end


codecs.register_error("whetstone.mark", _mark)


def refuse_other_kinds(head: bytes, name: str) -> None:
    """Raise DataError where a file that should be text begins as something else does."""
    for beginning, kind in BEGINNINGS.items():
        if head.startswith(beginning):
            raise DataError(f"{name} is {kind}")
    if HTML.match(head):
        raise DataError(f"{name} is a web page, not a table: was it saved from an error page?")


def find_encoding(head: bytes) -> str | None:
    """Python's name for the encoding of text that begins with `head`; None where it is no text.

    A byte order mark tells the encoding. Without one, text of two bytes a character is UTF-16, and
    lines none of which is UTF-8 are Windows-1252. Everything else is UTF-8, wrong bytes or not.
    """
    for mark, encoding in MARKS.items():
        if head.startswith(mark):
            return encoding
    if 0 in head and _is_of_pairs(head[:LOOKED_AT]):
        return _find_utf16(head[:LOOKED_AT])
    lines = [line for line in LINE_END.split(head) if not line.isascii()]
    # The last one may have been cut in a character.
    ends_whole = LINE_END.split(head)[-1].isascii()
    whole = lines if ends_whole else lines[:-1]
    wrong = [line for line in whole if not _is_utf8(line)]
    header_is_wrong = not _is_utf8(LINE_END.split(head, 1)[0])
    if wrong and len(wrong) == len(whole) and (header_is_wrong or len(wrong) >= WINDOWS_LINES):
        return WINDOWS
    return "utf-8"


def _is_of_pairs(head: bytes) -> bool:
    """Whether a character takes two bytes or four."""
    even, odd = Counter(head[::2]), Counter(head[1::2])
    return (even - odd).total() > UTF16_DIFFERENCE * even.total() or _is_of_four(head)


def _is_of_four(head: bytes) -> bool:
    """Whether every other pair of bytes is zero."""
    pairs = max(1, len(head) // 2)
    return sum(not any(pair) for pair in zip(head[::2], head[1::2], strict=False)) > pairs / 3


def _find_utf16(head: bytes) -> str | None:
    """Which byte order of UTF-16 has characters that separate; None where neither has more."""
    pairs = list(zip(head[::2], head[1::2], strict=False))
    little = sum(second == 0 and first in SEPARATING for first, second in pairs)
    big = sum(first == 0 and second in SEPARATING for first, second in pairs)
    if little == big or _is_of_four(head):
        return None
    return "utf-16-le" if little > big else "utf-16-be"


def check_encoding(encoding: str) -> str:
    """Python's name for an encoding that a user has named.

    Raises:
        DataError: there is none of that name.
    """
    try:
        # Refuses codecs that encode no text, such as base64.
        "".encode(encoding)
        return codecs.lookup(encoding).name
    except (LookupError, ValueError):
        raise DataError(
            f"there is no encoding {encoding!r}: name one such as utf-8, utf-16, windows-1252 or "
            "shift_jis"
        ) from None


def open_text(binary: io.BufferedReader, encoding: str) -> io.TextIOWrapper:
    """The text of a file, line ends kept; undecodable bytes match `blocks.UNDECODABLE`."""
    return io.TextIOWrapper(binary, encoding, errors="whetstone.mark", newline="")


def lines_of(text: io.TextIOBase, most: int) -> Iterator[str]:
    """The lines of a text; of a line with more than `most` characters the first `most` + 1."""
    while line := text.readline(most + 1):
        rest = line
        while len(rest) > most and not rest.endswith(("\n", "\r")):
            rest = text.readline(most + 1)
        yield line


def refuse_utf8(lines: Iterator[str], name: str) -> Iterator[str]:
    """The lines of a text that was taken for Windows-1252.

    Raises:
        DataError: a line is UTF-8; the lines by which the text was taken for Windows-1252 are
            broken.
    """
    for number, line in enumerate(lines, start=1):
        if not line.isascii() and _is_utf8(line.encode(WINDOWS, "surrogateescape")):
            raise DataError(
                f"{name}, line {number}: it is UTF-8, and lines before it are not: name the "
                "encoding of the file"
            )
        yield line


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
