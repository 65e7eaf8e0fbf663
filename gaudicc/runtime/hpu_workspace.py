"""Bytes that a recorded graph holds beside weights and state, from sizes alone.

Layers repeat, so a body is looked at once: the calls of one sub-graph are added up as if their bodies were one flat graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate, groupby

import torch
from torch import fx

from gaudicc.nodes import writes
from gaudicc.runtime.cpu_flatten import byte_extent
from gaudicc.runtime.hpu_pieces import Call, DeviceProgram, Name, Piece


def input_bytes(program: DeviceProgram) -> int:
    """Bytes of the buffers that a program reads its inputs from."""
    return sum(byte_extent(program.metas[name]) for name in program.inputs)


def workspace_bytes(program: DeviceProgram) -> int:
    """Bytes that running a program takes beside its inputs: what sub-graphs hand on, and the largest sub-graph.

    An estimate from sizes alone; the graph compiler may reuse memory better, or pad it.
    """
    bodies = {piece: _Body(piece) for piece in program.pieces}
    numbered = [(call, (call.subgraph, at if call.subgraph is None else None)) for at, call in enumerate(program.calls)]
    parts = [[call for call, _ in group] for _, group in groupby(numbered, key=lambda pair: pair[1])]
    wanted = {name for name in program.outputs if isinstance(name, Name)}
    handed = peak = 0
    for part in reversed(parts):
        results = [name for call in part for name in call.results if name in wanted and name in program.metas]
        handed += sum(byte_extent(program.metas[name]) for name in results)
        peak = max(peak, _peak(part, wanted, bodies))
        wanted.update(name for call in part for name in call.operands if isinstance(name, Name))
    return handed + peak


class _Body:
    """How many bytes one piece holds as it runs, whoever calls it.

    Attributes:
        ends: for each operand, the position of its last reader; behind all of them if it is a result too.
        results: bytes of each result, of one that is returned twice once.
    """

    def __init__(self, piece: Piece) -> None:
        order = list(piece.graph.nodes)
        last = {arg: at for at, node in enumerate(order) for arg in node.all_input_nodes}
        self.ends = [last.get(node, 0) for node in piece.operands]
        returned = [node if isinstance(node, fx.Node) else None for node in piece.results]
        self.results = [
            _made(node) if node is not None and node not in returned[:i] else 0 for i, node in enumerate(returned)
        ]
        kept = set(returned)
        gone = [
            sum(_made(arg) for arg in n.all_input_nodes if last[arg] == i and arg not in kept)
            for i, n in enumerate(order)
        ]
        came = [_made(node) for node in order]
        self._live = [
            total - freed for total, freed in zip(accumulate(came), accumulate(gone, initial=0), strict=False)
        ]
        self._peaks: dict[tuple[tuple[int, int], ...], int] = {}

    def peak(self, dying: tuple[tuple[int, int], ...]) -> int:
        """Most bytes at once, beside those there before; `(position, bytes)` of what is there and is read last by this body."""
        if dying not in self._peaks:
            freed = [0] * (len(self._live) + 1)
            for at, count in dying:
                freed[at + 1] += count
            self._peaks[dying] = max(live - less for live, less in zip(self._live, accumulate(freed), strict=False))
        return self._peaks[dying]


def _peak(part: list[Call], wanted: set[Name], bodies: Mapping[Piece, _Body]) -> int:
    """Most bytes of intermediate results at once in one sub-graph, each freed after its last use unless it is `wanted` later."""
    last = {name: at for at, call in enumerate(part) for name in call.operands if isinstance(name, Name)}
    here: dict[Name, int] = {}
    live = peak = 0
    for at, call in enumerate(part):
        body = bodies[call.piece]
        ends: dict[Name, int] = {}
        for name, end in zip(call.operands, body.ends, strict=True):
            if isinstance(name, Name) and name in here and name not in wanted and last[name] == at:
                ends[name] = max(end, ends.get(name, 0))
        peak = max(peak, live + body.peak(tuple(sorted((end, here[name]) for name, end in ends.items()))))
        here.update(zip(call.results, body.results, strict=True))
        unread = [name for name in call.results if name not in last and name not in wanted]
        live += sum(body.results) - sum(here[name] for name in (*ends, *unread))
    return peak


def _made(node: fx.Node) -> int:
    """Bytes that a call allocates: none for a view, nor for what is written in place."""
    value = node.meta.get("val")
    shares = getattr(node.target, "is_view", False) or writes(node)
    return byte_extent(value) if node.op == "call_function" and isinstance(value, torch.Tensor) and not shares else 0
