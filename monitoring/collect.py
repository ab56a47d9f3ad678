"""Which captured texts to label next: those that teach most, and some that only measure.

    picks = collect(manifest, answers, rows=200)

A stated share is drawn uniformly from the different texts that production asked and training did
not have. Only these rows may measure a model on new texts, since the others were chosen for being
hard. They are no estimate of production's accuracy, where texts repeat. The rest is chosen to
teach: texts on which two versions disagree, abstained ones, then those with the smallest margin
(Lewis and Gale 1994, "A sequential algorithm for training text classifiers"), one of each cluster
of the sentence embeddings, so that they are not fifty times the same (Bodó et al. 2011, "Active
learning with clustering").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from monitoring.options import UNIFORM_SHARE
from service.capture.records import CapturedAnswer
from service.package.manifest import Manifest, Text
from training.common.errors import DataError
from training.data.leakage import find_leakage, known_share
from training.data.near_duplicates import similar_groups

Reason = Literal["uniform", "disagreement", "abstained", "uncertain"]
Embed = Callable[[Sequence[Text]], NDArray[np.float32]]

# Clusters are looked for among so many times the rows that are wanted, the least certain ones.
CANDIDATES_PER_ROW = 10
TEACHING: tuple[Reason, ...] = ("disagreement", "abstained", "uncertain")


@dataclass(frozen=True)
class Pick:
    """A text to label, with the model's answer as a suggestion."""

    answer: CapturedAnswer
    reason: Reason

    @property
    def suggestion(self) -> tuple[str, ...]:
        """The label or labels that the model answered."""
        answer = self.answer
        return (answer.label,) if answer.labels is None else answer.labels


@dataclass(frozen=True)
class Collection:
    """What was picked, and what was left out before.

    Attributes:
        captured: answers that were looked at; `without_text` of them hold no text.
        known: texts that the package was made with, of which it knows `known_share`.
        repeated: texts that equal or resemble an earlier one.
    """

    picks: list[Pick]
    captured: int
    without_text: int
    known: int
    known_share: float
    repeated: int


def collect(
    manifest: Manifest,
    answers: Iterable[CapturedAnswer],
    rows: int,
    *,
    embed: Embed,
    labeled: Sequence[Text] = (),
    uniform_share: float = UNIFORM_SHARE,
    seed: int = 0,
) -> Collection:
    """At most `rows` texts to label.

    Args:
        answers: of the package's version; those of other versions show disagreement.
        embed: vectors of shape (texts, features) of length 1.
        labeled: texts that are labeled already, such as those of the training file.

    Raises:
        DataError: no captured answer holds a text, or none is left.
    """
    captured = without_text = 0
    own: dict[Text, CapturedAnswer] = {}
    others: dict[Text, set[frozenset[str]]] = {}
    for answer in answers:
        captured += 1
        text = answer.input
        if text is None:
            without_text += 1
        elif answer.version == manifest.version:
            own[text] = answer
        else:
            others.setdefault(text, set()).add(_labels(answer))
    if not own:
        raise DataError(_nothing_to_pick(manifest, captured, without_text))
    texts = list(own)
    leaked = find_leakage(manifest, texts)
    known = set() if leaked is None else set(leaked.rows)
    fresh = [text for place, text in enumerate(texts) if place not in known]
    groups = similar_groups([*labeled, *fresh], seed)
    places = range(len(labeled), len(groups))
    left = [fresh[place - len(labeled)] for place in places if groups[place] == place]
    if not left:
        raise DataError(
            f"all {len(texts)} captured texts are known to the training already, or resemble one "
            "that is"
        )
    chance = np.random.default_rng(seed)
    picks = _pick_uniformly([own[text] for text in left], round(rows * uniform_share), chance)
    taken = {pick.answer.input for pick in picks}
    rest = [own[text] for text in left if text not in taken]
    reasons = [_reason(answer, others) for answer in rest]
    picks += _pick_to_teach(rest, reasons, rows - len(picks), embed, seed)
    repeated = len(fresh) - len(left)
    share = known_share(manifest)
    return Collection(picks, captured, without_text, len(known), share, repeated)


def _pick_uniformly(
    answers: Sequence[CapturedAnswer], count: int, chance: np.random.Generator
) -> list[Pick]:
    """A draw from the different texts: what was kept more often is drawn less often."""
    weights = np.array([1 / answer.rate for answer in answers])
    count = min(count, len(answers))
    places = chance.choice(len(answers), count, replace=False, p=weights / weights.sum())
    return [Pick(answers[place], "uniform") for place in sorted(places.tolist())]


def _pick_to_teach(
    answers: Sequence[CapturedAnswer],
    reasons: Sequence[Reason],
    count: int,
    embed: Embed,
    seed: int,
) -> list[Pick]:
    """Disagreements first, then abstained answers, then the least certain ones.

    Where there are more of a kind than are wanted, the least certain one of each cluster is taken.
    """
    picks: list[Pick] = []
    for reason in TEACHING:
        wanted = count - len(picks)
        own = [answer for answer, why in zip(answers, reasons, strict=True) if why == reason]
        own = sorted(own, key=lambda answer: answer.margin)[: CANDIDATES_PER_ROW * max(wanted, 0)]
        if len(own) > wanted > 0:
            texts = [text for answer in own if (text := answer.input) is not None]
            own = [own[place] for place in _first_of_clusters(embed(texts), wanted, seed)]
        picks += [Pick(answer, reason) for answer in own]
    return picks


def _first_of_clusters(vectors: NDArray[np.float32], count: int, seed: int) -> list[int]:
    """The first place of each cluster, and further first places where clusters are empty."""
    from sklearn.cluster import KMeans

    # Equal vectors can be in no two clusters.
    clusters_wanted = min(count, len(np.unique(vectors, axis=0)))
    clusters = KMeans(clusters_wanted, n_init=1, random_state=seed).fit_predict(vectors)
    first: dict[int, int] = {}
    for place, cluster in enumerate(clusters.tolist()):
        first.setdefault(cluster, place)
    chosen = sorted(first.values())
    spare = [place for place in range(len(vectors)) if place not in set(chosen)]
    return sorted([*chosen, *spare[: count - len(chosen)]])


def _reason(answer: CapturedAnswer, others: dict[Text, set[frozenset[str]]]) -> Reason:
    text = answer.input
    if text is not None and others.get(text, set()) - {_labels(answer)}:
        return "disagreement"
    return "abstained" if answer.abstained else "uncertain"


def _labels(answer: CapturedAnswer) -> frozenset[str]:
    return frozenset([answer.label] if answer.labels is None else answer.labels)


def _nothing_to_pick(manifest: Manifest, captured: int, without_text: int) -> str:
    if without_text:
        return (
            f"none of {captured} captured answers holds its text: serve with "
            "WHETSTONE_CAPTURE_TEXT=1, and read in the documentation what that means"
        )
    return f"no answer of {manifest.name} {manifest.version} was captured with its text"
