"""Loops over a dynamic size: where trips read and write, what they decide, and loops in loops."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.capture.looped import Looped, case, start
from tests.capture.looped_states import APART, CASES

__all__ = ["APART", "CASES"]


@case
def writes_part_of_a_row(self: Looped, x: Tensor) -> Any:
    y = torch.ones_like(x)
    for t in range(x.shape[1]):
        y[:, t, 1:3] = x[:, t, :2] * 2
    return y


@case
def counts_down(self: Looped, x: Tensor) -> Any:
    h, y = start(x), torch.zeros_like(x)
    for t in range(x.shape[1] - 1, -1, -1):
        h = torch.tanh(self.cell(x[:, t]) + h)
        y[:, t] = h
    return y


@case
def reversed_range(self: Looped, x: Tensor) -> Any:
    h, y = start(x), torch.zeros_like(x)
    for t in reversed(range(x.shape[1])):
        h = torch.tanh(self.cell(x[:, t]) + h)
        y[:, t] = h
    return y


@case
def reads_from_the_end(self: Looped, x: Tensor) -> Any:
    h, outputs = start(x), []
    for t in range(x.shape[1]):
        h = h * 0.5 + x[:, -1 - t]
        outputs.append(h)
    return torch.stack(outputs, 1)


@case
def starts_at_one(self: Looped, x: Tensor) -> Any:
    y = torch.zeros_like(x)
    y[:, 0] = x[:, 0]
    for t in range(1, x.shape[1]):
        y[:, t] = torch.tanh(y[:, t - 1]) + x[:, t]
    return y


@case
def every_other_step(self: Looped, x: Tensor) -> Any:
    h = start(x)
    for t in range(0, x.shape[1], 2):
        h = torch.tanh(h + x[:, t])
    return h


@case
def decides_on_the_step(self: Looped, x: Tensor) -> Any:
    h = start(x)
    for t in range(x.shape[1]):
        if t > 2:
            h = h + x[:, t]
        else:
            h = h - 2 * x[:, t]
            h = h * 0.5
    return h


@case
def decides_on_data(self: Looped, x: Tensor) -> Any:
    h = start(x)
    for t in range(x.shape[1]):
        if x[0, t].sum() <= 0:
            continue
        h = (h + x[:, t]) * 2
    return h


@case
def counts_in_arithmetic(self: Looped, x: Tensor) -> Any:
    h = start(x)
    for t in range(x.shape[1]):
        h = h + x[:, t] * t + (t + 1)
    return h


@case
def writes_through_views(self: Looped, x: Tensor) -> Any:
    y = x.clone()
    for t in range(x.shape[1]):
        y[:, t] += 1.0
        row = y[:, t]
        row.mul_(2.0)
        y.select(1, t)[:, 0].mul_(3.0)
    return y


@case
def sees_what_was_written(self: Looped, x: Tensor) -> Any:
    y = x.clone()
    for t in range(x.shape[1]):
        row = y[:, t]
        y[:, t] = row * 2
        y[:, t, 0] = row[:, 1]
    return y


@case
def row_of_the_outer_loop(self: Looped, x: Tensor) -> Any:
    y = x.clone()
    for b in range(x.shape[0]):
        row, h = y[b], x.new_zeros(4)
        for t in range(x.shape[1]):
            h = torch.tanh(h + x[b, t])
        row.mul_(2.0)
        y[b, 0] += h
    return y


@case
def writes_into_the_input(self: Looped, x: Tensor) -> Any:
    for t in range(x.shape[1]):
        x[:, t] = torch.tanh(x[:, t]) + t
    return x * 2


@case
def inner_loop_of_fixed_length(self: Looped, x: Tensor) -> Any:
    h = start(x)
    for t in range(x.shape[1]):
        for k in range(3):
            h = torch.tanh(h + x[:, t, k : k + 1])
    return h


@case
def loop_in_a_loop(self: Looped, x: Tensor) -> Any:
    y = torch.zeros_like(x)
    for b in range(x.shape[0]):
        h = x.new_zeros(4)
        for t in range(x.shape[1]):
            h = torch.tanh(self.cell(x[b, t]) + h)
            y[b, t] = h
    return y


@case
def steps_in_a_method(self: Looped, x: Tensor) -> Any:
    h = start(x)
    for t in range(x.shape[1]):
        h = self.step(x, h, t)
    return h


@case
def two_loops(self: Looped, x: Tensor) -> Any:
    h, outputs = start(x), []
    for t in range(x.shape[1]):
        h = torch.tanh(self.cell(x[:, t]) + h)
        outputs.append(h)
    y, g, back = torch.stack(outputs, 1), start(x), []
    for t in range(y.shape[1]):
        g = torch.tanh(self.cell(y[:, t]) + g)
        back.append(g)
    return torch.stack(back, 1)
