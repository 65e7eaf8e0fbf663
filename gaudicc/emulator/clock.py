"""Modelled time: when the host and the chip would be where they are, had the program run on a Gaudi. Nothing is measured.

The host issues work and runs ahead; the chip takes it in order. Each constant is one of the machine model
(`gaudicc/machine`), so the program's own Python takes no time here, and a kernel of a fallback takes what its elements do.
"""

from __future__ import annotations

from gaudicc.machine import Chip, OpClass, OpWork, op_cost, record_cost


class Clock:
    """One time line of host and chip, in seconds from the start of the program.

    Args:
        chip: the machine.
        lazy: whether the host gathers ops, and does not send each alone.

    Attributes:
        busy: seconds for which the chip ran ops.
        issuing: seconds that the host took to gather and send them.
        waiting: seconds for which the host waited for the chip.
    """

    def __init__(self, chip: Chip, *, lazy: bool) -> None:
        self.chip, self._lazy = chip, lazy
        self.busy = self.issuing = self.waiting = 0.0
        self._host = self._device = 0.0

    @property
    def now(self) -> float:
        """When all that was issued so far is done."""
        return max(self._host, self._device)

    def issue(self, nodes: int) -> None:
        """The host gathers a graph of so many nodes and sends it; in eager mode one dispatch sends it."""
        host = self.chip.host
        self._issue(nodes * host.lazy_op_seconds if self._lazy else host.eager_op_seconds)

    def issue_replay(self, graphs: int) -> float:
        """The host sends recorded graphs; gives the seconds that takes."""
        seconds = graphs * self.chip.host.replay_seconds
        self._issue(seconds)
        return seconds

    def run(self, seconds: float) -> None:
        """The chip runs what was just sent, when it is free."""
        self._device = self.now + seconds
        self.busy += seconds

    def compile(self, nodes: int) -> float:
        """The host compiles a graph."""
        return self._spend(record_cost(nodes, self.chip).compile_seconds)

    def record(self, nodes: int) -> float:
        """The host records a graph."""
        return self._spend(record_cost(nodes, self.chip).capture_seconds)

    def wait(self) -> None:
        """The host waits until the chip is done."""
        self.waiting += self.now - self._host
        self._host = self.now

    def send(self, nbytes: int) -> float:
        """A copy to the device: the host is held up by it, and does not wait for the chip."""
        host = self.chip.host
        return self._spend(nbytes / host.pcie_bandwidth + host.transfer_latency)

    def fetch(self, nbytes: int) -> float:
        """A copy to the host, or a value read there: after all that was issued."""
        self.wait()
        return self.send(nbytes)

    def fall_back(self, elements: int, read_bytes: int, written_bytes: int) -> float:
        """An op on the host, after all that was issued: out, computed, and back."""
        self.wait()
        work = OpWork("fallback", OpClass.FALLBACK, "fp32", None, elements, read_bytes, written_bytes)
        return self._spend(op_cost(work, self.chip).seconds)

    def _issue(self, seconds: float) -> None:
        self.issuing += self._spend(seconds)

    def _spend(self, seconds: float) -> float:
        self._host += seconds
        return seconds
