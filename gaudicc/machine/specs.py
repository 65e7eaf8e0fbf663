"""What a chip is made of: one frozen record per section of its JSON file, read by `chip`.

The units are those of the fields; every time is in seconds and every size in bytes unless the name says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class MmeSpec:
    """The matrix engines.

    The last three fields are what the vendor's predictor leaves out.

    Attributes:
        generation: 2 or 3: which geometry rules hold.
        engines: engines of the chip.
        line_bytes: bytes of one line of an engine's input buffer.
        memory_line_bytes: bytes of one line of memory.
        drain_floor: least cycles of a step: time to drain the accumulators.
        port_gigabytes: bandwidth of one input port, GB/s.
        dcores: clusters that the engines divide into.
        accumulators: output tiles an engine holds.
        buffer_lines: lines of the suspension buffer per port.
        max_reuse: longest reuse of a kept operand, steps.
        max_loop: longest hardware loop, steps.
        transpose_height: elements that a transpose engine delivers at once.
        macs_per_cycle: multiply-accumulates of all engines in a cycle, bf16.
        clock_mhz: clock, MHz.
        k_alignment: dtype -> elements to which K is aligned when it is cut.
        dtype_rate: dtype -> speed relative to bf16 at equal shape.
        sustained: fraction of the clock that a long run keeps.
    """

    generation: int
    engines: int
    line_bytes: int
    memory_line_bytes: int
    drain_floor: int
    port_gigabytes: float
    dcores: int
    accumulators: int
    buffer_lines: int
    max_reuse: int
    max_loop: int
    transpose_height: int
    macs_per_cycle: int
    clock_mhz: float
    k_alignment: Mapping[str, int] = field(hash=False)
    dtype_rate: Mapping[str, float] = field(hash=False)
    sustained: float

    def peak_flops(self, dtype: str) -> float:
        """Multiplications and additions a second at the nominal clock."""
        return 2 * self.macs_per_cycle * self.clock_mhz * 1e6 * self.dtype_rate[dtype]


@dataclass(frozen=True, slots=True)
class TpcSpec:
    """The vector engines.

    Attributes:
        engines: engines of the chip.
        vector_bytes: width of a vector.
        clock_mhz: clock, MHz.
        gather_efficiency: fraction of memory bandwidth that a gather of rows of at least one vector reaches.
        flops_per_element: `OpClass` name -> vector operations per element, a multiply-add counted as two.
    """

    engines: int
    vector_bytes: int
    clock_mhz: float
    gather_efficiency: float
    flops_per_element: Mapping[str, float] = field(hash=False)

    def peak_flops(self, element_bytes: int) -> float:
        """Operations a second on elements of this size, a multiply-add counted as two."""
        return 2 * self.engines * (self.vector_bytes // element_bytes) * self.clock_mhz * 1e6


@dataclass(frozen=True, slots=True)
class MemorySpec:
    """Off-chip and on-chip memory.

    Attributes:
        hbm_bytes: usable capacity.
        hbm_bandwidth: peak, bytes/s.
        hbm_efficiency: fraction of the peak that a stream reaches.
        cache_efficiency: fraction of such a stream that a batch of thin products reaches, as decode attention is.
        sram_bytes: on-chip capacity.
        sram_usable: fraction of it that buffers may take.
        sram_bandwidth: bytes/s.
        line_bytes: grain of an access.
    """

    hbm_bytes: float
    hbm_bandwidth: float
    hbm_efficiency: float
    cache_efficiency: float
    sram_bytes: float
    sram_usable: float
    sram_bandwidth: float
    line_bytes: int

    @property
    def stream(self) -> float:
        """Bytes a second that a stream from HBM reaches."""
        return self.hbm_bandwidth * self.hbm_efficiency

    @property
    def buffer_bytes(self) -> float:
        """Bytes of on-chip memory that buffers may take."""
        return self.sram_bytes * self.sram_usable


@dataclass(frozen=True, slots=True)
class DmaSpec:
    """The copy engines that the graph compiler may use.

    Attributes:
        bandwidth: of all engines together, bytes/s.
        minimum_seconds: least time of one activation.
    """

    bandwidth: float
    minimum_seconds: float


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """Links between the chips of one server.

    Attributes:
        link_bandwidth: one way, of one link, bytes/s.
        links_per_peer: links to each other chip of the server.
        efficiency: fraction of the bandwidth that a collective reaches.
        latency: fixed time of one collective, seconds per peer.
    """

    link_bandwidth: float
    links_per_peer: int
    efficiency: float
    latency: float


@dataclass(frozen=True, slots=True)
class HostSpec:
    """The host, and what the software adds to device time.

    Attributes:
        pcie_bandwidth: one way, bytes/s.
        transfer_latency: fixed time of one transfer between host and device, seconds.
        flops: what a CPU fallback computes, operations/s.
        replay_seconds: host time to replay one recorded graph.
        eager_op_seconds: host time of one op dispatched alone, in eager mode.
        lazy_op_seconds: host time of one op accumulated in lazy mode without a recorded graph.
        step_seconds: host time of one generation step. The device works under it from the second step on, so no step
            is shorter; before the first nothing runs.
        node_seconds: time an engine spends on starting one node.
        handoff_seconds: time between the end of an op and the start of one that reads its result.
        engine_overlap: part of the shorter engine's time that the graph compiler hides under the longer's.
        compile_seconds_per_node: graph compile time of one node.
        capture_seconds_per_node: time to record one node into a graph.
        graph_bytes_per_node: memory a recorded graph holds per node besides its buffers.
    """

    pcie_bandwidth: float
    transfer_latency: float
    flops: float
    replay_seconds: float
    eager_op_seconds: float
    lazy_op_seconds: float
    step_seconds: float
    node_seconds: float
    handoff_seconds: float
    engine_overlap: float
    compile_seconds_per_node: float
    capture_seconds_per_node: float
    graph_bytes_per_node: float
