"""lower-semantic-ops: `gaudicc::` ops stay where the target has a fused kernel, and become plain ATen where it has none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from gaudicc.invariants import LOWERED, TYPED, WELL_FORMED, Invariant, verdict_of
from gaudicc.kernels import (
    attention,
    grouped_linear,
    merge_parts,
    moe,
    rms_norm,
    rotary,
    sink_attention,
    softmax_part,
    softmax_tile,
)
from gaudicc.kernels.attention import plain_attention, plain_sink_attention
from gaudicc.kernels.grouped import plain_grouped_linear
from gaudicc.kernels.moe import plain_moe
from gaudicc.kernels.norm import plain_rms_norm
from gaudicc.kernels.rotary import plain_rotary
from gaudicc.kernels.split import plain_merge_parts, plain_softmax_part, plain_softmax_tile
from gaudicc.nodes import is_op, op_name
from gaudicc.pipeline import GraphPass, Numerics
from gaudicc.program import Program
from gaudicc.rewriter import Rewriter
from gaudicc.rules.experts import lower_mixtures
from gaudicc.targets import Support

_PLAIN: dict[Any, Callable[..., Any]] = {
    attention: plain_attention,
    grouped_linear: plain_grouped_linear,
    moe: plain_moe,
    rms_norm: plain_rms_norm,
    rotary: plain_rotary,
    sink_attention: plain_sink_attention,
    softmax_tile: plain_softmax_tile,
    softmax_part: plain_softmax_part,
    merge_parts: plain_merge_parts,
}


@dataclass(frozen=True)
class LowerSemanticOps(GraphPass):
    """Lowers semantic ops by the target's table of fused kernels.

    `hpu::sdpa_recomp_fwd`, `hpu::rms_norm`, `hpu::rotary_pos_embedding` and `hpu::mixture_of_experts` are one node each for
    Gaudi's graph compiler; the runtime maps to them. What has no kernel becomes the matmuls and vector ops that it stands for.

        %26 = gaudicc.attention(%q, %k, %v, %m, False, 0.25)   ->   %5 = aten.matmul(%q, %kt); ...; %26 = aten.matmul(%9, %v)

    Refuses a semantic op without plain form.

    Attributes:
        fused: keep what has a fused kernel; False lowers everything.
    """

    fused: bool = True

    name: ClassVar[str] = "lower-semantic-ops"
    requires: ClassVar[frozenset[Invariant]] = frozenset({WELL_FORMED, TYPED})
    ensures: ClassVar[frozenset[Invariant]] = frozenset({LOWERED})
    numerics: ClassVar[Numerics] = Numerics.ROUNDING

    def rewrite(self, rewriter: Rewriter, program: Program) -> Iterator[str]:
        """One decision per op; each is a note."""
        counts: dict[str, int] = {}
        if mixtures := lower_mixtures(rewriter):
            counts["mixtures of experts lowered to plain ATen, each whole"] = mixtures
        for node in [n for n in rewriter.graph.nodes if is_op(n) and n.target.namespace == "gaudicc"]:
            kept = self.fused and verdict_of(node, program).support is not Support.NO
            if not kept:
                plain = rewriter.inline(_PLAIN[node.target], *node.args, like=node)
                rewriter.replace_outputs(node, plain) if isinstance(plain, tuple) else rewriter.replace(node, plain)
            note = f"{op_name(node)} {'kept for the fused kernel' if kept else 'lowered to plain ATen'}"
            counts[note] = counts.get(note, 0) + 1
        yield from (f"{note}, {count} times" for note, count in counts.items())
