"""Recurrent nets: what torch does otherwise for the key PrivateUse1 than for Gaudi's own.

Cells that it fuses for the one only are taken apart again. Packing a batch of sequences is torch's own code, which leaves the
sizes on the host.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor


def lstm_cell(
    gates: Tensor, hidden: Tensor, cell: Tensor, bias_in: Tensor | None = None, bias_hidden: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """One LSTM step from the two gate products; upstream has it fused for accelerators only."""
    total = gates + hidden
    for bias in (bias_in, bias_hidden):
        total = total if bias is None else total + bias
    enter, forget, new, out = total.chunk(4, 1)
    enter, forget, out = enter.sigmoid(), forget.sigmoid(), out.sigmoid()
    new = new.tanh()
    after = forget * cell + enter * new
    return out * after.tanh(), after, torch.cat([enter, forget, new, out], 1)


def gru_cell(
    gates: Tensor, hidden: Tensor, before: Tensor, bias_in: Tensor | None = None, bias_hidden: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One GRU step from the two gate products."""
    left = gates if bias_in is None else gates + bias_in
    right = hidden if bias_hidden is None else hidden + bias_hidden
    (r_in, z_in, n_in), (r_hidden, z_hidden, n_hidden) = left.chunk(3, 1), right.chunk(3, 1)
    reset, update = (r_in + r_hidden).sigmoid(), (z_in + z_hidden).sigmoid()
    new = (n_in + reset * n_hidden).tanh()
    return (before - new) * update + new, torch.cat([reset, update, new, before, n_hidden], 1)


_PACK = torch.ops.aten._pack_padded_sequence.default

PARTS: dict[Any, Callable[..., Any]] = {
    _PACK: partial(_PACK._op_dk, torch._C.DispatchKey.CompositeExplicitAutograd),
    torch.ops.aten._thnn_fused_lstm_cell.default: lstm_cell,
    torch.ops.aten._thnn_fused_gru_cell.default: gru_cell,
}
"""What runs on the device in place of an op that Gaudi never sees."""
