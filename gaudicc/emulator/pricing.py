"""What a gathered graph takes on the chip, by the machine model. A graph is priced once, when its recipe is compiled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import fx

from gaudicc.machine import Chip, Engine, Gemm, OpClass, OpWork, Workload, op_cost, run_cost
from gaudicc.machine.attention import AttentionShape
from gaudicc.machine.fx import works_of
from gaudicc.machine.split import unsplit_works

_KNOWN_AS = {
    "convolution_overrideable": "convolution",
    "_index_put_impl": "index_put",
    "fp8_gemm_v2": "mm",
    "conv2d_fp8": "convolution",
}
"""Ops of the device -> what the machine model calls the like."""
_DTYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.float8_e4m3fn: "fp8", torch.float8_e5m2: "fp8"}
_BY_SIZE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_PRICED = frozenset((*_DTYPES, torch.bfloat16, torch.bool))


class Form(NamedTuple):
    """Shape, dtype and strides of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    strides: tuple[int, ...]


class GatheredOp(NamedTuple):
    """One op of a gathered graph.

    Attributes:
        name: namespace, op and overload.
        args: positional arguments, a `Form` for each tensor.
        results: the forms of its results.
        source: the user's line.
    """

    name: str
    args: tuple[Any, ...]
    results: tuple[Form, ...]
    source: str


class Part(NamedTuple):
    """One op's share of a price.

    Attributes:
        what: the op.
        source: the user's line where it was first gathered.
        seconds: time on its engine, and that of handing its result on.
    """

    what: str
    source: str
    seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class Price:
    """What one run of a recipe costs, modelled.

    Attributes:
        seconds: of the device, with what the graph compiler overlaps taken off.
        nodes: device nodes.
        parts: the ops, nothing taken off.
    """

    seconds: float
    nodes: int
    parts: tuple[Part, ...]


def price_of(ops: Sequence[GatheredOp], chip: Chip, *, int64: bool) -> Price:
    """Price a graph.

    Args:
        ops: what computes in it; views cost nothing and are left out.
        chip: the machine.
        int64: whether int64 has 64 bits on the device, or int32's.
    """
    works = [_works_of(op.name, op.args, op.results, int64) for op in ops]
    run = run_cost(Workload.of(work for each in works for work in each), chip)
    parts = (
        Part(op.name, op.source, sum(_alone(work, chip) for work in each)) for op, each in zip(ops, works, strict=True)
    )
    return Price(run.device_seconds, run.nodes, tuple(part for part in parts if part.seconds))


def _alone(work: OpWork, chip: Chip) -> float:
    cost = op_cost(work, chip)
    return 0.0 if cost.engine is Engine.NONE else cost.seconds + chip.host.handoff_seconds


@lru_cache(maxsize=8192)
def _works_of(name: str, args: tuple[Any, ...], results: tuple[Form, ...], int64: bool) -> tuple[OpWork, ...]:
    return tuple(_works(GatheredOp(name, args, results, ""), int64))


def _works(op: GatheredOp, int64: bool) -> Iterator[OpWork]:
    """The work of one op: of the op upstream or in the machine model that it is like."""
    base = op.name.split("::")[1].split(".")[0]
    if not op.results:
        return  # an assertion, say
    if base.removeprefix("fp8_").startswith("sdpa_"):
        yield from unsplit_works(_attention(op))
        return
    if base.startswith("mixture_of_experts"):
        yield from _experts(op)
        return
    functional = base.rstrip("_")
    name = _KNOWN_AS.get(functional, functional)
    args, results = _like_upstream(op, name)
    graph = fx.Graph()

    def node_for(value: Any) -> Any:
        if isinstance(value, Form):
            node = graph.placeholder("operand")
            node.meta["val"] = _on_meta(value, int64)
            return node
        return tuple(map(node_for, value)) if isinstance(value, tuple) else None

    # The machine model asks a target for its name only, and upstream lacks some of these ops.
    node = graph.call_function(type(name, (), {}), tuple(map(node_for, args)))
    node.meta["val"] = tuple(_on_meta(result, int64) for result in results)
    yield from works_of(node)


def _like_upstream(op: GatheredOp, name: str) -> tuple[tuple[Any, ...], tuple[Form, ...]]:
    """Arguments and results in the order and with the strides of the op upstream."""
    args = op.args
    if op.name.startswith("hpu::fp8_gemm_v2"):
        left, left_turned, right, right_turned = args[:4]
        return (_turned(left, left_turned), _turned(right, right_turned)), op.results
    if (
        name == "convolution" and len(args) > 6 and args[6] is True
    ):  # transposed: the gradient of one the other way round
        return (op.results[0], *args[1:2]), (args[0],)
    return args, op.results


def _turned(form: Form, turned: object) -> Form:
    if turned is not True:
        return form
    shape, strides = list(form.shape), list(form.strides)
    shape[-2:], strides[-2:] = shape[:-3:-1], strides[:-3:-1]
    return Form(tuple(shape), form.dtype, tuple(strides))


def _attention(op: GatheredOp) -> AttentionShape:
    """Fused attention; grouped heads come as five dimensions."""
    q, k, v = (form.shape for form in op.args[:3])
    heads, kv_heads = (q[1] * q[2], k[1] * k[2]) if len(q) == 5 else (q[-3], k[-3])
    dtype = _DTYPES.get(op.args[0].dtype, "bf16")
    return AttentionShape(q[0], heads, kv_heads, q[-2], k[-2], q[-1], v[-1], dtype)


def _experts(op: GatheredOp) -> Iterator[OpWork]:
    """A mixture of experts: the choices are spread evenly, and every expert's weights are read."""
    hidden, routing, _, *rest = op.args
    for weights in (each for each in rest if isinstance(each, tuple)):
        depth, width = weights[0].shape
        rows = -(-routing.shape[0] * routing.shape[1] // len(weights))
        dtype = _DTYPES.get(hidden.dtype, "bf16")
        moved = hidden.dtype.itemsize * len(weights)
        gemm = Gemm(rows, width, depth, (len(weights),) if len(weights) > 1 else (), dtype)
        read, written = moved * (rows * depth + depth * width), moved * rows * width
        yield OpWork("experts", OpClass.GEMM, dtype, gemm, 0, read, written, moved * depth * width)


def _on_meta(form: Form, int64: bool) -> torch.Tensor:
    dtype = form.dtype
    if dtype is torch.float64:
        dtype = torch.float32
    elif dtype is torch.int64:
        dtype = torch.int64 if int64 else torch.int32
    elif dtype not in _PRICED:
        dtype = _BY_SIZE.get(dtype.itemsize, torch.int64)
    if len(form.strides) != len(form.shape):
        return torch.empty(form.shape, dtype=dtype, device="meta")
    return torch.empty_strided(form.shape, form.strides, dtype=dtype, device="meta")
