"""Loops over a dynamic size that a trip can leave, that count in Python, or that stand in a branch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.capture.looped import Looped, case, start
from tests.capture.looped_steps import APART, CASES

__all__ = ["APART", "CASES"]


@case
def breaks(self: Looped, x: Tensor) -> Any:
    h = start(x)
    for t in range(x.shape[1]):
        h = h + x[:, t]
        if h.sum() > 3:
            break
    return h


@case
def returns(self: Looped, x: Tensor) -> Any:
    h = start(x)
    for t in range(x.shape[1]):
        h = torch.tanh(self.cell(x[:, t]) + h)
        if h.amax() > 0.8:
            return h * t
    return h - 1


@case
def returns_at_once(self: Looped, x: Tensor) -> Any:
    h = start(x)
    for t in range(x.shape[1]):
        return h + x[:, t]
    return h


@case
def raises(self: Looped, x: Tensor) -> Any:
    h = start(x)
    for t in range(x.shape[1]):
        if x[:, t].sum() > 100:
            raise ValueError("too large")
        h = h + x[:, t]
    return h


@case
def in_a_branch(self: Looped, x: Tensor) -> Any:
    h = start(x)
    if x.sum() > 0:
        for t in range(x.shape[1]):
            h = h + x[:, t]
    return h


@case
def breaks_with_an_else(self: Looped, x: Tensor) -> Any:
    h, y = start(x), torch.zeros_like(x)
    for t in reversed(range(x.shape[1])):
        if x[:, t].amax() > 2:
            break
        h = h * 0.5 + x[:, t]
        y[:, t] = h
    else:
        h = -h
    return h, y


@case
def counts_in_python(self: Looped, x: Tensor) -> Any:
    h, n = start(x), 0
    for t in range(x.shape[1]):
        n = n + 2
        h = h + x[:, t] * n
    return h, h * n


@case
def counts_some_trips(self: Looped, x: Tensor) -> Any:
    h, n, largest = start(x), 0, -1.0
    for t in range(x.shape[1]):
        if x[:, t].sum() > 0:
            n += 1
            largest = max(largest, x[0, t, 0].item())
        h = h + x[:, t]
    return h / (n + 1) + largest


@case
def first_of_its_kind(self: Looped, x: Tensor) -> Any:
    found = -1
    for t, row in enumerate(x.unbind(1)):
        if row.sum() > 1:
            found = t
            break
    return x.sum((1, 2)) * found


@case
def decides_on_a_counter(self: Looped, x: Tensor) -> Any:
    h, n, kept = start(x), 0, start(x)
    for t in range(x.shape[1]):
        h = torch.tanh(self.cell(x[:, t]) + h)
        if n == 3:
            kept = h
        n = n + 1
    return h, kept


@case
def two_names_for_one_tensor(self: Looped, x: Tensor) -> Any:
    h = start(x)
    before = h
    for t in range(x.shape[1]):
        before = h
        h = torch.tanh(self.cell(x[:, t]) + h)
    return h, before
