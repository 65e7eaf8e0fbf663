"""decompose: composite ops that the target has no kernel for -> their parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from gaudicc.errors import UnsupportedOpError
from gaudicc.invariants import DECOMPOSED, FUNCTIONAL, TYPED, WELL_FORMED, Invariant, needs_decomposition
from gaudicc.nodes import is_op, op_name, val, where
from gaudicc.pipeline import GraphPass, Numerics
from gaudicc.program import Program
from gaudicc.rewriter import Rewriter
from gaudicc.rules.match import argument
from gaudicc.rules.resampling import CAST_FIRST, FIXED_POINT, in_fixed_point
from gaudicc.targets.calls import without_onednn

aten = torch.ops.aten


@dataclass(frozen=True)
class Decompose(GraphPass):
    """Breaks composite ATen ops into their parts, unless the target registers a kernel of its own for them.

    PyTorch would do the same at run time, one dispatch at a time; a recorded graph and the target's table know parts only.
    `linear` and `matmul` stay whole: Gaudi registers them, and the matrix engine wants to see them.

        %3 = aten.diff(%x, 1, -1, %p)      ->      %2 = aten.cat([%p, %x], -1); ...; %3 = aten.sub.Tensor(%5, %6)

    Refuses to resize bytes, which eager does in fixed point; whether any other parts are legal is for later passes to say.
    """

    name: ClassVar[str] = "decompose"
    requires: ClassVar[frozenset[Invariant]] = frozenset({WELL_FORMED, TYPED, FUNCTIONAL})
    ensures: ClassVar[frozenset[Invariant]] = frozenset({DECOMPOSED})
    # The CPU runs attention whole in a fused kernel, which rounds otherwise than its parts; all else is bitwise.
    numerics: ClassVar[Numerics] = Numerics.ROUNDING

    def rewrite(self, rewriter: Rewriter, program: Program) -> Iterator[str]:
        """Breaks each composite into parts in one go, since tracing decomposes the parts' own composites too."""
        counts: dict[str, int] = {}
        _copy_where_promised(rewriter)
        for node in [n for n in rewriter.graph.nodes if is_op(n) and needs_decomposition(n, program)]:
            if in_fixed_point(node):
                raise UnsupportedOpError(
                    f"{op_name(node)}: {FIXED_POINT}", where=where(node, self.name), hint=CAST_FIRST
                )
            counts[op_name(node)] = counts.get(op_name(node), 0) + 1
            call = _FOR_ALL_SIZES.get(node.target, partial(_call, node.target))
            with without_onednn():  # else an LSTM becomes one kernel that only the CPU has
                result = rewriter.inline(call, node.args, node.kwargs, like=node, composites=False)
            if isinstance(result, tuple):
                rewriter.replace_outputs(node, result)
            else:
                rewriter.replace(node, result)
        yield from (f"{op} decomposed {count} times" for op, count in sorted(counts.items()))


def _copy_where_promised(rewriter: Rewriter) -> None:
    """Dropout that drops nothing gives its input, strides and all, while its fake value is a dense copy: makes it that copy."""
    for node in rewriter.graph.find_nodes(op="call_function", target=aten.dropout.default):
        source = node.args[0]
        assert isinstance(source, fx.Node), "dropout of a literal does not type"
        if not argument(node, 2, "train") and val(source).stride() != val(node).stride():
            rewriter.replace(node, rewriter.inline(_dense, source, like=node))


def _dense(x: Tensor) -> Tensor:
    result: Tensor = aten.clone(x, memory_format=torch.contiguous_format)
    return result


def _contiguous(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    result: Tensor = aten.clone(*args, **{"memory_format": torch.contiguous_format, **kwargs})
    return result


def _rms_norm(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    def parts(x: Tensor, shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None) -> Tensor:
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        mean = wide.pow(2).mean([*range(-len(shape), 0)], keepdim=True)
        result = wide * (mean + (torch.finfo(wide.dtype).eps if eps is None else eps)).rsqrt()
        return (result if weight is None else result * weight).to(x.dtype)

    return parts(*args, **kwargs)


_FOR_ALL_SIZES: dict[Any, Callable[..., Tensor]] = {
    # A transposed tensor of one row needs no copy. A copy is right for all.
    aten.contiguous.default: _contiguous,
    # PyTorch's own asks whether its input is laid out with channels last, which sizes of 1 answer otherwise.
    aten.rms_norm.default: _rms_norm,
}
"""Composites whose own parts depend on sizes, by parts that are right for all."""


def _call(op: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return op(*args, **kwargs)
