"""Lazy mode: a program is captured as one HPU graph and replayed on constant addresses.

Everything is uploaded and checked before the capture begins, for inside it a fallback is fatal and a crossing between
host and device splits the graph. The capture is a dry run, so that recording writes no state. `wrap_in_hpu_graph` is not
used: its key has no dtype, it has no bound, and it hashes Python numbers by value.
Source of the interface and its rules: HabanaAI/gaudi-pytorch-bridge 1.19.0, `hpu/graphs.py`, `HPUGraph.cpp`; docs.habana.ai,
"Inference Using HPU Graphs".
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import fx

from gaudicc.errors import GaudiccError, LoweringError, Where
from gaudicc.nodes import where
from gaudicc.runtime.graph_cache import is_out_of_memory
from gaudicc.runtime.hpu_memory import held_bytes
from gaudicc.runtime.hpu_pieces import Call, DeviceProgram, Name
from gaudicc.runtime.hpu_workspace import input_bytes, workspace_bytes


class CapturedGraph:
    """One HPU graph; see `gaudicc.runtime.hpu.Captured`.

    A sub-graph ends after each piece, so that layers with one body share a recipe; the host still replays once.

    Args:
        program: what to capture.
        bound: weights, state and constants on the device.
        inputs: the buffers that a replay reads.

    Raises:
        LoweringError: a call cannot be captured; nothing stays behind, and state is as it was.
    """

    def __init__(
        self, program: DeviceProgram, bound: Mapping[Name, torch.Tensor], inputs: tuple[torch.Tensor, ...]
    ) -> None:
        from habana_frameworks.torch import core
        from habana_frameworks.torch.hpu import graphs

        if graphs.is_current_stream_capturing():
            raise LoweringError(
                "another graph is being captured on this device", where=Where(stage="record"), hint="end it first"
            )
        self.inputs = inputs
        self._program = program
        self._values: dict[Name, Any] = {**bound, **dict(zip(program.inputs, inputs, strict=True))}
        before = held_bytes()
        self._graph = graphs.HPUGraph()
        core.mark_step()  # what was gathered before is no part of the capture
        try:
            with graphs.graph(self._graph, stream=_stream(), dry_run=True):
                program.run(self._values, _captured_call)
        except BaseException:
            self.release()
            raise
        self.bytes_held = max(held_bytes() - before, 0) + input_bytes(program)

    @staticmethod
    def expected_bytes(program: DeviceProgram) -> int:
        """Inputs, what pieces hand on, and the largest piece: a recorded graph keeps all of it."""
        return input_bytes(program) + workspace_bytes(program)

    def launch(self) -> Mapping[Name, Any]:
        """Replays it."""
        self._graph.replay()
        return self._values

    def release(self) -> None:
        """Forgets the recording and lets go of its memory."""
        self._graph.reset()
        self._values = {}


@cache
def _stream() -> Any:
    """The one stream that captures."""
    from habana_frameworks.torch import hpu

    return hpu.Stream()


def _captured_call(call: Call, operands: list[Any]) -> tuple[Any, ...]:
    from habana_frameworks.torch import core

    results = _Run(fx.GraphModule({}, call.piece.graph)).run(*operands)
    core.mark_step()
    return tuple(results)


class _Run(fx.Interpreter):
    """Runs a piece node by node, so that what fails is named."""

    def run_node(self, n: fx.Node) -> Any:
        """Runs one node.

        Raises:
            LoweringError: the device raised; says at which node.
        """
        try:
            return super().run_node(n)
        except GaudiccError:
            raise
        except (RuntimeError, NotImplementedError) as error:
            if is_out_of_memory(error):
                raise
            raise LoweringError(
                f"the capture failed: {str(error).splitlines()[0]}",
                where=where(n, "the capture of an HPU graph"),
                hint="nothing of it stays: state is as it was, and the call can be tried again",
            ) from error
