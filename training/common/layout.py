"""The names of the files and folders in a run folder."""

from __future__ import annotations

from pathlib import Path

CHECKPOINT = "checkpoint"
# The checkpoint that measures and calibrates the other one, which has seen the validation rows.
HELD_OUT = "held_out"
PACKAGE = "package"
REPORT = "report"
TRACKING = "tensorboard"
# During a training: token ids for the other processes, and for a run that is continued.
TOKENS = "tokens"
# In that folder: the weights that the new head starts with.
HEAD_START = "head_start.safetensors"
METRICS_FILE = "metrics.json"
REPORT_FILE = "index.html"
FINDINGS_FILE = "findings.json"
DATA_FILE = "data.png"
COMPARE_FILE = "compare.json"
FLIPS_FILE = "flips.csv"
RECORD = "training.json"
RESOLVED_RECIPE = "resolved_recipe.yaml"
LOCK_FILE = "training.lock"
# Everything that a run writes, and that `--overwrite` removes.
RUN_FOLDERS = (CHECKPOINT, HELD_OUT, PACKAGE, REPORT, TRACKING, TOKENS)
RUN_FILES = (RECORD, RESOLVED_RECIPE, METRICS_FILE)
# Bills of materials, which the images have inside, too.
IMAGES = Path("runs") / "images"
