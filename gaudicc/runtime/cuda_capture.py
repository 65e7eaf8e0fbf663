"""CUDA graphs that share one memory pool: captured one at a time on a stream of their own, replayed one at a time.

What a graph computes in between lies in the pool, in the same bytes for all graphs; what must outlive a replay does not.
All private torch names that the CUDA device uses are in this module.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch

from gaudicc.collector import collector_paused

# torch keeps asking a graph whose capture failed whether an allocation is its own, so such a graph must never die.
_FAILED: list[torch.cuda.CUDAGraph] = []


class GraphPool:
    """Captures and replays the CUDA graphs of one device.

    Attributes:
        place: the GPU.
        lock: held while a graph is captured or replayed.

    Args:
        place: the GPU, with its index.
    """

    def __init__(self, place: torch.device) -> None:
        self.place = place
        self.lock = threading.RLock()
        self._last: torch.cuda.Stream | None = None
        self._aside = torch.cuda.Stream(self.place)
        self._open()

    def _open(self) -> None:
        # The stream never runs anything but captures. So the workspace that cuBLAS has for it is allocated inside one, in
        # the pool, which lives as long as the graphs; torch.compile frees workspaces that lie elsewhere.
        self._stream = torch.cuda.Stream(self.place)
        self._pool = torch.cuda.graph_pool_handle()

    def warm(self, work: Callable[[], object]) -> None:
        """Runs `work` on a stream beside the current one: libraries and kernels must be loaded before a capture."""
        with self.lock:
            self._aside.wait_stream(torch.cuda.current_stream(self.place))
            with torch.cuda.stream(self._aside):
                work()
            torch.cuda.synchronize(self.place)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Records what `work` launches.

        Returns:
            Launches it again, on the current stream; the caller holds the lock and has called `take_turn`.
        """
        with self.lock:
            torch.cuda.synchronize(self.place)
            torch.cuda.empty_cache()  # what the warm-up used is given back, so that the pool can have it
            graph = torch.cuda.CUDAGraph()
            # What a collection frees on the GPU would become part of the capture, or spoil it.
            with torch.cuda.stream(self._stream), collector_paused():
                # Only what this thread does can spoil the capture: others go on allocating and reading.
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    work()
                except BaseException:
                    self._abandon(graph)
                    raise
                graph.capture_end()
            return graph.replay

    def _abandon(self, graph: torch.cuda.CUDAGraph) -> None:
        """Ends a capture in which something failed; the next one finds everything as if it had not been."""
        try:
            graph.capture_end()
        except RuntimeError:  # CUDA had ended it already; torch then leaves stream and pool half-way
            _end_allocation(self.place.index, self._pool)
            _FAILED.append(graph)
            self._open()

    def take_turn(self) -> None:
        """Makes the current stream wait for the stream of the replay before, for both use the same pool."""
        stream = torch.cuda.current_stream(self.place)
        if self._last is not None and stream != self._last:
            stream.wait_stream(self._last)
        self._last = stream

    @property
    def bytes_held(self) -> int:
        """Bytes of the pool, which all graphs share."""
        return sum(
            segment["total_size"]
            for segment in torch.cuda.memory_snapshot()
            if tuple(segment["segment_pool_id"]) == tuple(self._pool)
        )


def _end_allocation(index: int, pool: tuple[int, int]) -> None:
    """Takes the pool out of use for the capture that failed."""
    later, before = "_cuda_endAllocateToPool", "_cuda_endAllocateCurrentStreamToPool"  # until torch 2.7
    getattr(torch._C, later if hasattr(torch._C, later) else before)(index, pool)
