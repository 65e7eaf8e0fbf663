"""compile_lm(): a causal language model -> CompiledLM. Read this file first, then the numbered steps."""

from __future__ import annotations

import torch
from torch import nn

from gaudicc.errors import InputError, TrainingModeError, UnsupportedInputError, Where
from gaudicc.lm.axes import exponential
from gaudicc.lm.compiled import CompiledLM
from gaudicc.lm.defaults import defaults_of
from gaudicc.lm.graphs import Graphs
from gaudicc.lm.scheduler import LmStats
from gaudicc.lm.stack_model import StackModel
from gaudicc.lm.state import Limits, LmState
from gaudicc.lm.steps import LanguageModel, carried_by
from gaudicc.lm.transformers_model import TransformersModel
from gaudicc.models.cuda_style_llm import Transformer
from gaudicc.runtime.cpu import CpuDevice
from gaudicc.runtime.select import open_device
from gaudicc.targets import load_target


def compile_lm(
    model: nn.Module,
    *,
    max_batch: int = 4,
    max_context: int = 512,
    chunk: int = 8,
    max_stop_ids: int = 8,
    target: str = "gaudi3",
    device: str = "auto",
    release: bool = False,
    native: bool = False,
) -> CompiledLM:
    """Compiles a causal language model for generation.

    Graphs are captured and recorded on first use; `CompiledLM.warm_up()` records them all.

    Args:
        model: a causal LM of transformers in eval mode, `gaudicc.models.cuda_style_llm.Transformer`, or a module with
            the interface of `gaudicc.lm.steps.LanguageModel`. Weights are shared, not copied.
        max_batch: requests in flight at once; more wait.
        max_context: most tokens of one request, prompt and new ones together.
        chunk: decode steps between two reads of the host; tokens are delivered by chunk.
        max_stop_ids: most stop ids of one request.
        target: the chip whose op table decides what is legal: `gaudi2` or `gaudi3`.
        device: where it runs: `auto` (a real Gaudi if one answers, else cpu), `cpu`, `cuda` (the model being there).
        release: on the CPU, hold each weight once: what runs best by columns is moved into that layout in place (the model's
            parameters keep their values and shapes and get other strides), and there is no packed copy beside it. Half
            the memory; prefill is slower.
        native: on the CPU, use kernels in C for norms, rotary embedding, gates and attention. This machine's own
            C compiler makes them, once, beside the first answers, which do not wait for them.

    Raises:
        GaudiccError: a subclass that says what is wrong, where, and what to do.
    """
    for name, value, low in (
        ("max_batch", max_batch, 1), ("max_context", max_context, 2), ("chunk", chunk, 1), ("max_stop_ids", max_stop_ids, 1)
    ):  # fmt: skip
        if value < low:
            raise InputError(f"{name} is {value}", where=Where(stage="compile_lm"), hint=f"it must be {low} or more")
    if not isinstance(model, nn.Module):
        raise InputError(f"the model is a {type(model).__name__}", hint="pass an nn.Module")
    if model.training:
        raise TrainingModeError(f"{type(model).__name__} is in training mode")
    adapted = _adapt(model)
    if adapted.context is not None and max_context > adapted.context:
        raise InputError(
            f"max_context is {max_context}, the model knows {adapted.context} positions",
            where=Where(stage="compile_lm"),
            hint=f"pass max_context={adapted.context} or less",
        )
    chip = load_target(target)
    opened, chosen = open_device(device)
    for name, asked in (("release", release), ("native", native)):
        if asked and not isinstance(opened, CpuDevice):
            raise InputError(f"{name} is for the CPU", hint=f"leave {name} out, or pass device='cpu'")
    if release or native:
        opened = CpuDevice(release=release, native=native)
    defaults = defaults_of(model)
    limits = Limits(max_batch, max_context, max(max_stop_ids, len(defaults.stop)))
    place = next((weight.device for weight in model.parameters()), torch.device("cpu"))
    with torch.no_grad(), place:
        state = LmState(adapted.shapes, adapted.dtype, limits, carried_by(adapted))
    stats = LmStats()
    graphs = Graphs(adapted, state, exponential(limits), chip, opened, stats)
    return CompiledLM(graphs, stats, chunk=chunk, defaults=defaults, notes=(chosen,))


def _adapt(model: nn.Module) -> LanguageModel:
    if isinstance(model, Transformer):
        return StackModel(model)
    if hasattr(model, "get_output_embeddings") and hasattr(model, "config"):
        return TransformersModel(model)
    if all(hasattr(model, name) for name in ("shapes", "dtype", "vocabulary", "context")):
        return model  # type: ignore[return-value]  # checked just now
    raise UnsupportedInputError(
        f"{type(model).__name__} is no language model that gaudicc knows",
        where=Where(stage="compile_lm"),
        hint="pass a causal LM of transformers, or give it the interface of gaudicc.lm.steps.LanguageModel",
    )
