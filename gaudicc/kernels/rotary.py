"""`gaudicc::rotary`: rotary position embedding, in halves or of neighbours."""

from __future__ import annotations

import torch
from torch import Tensor

from gaudicc.kernels.registry import define

aten = torch.ops.aten


def plain_rotary(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """The same in plain ATen, op for op as transformers' Llama (halves) and GPT-J (neighbours) write it."""
    last = x.dim() - 1
    width: int = x.shape[last]
    if interleaved:
        odd, even = aten.slice.Tensor(x, last, 1, width, 2), aten.slice.Tensor(x, last, 0, width, 2)
        turned = aten.view.default(aten.stack.default([aten.neg.default(odd), even], -1), list(x.shape))
    else:
        front, back = aten.slice.Tensor(x, last, 0, width // 2), aten.slice.Tensor(x, last, width // 2, width)
        turned = aten.cat.default([aten.neg.default(back), front], last)
    result: Tensor = aten.add.Tensor(aten.mul.Tensor(x, cos), aten.mul.Tensor(turned, sin))
    return result


rotary = define("rotary(Tensor x, Tensor cos, Tensor sin, bool interleaved) -> Tensor", plain_rotary, plain_rotary)
"""x * cos + turned(x) * sin, where each pair (a, b) of features is turned to (-b, a).

Args:
    x: `[..., dim]`, floating point; dim is even.
    cos: broadcastable to x, one number per feature.
    sin: likewise.
    interleaved: neighbours make a pair, not feature i and i + dim / 2.

Returns:
    Of x's shape, and of the dtype that the operands promote to.
"""
