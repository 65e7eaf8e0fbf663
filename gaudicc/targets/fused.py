"""Which semantic ops of gaudicc have a fused kernel on the device; asked by the pass `lower-semantic-ops`.

Names and their use: HabanaAI/gaudi-pytorch-bridge 1.19.0, `hpu_ops/backend/`. Nothing is registered or called here:
mapping to `hpu::` happens in the runtime only.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from gaudicc.targets.model import Mode, Verdict
from gaudicc.targets.target import Target, op_name

if TYPE_CHECKING:
    import torch

FUSED = {
    "gaudicc::attention": "hpu::sdpa_recomp_fwd",
    "gaudicc::rms_norm": "hpu::rms_norm",
    "gaudicc::rotary": "hpu::rotary_pos_embedding",
    "gaudicc::moe": "hpu::mixture_of_experts.fused_weights",
    # One TPC node between the two products of an attention slice; docs/split_attention.md says which forms they cover.
    "gaudicc::softmax_tile": "hpu::scaled_masked_softmax",
    "gaudicc::softmax_part": "hpu::scaled_triangular_softmax_retain",
}


def fused_op(
    target: Target,
    op: object,
    mode: Mode = Mode.LAZY,
    *,
    dtypes: Iterable[torch.dtype | str] = (),
    symbolic: bool = False,
) -> tuple[str, Verdict] | None:
    """The fused kernel for a semantic op.

    Args:
        target: the chip.
        op: `gaudicc::attention` and the like, or its OpOverload.
        mode: the execution mode.
        dtypes: dtypes of the tensor operands; without them the kernel is at best presumed.
        symbolic: whether sizes are symbolic; in compile mode fused attention then leaves the cluster.

    Returns:
        The `hpu::` name and the target's verdict on it, or None when there is no fused kernel.
    """
    name = FUSED.get(op_name(op))
    if name is None:
        return None
    sizes = (("s",),) if symbolic else ((1,),)
    return name, target.lookup(name, dtypes, mode, sizes)
