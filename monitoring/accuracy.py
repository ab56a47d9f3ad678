"""How often a window is answered rightly: as the calibrated probabilities expect it, and as far as
feedback says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from monitoring.captured import Key
from monitoring.window import Share
from service.capture.records import CapturedAnswer, Feedback

SHOWN_LABELS = 10
SHOWN_CHARACTERS = 60


@dataclass
class Feedbacks:
    """Feedback as it meets its answers.

    Attributes:
        right: the share of answers that feedback calls right, all labels of a row.
        agreed, answered, known: of several labels, how many were answered rightly, answered, and
            are right, for micro-F1.
        rows: answers with feedback.
        repeated: feedback whose id several requests had: the last answer before it counts.
        missing: feedback whose answer was not captured.
        other_versions: feedback to answers of other versions of the model.
        unknown_labels: labels that the package does not have, and how often they were named. A
            caller wrote them: `shown_labels` are a few of them, shortened.
    """

    known_labels: frozenset[str]
    version: str
    right: Share = field(default_factory=Share)
    agreed: float = 0.0
    answered: float = 0.0
    known: float = 0.0
    rows: int = 0
    repeated: int = 0
    missing: int = 0
    other_versions: int = 0
    unknown_labels: dict[str, int] = field(default_factory=dict)

    @property
    def shown_labels(self) -> dict[str, int]:
        """The most frequent unknown labels, for people."""
        often = sorted(self.unknown_labels.items(), key=lambda item: -item[1])[:SHOWN_LABELS]
        return {
            label if len(label) <= SHOWN_CHARACTERS else f"{label[:SHOWN_CHARACTERS]}…": count
            for label, count in often
        }

    @property
    def micro_f1(self) -> float:
        """NaN of no labels."""
        together = self.answered + self.known
        return 2 * self.agreed / together if together else float("nan")


def with_feedback(
    answers: Iterable[CapturedAnswer], feedback: Mapping[Key, Feedback], found: Feedbacks
) -> Iterator[CapturedAnswer]:
    """The answers, unchanged; what feedback says of them is added up in `found` at the end.

    A caller may send an id twice. Feedback is then of the last answer that was there before it.
    """
    met: dict[Key, CapturedAnswer] = {}
    repeated: set[Key] = set()
    for answer in answers:
        key = answer.id, answer.index
        if key in feedback:
            if key in met:
                repeated.add(key)
            met[key] = _nearer(met.get(key), answer, feedback[key].time)
        yield answer
    found.repeated = len(repeated)
    weights: dict[tuple[str, datetime], float] = {}
    for key, known in feedback.items():
        if key in met:
            request = met[key].id, met[key].time
            before = weights.get(request, 0.0)
            weights[request] = before + _count(met[key], known, found, before)
        elif known.version == found.version:
            found.missing += 1
        else:
            found.other_versions += 1


def _nearer(first: CapturedAnswer | None, second: CapturedAnswer, at: datetime) -> CapturedAnswer:
    """The later one of two answers that were there at a time; else the earlier one."""
    if first is None:
        return second
    earlier, later = sorted((first, second), key=lambda answer: answer.time)
    return later if later.time <= at else earlier


def _count(answer: CapturedAnswer, known: Feedback, found: Feedbacks, before: float) -> float:
    """Count an answer with what is known of it; its weight."""
    for label in known.labels:
        if label not in found.known_labels:
            found.unknown_labels[label] = found.unknown_labels.get(label, 0) + 1
    own = {answer.label} if answer.labels is None else set(answer.labels)
    right = set(known.labels)
    weight = 1 / answer.rate
    found.rows += 1
    found.right.add(weight, float(own == right), before)
    found.agreed += weight * len(own & right)
    found.answered += weight * len(own)
    found.known += weight * len(right)
    return weight
