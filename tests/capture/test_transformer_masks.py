"""Masks of torch's own transformers: whether one is causal is not asked, which data would decide."""

from __future__ import annotations

import torch
from torch import nn
from torch.export import Dim

import gaudicc


class Model(nn.Module):
    """One layer of an encoder, with a mask for all rows."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 8), 1, enable_nested_tensor=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        length = x.shape[0]
        out: torch.Tensor = self.encoder(x, mask=torch.log(torch.tril(torch.ones(length, length))))
        return out


def test_masks_of_torchs_transformers() -> None:
    torch.manual_seed(0)
    model = Model().eval()
    shapes = {"x": {0: Dim("length", min=2, max=6)}}
    compiled = gaudicc.compile(model, (torch.randn(5, 2, 8),), dynamic_shapes=shapes, buckets=[{"length": 6}])
    for length in (5, 2, 4):
        x = torch.randn(length, 2, 8)
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)
