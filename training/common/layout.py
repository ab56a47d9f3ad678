"""What a run folder holds, by name."""

from __future__ import annotations

from pathlib import Path

CHECKPOINT = "checkpoint"
PACKAGE = "package"
REPORT = "report"
TRACKING = "tensorboard"
# While training goes on: what a run that is taken up again, and other processes, need not repeat.
TOKENS = "tokens"
# In it: what the new head starts with.
HEAD_START = "head_start.safetensors"
METRICS_FILE = "metrics.json"
REPORT_FILE = "index.html"
CONFUSION_FILE = "confusion.png"
LABELS_FILE = "labels.png"
FINDINGS_FILE = "findings.json"
DATA_FILE = "data.png"
COMPARE_FILE = "compare.json"
FLIPS_FILE = "flips.csv"
RECORD = "training.json"
RESOLVED_RECIPE = "resolved_recipe.yaml"
LOCK_FILE = "training.lock"
# Everything that a run makes, and so all that `--overwrite` removes.
RUN_FOLDERS = (CHECKPOINT, PACKAGE, REPORT, TRACKING, TOKENS)
RUN_FILES = (RECORD, RESOLVED_RECIPE, METRICS_FILE)
# Bills of materials, beside the images that they are inside of, too.
IMAGES = Path("runs") / "images"
