"""`habana_frameworks.torch.hpex.kernels.FusedSDPA` and `.Fp8FusedSDPA`: the forms in which fused attention takes grouped heads.

Source: HabanaAI/gaudi-pytorch-bridge 1.19.0, `hpex/kernels/FusedSDPA.py`.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["gqa_input_reshape_fwd", "gqa_output_reshape", "is_gqa"]


def is_gqa(q: Tensor, k: Tensor) -> bool:
    """Whether there are fewer key heads than query heads, and more than one."""
    return q.dim() == 4 and q.shape[1] != k.shape[1] and k.shape[1] != 1


def gqa_input_reshape_fwd(
    q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Query heads of a group beside each other, key/value heads with one head to a group.

    Args:
        q: `[batch, heads, rows, dim]`.
        k: `[batch, groups, keys, dim]`.
        v: like k.
        attention_mask: `[batch, heads or 1, rows, keys]`, or None.

    Returns:
        q `[batch, groups, heads / groups, rows, dim]`; k and v `[batch, groups, 1, keys, dim]`; the mask in five dims.
    """
    heads, groups = q.shape[1], k.shape[1]
    if attention_mask is not None:
        whole = attention_mask.dim() == 4 and attention_mask.shape[1] == heads
        attention_mask = (
            attention_mask.unflatten(1, (groups, heads // groups)) if whole else attention_mask.unsqueeze(1)
        )
    return q.unflatten(1, (groups, heads // groups)), k.unsqueeze(2), v.unsqueeze(2), attention_mask


def gqa_output_reshape(tensor: Tensor) -> Tensor:
    """`[batch, groups, heads / groups, rows, dim]` back to `[batch, heads, rows, dim]`."""
    return tensor.flatten(1, 2)
