"""What requests did, kept in this process until it is written for all workers together.

A request only leaves its facts here. They are added up a few times a second, many at a time, which
costs a tenth of adding up each for itself.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from service.classifier import Prediction

SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
CONFIDENCES = tuple(step / 20 for step in range(1, 21))
# Answers that wait to be added up hold their probabilities: so many requests' at most.
MOST_WAITING = 1000

Item = TypeVar("Item")

# The name of a metric and its labels.
Key = tuple[str, ...]


class Counts:
    """How much to add to each series.

    Of a histogram the first number is the sum of what was observed, the others count its buckets,
    the endless one last.
    """

    def __init__(self) -> None:
        self.counters: Counter[Key] = Counter()
        self.histograms: dict[Key, npt.NDArray[np.float64]] = {}

    def observe(self, key: Key, bounds: tuple[float, ...], values: Sequence[float]) -> None:
        """Count each value in the first bucket that has room for it; the last has room for all."""
        places = np.searchsorted(bounds, values)
        counts = np.bincount(places, minlength=len(bounds) + 1)
        added = np.concatenate([[sum(values)], counts])
        self.histograms[key] = self.histograms.get(key, 0.0) + added


class Counting:
    """Requests and answers until they are taken; every method may be called from any thread.

    Args:
        label_series: the series that counts a label, for each label of the model.
    """

    def __init__(self, label_series: Mapping[str, str]) -> None:
        self._label_series = label_series
        self._requests: deque[tuple[str, int, float]] = deque()
        self._answers: deque[tuple[Sequence[Prediction], Mapping[str, float]]] = deque()
        self._lock = threading.Lock()
        self._counts = Counts()

    def request(self, route: str, status: int, seconds: float) -> None:
        """One request is over."""
        self._requests.append((route, status, seconds))
        if len(self._requests) > MOST_WAITING:
            self._add_up()

    def refused(self, reason: str) -> None:
        """A request was answered 429."""
        with self._lock:
            self._counts.counters["whetstone_refusals_total", reason] += 1

    def answered(self, answers: Sequence[Prediction], timing: Mapping[str, float]) -> None:
        """The texts of one request were answered; `timing` has the seconds of its stages."""
        self._answers.append((answers, timing))

    def take(self) -> Counts:
        """What came since this was last called."""
        self._add_up()
        with self._lock:
            counts, self._counts = self._counts, Counts()
        return counts

    def _add_up(self) -> None:
        with self._lock:
            self._add_requests(_drained(self._requests))
            self._add_answers(_drained(self._answers))

    def _add_requests(self, requests: list[tuple[str, int, float]]) -> None:
        counts = self._counts
        seconds: dict[str, list[float]] = defaultdict(list)
        for route, status, took in requests:
            counts.counters["whetstone_requests_total", route, str(status)] += 1
            seconds[route].append(took)
        for route, values in seconds.items():
            counts.observe(("whetstone_request_duration_seconds", route), SECONDS, values)

    def _add_answers(
        self, answered: list[tuple[Sequence[Prediction], Mapping[str, float]]]
    ) -> None:
        stages: dict[str, list[float]] = defaultdict(list)
        for _, timing in answered:
            for stage, seconds in timing.items():
                stages[stage].append(seconds)
        for stage, values in stages.items():
            self._counts.observe(("whetstone_stage_duration_seconds", stage), SECONDS, values)
        answers = [answer for several, _ in answered for answer in several]
        if not answers:
            return
        scores = [answer.score for answer in answers]
        self._counts.observe(("whetstone_confidence",), CONFIDENCES, scores)
        counters = self._counts.counters
        counters["whetstone_texts_total",] += len(answers)
        counters["whetstone_tokens_total",] += sum(answer.tokens for answer in answers)
        truncated = sum(answer.truncated for answer in answers)
        counters["whetstone_truncated_texts_total",] += truncated
        abstained = sum(answer.abstained is True for answer in answers)
        counters["whetstone_abstained_texts_total",] += abstained
        for answer in answers:
            for label in (answer.label,) if answer.labels is None else answer.labels:
                counters["whetstone_predictions_total", self._label_series[label]] += 1


def _drained(waiting: deque[Item]) -> list[Item]:
    """What waits by now; what comes meanwhile is left."""
    return [waiting.popleft() for _ in range(len(waiting))]
