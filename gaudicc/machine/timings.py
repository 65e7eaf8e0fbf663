"""Short runs that each show one or two constants of a chip, timed by whoever has one, and what the model says of them.

`gaudicc doctor --collect` times them; `fit.fit_observations` fits the constants to them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gaudicc.machine.chip import Chip
from gaudicc.machine.cost import OpClass, OpWork
from gaudicc.machine.fit import Observation
from gaudicc.machine.gemm import Gemm
from gaudicc.machine.workload import Workload, record_cost, run_cost


@dataclass(frozen=True, slots=True)
class Timing:
    """One run.

    Attributes:
        kind: a key of `KINDS`.
        size: what varies: the rows of a square product, elements, bytes, or nodes; see `KINDS`.
        count: how often in a row.
        seconds: all of it.
    """

    kind: str
    size: int
    count: int
    seconds: float

    def observation(self) -> Observation:
        """The run as what `fit` takes."""
        constants, predict = KINDS[self.kind]
        return Observation(
            f"{self.kind} {self.size} x {self.count}", constants, self.seconds, lambda chip: predict(self, chip)
        )


def _gemm(timing: Timing, chip: Chip) -> float:
    size = timing.size
    work = OpWork("mm", OpClass.GEMM, "bf16", Gemm(size, size, size), 0, 4 * size * size, 2 * size * size)
    return run_cost(Workload.of([work], timing.count), chip).device_seconds


def _vector(timing: Timing, chip: Chip) -> float:
    moved = 4 * timing.size
    work = OpWork("neg", OpClass.ELEMENTWISE, "fp32", None, timing.size, moved, moved)
    return run_cost(Workload.of([work], timing.count), chip).device_seconds


def _replay(timing: Timing, chip: Chip) -> float:
    device = _vector(Timing("node", 1, timing.size, 0.0), chip)
    return timing.count * max(chip.host.replay_seconds, device)


def _send(timing: Timing, chip: Chip) -> float:
    return timing.count * (timing.size / chip.host.pcie_bandwidth + chip.host.transfer_latency)


def _compile(timing: Timing, chip: Chip) -> float:
    return timing.count * record_cost(timing.size, chip).compile_seconds


KINDS: dict[str, tuple[tuple[str, ...], Callable[[Timing, Chip], float]]] = {
    "node": (("host.handoff_seconds",), _vector),
    "stream": (("memory.hbm_efficiency",), _vector),
    "gemm": (("mme.sustained",), _gemm),
    "replay": (("host.replay_seconds",), _replay),
    "lazy op": (("host.lazy_op_seconds",), lambda timing, chip: timing.count * chip.host.lazy_op_seconds),
    "eager op": (("host.eager_op_seconds",), lambda timing, chip: timing.count * chip.host.eager_op_seconds),
    "send": (("host.transfer_latency", "host.pcie_bandwidth"), _send),
    "compile": (("host.compile_seconds_per_node",), _compile),
}
"""Kind -> (constants that it shows, what the model says), in the order in which they are fitted.

`node`: a chain of `count` negations of `size` elements, small; `stream`: the same, large; `gemm`: a chain of square products in
bfloat16; `replay`: a recorded chain of `size` nodes; `lazy op`, `eager op`: small ops sent without a recorded graph;
`send`: copies of `size` bytes to the device; `compile`: graphs of `size` nodes.
"""


def in_order(timings: list[Timing]) -> list[Observation]:
    """The runs as observations, in the order in which their constants are fitted."""
    order = list(KINDS)
    return [timing.observation() for timing in sorted(timings, key=lambda timing: order.index(timing.kind))]
