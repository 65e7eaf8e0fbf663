"""Loops over a dynamic size: what trips hand on, and what they collect."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.capture.looped import APART, CASES, Looped, case, first_trip_apart, start

__all__ = ["APART", "CASES"]


@case
def recurrent_cell(self: Looped, x: Tensor) -> Any:
    h, outputs = start(x), []
    for t in range(x.shape[1]):
        h = torch.tanh(self.cell(x[:, t]) + h)
        outputs.append(h)
    return torch.stack(outputs, dim=1), h


@case
def selective_scan(self: Looped, x: Tensor) -> Any:
    decay, inputs = torch.sigmoid(x)[..., None], x[..., None] * torch.ones(3)
    state, outputs = x.new_zeros(x.shape[0], 4, 3), []
    for t in range(x.shape[1]):
        state = decay[:, t] * state + inputs[:, t]
        outputs.append(torch.matmul(state, x[:, t, :3].unsqueeze(-1))[:, :, 0])
    return torch.stack(outputs, dim=-1)


@case
def writes_rows(self: Looped, x: Tensor) -> Any:
    h, y = start(x), torch.zeros_like(x)
    for t in range(x.size(1)):
        h = torch.tanh(self.cell(x[:, t]) + h)
        y[:, t] = h
    return y


@case
def two_states(self: Looped, x: Tensor) -> Any:
    h, c = start(x), x.new_ones(x.shape[0], 4)
    for t in range(x.size(1)):
        gate, new = torch.sigmoid(self.cell(x[:, t])), torch.tanh(x[:, t] + h)
        c = c * gate + new * (1 - gate)
        h = torch.tanh(c)
    return h, c


@case
def two_rows_a_trip(self: Looped, x: Tensor) -> Any:
    h, outputs, nothing = start(x), [], list[None]()
    for t in range(x.shape[1]):
        h = torch.tanh(self.cell(x[:, t]) + h)
        outputs.append(h)
        outputs.append(h * 2)
        nothing.append(None)
    return torch.stack(outputs, dim=1), torch.cat(outputs, dim=1), outputs[-1]


@case
def token_shift(self: Looped, x: Tensor) -> Any:
    before, outputs = start(x), []
    for t in range(x.shape[1]):
        outputs.append(x[:, t] - before)
        before = x[:, t]
    return torch.stack(outputs, 1), before


@case
def swapped_states(self: Looped, x: Tensor) -> Any:
    a, b = start(x), x.new_ones(x.shape[0], 4)
    for t in range(x.size(1)):
        a, b = b, a + x[:, t]
    return a, b


@case
def state_in_a_tuple(self: Looped, x: Tensor) -> Any:
    state = (start(x), x.new_ones(x.shape[0], 4))
    for t in range(x.size(1)):
        h, c = state
        state = (torch.tanh(h + x[:, t]), c * 0.5 + h)
    return state[0] + state[1]


@case
def state_in_a_list(self: Looped, x: Tensor) -> Any:
    states = [start(x), start(x)]
    for t in range(x.size(1)):
        for layer in range(2):
            states[layer] = torch.tanh(states[layer] + x[:, t] + layer)
    return states[0], states[1]


@case
def state_in_an_attribute(self: Looped, x: Tensor) -> Any:
    self.h = start(x)
    for t in range(x.shape[1]):
        self.h = self.h * 0.5 + x[:, t]
    return self.h


@case
def state_in_a_buffer(self: Looped, x: Tensor) -> Any:
    for t in range(x.shape[1]):
        self.seen += x[:, t].sum(0)
    return self.seen.clone()


@case
def joins_slices(self: Looped, x: Tensor) -> Any:
    outputs = []
    for t in range(x.shape[1]):
        row = self.cell(x[:, t : t + 1])
        outputs.append(row)
    return torch.cat(outputs, dim=1)


@case
def rows_one_by_one(self: Looped, x: Tensor) -> Any:
    h, outputs = start(x), []
    for row in x.unbind(1):
        h = torch.tanh(self.cell(row) + h)
        outputs.append(h)
    return torch.stack(outputs, 1)


@case
def rows_with_numbers(self: Looped, x: Tensor) -> Any:
    h = start(x)
    for t, row in enumerate(x.transpose(0, 1)):
        h = torch.tanh(row * (t + 1) + h)
    return h


@case
def comprehension(self: Looped, x: Tensor) -> Any:
    return torch.stack([self.cell(x[:, t]) * 2 for t in range(x.shape[1])], 1)


@case
def list_that_is_not_empty_before(self: Looped, x: Tensor) -> Any:
    h = start(x)
    outputs = [h]
    for t in range(x.shape[1]):
        h = h + x[:, t]
        outputs.append(h)
    return torch.stack(outputs, 1)


@case
def last_item_and_length(self: Looped, x: Tensor) -> Any:
    outputs = []
    for t in range(x.shape[1]):
        row = x[:, t] * 2
        outputs.append(row)
    return outputs[-1] * len(outputs)


@case
def mixes_steps_afterwards(self: Looped, x: Tensor) -> Any:
    outputs = []
    for t in range(x.shape[1]):
        total = x[:, t].sum(-1)
        outputs.append(total)
    return torch.stack(outputs, -1).softmax(-1)


@first_trip_apart
def first_trip_differs(self: Looped, x: Tensor) -> Any:
    h = None
    for t in range(x.shape[1]):
        h = x[:, t] if h is None else h + x[:, t]
    return h


@first_trip_apart
def variable_of_a_trip_afterwards(self: Looped, x: Tensor) -> Any:
    h = start(x)
    for t in range(x.shape[1]):
        row = x[:, t]
        h = h + row
    return h + row


@first_trip_apart
def looks_at_the_list(self: Looped, x: Tensor) -> Any:
    outputs: list[Tensor] = []
    for t in range(x.shape[1]):
        outputs.append(x[:, t] * (2.0 if len(outputs) == 0 else 3.0))
    return torch.stack(outputs, 1)


@first_trip_apart
def changes_dtype(self: Looped, x: Tensor) -> Any:
    h = start(x)
    for t in range(x.shape[1]):
        h = (h + x[:, t]).double()
    return h
