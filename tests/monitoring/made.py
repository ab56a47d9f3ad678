"""Captured lines for tests: made answers of a made package."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from service.capture.records import CapturedAnswer
from service.package.manifest import Manifest, Profile

VERSION = "0123456789ab"
LABELS = ("billing", "delivery", "refund")
START = datetime(2026, 11, 1, tzinfo=UTC)


def manifest(
    rows: int = 1000, shares: tuple[float, ...] = (0.5, 0.3, 0.2), **more: Any
) -> Manifest:
    """A package whose training had these shares of labels; scores between 0.8 and 1."""
    edges = np.linspace(0, 1, 21)
    confidence = np.zeros(20, dtype=int)
    confidence[16:] = rows // 4
    tokens = np.zeros(16, dtype=int)
    tokens[:4] = rows // 4
    return Manifest.model_construct(
        name="tickets",
        version=VERSION,
        labels=LABELS,
        task="single_label",
        thresholds={},
        metrics={"validation": {"accuracy": 0.9, "rows": rows}},
        profile=Profile(
            label_priors=dict(zip(LABELS, shares, strict=True)),
            confidence_edges=edges.tolist(),
            confidence_counts=confidence.tolist(),
            token_length_edges=np.linspace(0, 64, 17).tolist(),
            token_length_counts=tokens.tolist(),
        ),
        **more,
    )


def answers(
    count: int,
    shares: tuple[float, ...] = (0.5, 0.3, 0.2),
    seed: int = 0,
    score: tuple[float, float] = (0.8, 1.0),
    tokens: tuple[int, int] = (1, 16),
    **more: Any,
) -> list[CapturedAnswer]:
    """Answers drawn from a population."""
    chance = np.random.default_rng(seed)
    labels = chance.choice(len(LABELS), count, p=shares)
    fields = {"version": VERSION, "rate": 1.0, "margin": 0.5, "truncated": False} | more
    return [
        CapturedAnswer(
            id=f"request-{seed}-{number}",
            index=0,
            time=START + timedelta(seconds=number),
            label=LABELS[label],
            score=float(chance.uniform(*score)),
            tokens=int(chance.integers(*tokens)),
            **fields,
        )
        for number, label in enumerate(labels)
    ]


def write_part(folder: Path, lines: list[Any], name: str = "2026-11-01/part-000001.jsonl") -> Path:
    """A captured part of answers, feedback or plain fields."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [
        json.dumps(line)
        if isinstance(line, dict)
        else line
        if isinstance(line, str)
        else line.model_dump_json(exclude_none=True)
        for line in lines
    ]
    path.write_text("".join(text + "\n" for text in texts), "utf-8")
    return path
