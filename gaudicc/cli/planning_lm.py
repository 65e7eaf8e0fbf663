"""A language model that is planned, not run: the static program of every bucket of `compile_lm`, from shapes alone.

The model may be on the meta device: nothing is recorded, and no value is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
from torch import nn

from gaudicc.buckets import Bucket
from gaudicc.errors import InputError, LoweringError, Where
from gaudicc.lm.axes import exponential
from gaudicc.lm.graphs import Graphs
from gaudicc.lm.scheduler import LmStats
from gaudicc.lm.stack_model import StackModel
from gaudicc.lm.state import Limits, LmState
from gaudicc.lm.transformers_model import TransformersModel
from gaudicc.machine import known_decoders
from gaudicc.models.cuda_style_llm import Transformer
from gaudicc.program import Program
from gaudicc.runtime.device import Recording, Segment
from gaudicc.targets import load_target

# Stop ids of a request that room is made for, as `compile_lm` does.
_STOPS = 8


def shape_model(name: str, layers: int | None = None) -> nn.Module:
    """A language model of known dimensions on the meta device, in bfloat16: shapes, and no weights.

    Args:
        name: of a model whose layers are those of Llama, in `gaudicc.machine.known_decoders`.
        layers: so many instead of the model's own.

    Raises:
        InputError: there is no such model.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    if name not in (likely := shapes()):
        raise InputError(f"no dimensions of {name!r} are known", hint=f"one of: {', '.join(likely)}")
    known = known_decoders()[name]
    config = LlamaConfig(
        vocab_size=known.vocab, hidden_size=known.hidden, intermediate_size=known.intermediate,
        num_hidden_layers=layers or known.layers, num_attention_heads=known.heads, head_dim=known.head_dim,
        num_key_value_heads=known.kv_heads, max_position_embeddings=1 << 17, dtype=torch.bfloat16,
    )  # fmt: skip
    with torch.device("meta"):
        model: nn.Module = LlamaForCausalLM(config).eval().bfloat16()
    return model


def shapes() -> list[str]:
    """Names of models whose layers are those of Llama."""
    plain = {"gated": True, "norms": 2, "biases": 0, "rotary": 2, "experts": 0, "normalised_head": False}
    every = known_decoders().items()
    return [name for name, known in every if all(getattr(known, field) == value for field, value in plain.items())]


class PlannedLM:
    """The graphs that `compile_lm` would record on a Gaudi.

    Attributes:
        graphs: of the model; ask them for static programs only.

    Args:
        model: a causal language model, on any device, meta included.
        max_batch: as for `compile_lm`, like the next two.
        max_context: most tokens of one request.
        target: the chip.
        split: with the passes that give two engines work at once.
    """

    def __init__(self, model: nn.Module, *, max_batch: int, max_context: int, target: str, split: bool = True) -> None:
        adapted = StackModel(model) if isinstance(model, Transformer) else TransformersModel(model)
        limits = Limits(max_batch, max_context, _STOPS)
        place = next((weight.device for weight in model.parameters()), torch.device("cpu"))
        with torch.no_grad(), place:
            state = LmState(adapted.shapes, adapted.dtype, limits)
        chip = load_target(target)
        self.graphs = Graphs(adapted, state, exponential(limits), chip, _Planned(split), LmStats())

    def buckets(self) -> Iterator[tuple[str, Bucket]]:
        """Every bucket that `warm_up` records: what it does, and its sizes."""
        axes = self.graphs.axes
        for batch, queries in product(axes.batch, axes.queries):
            yield "prefill", Bucket(("batch", "queries"), (batch, queries))
        for batch, context in product(axes.batch, axes.context):
            yield "decode", Bucket(("batch", "context"), (batch, context))

    def program(self, kind: str, bucket: Bucket) -> Program:
        """The static program of a bucket, after all passes."""
        return self.graphs.entry(kind, sampled=False).static_program(bucket)


class _Planned:
    """Stands for the Gaudi that will record, or for one engine; see `gaudicc.runtime.device.Device`."""

    def __init__(self, split: bool) -> None:
        self.name = "hpu" if split else "cpu"

    def record(self, segment: Segment, *, borrow: bool = False) -> Recording:
        raise LoweringError("a planned model cannot be run", where=Where(stage="record"), hint="call compile_lm")

    def fetch(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor
