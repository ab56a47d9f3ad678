"""Crowds of long texts, and what becomes of those who ask something short meanwhile.

A crowd sends all of its texts at once, and again when all are answered, one second later at the
soonest. Bystanders come at Poisson times, with 20 words or 2,100 characters each and a deadline of
a second.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Any

from benchmarks.load import Arrival, drive, drive_open, percentile
from benchmarks.serve_servers import Contender

CROWD = 80
# Characters of the crowd's texts, in turn.
ATTACKS = {
    "long texts": (100_000,),
    "mixed lengths": (100_000, 20_000, 2_100, 200),
}
WAVE_SECONDS = 1.0
BYSTANDERS_PER_SECOND = 10.0
BYSTANDER_WORDS = 20
BYSTANDER_CHARACTERS = 2_100


@dataclass
class Crowd:
    """What its waves came to; `slowest` is the time in seconds until all of a wave were answered.

    `failure` says why it ended before its time.
    """

    waves: int = 0
    slowest: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    failure: str = ""

    def attack(self, port: int, requests: Sequence[bytes], until: float) -> None:
        """Send waves until then, on the clock of `time.perf_counter`."""
        try:
            while time.perf_counter() < until:
                began = time.perf_counter()
                load = drive(port, requests, len(requests))
                self.waves += 1
                self.slowest = max(self.slowest, load.seconds)
                self.statuses.update(load.statuses)
                time.sleep(max(0.0, began + WAVE_SECONDS - time.perf_counter()))
        except (OSError, TimeoutError) as error:
            self.failure = str(error) or type(error).__name__


def text_of(words: Sequence[str], characters: int) -> str:
    """A text of exactly so many characters out of the words, from the start again as needed."""
    return " ".join(islice(cycle(words), characters))[:characters]


def attack(
    contender: Contender,
    port: int,
    name: str,
    words: Sequence[str],
    seconds: float,
    deadline: float,
) -> dict[str, Any]:
    """Attack a server for so many seconds: what became of the crowd and of the bystanders."""
    lengths = islice(cycle(ATTACKS[name]), CROWD)
    # A text each: nothing is the same as before it.
    crowd_requests = [
        contender.request(text_of(words[number:], length)) for number, length in enumerate(lengths)
    ]
    headers = {"X-Request-Timeout-Ms": f"{deadline * 1000:.0f}"}
    bystanders = [
        " ".join(islice(cycle(words), BYSTANDER_WORDS)),
        text_of(words, BYSTANDER_CHARACTERS),
    ]
    crowd = Crowd()
    until = time.perf_counter() + seconds
    thread = threading.Thread(target=crowd.attack, args=(port, crowd_requests, until), daemon=True)
    thread.start()
    load = drive_open(
        port,
        [contender.request(text, headers) for text in bystanders],
        BYSTANDERS_PER_SECOND,
        seconds,
        opened=len(bystanders),
    )
    thread.join()
    return {
        "seconds": seconds,
        "deadline_ms": deadline * 1000,
        "crowd": {
            "texts": CROWD,
            "waves": crowd.waves,
            "statuses": {str(status): count for status, count in sorted(crowd.statuses.items())},
            "slowest_wave_ms": round(crowd.slowest * 1000, 1),
            "failure": crowd.failure,
        },
        "bystanders": {
            kind: bystander_summary([one for one in load.arrivals if one.place == place], deadline)
            for place, kind in enumerate(("20 words", "2,100 characters"))
        },
    }


def bystander_summary(arrivals: Sequence[Arrival], deadline: float) -> dict[str, Any]:
    """How many were answered in time, how soon, and how late the last of all answers was."""
    took = [one.took for one in arrivals if one.status == 200 and one.took <= deadline]
    statuses = Counter(str(one.status) for one in arrivals)

    def milliseconds(share: float) -> float | None:
        return round(percentile(took, share) * 1000, 1) if took else None

    return {
        "offered": len(arrivals),
        "statuses": dict(sorted(statuses.items())),
        "in_time": len(took),
        "goodput": round(len(took) / len(arrivals), 4) if arrivals else None,
        "p50_ms": milliseconds(0.5),
        "p99_ms": milliseconds(0.99),
        "slowest_ms": round(max((one.took for one in arrivals), default=0.0) * 1000, 1),
    }
