"""Modules as authors write them: early exits, adaptive computation time, rows that are routed by data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.capture.strangers import Case, Inputs


class EarlyExit(nn.Module):
    """Leaves at the first layer that is sure of all rows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.heads = nn.ModuleList(nn.Linear(8, 5) for _ in range(3))

    def forward(self, x: Tensor) -> Any:
        for i, (layer, head) in enumerate(zip(self.layers, self.heads, strict=True)):
            x = x + torch.tanh(layer(x))
            chances = head(x).softmax(-1)
            if chances.max(-1).values.min() > 0.6:
                return chances, i
        return chances, len(self.layers)


class Halting(nn.Module):
    """Adaptive computation time: each row goes on until it has spent its share."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cell, self.halt = nn.Linear(8, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Any:
        h, spent, result = x, x.new_zeros(x.shape[0]), torch.zeros_like(x)
        steps = torch.zeros(x.shape[0], dtype=torch.long)
        while (spent < 0.99).any() and steps.max() < 12:
            h = torch.tanh(self.cell(h) + x)
            share = torch.sigmoid(self.halt(h)).squeeze(-1)
            goes_on = spent < 0.99
            weight = torch.where(spent + share >= 0.99, 1 - spent, share) * goes_on
            result = result + weight[:, None] * h
            spent, steps = spent + weight, steps + goes_on
        return result, steps


class Routed(nn.Module):
    """Each row through one of several branches."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gate = nn.Linear(8, 3)
        wide = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
        self.branches = nn.ModuleList([nn.Linear(8, 8), wide, nn.Identity()])

    def forward(self, x: Tensor) -> Tensor:
        result, route = torch.zeros_like(x), self.gate(x).argmax(-1)
        for i, branch in enumerate(self.branches):
            rows = (route == i).nonzero().squeeze(-1)
            if rows.numel() == 0:
                continue
            result[rows] = branch(x[rows])
        return result


class ExpertChoice(nn.Module):
    """Each expert takes the rows that want it most."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gate, self.weight = nn.Linear(8, 3), nn.Parameter(torch.randn(3, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        chances, capacity = self.gate(x).softmax(-1), max(1, 2 * x.shape[0] // 3)
        result = torch.zeros_like(x)
        for expert in range(3):
            share, rows = chances[:, expert].topk(capacity)
            result.index_add_(0, rows, share[:, None] * (x[rows] @ self.weight[expert]))
        return result


def rows(scale: float, count: int = 4) -> Inputs:
    return lambda: (torch.randn(count, 8) * scale,)


MODULES: dict[str, Case] = {
    "early_exit": (EarlyExit(), rows(1.0), [rows(scale) for scale in (0.1, 1.0, 5.0, 20.0)]),
    "halting": (Halting(), rows(1.0), [rows(scale) for scale in (0.1, 1.0, 9.0)]),
    "routed": (Routed(), rows(1.0), [rows(scale) for scale in (0.5, 1.0, 3.0)]),
    "expert_choice": (ExpertChoice(), rows(1.0), [rows(1.0), rows(3.0)]),
}
