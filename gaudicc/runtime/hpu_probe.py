"""Asks a device: does it run this op itself, and right? And how long do a few short runs take?

Lazy mode runs an op and looks at the metric of CPU fallbacks; eager and compile mode compiles it with eager fallback forbidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from gaudicc.runtime.hpu_compile import OPTIONS
from gaudicc.runtime.hpu_software import Software
from gaudicc.targets import Mode
from gaudicc.targets.calls import OpCall, tensors_in

RAN, FELL_BACK, RAISED, WRONG, CRASHED = "ran", "fell back", "raised", "wrong", "crashed"
OUTCOMES = (RAN, FELL_BACK, RAISED, WRONG, CRASHED)
_TOLERANCE = {torch.bfloat16: 3e-2, torch.float32: 1e-3}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a call.

    Attributes:
        what: one of `OUTCOMES`.
        error: largest relative difference to the CPU; 0 where values are not compared.
        detail: the first line of what was raised.
    """

    what: str
    error: float = 0.0
    detail: str = ""


def try_call(call: OpCall, expected: tuple[Tensor, ...], *, compare: bool, mode: Mode) -> Outcome:
    """Run a call on the device.

    Args:
        call: on CPU tensors.
        expected: what it gives on the CPU.
        compare: whether its values are the same every time.
        mode: the execution mode of this process.
    """
    on_device = call.map(lambda leaf: leaf.to("hpu") if isinstance(leaf, Tensor) else leaf)
    try:
        with torch.no_grad(), counting("cpu_fallback") as fallbacks:
            found = [tensor.cpu() for tensor in tensors_in(_run(on_device, mode))]
            fell_back = fallbacks()["TotalNumber"] > 0
    except Exception as error:  # whatever the device's software raises is what is asked for
        return Outcome(RAISED, detail=" ".join(str(error).split("\n")[:2])[:200] or type(error).__name__)
    if fell_back:
        return Outcome(FELL_BACK)
    off = max(map(_difference, found, expected), default=0.0) if compare else 0.0
    tolerance = max(_TOLERANCE.get(tensor.dtype, 0.0) for tensor in expected)
    return Outcome(RAN if off <= tolerance else WRONG, off)


@contextmanager
def counting(metric: str) -> Iterator[Callable[[], dict[str, Any]]]:
    """A block in which a metric of the device's software counts from 0; gives what reads its figures."""
    from habana_frameworks.torch.hpu.metrics import metric_localcontext

    with metric_localcontext(metric) as counted:
        yield lambda: dict(counted.stats())


def _run(call: OpCall, mode: Mode) -> object:
    if mode is Mode.LAZY:
        return call.run()
    torch.compiler.reset()
    graph, tensors = fx.Graph(), call.tensors()
    nodes = {id(tensor): graph.placeholder(f"operand_{at}") for at, tensor in enumerate(tensors)}
    traced: Any = call.map(lambda leaf: nodes.get(id(leaf), leaf))
    graph.output(graph.call_function(call.op, traced.args, dict(traced.kwargs)))
    compiled = torch.compile(
        fx.GraphModule({}, graph), backend="hpu_backend", fullgraph=True, dynamic=False, options=OPTIONS
    )
    found: object = compiled(*tensors)
    return found


def _difference(found: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest finite value; infinite where form, or places of nan and inf, differ."""
    if found.shape != expected.shape or found.dtype.is_floating_point != expected.dtype.is_floating_point:
        return float("inf")
    one, other = found.double(), expected.double()
    if not torch.equal(one.isfinite(), other.isfinite()) or not torch.equal(one.isnan(), other.isnan()):
        return float("inf")
    one, other = (each[each.isfinite()] for each in (one, other))
    if not one.numel():
        return 0.0
    return float((one - other).abs().max() / other.abs().max().clamp(min=1e-6))


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large the timed runs are; the kinds are those of `gaudicc.machine.timings`.

    Attributes:
        gemms: rows of square products; with fewer than 1200 memory decides, not the MME.
        products: of each, one after the other.
        streams: elements of large vectors.
        copies: bytes of copies to the device.
        count: of everything small.
    """

    gemms: tuple[int, ...] = (2048, 4096)
    products: int = 8
    streams: tuple[int, ...] = (1 << 26,)
    copies: tuple[int, ...] = (4, 1 << 26)
    count: int = 20


def timings(software: Software, sizes: Sizes) -> Iterator[tuple[str, int, int, float]]:
    """Time short runs.

    Args:
        software: what is here.
        sizes: how large the runs are.

    Yields:
        Kind, size, count and seconds.
    """
    count = sizes.count
    small = torch.ones(1024, device="hpu")
    for size in sizes.copies:
        yield "send", size, count, _elapsed(partial(_send, torch.zeros(size // 4), count))
    if software.mode is not Mode.LAZY:
        yield "eager op", 0, count, _more(lambda times: partial(_negate, small, times), count)
        return
    yield from _compiles(small)
    yield "lazy op", 0, count, _more(lambda times: partial(_negate, small, times), count)
    replay = _recorded(torch.neg, small, 2)
    yield "replay", 2, count, _more(lambda times: partial(_repeat, replay, times), count)
    yield "node", 1024, 50 * count, _more(partial(_recorded, torch.neg, small), 50 * count)
    for size in sizes.streams:
        yield "stream", size, 4, _more(partial(_recorded, torch.neg, torch.ones(size, device="hpu")), 4)
    for size in sizes.gemms:  # a chain: no product is like another, so no compiler leaves one out
        square = torch.full((size, size), 1 / size, dtype=torch.bfloat16, device="hpu")
        chain = partial(_recorded, partial(torch.mm, square), square)
        yield "gemm", size, sizes.products, _more(chain, sizes.products)


def _send(source: Tensor, count: int) -> None:
    for _ in range(count):
        source.to("hpu")


def _repeat(run: Callable[[], object], times: int) -> None:
    for _ in range(times):
        run()


def _negate(tensor: Tensor, count: int) -> Tensor:
    for _ in range(count):
        tensor = tensor.neg()
    return tensor


def _compiles(small: Tensor) -> Iterator[tuple[str, int, int, float]]:
    """What the metric says of compiling a graph of new ops, in microseconds."""
    with counting("graph_compilation") as compilation:
        _negate(small.view(32, 32), 40).cpu()
        found = compilation()
    if found["TotalTime"]:
        yield "compile", 40, 1, found["TotalTime"] * 1e-6


def _recorded(step: Callable[[Tensor], Tensor], tensor: Tensor, times: int) -> Callable[[], object]:
    """The replay of an HPU graph of a step done so many times, each on the result of the one before."""
    from habana_frameworks.torch import hpu

    graph: Any = hpu.HPUGraph()
    with hpu.graph(graph):
        for _ in range(times):
            tensor = step(tensor)
    graph.kept = tensor  # results live as long as the graph
    replay: Callable[[], object] = graph.replay
    return replay


def _more(make: Callable[[int], Callable[[], object]], count: int) -> float:
    """Seconds that `count` more steps take: whatever is paid once for a run cancels out."""
    return max(_elapsed(make(2 * count)) - _elapsed(make(count)), 1e-9)


def _elapsed(run: Callable[[], object]) -> float:
    """Seconds between two events around a second run; the first one compiles."""
    from habana_frameworks.torch import hpu

    run()
    hpu.synchronize()
    begin, end = hpu.Event(enable_timing=True), hpu.Event(enable_timing=True)
    begin.record()
    run()
    end.record()
    hpu.synchronize()
    return float(begin.elapsed_time(end)) * 1e-3
