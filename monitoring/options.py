"""Defaults that `--help` shows: without an import that takes time."""

FORMATS = ("csv", "label-studio", "argilla")
# The share of the picked rows that is drawn uniformly.
UNIFORM_SHARE = 0.2
