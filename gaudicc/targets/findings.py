"""What stands between a captured graph and the device: op by op, with source lines; the command `check` renders it.

Nothing is run or computed: fake values are read.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from torch import fx
from torch._ops import HigherOrderOperator, OpOverload

from gaudicc.nodes import source_of
from gaudicc.targets.calls import OpCall, example_size, judge_call, tensors_in
from gaudicc.targets.dtypes import COMPLEX, code
from gaudicc.targets.model import Engine, Mode, Support, Verdict
from gaudicc.targets.target import HOST, Target, op_name

HAZARDS = frozenset({"f64", "i64"}) | COMPLEX
SEMANTIC = "gaudicc::"
CONTROL_FLOW = frozenset({"cond", "while_loop", "scan", "associative_scan", "map_impl"})


@dataclass(frozen=True, slots=True)
class Finding:
    """One op with one verdict, over all its calls.

    Attributes:
        op: `aten::mm`.
        count: calls per call of the model; a region counts once per call site.
        sources: the user's lines, `file:line`, sorted.
        support: the four-valued answer, as its word.
        engine: the unit that runs it.
        reason: why, in one sentence.
        evidence: the files or reports behind it.
        release: the software release they speak of.
        hazards: 64-bit and complex dtypes among operands and results, sorted.
        dynamic: data-dependent constructs: `output size or host read`, `control flow`, `size read from data`.
        host_bytes: bytes that eager fallback would move per call of the model (operands and results); 0 for an op the
            device runs; None when a size is unknown. Symbolic sizes count with their example value.
    """

    op: str
    count: int
    sources: tuple[str, ...]
    support: str
    engine: str
    reason: str
    evidence: str
    release: str
    hazards: tuple[str, ...]
    dynamic: tuple[str, ...]
    host_bytes: int | None

    @property
    def legal(self) -> bool:
        """Whether the op may stand in a recorded graph."""
        return self.support == Support.EVIDENCED.value

    def as_json(self) -> dict[str, object]:
        """Plain data for `json.dumps`."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Site:
    """One call of one op."""

    op: str
    times: int
    source: str | None
    verdict: Verdict
    hazards: frozenset[str]
    dynamic: str | None
    host_bytes: int | None


def find(graph: fx.GraphModule, target: Target, mode: Mode = Mode.LAZY) -> list[Finding]:
    """List every op of a graph with the target's verdict.

    Args:
        graph: ATen calls with `meta["val"]`; region bodies and branches are entered.
        target: the chip.
        mode: the execution mode.

    Returns:
        One finding per op and verdict, the worst support first, then by count and name.
    """
    groups: dict[tuple[str, str], list[_Site]] = {}
    for site in _sites(graph, target, mode, 1):
        groups.setdefault((site.op, site.verdict.reason), []).append(site)
    findings = [_finding(sites) for sites in groups.values()]
    return sorted(findings, key=lambda each: (-Support(each.support).rank, -each.count, each.op, each.reason))


def _finding(sites: list[_Site]) -> Finding:
    first = sites[0]
    sizes = [None if site.host_bytes is None else site.times * site.host_bytes for site in sites]
    return Finding(
        op=first.op,
        count=sum(site.times for site in sites),
        sources=tuple(sorted({site.source for site in sites if site.source})),
        support=first.verdict.support.value,
        engine=first.verdict.engine.value,
        reason=first.verdict.reason,
        evidence=first.verdict.source,
        release=first.verdict.release,
        hazards=tuple(sorted(frozenset().union(*(site.hazards for site in sites)))),
        dynamic=tuple(sorted({site.dynamic for site in sites if site.dynamic})),
        host_bytes=None if None in sizes else sum(size for size in sizes if size is not None),
    )


def _sites(graph: fx.GraphModule, target: Target, mode: Mode, times: int) -> Iterator[_Site]:
    calls: Counter[str] = Counter()
    for node in graph.graph.nodes:
        if node.op != "call_function":
            continue
        calls.update(name for name in _attributes(node) if isinstance(getattr(graph, name, None), fx.GraphModule))
        if isinstance(node.target, OpOverload) and op_name(node.target) not in HOST:
            yield _site(node, target, mode, times)
        elif isinstance(node.target, HigherOrderOperator):
            yield _higher_order(node, times)
    for name, sites in calls.items():
        yield from _sites(getattr(graph, name), target, mode, times * sites)


def _attributes(node: fx.Node) -> Iterator[str]:
    """Names of the attributes that a node reads: a region body, or the branches of a higher-order op."""
    return (str(read.target) for read in node.all_input_nodes if read.op == "get_attr")


def _site(node: fx.Node, target: Target, mode: Mode, times: int) -> _Site:
    op = node.target
    assert isinstance(op, OpOverload)
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda arg: arg.meta.get("val"))
    call = OpCall(op, args, kwargs)
    verdict = judge_call(target, call, mode)
    tensors = [*call.tensors(), *tensors_in(node.meta.get("val"))]
    on_device = verdict.support in (Support.EVIDENCED, Support.PRESUMED) or op_name(op).startswith(SEMANTIC)
    return _Site(
        op=op_name(op),
        times=times,
        source=source_of(node),
        verdict=verdict,
        hazards=HAZARDS.intersection(code(tensor.dtype) for tensor in tensors),
        dynamic=_dynamic(node, verdict),
        host_bytes=0 if on_device else _bytes(tensors),
    )


def _higher_order(node: fx.Node, times: int) -> _Site:
    control_flow = str(node.target) in CONTROL_FLOW
    what = "control flow: the pass eliminate-control-flow" if control_flow else "a higher-order op: capture"
    reason = f"{node.target} is {what} must remove it"
    verdict = Verdict(Support.NO, Engine.UNKNOWN, reason, "gaudicc", "any", dynamic=control_flow)
    dynamic = "control flow" if control_flow else None
    return _Site(str(node.target), times, source_of(node), verdict, frozenset(), dynamic, None)


def _dynamic(node: fx.Node, verdict: Verdict) -> str | None:
    if verdict.dynamic:
        return "output size or host read"
    free = torch.fx.experimental.symbolic_shapes.free_unbacked_symbols
    unbacked = any(free(tensor) for tensor in tensors_in(node.meta.get("val")))
    return "size read from data" if unbacked else None


def _bytes(tensors: list[torch.Tensor]) -> int | None:
    sizes = [_numel(tensor) for tensor in tensors]
    if None in sizes:
        return None
    return sum(size * tensor.element_size() for size, tensor in zip(sizes, tensors, strict=True) if size is not None)


def _numel(tensor: torch.Tensor) -> int | None:
    sizes = [example_size(size) for size in tensor.shape]
    return None if None in sizes else math.prod(size for size in sizes if size is not None)
