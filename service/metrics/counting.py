"""What requests did, kept in this process until it is written for all workers together.

A request only leaves its facts here. They are added up a few times a second, many at a time, which
costs a tenth of adding up each request by itself.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from service.inference.classifier import Prediction
from service.metrics.definitions import CONFIDENCES, SECONDS

# So many requests may wait to be added up: their answers hold probabilities.
MAX_WAITING = 1000

Item = TypeVar("Item")

# The name of a metric, and the values of its labels.
Key: TypeAlias = tuple[str, ...]


class Counts:
    """How much to add to each series.

    The array of a histogram holds the sum of the observed values, then the counts of its buckets;
    the last bucket has no upper bound.
    """

    def __init__(self) -> None:
        self.counters: Counter[Key] = Counter()
        self.histograms: dict[Key, npt.NDArray[np.float64]] = {}

    def observe(self, key: Key, bounds: tuple[float, ...], values: Sequence[float]) -> None:
        """Count each value in the first bucket whose upper bound it does not exceed."""
        buckets = np.searchsorted(bounds, values)
        counts = np.bincount(buckets, minlength=len(bounds) + 1)
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
        """Count a request that is over."""
        self._requests.append((route, status, seconds))
        if len(self._requests) > MAX_WAITING:
            self._add_up()

    def refused(self, reason: str) -> None:
        """Count an answer with 429."""
        with self._lock:
            self._counts.counters["whetstone_refusals_total", reason] += 1

    def answered(self, answers: Sequence[Prediction], timing: Mapping[str, float]) -> None:
        """Count the answers of one request; `timing` holds the seconds of its stages."""
        self._answers.append((answers, timing))

    def take(self) -> Counts:
        """The counts since the last call."""
        self._add_up()
        with self._lock:
            counts, self._counts = self._counts, Counts()
        return counts

    def _add_up(self) -> None:
        with self._lock:
            self._add_requests(_drain(self._requests))
            self._add_answers(_drain(self._answers))

    def _add_requests(self, requests: list[tuple[str, int, float]]) -> None:
        counts = self._counts
        seconds_by_route: dict[str, list[float]] = defaultdict(list)
        for route, status, seconds in requests:
            counts.counters["whetstone_requests_total", route, str(status)] += 1
            seconds_by_route[route].append(seconds)
        for route, values in seconds_by_route.items():
            counts.observe(("whetstone_request_duration_seconds", route), SECONDS, values)

    def _add_answers(
        self, answered: list[tuple[Sequence[Prediction], Mapping[str, float]]]
    ) -> None:
        self._add_stages([timing for _, timing in answered])
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

    def _add_stages(self, timings: list[Mapping[str, float]]) -> None:
        seconds_by_stage: dict[str, list[float]] = defaultdict(list)
        for timing in timings:
            for stage, seconds in timing.items():
                seconds_by_stage[stage].append(seconds)
        for stage, values in seconds_by_stage.items():
            self._counts.observe(("whetstone_stage_duration_seconds", stage), SECONDS, values)


def _drain(waiting: deque[Item]) -> list[Item]:
    """Take the items that wait at the moment; items that arrive meanwhile stay."""
    return [waiting.popleft() for _ in range(len(waiting))]
