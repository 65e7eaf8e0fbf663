"""`HPUGraph` and its context manager: one capture at a time, replays on constant addresses. Lazy mode only.

Source: HabanaAI/gaudi-pytorch-bridge 1.19.0, `hpu/graphs.py`, `backend/habana_device/HPUGraph.cpp`. The device lets a
second graph object begin while another one captures and mixes the two up; here that raises, as its documentation says.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Sequence

from torch import Tensor

from gaudicc.emulator.capture import Capture
from gaudicc.emulator.emulation import current
from gaudicc.emulator.ledger import Kind
from gaudicc.emulator.streams import Stream, StreamContext, current_stream
from gaudicc.emulator.tensor import HpuTensor


class HPUGraph:
    """Records work on the device and replays it.

    Every method raises RuntimeError where the device asserts: a capture within a capture, one that ends on another
    stream, a replay while capturing.
    """

    def __init__(self) -> None:
        self._capture: Capture | None = None
        self._stream: Stream | None = None
        self._marked = False

    def capture_begin(self, dry_run: bool = False) -> None:
        """Record from now on; what was gathered before runs first.

        Args:
            dry_run: launch nothing: results have no values before the first replay.
        """
        emulation = current()
        if emulation.capture is not None:
            raise RuntimeError("GRAPH:: graph Capture already in progress")
        emulation.acquire()
        emulation.flush()
        emulation.dynamic_shapes = False  # the device never turns it on again
        self._capture = emulation.capture = Capture(emulation.ledger, dry_run)
        self._stream = current_stream()

    def capture_end(self) -> None:
        """Stop recording; nothing happens if there is no capture."""
        emulation = current()
        if self._capture is None or emulation.capture is not self._capture:
            return
        if current_stream() != self._stream:
            raise RuntimeError("GRAPH:: Capture must end on the same stream it began on.")
        emulation.flush()
        emulation.capture = None
        self._capture.finish()
        seconds = emulation.clock.record(sum(price.nodes for price in self._capture.prices))
        emulation.ledger.add(Kind.CAPTURE, f"{len(self._capture.graphs)} sub-graphs", seconds=seconds)

    def replay(self, asynchronous: bool = False) -> None:
        """Run the recorded work again, on the captured memory."""
        self._run({})

    def replayV2(self, static_tlist: Sequence[Tensor], tlist: Sequence[Tensor], asynchronous: bool = False) -> None:
        """Run it with other tensors in place of captured ones."""
        self._run(_binding(static_tlist, tlist))

    def replayV3(self, tlistI: Sequence[Tensor], asynchronous: bool = False) -> None:
        """Run it with other tensors in place of the marked inputs, which must have the same sizes."""
        if self._capture is None:
            return
        marked = self._capture.user_inputs
        if any(old.shape != new.shape for old, new in zip(marked, tlistI, strict=False)):
            raise RuntimeError("HPU GRAPH:: Mark User Input Sizes is not same Replay Input Sizes")
        self._run(dict(zip(map(id, marked), map(_raw, tlistI), strict=False)))

    def mark_user_inputs(self, static_tlist: Sequence[Tensor]) -> None:
        """Name the tensors that `replayV3` replaces.

        Raises:
            RuntimeError: no capture is under way.
        """
        if self._capture is None or current().capture is not self._capture:
            raise RuntimeError("GRAPH:: mark_user_inputs must be while capturing in progress")
        self._capture.user_inputs = [_raw(tensor) for tensor in static_tlist]

    def mark_user_outputs(self, static_tlist: Sequence[Tensor]) -> None:
        """Name the results that are kept; all other results of the capture are freed."""
        if current().capture is not None:
            raise RuntimeError("GRAPH:: Capture in progress")
        if self._capture is None:
            return
        if self._marked:
            raise RuntimeError("Error:mark_user_outputs is called more than once for the same graph?")
        self._marked = True
        self._capture.keep_only(_raw(tensor) for tensor in static_tlist)

    def get_user_input_match_indices(self) -> set[int]:
        """Positions of the marked inputs that the graph reads."""
        return self._capture.matches() if self._capture is not None else set()

    def clear_inputs(self) -> None:
        """Lets go of inputs that the graph holds as outputs: memory only, and here none is held."""

    def reset(self) -> None:
        """Forget the recording; a capture under way ends."""
        emulation = current()
        if self._capture is not None and emulation.capture is self._capture:
            emulation.capture = None
        self._capture = None

    def __del__(self, finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if self._capture is not None and not finalizing():  # at the interpreter's end this module's names are gone
            self.reset()

    def _run(self, binding: dict[int, Tensor]) -> None:
        emulation = current()
        if emulation.capture is not None:
            raise RuntimeError("GRAPH:: Capture in progress")
        emulation.flush()
        if self._capture is not None and self._capture.graphs:
            seconds = emulation.clock.issue_replay(len(self._capture.prices))
            emulation.ledger.add(Kind.REPLAY, f"{len(self._capture.graphs)} sub-graphs", seconds=seconds)
            for price in self._capture.prices:
                emulation.run(price)
            self._capture.replay(emulation.judge.again, binding)


class graph:
    """Records a block into a graph, on a side stream.

    Args:
        hpu_graph: what records.
        stream: the stream, one shared side stream by default.
        dry_run: as for `capture_begin`.
    """

    default_capture_stream: Stream | None = None

    def __init__(self, hpu_graph: HPUGraph, stream: Stream | None = None, dry_run: bool = False) -> None:
        if graph.default_capture_stream is None:
            graph.default_capture_stream = Stream()
        self.hpu_graph, self.dry_run = hpu_graph, dry_run
        self.capture_stream = stream or graph.default_capture_stream
        self.stream_ctx = StreamContext(self.capture_stream)

    def __enter__(self) -> None:
        current().flush()
        gc.collect()
        self.stream_ctx.__enter__()
        self.capture_stream.is_capture = True
        self.hpu_graph.capture_begin(self.dry_run)

    def __exit__(self, *error: object) -> None:
        self.hpu_graph.capture_end()
        self.capture_stream.is_capture = False
        self.stream_ctx.__exit__(*error)


def is_current_stream_capturing() -> bool:
    """Whether a capture is under way."""
    return current().capture is not None


def _binding(old: Sequence[Tensor], new: Sequence[Tensor]) -> dict[int, Tensor]:
    return dict(zip((id(_raw(tensor)) for tensor in old), map(_raw, new), strict=True))


def _raw(tensor: Tensor) -> Tensor:
    return tensor.raw if isinstance(tensor, HpuTensor) else tensor
