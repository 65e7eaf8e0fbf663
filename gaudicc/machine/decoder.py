"""From the dimensions of a decoder to a `Workload`, where no captured graph is at hand: calibration and validation.

A compiled model's workload comes from its captured graphs (`fx.workload_of`); the figures of other people's runs are of
models whose dimensions alone are needed, so here they are written as the ops such a decoder is made of.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from gaudicc.errors import InputError
from gaudicc.machine.cost import ELEMENT_BYTES, OpClass, OpWork
from gaudicc.machine.gemm import Gemm
from gaudicc.machine.workload import Workload


@dataclass(frozen=True, slots=True)
class Decoder:
    """Dimensions of a decoder, as its configuration names them.

    Attributes:
        hidden: width of the residual stream.
        layers: number of layers.
        heads: query heads.
        kv_heads: key and value heads.
        head_dim: width of a head.
        intermediate: width of the MLP, or of one expert.
        vocab: size of the vocabulary.
        gated: the MLP has a gate.
        norms: normalisations in a layer.
        qkv: products that make queries, keys and values: 1 if fused.
        gate_up: products that make gate and up: 1 if fused, or without a gate.
        biases: products of a layer with a bias, which the MME does not add: each costs a TPC node.
        rotary: TPC nodes of the rotary embedding: 2 with the fused kernel (queries, keys), 0 without rotary.
        norm_nodes: TPC nodes of one normalisation: 1 with the fused kernel alone.
        normalised_head: the head's weights are normalised in every step.
        experts: experts of a mixture, 0 for a dense MLP.
        experts_per_token: experts that a token visits.
        shared_intermediate: width of the MLP that every token visits beside the experts.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    gated: bool = True
    norms: int = 2
    qkv: int = 1
    gate_up: int = 1
    biases: int = 0
    rotary: int = 2
    norm_nodes: int = 1
    normalised_head: bool = False
    experts: int = 0
    experts_per_token: int = 0
    shared_intermediate: int = 0


@cache
def known_decoders() -> dict[str, Decoder]:
    """Decoders by name, from the data file beside this module."""
    data = json.loads(Path(__file__).with_name("decoders.json").read_text())
    return {name: Decoder(**dimensions) for name, dimensions in data["decoders"].items()}


@dataclass(frozen=True, slots=True)
class Step:
    """One call of a decoder.

    Attributes:
        batch: sequences.
        tokens: new tokens of each.
        context: key positions that attention reads.
        dtype: of weights and products.
        kv_dtype: of the KV cache.
        cards: chips of a tensor-parallel group.
    """

    batch: int
    tokens: int
    context: int
    dtype: str = "bf16"
    kv_dtype: str = "bf16"
    cards: int = 1


def decoder_step(model: Decoder, step: Step) -> Workload:
    """The ops of one call.

    Args:
        model: its dimensions.
        step: batch, tokens, context and dtypes.

    Returns:
        Embedding, the layers folded, and the head on the last token of each sequence.

    Raises:
        InputError: the heads do not divide over the cards.
    """
    if model.heads % step.cards:
        raise InputError(f"{model.heads} heads do not divide over {step.cards} cards")
    rows = step.batch * step.tokens
    embedding = OpWork(
        "embedding", OpClass.GATHER, elements=rows * model.hidden, read_bytes=2 * rows * model.hidden,
        written_bytes=2 * rows * model.hidden, weight_bytes=2 * rows * model.hidden, row_bytes=2 * model.hidden,
    )  # fmt: skip
    layer = (*_attention(model, step), *_mlp(model, step))
    table = model.vocab // step.cards * model.hidden
    head = (
        _vector("final_norm", OpClass.NORM, step.batch * model.hidden),
        *(_normalise_head(table) if model.normalised_head else ()),
        _linear("lm_head", step.batch, model.vocab // step.cards, model.hidden, "bf16"),
        _vector("sample", OpClass.REDUCTION, step.batch * model.vocab // step.cards),
    )
    return Workload.of([embedding]) + Workload.of(layer, model.layers) + Workload.of(head)


def _linear(name: str, rows: int, width: int, depth: int, dtype: str) -> OpWork:
    size = ELEMENT_BYTES[dtype]
    weights = width * depth * size
    return OpWork(
        name,
        OpClass.GEMM,
        dtype,
        Gemm(rows, width, depth, dtype=dtype, trans_b=True),
        read_bytes=rows * depth * size + weights,
        written_bytes=2 * rows * width,
        weight_bytes=weights,
    )


def _linears(name: str, pieces: int, rows: int, width: int, depth: int, dtype: str) -> tuple[OpWork, ...]:
    """A product whose columns are computed by several nodes."""
    return tuple(_linear(f"{name}_{i}", rows, width // pieces, depth, dtype) for i in range(pieces))


def _norms(name: str, model: Decoder, rows: int, count: int) -> tuple[OpWork, ...]:
    nodes = range(count * model.norm_nodes)
    return tuple(_vector(f"{name}_{i}", OpClass.NORM, rows * model.hidden) for i in nodes)


def _vector(name: str, op_class: OpClass, elements: int, operands: int = 1) -> OpWork:
    return OpWork(name, op_class, elements=elements, read_bytes=2 * operands * elements, written_bytes=2 * elements)


def _normalise_head(elements: int) -> tuple[OpWork, ...]:
    """Division of a table by the norms of its rows: the norms read it once, the division reads and writes it."""
    return (
        OpWork("head_norm", OpClass.REDUCTION, elements=elements, read_bytes=2 * elements),
        _vector("head_divide", OpClass.ELEMENTWISE, elements),
    )


def _all_reduce(name: str, elements: int, cards: int) -> tuple[OpWork, ...]:
    if cards == 1:
        return ()
    return (OpWork(name, OpClass.ALL_REDUCE, read_bytes=2 * elements, written_bytes=2 * elements, cards=cards),)


def _attention(model: Decoder, step: Step) -> tuple[OpWork, ...]:
    rows, dim = step.batch * step.tokens, model.head_dim
    heads, kv_heads = model.heads // step.cards, max(1, model.kv_heads // step.cards)
    items, group = step.batch * kv_heads, heads // kv_heads
    scores = step.batch * heads * step.tokens * step.context
    cache = items * step.context * dim * ELEMENT_BYTES[step.kv_dtype]
    new = 2 * items * step.tokens * dim
    query = 2 * step.batch * heads * step.tokens * dim
    scored = Gemm(group * step.tokens, step.context, dim, (items,), step.kv_dtype, trans_b=True)
    mixed = Gemm(group * step.tokens, dim, step.context, (items,), step.kv_dtype)
    return (
        *_norms("input_norm", model, rows, 1),
        *_linears("qkv", model.qkv, rows, (heads + 2 * kv_heads) * dim, model.hidden, step.dtype),
        *(_vector(f"bias_{i}", OpClass.ELEMENTWISE, rows * model.hidden // step.cards) for i in range(model.biases)),
        *(_vector(f"rotary_{i}", OpClass.ELEMENTWISE, rows * (heads + kv_heads) * dim // model.rotary, 3)
          for i in range(model.rotary)),
        OpWork("cache_write", OpClass.GATHER, elements=new, read_bytes=2 * new, written_bytes=2 * new,
               row_bytes=2 * dim),
        OpWork("scores", OpClass.GEMM, step.kv_dtype, scored, read_bytes=query + cache, written_bytes=2 * scores,
               weight_bytes=cache),
        _vector("softmax", OpClass.SOFTMAX, scores),
        OpWork("values", OpClass.GEMM, step.kv_dtype, mixed, read_bytes=2 * scores + cache, written_bytes=query,
               weight_bytes=cache),
        _linear("output", rows, model.hidden, heads * dim, step.dtype),
        *_all_reduce("attention_all_reduce", rows * model.hidden, step.cards),
        _vector("attention_add", OpClass.ELEMENTWISE, rows * model.hidden, 2),
        *_norms("norm", model, rows, model.norms - 1),
    )  # fmt: skip


def _mlp(model: Decoder, step: Step) -> tuple[OpWork, ...]:
    rows = step.batch * step.tokens
    branches = 2 if model.gated else 1
    ops: list[OpWork] = []

    def block(name: str, tokens: int, width: int) -> None:
        width //= step.cards
        ops.extend(_linears(f"{name}_up", model.gate_up, tokens, branches * width, model.hidden, step.dtype))
        ops.append(_vector(f"{name}_act", OpClass.TRANSCENDENTAL, tokens * width, branches))
        ops.append(_linear(f"{name}_down", tokens, model.hidden, width, step.dtype))

    if model.experts:
        visited = min(model.experts, rows * model.experts_per_token)
        ops.append(_linear("router", rows, model.experts, model.hidden, "bf16"))
        ops.append(_vector("top_k", OpClass.SORT, rows * model.experts))
        for expert in range(visited):
            block(f"expert_{expert}", -(-rows * model.experts_per_token // visited), model.intermediate)
        ops.append(_vector("combine", OpClass.ELEMENTWISE, rows * model.hidden * model.experts_per_token))
        if model.shared_intermediate:
            block("shared", rows, model.shared_intermediate)
    else:
        block("mlp", rows, model.intermediate)
    ops.extend(_all_reduce("mlp_all_reduce", rows * model.hidden, step.cards))
    ops.append(_vector("mlp_add", OpClass.ELEMENTWISE, rows * model.hidden, 2))
    return tuple(ops)
