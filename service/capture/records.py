"""The lines of captured files: what the service writes and `monitoring` reads.

A captured folder (or bucket) has a folder for each day, and in it parts of JSON lines:

    2026-11-28/093042-web-7c9f-1-12-000007.jsonl

Each line is an answer to one text, or what somebody knows about an answer.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from service.package.manifest import Text

# What an answer's id is preceded by in the body of `/classify`.
ID_PREFIX = "classify-"
PART_ENDING = ".jsonl"
# Of so many groups the answers are told apart; those of further groups are of OTHER_GROUP.
MOST_GROUPS = 100
OTHER_GROUP = "other"


class _Line(BaseModel):
    # A later version may write more.
    model_config = ConfigDict(extra="ignore", frozen=True)


class CapturedAnswer(_Line):
    """The answer to one text.

    Attributes:
        index: the place of the text in its request, from 0.
        rate: the probability with which this answer was kept; 1 where it was kept for abstaining.
        score: as in the answer.
        margin: of one label, the best probability less the next one; where thresholds decide, the
            distance of the nearest probability from its own.
        expected_right: of several labels, the sum of the probabilities of the labels that are set.
        expected_set: of several labels, the sum of all probabilities.
        unknown: tokens that the vocabulary does not know.
        continued: tokens that continue a word; None in what earlier versions captured.
        text_key: HMAC of the text: equal texts have equal keys, and nobody without the secret can
            tell which text it is.
    """

    kind: Literal["answer"] = "answer"
    id: str
    index: int = Field(ge=0)
    time: datetime
    version: str
    rate: float = Field(gt=0, le=1)
    label: str
    labels: tuple[str, ...] | None = None
    score: float
    margin: float
    expected_right: float | None = None
    expected_set: float | None = None
    tokens: int
    unknown: int = 0
    continued: int | None = None
    truncated: bool
    abstained: bool | None = None
    group: str | None = None
    text_key: str | None = None
    text: str | None = None
    text_pair: str | None = None

    @property
    def input(self) -> Text | None:
        """The text, or the text and its pair; None where texts were not kept."""
        if self.text is None:
            return None
        return self.text if self.text_pair is None else (self.text, self.text_pair)


class Feedback(_Line):
    """What is known of the answer to text `index` of request `id`: its right label or labels.

    `version` is the version that answered, as far as the caller named it; else the one that served
    when the feedback came.
    """

    kind: Literal["feedback"] = "feedback"
    id: str
    index: int = Field(default=0, ge=0)
    time: datetime
    version: str
    labels: tuple[str, ...]
    note: str | None = None


Line = CapturedAnswer | Feedback
_LINE: TypeAdapter[Line] = TypeAdapter(Annotated[Line, Field(discriminator="kind")])


def parse_line(line: str | bytes) -> Line:
    """One line of a part.

    Raises:
        pydantic.ValidationError: it is none, such as one that ends in the middle.
    """
    return _LINE.validate_json(line)


def plain_id(name: str) -> str:
    """The id of a request, whether it was read from a body or from a header."""
    while name.startswith(ID_PREFIX):
        name = name.removeprefix(ID_PREFIX)
    return name


def share_of(name: str) -> float:
    """A number from 0 to 1 that is the same for an id wherever it is asked for, as good as drawn.

    An answer is kept where it is below the rate: so all texts of a request are kept or none.
    """
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def as_time(seconds: float) -> str:
    """Seconds since 1970 as a time in UTC."""
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def without_nothing(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields that say something: a line is written millions of times."""
    return {name: value for name, value in fields.items() if value is not None}
