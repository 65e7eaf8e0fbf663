"""Loops in a recording on the CPU: the body is a recording of its own, replayed once per trip.

What trips hand on lives in buffers of the loop. For the body they are state, so that a row of a large tensor is written in
place and the tensor is not copied in every trip.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count, takewhile
from typing import Any

import torch
from torch import fx

from gaudicc.graph_module import copy_graph
from gaudicc.nodes import outputs_of
from gaudicc.rewriter import drop_dead_nodes
from gaudicc.runtime.device import Segment

aten = torch.ops.aten


class Loop:
    """A call of `call_loop` in a flat graph, whose operands are `(trips, *operands)`.

    Args:
        body: takes the number of the trip, then the operands.
        limit: size of the stacks; None: trips are made while the first of the carried values is true.
        carried: how many of the operands a trip hands on.

    Attributes:
        bytes_held: bytes of its buffers and of the body's recording.
    """

    def __init__(self, body: fx.GraphModule, limit: int | None, carried: int) -> None:
        self.__name__ = "loop"
        self.bytes_held = 0
        self._body, self._limit, self._carried = body if limit is not None else _unguarded(body), limit, carried
        self._inputs = self._body.graph.find_nodes(op="placeholder")[1:]

    def record(self, make: Callable[[Segment], Any], known: dict[int, torch.Tensor]) -> None:
        """Records the body.

        Args:
            make: makes a recording.
            known: operands by position that never move.
        """
        number, *inputs = self._body.graph.find_nodes(op="placeholder")
        self._number = _storage(number.meta["val"])
        self._state = [_storage(node.meta["val"]) for node in inputs[: self._carried]]
        self._passed = [i for i in range(self._carried, len(inputs)) if i not in known]
        bound = {number.name: self._number}
        bound |= {node.name: buffer for node, buffer in zip(inputs, self._state, strict=False)}
        bound |= {inputs[i].name: tensor for i, tensor in known.items() if i >= self._carried}
        state = {node.name: i for i, node in enumerate(inputs[: self._carried])}
        self._recording = make(Segment(self._body, bound, state))
        rows = outputs_of(self._body.graph)[self._carried :]
        self._rows = [row.meta["val"] for row in rows]
        own = sum(buffer.numel() * buffer.element_size() for buffer in self._state)
        self.bytes_held = self._recording.bytes_held + own

    def __call__(self, trips: torch.Tensor | int | None, *operands: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Makes the trips; what it returns is fresh."""
        for buffer, value in zip(self._state, operands, strict=False):
            buffer.copy_(value)
        passed = [_laid_out(operands[i], self._inputs[i].meta["val"]) for i in self._passed]
        run, number, limit = self._recording.runner(), self._number, self._limit
        if limit is None:
            for trip in takewhile(lambda _: bool(self._state[0]), count()):
                number.fill_(trip)
                run(*passed)
            return tuple(buffer.clone() for buffer in self._state)
        stacks = [torch.zeros((limit, *row.shape), dtype=row.dtype) for row in self._rows]
        for trip in range(limit if trips is None else int(trips)):
            number.fill_(trip)
            for stack, row in zip(stacks, run(*passed), strict=True):
                stack[trip] = row
        return (*(buffer.clone() for buffer in self._state), *stacks)


def _unguarded(body: fx.GraphModule) -> fx.GraphModule:
    """The body of a loop that data ends, without what only matters where no trip follows: here it then does not run."""
    body = copy_graph(body)
    go = body.graph.find_nodes(op="placeholder")[1]
    for node in list(body.graph.nodes):
        if node.target in (aten.where.self, aten.logical_and.default) and node.args[0] is go:
            node.replace_all_uses_with(node.args[1])
            body.graph.erase_node(node)
    drop_dead_nodes(body.graph)
    body.recompile()
    return body


def _storage(value: torch.Tensor) -> torch.Tensor:
    return torch.empty(value.shape, dtype=value.dtype)


def _laid_out(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A value with the strides that the body was recorded for."""
    if value.stride() == like.stride():
        return value
    return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype).copy_(value)
