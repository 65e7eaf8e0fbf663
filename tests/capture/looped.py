"""Models that loop over a dynamic size, for the tests of time-step loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Forward = Callable[..., Any]
CASES: dict[str, Forward] = {}
APART: list[str] = []
REFUSED: dict[str, tuple[Forward, str]] = {}


class Looped(nn.Module):
    """A model with one cell, whose forward is a plain function of the tests; inputs are `[batch, steps, 4]`."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cell = nn.Linear(4, 4)
        self.seen: Tensor
        self.register_buffer("seen", torch.zeros(4))
        self.body = forward
        self.eval()

    def step(self, x: Tensor, h: Tensor, t: Any) -> Tensor:
        return torch.tanh(self.cell(x[:, t]) + h)

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)


def case(forward: Forward) -> Forward:
    CASES[forward.__name__] = forward
    return forward


def refused(why: str) -> Callable[[Forward], Forward]:
    def note(forward: Forward) -> Forward:
        REFUSED[forward.__name__] = forward, why
        return forward

    return note


def first_trip_apart(forward: Forward) -> Forward:
    """Right only where there always is a trip, which is traced by itself."""
    APART.append(forward.__name__)
    return case(forward)


def start(x: Tensor) -> Tensor:
    return x.new_zeros(x.shape[0], 4)
