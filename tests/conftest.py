"""What every room's tests share: how hard hypothesis looks, and a small model with all that a Program can hold."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import Tensor, nn

# `ci` gives the same few examples every time; `thorough` looks for new ones. HYPOTHESIS_PROFILE=thorough chooses it.
settings.register_profile(
    "ci", max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "thorough", max_examples=1000, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


class Block(nn.Module):
    """One layer: `x + b(relu(a(norm(x))))`."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.a = nn.Linear(8, 16)
        self.b = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(torch.relu(self.a(self.norm(x))))
        return x + y


class Stack(nn.Module):
    """Identical layers, a head and, if asked for, a buffer that adds up what it saw."""

    def __init__(self, layers: int = 4, *, state: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(layers))
        self.head = nn.Linear(8, 4)
        self.seen: Tensor | None
        self.register_buffer("seen", torch.zeros(8) if state else None)

    def forward(self, x: Tensor) -> Tensor:
        if self.seen is not None:
            self.seen.add_(x.sum(0))
            x = x + self.seen
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.head(x)
        return out


@pytest.fixture(scope="session")
def make_stack() -> Callable[..., nn.Module]:
    """`make_stack(layers=4, state=False)`: the model in eval mode, the same weights every time."""

    def make(layers: int = 4, *, state: bool = False) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return Stack(layers, state=state).eval()

    return make
