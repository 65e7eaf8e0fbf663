"""torch's recurrent layers step by step: `nn.LSTM`, `nn.GRU` and `nn.RNN` over sequences whose length is no number.

torch takes such a layer apart into one group of ops for every step, so that a graph of it would hold for one length. Written as a
loop over a size it becomes a region that is called once per step, as a loop of the user's own does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Step = Callable[..., tuple[Tensor, ...]]
OfStep = tuple[Tensor, Tensor | None, Tensor | None]
"""Weights that a step applies to the hidden state: its own, their bias, the projection of the result."""


def _lstm(given: Tensor, weights: OfStep, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    """One step of an LSTM; `given` is what the input contributes to its gates."""
    i, f, g, o = (given + F.linear(h, weights[0], weights[1])).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    return (h if weights[2] is None else F.linear(h, weights[2])), c


def _gru(given: Tensor, weights: OfStep, h: Tensor) -> tuple[Tensor, ...]:
    r, z, n = given.chunk(3, -1)
    hr, hz, hn = F.linear(h, weights[0], weights[1]).chunk(3, -1)
    z, n = (z + hz).sigmoid(), (n + (r + hr).sigmoid() * hn).tanh()
    return ((h - n) * z + n,)


def _rnn_tanh(given: Tensor, weights: OfStep, h: Tensor) -> tuple[Tensor, ...]:
    return ((given + F.linear(h, weights[0], weights[1])).tanh(),)


def _rnn_relu(given: Tensor, weights: OfStep, h: Tensor) -> tuple[Tensor, ...]:
    return ((given + F.linear(h, weights[0], weights[1])).relu(),)


STEPS: dict[str, Step] = {"lstm": _lstm, "gru": _gru, "rnn_tanh": _rnn_tanh, "rnn_relu": _rnn_relu}
"""torch's name of a recurrence -> one step of it."""


def recurrence(
    name: str,
    x: Tensor,
    state: Tensor | Sequence[Tensor],
    weights: Sequence[Tensor],
    has_biases: bool,
    layers: int,
    dropout: float,
    training: bool,
    bidirectional: bool,
    batch_first: bool,
    lengths: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """All layers of a recurrence.

    Args:
        name: one of `STEPS`.
        x: `[batch, time, features]` if `batch_first`, else `[time, batch, features]`.
        state: `[layers * directions, batch, features]`; of an LSTM two.
        weights: flat, as torch's modules hand them over.
        has_biases: whether there are two biases after each two weights.
        layers: how many layers.
        dropout: not used: models are in evaluation mode.
        training: always False.
        bidirectional: whether every layer runs over the sequence from both ends.
        batch_first: see `x`.
        lengths: of each sequence of the batch, `[batch]`; what is behind it does not exist. None: all are as long as `x`.

    Returns:
        What the last layer gives, laid out as `x`, with 0 behind the end of a sequence, and the state after the last step.
    """
    states = [state] if isinstance(state, Tensor) else list(state)
    directions = 2 if bidirectional else 1
    each = len(weights) // (layers * directions)
    x = x.transpose(0, 1) if batch_first else x
    there = None if lengths is None else torch.arange(x.shape[0], device=x.device)[:, None, None] < lengths[:, None]
    last: list[tuple[Tensor, ...]] = []
    for layer in range(layers):
        found = []
        for direction in range(directions):
            place = layer * directions + direction
            own = weights[place * each : (place + 1) * each]
            y, *after = _run(STEPS[name], x, [part[place] for part in states], own, has_biases, direction == 1, there)
            found.append(y)
            last.append(tuple(after))
        x = torch.cat(found, -1) if bidirectional else found[0]
    return (x.transpose(0, 1) if batch_first else x), *(torch.stack(parts) for parts in zip(*last, strict=True))


def _run(
    step: Step,
    x: Tensor,
    state: Sequence[Tensor],
    weights: Sequence[Tensor],
    has_biases: bool,
    backwards: bool,
    there: Tensor | None,
) -> tuple[Tensor, ...]:
    """One layer in one direction: `[time, batch, features]`, then its state after the last step.

    Behind the end of a sequence its state stays: from the right, that is the first one until the sequence begins.
    """
    into, hidden = weights[:2]
    bias = weights[2] if has_biases else None
    projection = weights[-1] if len(weights) % 2 else None
    of_step = (hidden, weights[3] if has_biases else None, projection)
    given = F.linear(x, into, bias)
    y = given.new_zeros(x.shape[0], x.shape[1], state[0].shape[-1])
    h, c = state[0], state[-1]
    for t in reversed(range(x.shape[0])) if backwards else range(x.shape[0]):
        after = step(given[t], of_step, h, c) if step is _lstm else step(given[t], of_step, h)
        if there is None:
            y[t] = after[0]
            h, c = after[0], after[-1]
        else:
            y[t] = torch.where(there[t], after[0], 0)
            h, c = torch.where(there[t], after[0], h), torch.where(there[t], after[-1], c)
    return (y, h, c) if step is _lstm else (y, h)
