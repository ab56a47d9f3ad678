"""What each worker of an engine does: pieces of the input → parts of the result."""

from __future__ import annotations

import io
import os
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

from service.inference.classifier import Classifier
from service.inference.device import Device
from service.package.manifest import PACKAGE_FILES, Manifest
from training.common.errors import DataError
from training.data.blocks import Block
from training.data.readers import read_sources
from training.data.rows import keys_of
from training.scoring.job import ScoringJob
from training.scoring.parts_folder import PartsFolder
from training.scoring.pieces import Piece
from training.scoring.rows import ScoredBlock, score_blocks
from training.scoring.tally import Tally, count_reasons


@dataclass(frozen=True)
class PackedPackage:
    """The files of a package as an engine sends them to its nodes."""

    version: str
    content: bytes

    @classmethod
    def of(cls, folder: Path, manifest: Manifest) -> PackedPackage:
        """Pack a package that is verified."""
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for name in PACKAGE_FILES:
                if (folder / name).is_file():
                    archive.write(folder / name, name)
        return cls(manifest.version, packed.getvalue())

    def load(self, device: Device = "cpu") -> Classifier:
        """Verify the package where it arrived, and load it for one core or one device.

        Raises:
            PackageError: it was altered.
            DataError: it is another version.
        """
        # A core for each worker: threads of one worker would take those of the others.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        with tempfile.TemporaryDirectory(prefix="whetstone-") as folder:
            with zipfile.ZipFile(io.BytesIO(self.content)) as archive:
                for name in PACKAGE_FILES:
                    if name in archive.namelist():
                        archive.extract(name, folder)
            classifier = Classifier.load(folder, threads=1, device=device)
        if classifier.manifest.version != self.version:
            raise DataError(
                f"version {classifier.manifest.version} of the package arrived instead of "
                f"{self.version}: give the same command again"
            )
        return classifier


@dataclass(frozen=True)
class Shipment:
    """Everything that a worker needs, sent once to each node."""

    package: PackedPackage
    job: ScoringJob
    pieces: Sequence[Piece]
    folder: PartsFolder
    device: Device

    @property
    def identity(self) -> str:
        """Another command has another one."""
        return self.folder.identity


class Worker:
    """A loaded package that scores pieces, one after the other."""

    def __init__(self, shipment: Shipment) -> None:
        self._shipment = shipment
        self._classifier = shipment.package.load(shipment.device)
        # The CPU time of this process up to the last part; its start counts for the first.
        self._cpu = 0.0

    def score(self, index: int) -> Tally:
        """Write the parts of a piece that are not there yet.

        Returns:
            The counts of all its parts.

        Raises:
            DataError: the piece cannot be read, or a part cannot be written.
        """
        piece = self._shipment.pieces[index]
        written = self._shipment.folder.written(piece)
        total = sum(written.values(), Tally())
        rows = piece.source.rows
        if rows is None or total.rows < len(rows):
            total += self._score_missing(piece, written)
        if rows is not None and total.rows != len(rows):
            raise DataError(
                f"{piece.source.name} has other rows than when it was looked at: give the same "
                "command again"
            )
        return replace(total, pieces=1)

    def _score_missing(self, piece: Piece, written: dict[str, Tally]) -> Tally:
        job, total = self._shipment.job, Tally()
        missing = self._missing(piece, written)
        scored = score_blocks(self._classifier, job.columns, job.text_columns, missing)
        for name, blocks in groupby(scored, key=lambda block: block.key):
            total += self._write(name, blocks)
        return total

    def _missing(self, piece: Piece, written: dict[str, Tally]) -> Iterator[tuple[str, Block]]:
        """The blocks of parts that are not written, with the name of their part."""
        job = self._shipment.job
        blocks = read_sources(
            [piece.source], None, keys_of(job.arguments), looked_for=job.columns.text
        )
        for number, block in enumerate(block for block in blocks if len(block)):
            if (name := piece.part_name(number)) not in written:
                yield name, block

    def _write(self, name: str, blocks: Iterator[ScoredBlock[str]]) -> Tally:
        format_, tally = self._shipment.job.format, Tally(parts=1)
        contents: list[BinaryIO] = []
        for scored in blocks:
            is_first = not contents
            contents.append(io.BytesIO(format_.part(scored.block, scored.rows, is_first)))
            tally += Tally(rows=len(scored.rows), refused=count_reasons(scored.problems))
        target = io.BytesIO()
        format_.assemble(contents, target)
        cpu = time.process_time()
        tally = replace(tally, cpu_seconds=cpu - self._cpu)
        self._cpu = cpu
        self._shipment.folder.add(name, target.getvalue(), tally)
        return tally
