"""The exit statuses of the command `whetstone`."""

from __future__ import annotations

EXIT_ERROR = 1
EXIT_INTERRUPTED = 130
# The verdict of a comparison: `compare` and `release` tell it to scripts.
EXIT_OF_VERDICT = {"promote": 0, "refuse": 3, "inconclusive": 4}
