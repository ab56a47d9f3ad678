"""Picked texts as files for people and labeling tools, and what comes back from them.

CSV for a spreadsheet, tasks with predictions for Label Studio, records with suggestions for
Argilla. What the tools export is read by the one reader of training data.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monitoring.collect import Pick
from monitoring.options import FORMATS
from service.capture.store import FolderStore
from service.package.manifest import Manifest
from training.common.errors import DataError

# Labels of one row in one cell, as `label_separator` splits them.
SEPARATOR = "|"
COLUMNS = (
    *("text", "text_pair", "label", "suggestion", "score", "reason", "rate"),
    *("id", "index", "time", "version"),
)


def write_picks(picks: Sequence[Pick], manifest: Manifest, path: Path, kind: str) -> None:
    """Write the file in one of FORMATS, complete or not at all.

    Raises:
        DataError: `kind` is none of them.
    """
    if kind == "csv":
        content = _as_csv(picks, manifest)
    elif kind == "label-studio":
        content = json.dumps([_as_task(pick, manifest) for pick in picks], indent=1) + "\n"
    elif kind == "argilla":
        content = json.dumps([_as_record(pick, manifest) for pick in picks], indent=1) + "\n"
    else:
        raise DataError(f"{kind!r} is no format: choose one of {', '.join(FORMATS)}")
    # For this user alone: the file holds callers' texts.
    FolderStore(path.parent).write(path.name, content.encode())


def _facts(pick: Pick) -> dict[str, Any]:
    """What says where a row comes from, beside its text."""
    answer = pick.answer
    return {
        "reason": pick.reason,
        "rate": answer.rate,
        "id": answer.id,
        "index": answer.index,
        "time": answer.time.isoformat(),
        "version": answer.version,
    }


def _as_csv(picks: Sequence[Pick], manifest: Manifest) -> str:
    columns = [name for name in COLUMNS if name != "text_pair" or manifest.has_pairs]
    found = io.StringIO()
    # Quoted: a carriage return alone would end a row.
    style: dict[str, Any] = {"lineterminator": "\n", "quoting": csv.QUOTE_ALL}
    table = csv.DictWriter(found, columns, extrasaction="ignore", **style)
    table.writeheader()
    for pick in picks:
        table.writerow(
            {
                "text": pick.answer.text,
                "text_pair": pick.answer.text_pair,
                "label": "",
                "suggestion": SEPARATOR.join(pick.suggestion),
                "score": pick.answer.score,
                **_facts(pick),
            }
        )
    return found.getvalue()


def _as_task(pick: Pick, manifest: Manifest) -> dict[str, Any]:
    """A task of Label Studio, whose choices are named `label` and whose text is `$text`."""
    answer = pick.answer
    pair = {"text_pair": answer.text_pair} if manifest.has_pairs else {}
    result = {
        "from_name": "label",
        "to_name": "text",
        "type": "choices",
        "value": {"choices": list(pick.suggestion)},
    }
    return {
        "data": {"text": answer.text, **pair, **_facts(pick)},
        "predictions": [
            {
                "model_version": f"{manifest.name}:{answer.version}",
                "score": answer.score,
                "result": [result],
            }
        ],
    }


def _as_record(pick: Pick, manifest: Manifest) -> dict[str, Any]:
    """A record of Argilla, with a field `text` and a question `label`."""
    answer = pick.answer
    pair = {"text_pair": answer.text_pair} if manifest.has_pairs else {}
    several = manifest.task == "multi_label"
    return {
        "fields": {"text": answer.text, **pair},
        "metadata": _facts(pick),
        "suggestions": {
            "label": {
                "value": list(pick.suggestion) if several else pick.suggestion[0],
                "score": None if several else answer.score,
                "agent": f"{manifest.name}:{answer.version}",
            }
        },
    }
