"""What a release says of itself."""

from __future__ import annotations

from release.transaction import describe_durations


def test_the_table_of_durations_has_the_parts_of_a_step_below_it() -> None:
    # Parts end before their step. A try-out and a push run side by side.
    durations = {"verify": 0.5, "image: build": 80.0, "image: push": 9.0, "image": 92.0}
    assert describe_durations(durations).splitlines() == [
        "step         seconds",
        "verify           0.5",
        "image           92.0",
        "  build         80.0",
        "  push           9.0",
        "in all          92.5",
    ]
