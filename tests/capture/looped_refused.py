"""Loops over a dynamic size that are no loop regions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.capture.looped import REFUSED, Looped, refused, start

__all__ = ["REFUSED"]


@refused("its trips append to a list")
def breaks_and_keeps_a_list(self: Looped, x: Tensor) -> Any:
    h, outputs = start(x), []
    for t in range(x.shape[1]):
        h = h + x[:, t]
        outputs.append(h)
        if h.sum() > 3:
            break
    return torch.stack(outputs, 1)


@refused("something else in other trips")
def grows(self: Looped, x: Tensor) -> Any:
    h = x[:, :0]
    for t in range(x.shape[1]):
        h = torch.cat([h, x[:, t : t + 1]], 1)
    return h


@refused("a length that differs from trip to trip")
def reads_up_to_the_step(self: Looped, x: Tensor) -> Any:
    h = start(x)
    for t in range(x.shape[1]):
        h = h + x[:, : t + 1].sum(1)
    return h


@refused("may have no element")
def reads_beyond_the_end(self: Looped, x: Tensor) -> Any:
    h = start(x)
    for t in range(x.shape[1]):
        h = h + x[:, t + 1]
    return h


@refused("one trip is shorter than the others")
def reads_windows_with_a_rest(self: Looped, x: Tensor) -> Any:
    h = start(x)
    for t in range(0, x.shape[1], 4):
        h = h + x[:, t : t + 4].sum(1)
    return h


@refused("may have no element")
def reads_a_dim_of_another_size(self: Looped, x: Tensor) -> Any:
    h = start(x)
    for t in range(x.shape[1]):
        h = h + self.cell.weight[t]
    return h


@refused("something else in other trips")
def reads_the_list(self: Looped, x: Tensor) -> Any:
    outputs = [x[:, 0]]
    for t in range(x.shape[1]):
        outputs.append(outputs[-1] + x[:, t])
    return torch.stack(outputs, 1)


@refused("writes in place to what it carries")
def writes_into_the_start(self: Looped, x: Tensor) -> Any:
    h = start(x)
    first = h
    for t in range(x.shape[1]):
        h.mul_(0.5)
        h = h + x[:, t]
    return h + first


@refused("draws random numbers")
def random(self: Looped, x: Tensor) -> Any:
    h = start(x)
    for t in range(x.shape[1]):
        h = h + torch.rand(4) * x[:, t]
    return h


@refused("used outside of it")
def row_of_the_outer_loop_that_the_inner_one_changes(self: Looped, x: Tensor) -> Any:
    y = x.clone()
    for b in range(x.shape[0]):
        row = y[b]
        for t in range(x.shape[1]):
            y[b, t] = x[b, t] * 2
        row.mul_(2.0)
    return y


@refused("goes on to change in place")
def appends_what_it_changes(self: Looped, x: Tensor) -> Any:
    h, outputs = start(x), []
    for t in range(x.shape[1]):
        h += x[:, t]
        outputs.append(h)
    return torch.stack(outputs, 1)


@refused("goes on to change in place")
def appends_rows_of_what_it_changes(self: Looped, x: Tensor) -> Any:
    y, outputs = x.clone(), []
    for t in range(x.shape[1]):
        y[:, t] = x[:, t] * 2
        outputs.append(y[:, 0])
    return torch.stack(outputs, 1)


@refused("a loop kept a part")
def changes_what_a_list_shows(self: Looped, x: Tensor) -> Any:
    y, outputs = x.clone(), []
    for t in range(x.shape[1]):
        row = y[:, t]
        outputs.append(row)
    y.mul_(2.0)
    return torch.stack(outputs, 1)


@refused("a loop kept a part")
def changes_the_last_item_of_a_list(self: Looped, x: Tensor) -> Any:
    h, outputs = start(x), []
    for t in range(x.shape[1]):
        h = h + x[:, t]
        outputs.append(h)
    h.mul_(2.0)
    return torch.stack(outputs, 1)


@refused("changes the shape of a tensor in place")
def reshapes_in_place(self: Looped, x: Tensor) -> Any:
    h = start(x)
    for t in range(x.shape[1]):
        h = h + x[:, t].unsqueeze_(0)[0]
    return h


@refused("as a plain number")
def counter_as_a_size(self: Looped, x: Tensor) -> Any:
    h = start(x)
    for t in range(x.shape[1]):
        h = h + torch.ones(t + 1).sum() * x[:, t]
    return h


@refused("length depends on data")
def list_goes_elsewhere(self: Looped, x: Tensor) -> Any:
    outputs = []
    for t in range(x.shape[1]):
        row = x[:, t]
        outputs.append(row)
    return torch.hstack(outputs)


@refused("no `for` statement")
def range_goes_elsewhere(self: Looped, x: Tensor) -> Any:
    return x[:, sorted(range(x.shape[1]))]
