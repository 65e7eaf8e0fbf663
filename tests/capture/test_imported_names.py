"""Functions of torch that decide on sizes are met under names that the model's module imported, too."""

from __future__ import annotations

import torch
from torch import squeeze
from torch.export import Dim
from torch.nn.functional import scaled_dot_product_attention

import gaudicc


def attends(q: torch.Tensor) -> torch.Tensor:
    return scaled_dot_product_attention(q, q, q, is_causal=q.shape[2] > 1)


def squeezes(q: torch.Tensor) -> torch.Tensor:
    return squeeze(q, 2)


def test_every_side_of_what_they_decide() -> None:
    for model in (attends, squeezes):
        shapes = {"q": {2: Dim("n", min=1, max=4)}}
        compiled = gaudicc.compile(model, (torch.randn(1, 2, 3, 4),), dynamic_shapes=shapes)
        for n in (1, 2, 4):
            q = torch.randn(1, 2, n, 4)
            torch.testing.assert_close(compiled(q), model(q))
    assert squeeze is torch.squeeze
