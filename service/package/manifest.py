"""The model package: the only thing that training and serving share.

    package/
      model.onnx        the graph that ships
      tokenizer.json    the tokenizer, truncation and padding written out
      manifest.json     everything else that a server must know, and the origin of all files
      golden.jsonl      a few texts with the answers that this package gave when it was made
      README.md         the model card, for people

Errors:

    PackageError
    ├── PackageFileError       a file is missing, altered or unreadable
    └── PackageFormatError     this version cannot read the manifest
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from service.package.files import (
    FileRecord,
    PackageFileError,
    PackageFormatError,
    Strict,
    write_text,
)

# Every package states its format. Packages of earlier formats are still read.
FORMAT_VERSION = 3
READABLE_FORMATS = (1, 2, 3)
MODEL_FILE = "model.onnx"
TOKENIZER_FILE = "tokenizer.json"
MANIFEST_FILE = "manifest.json"
GOLDEN_FILE = "golden.jsonl"
CARD_FILE = "README.md"
HASHED_FILES = (MODEL_FILE, TOKENIZER_FILE, GOLDEN_FILE)
PACKAGE_FILES = (*HASHED_FILES, MANIFEST_FILE, CARD_FILE)
MODEL_STORE_NAME = "text-classifier"
# The first digits of a digest of the files and the inference config.
VERSION_PATTERN = r"^[0-9a-f]{12}$"

Precision = Literal["fp32", "int8", "fp16"]
TargetDevice = Literal["cpu", "gpu"]
Task = Literal["single_label", "multi_label"]
LongText = Literal["truncate", "window"]
Aggregation = Literal["mean", "max"]
# A single text, or a pair of texts.
Text = str | tuple[str, str]

Probability = Annotated[float, Field(ge=0, le=1)]
Slope = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Intercept = Annotated[float, Field(allow_inf_nan=False)]


class InferenceConfig(Strict):
    """The settings that decide an answer, in addition to model and tokenizer.

    They are part of the package's version.

    `thresholds` maps labels to probabilities. A multi-label package has a threshold for every
    label. A single-label package has none, or one for the positive label of its two labels.
    `window_stride` is the number of tokens that neighboring windows share, as `tokenizers`
    defines `stride`.

    Calibration: a single-label package divides its logits by `temperature`. A multi-label package
    replaces each logit by `slope * logit + intercept`, with the coefficients of `platt`. Without
    `platt` the logits stay as they are.
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
        """Whether an input is a pair of texts."""
        return len(self.text_columns) == 2

    @property
    def positive_label(self) -> str | None:
        """The label that a binary package answers at or above its threshold; None without one."""
        return next(iter(self.thresholds), None) if self.task == "single_label" else None

    @model_validator(mode="after")
    def _consistent(self) -> InferenceConfig:
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels are not unique")
        if not set(self.thresholds) <= set(self.labels):
            raise ValueError("thresholds name an unknown label")
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


class Profile(Strict):
    """A summary of the training data; live traffic is compared with it.

    `answer_shares`, the confidence and `abstained_share` are of the answers to the validation rows,
    all else is of the training rows. `unknown_share` and `continued_share` are means over rows: the
    share of a row's tokens that the vocabulary does not know, and that continue a word. A share is
    None where it is not known, as in packages of earlier versions.
    """

    label_priors: dict[str, float] = Field(default_factory=dict)
    answer_shares: dict[str, float] = Field(default_factory=dict)
    token_length_edges: list[float] = Field(default_factory=list)
    token_length_counts: list[int] = Field(default_factory=list)
    confidence_edges: list[float] = Field(default_factory=list)
    confidence_counts: list[int] = Field(default_factory=list)
    truncated_share: Probability | None = None
    unknown_share: Probability | None = None
    continued_share: Probability | None = None
    abstained_share: Probability | None = None

    @property
    def label_shares(self) -> dict[str, float]:
        """The share of the answers with each label; of an older package, of the training rows."""
        return self.answer_shares or self.label_priors


class Manifest(InferenceConfig):
    """`manifest.json`: everything that a server must know in addition to model and tokenizer.

    `version` is a digest of the model, the tokenizer and the inference settings. Packages of
    equal content have equal versions; `created_at` gives their order.

    The other fields are evidence for people, and change no answer: `metrics`, `parity`,
    `selection` (the graphs that were tried, and why this one ships), `calibration` (its fit, the
    metrics before and after it, and the precision that the thresholds promise) and `provenance`.
    """

    format_version: int = FORMAT_VERSION
    name: str
    version: str = Field(pattern=VERSION_PATTERN)
    created_at: str
    precision: Precision
    score_tolerance: float = Field(ge=0, description="largest score difference between copies")
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


def package_version(files: dict[str, FileRecord], config: InferenceConfig) -> str:
    """The first twelve hex digits of a SHA-256 over model, tokenizer and `InferenceConfig`.

    Fields at their default are left out, so that a new field does not change old versions.
    """
    content = {
        "model": files[MODEL_FILE].sha256,
        "tokenizer": files[TOKENIZER_FILE].sha256,
        "behaviour": config.model_dump(
            mode="json", include=set(InferenceConfig.model_fields), exclude_defaults=True
        ),
    }
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def read_manifest(folder: Path) -> Manifest:
    """The manifest of `folder`; the other files are not checked.

    Raises:
        PackageFileError: there is no readable `manifest.json`.
        PackageFormatError: it has another format version, or does not match the schema.
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
    version = content.get("format_version") if isinstance(content, dict) else None
    if version not in READABLE_FORMATS:
        raise PackageFormatError(
            f"{path} has format_version {version!r}, this Whetstone reads "
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


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` into `folder` in the current format, whatever format was read."""
    current = manifest.model_copy(update={"format_version": FORMAT_VERSION})
    write_text(folder / MANIFEST_FILE, current.model_dump_json(indent=2) + "\n")
