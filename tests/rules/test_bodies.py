"""Bodies that a rewrite makes run inside layers, and are saved with them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

import gaudicc
from gaudicc.machine.attention import Split
from gaudicc.passes import DEFAULT_PIPELINE
from gaudicc.passes.split_attention import SplitAttention


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Layers(torch.nn.Module):
    """Two layers of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(Layer() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = torch.nn.Linear(64, 192)
        self.out = torch.nn.Linear(64, 64)
        self.norm = torch.nn.LayerNorm(64)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.project(self.norm(x)).split(64, -1)
        q, k, v = (part.view(*x.shape[:2], -1, 16).transpose(1, 2) for part in parts)
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = x + self.out(mixed.transpose(1, 2).reshape(x.shape))
        return out


def test_bodies_inside_layers_run_and_are_saved(tmp_path: Path) -> None:
    step = SplitAttention(force=Split(1, 128), body_slices=2)
    passes = [step if isinstance(entry, SplitAttention) else entry for entry in DEFAULT_PIPELINE]
    model, x = Layers().eval(), random(1, 256, 64)
    compiled = gaudicc.compile(model, (x,), device="cpu", passes=passes, verify="numerics")
    assert "attention_of_heads" in compiled.static_program().bodies
    with torch.no_grad():
        wanted = model(x)
    torch.testing.assert_close(compiled(x), wanted, rtol=1e-5, atol=1e-5)
    compiled.save(tmp_path / "model.zip")
    torch.testing.assert_close(gaudicc.load(tmp_path / "model.zip")(x), wanted, rtol=1e-5, atol=1e-5)
