"""Recurrent cells that torch fuses for the key PrivateUse1 but not for Gaudi's own, taken apart again."""

from __future__ import annotations

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


PARTS = {
    torch.ops.aten._thnn_fused_lstm_cell.default: lstm_cell,
    torch.ops.aten._thnn_fused_gru_cell.default: gru_cell,
}
"""What runs on the device in place of an op that Gaudi never sees."""
