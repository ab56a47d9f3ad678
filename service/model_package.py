"""The model package: the folder that is the only thing training and serving share.

    package/
      model.onnx        the graph that ships
      tokenizer.json    the tokenizer, truncation and padding written out
      manifest.json     everything else a server must know, and where it all came from
      golden.jsonl      a few texts with the answers this package gave when it was made
      README.md         the model card a person reads

Errors:

    PackageError
    ├── PackageFileError       a file is missing, altered or cannot be read
    └── PackageFormatError     the manifest is not one that this version can read
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

# A package states the format that it was written in; those of earlier ones are read as well.
FORMAT_VERSION = 2
READABLE_FORMATS = (1, 2)
MODEL_FILE = "model.onnx"
TOKENIZER_FILE = "tokenizer.json"
MANIFEST_FILE = "manifest.json"
GOLDEN_FILE = "golden.jsonl"
CARD_FILE = "README.md"
HASHED_FILES = (MODEL_FILE, TOKENIZER_FILE, GOLDEN_FILE)
PACKAGE_FILES = (*HASHED_FILES, MANIFEST_FILE, CARD_FILE)
MODEL_STORE_NAME = "text-classifier"

Precision = Literal["fp32", "int8", "fp16"]
TargetDevice = Literal["cpu", "gpu"]
Task = Literal["single_label", "multi_label"]
LongText = Literal["truncate", "window"]
Aggregation = Literal["mean", "max"]
# A text, or a text and its pair.
Text = str | tuple[str, str]


class PackageError(Exception):
    """A folder is not a package that can be trusted; the message says which file and why."""


class PackageFileError(PackageError):
    """A file of the package is missing, altered or unreadable."""


class PackageFormatError(PackageError):
    """The manifest is not one that this version of Whetstone can read."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileRecord(_Strict):
    """What a file must be, to the byte."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)


Probability = Annotated[float, Field(ge=0, le=1)]
Slope = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Intercept = Annotated[float, Field(allow_inf_nan=False)]


class Behaviour(_Strict):
    """The fields that decide an answer beside model and tokenizer; part of the version.

    `thresholds` by label: of a multi-label package every label has one; a single-label package
    has none, or one for the positive label of its two. `window_stride` is the number of tokens
    that neighbouring windows share (the meaning that `tokenizers` gives `stride`). Calibration:
    a single-label package divides its logits by `temperature`; a multi-label one makes
    `slope * logit + intercept` of each label's, by `platt` (all labels, or none for 1 and 0).
    """

    task: Task = "single_label"
    labels: tuple[str, ...] = Field(min_length=2)
    text_columns: tuple[Literal["text"]] | tuple[Literal["text"], Literal["text_pair"]] = ("text",)
    max_length: int = Field(ge=3)
    long_text: LongText = "truncate"
    window_stride: int | None = Field(default=None, ge=0)
    window_aggregation: Aggregation | None = None
    thresholds: dict[str, Probability] = Field(default_factory=dict)
    abstain_threshold: Probability | None = None
    temperature: Slope = 1.0
    platt: dict[str, tuple[Slope, Intercept]] = Field(default_factory=dict)
    target_device: TargetDevice = "cpu"

    @property
    def has_pairs(self) -> bool:
        """Whether an input is a text and its pair."""
        return len(self.text_columns) == 2

    @property
    def positive_label(self) -> str | None:
        """The label of a binary package that is answered from its threshold on."""
        return next(iter(self.thresholds), None) if self.task == "single_label" else None

    @model_validator(mode="after")
    def _consistent(self) -> Behaviour:
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels are not unique")
        if not set(self.thresholds) <= set(self.labels):
            raise ValueError("thresholds name a label that is not there")
        if self.task == "multi_label" and len(self.thresholds) != len(self.labels):
            raise ValueError("a multi-label package has a threshold for every label")
        binary = len(self.labels) == 2 and len(self.thresholds) == 1
        if self.task == "single_label" and self.thresholds and not binary:
            raise ValueError("a single-label package has a threshold for one of two labels")
        if self.task == "multi_label" and self.abstain_threshold is not None:
            raise ValueError("a multi-label package has no abstain threshold")
        if self.platt and (self.task == "single_label" or set(self.platt) != set(self.labels)):
            raise ValueError("platt has coefficients for every label of a multi-label package")
        if self.temperature != 1 and self.task == "multi_label":
            raise ValueError("temperature belongs to a single-label package")
        windows = self.long_text == "window"
        if windows != (self.window_stride is not None):
            raise ValueError("window_stride belongs to long_text: window")
        if windows != (self.window_aggregation is not None):
            raise ValueError("window_aggregation belongs to long_text: window")
        if windows and self.has_pairs:
            raise ValueError("long_text: window reads single texts, not pairs")
        return self


class Profile(_Strict):
    """What the training data looked like: the reference that live traffic is compared with."""

    label_priors: dict[str, float] = Field(default_factory=dict)
    token_length_edges: list[float] = Field(default_factory=list)
    token_length_counts: list[int] = Field(default_factory=list)
    confidence_edges: list[float] = Field(default_factory=list)
    confidence_counts: list[int] = Field(default_factory=list)


class Manifest(Behaviour):
    """`manifest.json`: everything a server must know beside model and tokenizer.

    `version` is a digest of model, tokenizer and behaviour, so equal content has an equal
    version; `created_at` gives the order. `metrics`, `parity`, `selection` (which graphs were
    tried, and why this one ships), `calibration` (how it was fitted, before and after, and what
    precision the thresholds promise) and `provenance` are evidence for people: nothing in them
    changes an answer.
    """

    format_version: int = FORMAT_VERSION
    name: str
    version: str = Field(pattern=r"^[0-9a-f]{12}$")
    created_at: str
    precision: Precision
    score_tolerance: float = Field(ge=0, description="largest score change between copies")
    metrics: dict[str, Any] = Field(default_factory=dict)
    parity: dict[str, Any] = Field(default_factory=dict)
    selection: dict[str, Any] = Field(default_factory=dict)
    calibration: dict[str, Any] = Field(default_factory=dict)
    provenance: dict[str, Any] = Field(default_factory=dict)
    profile: Profile
    files: dict[str, FileRecord]

    @model_validator(mode="after")
    def _files_are_the_known_ones(self) -> Manifest:
        if set(self.files) != set(HASHED_FILES):
            raise ValueError(f"files must be exactly {', '.join(HASHED_FILES)}")
        return self


class GoldenAnswer(_Strict):
    """One line of `golden.jsonl`: a text and the answer this package gave it."""

    text: str
    text_pair: str | None = None
    label: str
    labels: tuple[str, ...] | None = None
    probs: tuple[float, ...]

    @property
    def answer(self) -> frozenset[str]:
        """The label or labels, for comparing answers."""
        return frozenset([self.label] if self.labels is None else self.labels)

    @property
    def input(self) -> Text:
        """What to ask the classifier."""
        return self.text if self.text_pair is None else (self.text, self.text_pair)


def file_record(path: Path) -> FileRecord:
    """SHA-256 and size in bytes of `path`."""
    with path.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256")
    return FileRecord(sha256=digest.hexdigest(), size=path.stat().st_size)


def package_version(files: dict[str, FileRecord], behaviour: Behaviour) -> str:
    """Twelve hex digits of the SHA-256 over model, tokenizer and the fields of `Behaviour`.

    Fields at their default are left out, so that a field added later leaves old versions valid.
    """
    content = {
        "model": files[MODEL_FILE].sha256,
        "tokenizer": files[TOKENIZER_FILE].sha256,
        "behaviour": behaviour.model_dump(
            mode="json", include=set(Behaviour.model_fields), exclude_defaults=True
        ),
    }
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def read_manifest(folder: Path) -> Manifest:
    """The manifest of `folder`, without checking the files it speaks of.

    Raises:
        PackageFileError: there is no readable `manifest.json`.
        PackageFormatError: it is of another format version, or breaks the schema.
    """
    path = folder / MANIFEST_FILE
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise PackageFileError(
            f"{folder} is not a model package: it has no {MANIFEST_FILE}"
        ) from None
    except (OSError, ValueError) as error:
        raise PackageFileError(f"{path} cannot be read: {type(error).__name__}") from error
    found = content.get("format_version") if isinstance(content, dict) else None
    if found not in READABLE_FORMATS:
        raise PackageFormatError(
            f"{path} has format_version {found!r}, this Whetstone reads "
            f"{' and '.join(map(str, READABLE_FORMATS))}: "
            "use the Whetstone that made the package, or export it again with this one"
        )
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or MANIFEST_FILE
        raise PackageFormatError(
            f"{path} is not valid at {where}: {first['msg']}: export the package again"
        ) from None


def verify_package(folder: Path) -> Manifest:
    """Read the manifest and check each file that serving reads against its hash.

    Raises:
        PackageFileError: a file is missing or is not what the manifest says.
        PackageFormatError: the manifest cannot be read, or its version is not its content's.
    """
    manifest = read_manifest(folder)
    for name, expected in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise PackageFileError(f"{folder} is missing {name}: copy the whole package again")
        if file_record(path) != expected:
            raise PackageFileError(
                f"{path} was altered: its SHA-256 or size is not the manifest's: "
                "copy the package again from where it was made"
            )
    if package_version(manifest.files, manifest) != manifest.version:
        raise PackageFormatError(
            f"{folder / MANIFEST_FILE} was altered: version {manifest.version} is not the "
            "digest of its model, tokenizer and behaviour: copy the package again"
        )
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` into `folder`, in today's format: whole or not at all."""
    # One that was read in an earlier format is written with the fields of this one.
    written = manifest.model_copy(update={"format_version": FORMAT_VERSION})
    write_text(folder / MANIFEST_FILE, written.model_dump_json(indent=2) + "\n")


def seal_package(folder: Path, manifest: Manifest) -> Manifest:
    """Hash the files of `folder` into the manifest, give it its version, and write it.

    Args:
        manifest: all but `files` and `version`; without golden texts yet, they are none.
    """
    (folder / GOLDEN_FILE).touch()
    files = {name: file_record(folder / name) for name in HASHED_FILES}
    sealed = manifest.model_copy(
        update={"files": files, "version": package_version(files, manifest)}
    )
    sealed = Manifest.model_validate(sealed.model_dump())
    write_manifest(folder, sealed)
    return sealed


def write_text(path: Path, content: str) -> None:
    """Write `content` to `path` by way of a temporary name, so a reader never sees half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(content, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """An empty folder that becomes `target` when the block ends well; else nothing is changed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        old = temporary.with_name(temporary.name + ".old")
        if target.exists():
            target.rename(old)
        try:
            temporary.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_golden(folder: Path) -> list[GoldenAnswer]:
    """The golden texts and answers of a verified package."""
    with (folder / GOLDEN_FILE).open(encoding="utf-8") as lines:
        return [GoldenAnswer.model_validate_json(line) for line in lines]


def write_golden(folder: Path, answers: list[GoldenAnswer]) -> None:
    """Write `golden.jsonl`."""
    lines = "".join(answer.model_dump_json(exclude_none=True) + "\n" for answer in answers)
    write_text(folder / GOLDEN_FILE, lines)
