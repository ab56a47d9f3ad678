"""Checkpoint → ONNX graph: the one module that knows optimum.

Another exporter can replace this one: it offers the same four functions.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.package.manifest import MODEL_FILE
from training.common.errors import BaseModelError, ExportError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TASK = "text-classification"


def refuse_unexportable_family(name: str, model_type: str) -> None:
    """Refuse, before training, a kind of model that cannot be exported.

    Raises:
        BaseModelError: optimum does not export `model_type` for text classification.
    """
    # Importing it registers the exporters.
    import optimum.exporters.onnx.model_configs  # noqa: F401
    from optimum.exporters.tasks import TasksManager

    try:
        tasks = TasksManager.get_supported_tasks_for_model_type(
            model_type.replace("_", "-"), "onnx", library_name="transformers"
        )
    except KeyError:
        tasks = {}
    if TASK not in tasks:
        raise BaseModelError(
            f"{name} is of the kind {model_type!r}, which optimum cannot export to ONNX for text "
            "classification: choose another base model, such as a BERT, RoBERTa, DeBERTa-v2, "
            "ELECTRA, MPNet or ModernBERT"
        )


def graph_inputs(model: PreTrainedModel) -> list[str]:
    """The inputs of a model's graph, which are the inputs that the model must be trained on.

    A decoder has no token types. Where the tokenizer gives them nevertheless, GPT-2 would add the
    embeddings of the words with these numbers.
    """
    return list(_graph_description(model).inputs)


def _graph_description(model: PreTrainedModel) -> Any:
    """optimum's description of the graph, without token types where the model has only one.

    The tracer would pass two types and pairs, which such a model cannot tell apart.
    """
    # Importing it registers the exporters.
    import optimum.exporters.onnx.model_configs  # noqa: F401
    from optimum.exporters.tasks import TasksManager

    described = TasksManager.get_exporter_config_constructor(
        "onnx", model=model, task=TASK, library_name="transformers"
    )(model.config)
    if getattr(model.config, "type_vocab_size", None) != 1:
        return described

    class WithoutTypes(type(described)):  # type: ignore[misc]
        @property
        def inputs(self) -> dict[str, dict[int, str]]:
            return {k: axes for k, axes in super().inputs.items() if k != "token_type_ids"}

    return WithoutTypes(model.config, task=TASK)


def export_graph(checkpoint: Path, folder: Path, loading: dict[str, Any]) -> Path:
    """The checkpoint as an fp32 ONNX graph with free batch and length, in `folder`.

    Args:
        loading: the options of `from_pretrained` for the checkpoint.

    Raises:
        ExportError: this model cannot be exported.
    """
    import onnx
    from optimum.exporters.onnx import onnx_export_from_model

    from training.finetuning.pooling import load_checkpoint

    model = load_checkpoint(checkpoint, **loading)

    # The tracer warns of constants and of its own age. `training.export.parity` tells whether the
    # graph is right, on real texts, batches and lengths.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            onnx_export_from_model(
                model,
                folder,
                task=TASK,
                custom_onnx_configs={"model": _graph_description(model)},
                device="cpu",
                do_validation=False,
            )
            onnx.checker.check_model(folder / MODEL_FILE)
        except (ValueError, KeyError, RuntimeError, NotImplementedError) as error:
            raise ExportError(
                f"optimum cannot export {checkpoint}: {_first_line(error)}: choose another base "
                "model"
            ) from error
    return folder / MODEL_FILE


def optimize(graph: Path, target: Path) -> None:
    """Write the graph of `export_graph` with its attention, GELU and layer norms fused.

    Raises:
        ExportError: there are no fusions for this kind of model.
    """
    from optimum.onnxruntime import ORTModelForSequenceClassification, ORTOptimizer
    from optimum.onnxruntime.configuration import OptimizationConfig

    folder = graph.parent / "optimized"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = ORTModelForSequenceClassification.from_pretrained(graph.parent)
            ORTOptimizer.from_pretrained(model).optimize(
                save_dir=folder, optimization_config=OptimizationConfig(optimization_level=2)
            )
        except (ValueError, KeyError, RuntimeError, NotImplementedError) as error:
            raise ExportError(f"optimum cannot optimize this graph: {_first_line(error)}") from None
    (made,) = folder.glob("*.onnx")
    made.replace(target)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
