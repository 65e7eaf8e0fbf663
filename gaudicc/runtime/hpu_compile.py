"""Eager and compile mode: every piece is compiled once through `hpu_backend`, weights are its inputs.

There is no graph object in this mode; what is replayed are the recipes that the bridge keeps for compiled clusters. Layers
with one body call one compiled function. Eager fallback is forbidden while compiling, and counted.
Source: HabanaAI/gaudi-pytorch-bridge 1.19.0, `dynamo/compile_backend/`; `PT_COMPILE_ONLY_MODE` as vLLM's port warms up.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx

from gaudicc.errors import LoweringError, Where
from gaudicc.runtime.graph_cache import out_of_memory_behind
from gaudicc.runtime.hpu_memory import held_bytes
from gaudicc.runtime.hpu_pieces import Call, DeviceProgram, Name, Piece
from gaudicc.runtime.hpu_workspace import input_bytes

OPTIONS: dict[str, Any] = {"use_eager_fallback": False}


class CompiledPiece:
    """One piece as a function that `torch.compile` compiles at its first call."""

    def __init__(self, piece: Piece) -> None:
        self.run: Callable[..., tuple[Any, ...]] = torch.compile(
            fx.GraphModule({}, piece.graph), backend="hpu_backend", fullgraph=True, dynamic=False, options=OPTIONS
        )


_COMPILED: weakref.WeakValueDictionary[Hashable, CompiledPiece] = weakref.WeakValueDictionary()
"""Structure of a piece -> its compiled function, shared by the recordings of all buckets and models."""


class CompiledProgram:
    """A program whose pieces are compiled; see `gaudicc.runtime.hpu.Captured`.

    Args:
        program: what to compile.
        bound: weights, state and constants on the device.
        inputs: the buffers that a launch reads.

    Raises:
        LoweringError: a piece cannot be compiled without eager fallback.
    """

    def __init__(
        self, program: DeviceProgram, bound: Mapping[Name, torch.Tensor], inputs: tuple[torch.Tensor, ...]
    ) -> None:
        before = held_bytes()
        self.inputs = inputs
        self._program = program
        self._bound: dict[Name, Any] = {**bound, **dict(zip(program.inputs, inputs, strict=True))}
        self._compiled = {piece: _known(piece) for piece in program.pieces}
        with _compiling_only():
            program.run(dict(self._bound), self._try)
        self.bytes_held = max(held_bytes() - before, 0) + input_bytes(program)

    @staticmethod
    def expected_bytes(program: DeviceProgram) -> int:
        """The input buffers; what is computed in between is given back after each launch."""
        return input_bytes(program)

    def launch(self) -> Mapping[Name, Any]:
        """Runs the compiled pieces."""
        values = dict(self._bound)
        self._program.run(values, lambda call, operands: tuple(self._compiled[call.piece].run(*operands)))
        return values

    def release(self) -> None:
        """Lets go of the compiled functions; recipes are the bridge's, which keeps them in a cache of its own."""
        self._compiled, self._bound = {}, {}

    def _try(self, call: Call, operands: list[Any]) -> tuple[Any, ...]:
        """Calls a piece so that no later call compiles. What it would write is memory that nobody reads.

        Raises:
            LoweringError: the backend refuses a node.
        """
        written = call.piece.written
        given = [
            torch.empty_like(value) if node in written else value
            for value, node in zip(operands, call.piece.operands, strict=True)
        ]
        try:
            return tuple(self._compiled[call.piece].run(*given))
        except (RuntimeError, NotImplementedError) as error:
            full = out_of_memory_behind(error)
            if full is not None:
                raise full from None
            raise LoweringError(
                f"hpu_backend refused: {_first(error)}",
                where=Where(module=call.piece.name, stage="compiling with hpu_backend"),
                hint="nothing of it stays: state is as it was",
            ) from error


def _known(piece: Piece) -> CompiledPiece:
    """A piece that another recording compiled, or a new one."""
    found = _COMPILED.get(piece.structure)
    if found is None:
        found = _COMPILED[piece.structure] = CompiledPiece(piece)
    return found


@contextmanager
def _compiling_only() -> Iterator[None]:
    """A block that compiles and launches nothing, in which no op may run on the host.

    Raises:
        LoweringError: ops ran on the host.
    """
    from habana_frameworks.torch.hpu.metrics import metric_localcontext
    from habana_frameworks.torch.internal import bridge_config

    with (
        metric_localcontext("cpu_fallback") as fallbacks,
        bridge_config.env_setting("PT_COMPILE_ONLY_MODE", True),
    ):
        yield
        ran = dict(fallbacks.stats())
    if ran.get("TotalNumber"):
        raise LoweringError(
            f"these ops ran on the host: {', '.join(ran['FallbackOps'])}",
            where=Where(stage="compiling with hpu_backend"),
            hint="gaudicc's table of this chip is wrong about them: give it an overlay that says so",
        )


def _first(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "fallback" in line), lines[0] if lines else type(error).__name__)
