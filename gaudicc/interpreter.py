"""The rule interpreter: runs a graph on CPU under Gaudi's rules; it is the judge of "legal" in every test.

A `Judge` judges and runs each call; `RuleInterpreter` walks a graph with it, and `interpret` gives the counts.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import fx
from torch._ops import OpOverload

from gaudicc.errors import UnsupportedOpError
from gaudicc.nodes import call_loop, call_region, where
from gaudicc.targets import Mode, Target
from gaudicc.targets.calls import tensors_in
from gaudicc.targets.judge import STAGE, Fallback, Judge
from gaudicc.targets.target import is_arithmetic

__all__ = ["Fallback", "Judge", "Result", "RuleInterpreter", "interpret"]


@dataclass(frozen=True, slots=True)
class Result:
    """What an interpreted graph gave.

    Attributes:
        outputs: as the graph returns them.
        calls: device calls judged, the parts of composites included.
        fallbacks: calls that ran on the host; empty unless `on_unsupported="host"`.
        presumed: op -> calls that no source vouches for; they never count as legal.
        overflowed: op -> calls whose int64 values did not fit the device's int32 and wrapped.
    """

    outputs: object
    calls: int
    fallbacks: tuple[Fallback, ...]
    presumed: Mapping[str, int]
    overflowed: Mapping[str, int]

    @property
    def bytes_moved(self) -> int:
        """Bytes moved between host and device by the fallbacks."""
        return sum(fallback.bytes for fallback in self.fallbacks)

    @property
    def legal(self) -> bool:
        """Whether every call stands on evidence."""
        return not self.fallbacks and not self.presumed


class RuleInterpreter(fx.Interpreter):
    """Walks a graph of ATen calls, region calls and size arithmetic with a `Judge`.

    Args:
        graph: the graph; a node's `meta["stack_trace"]` names the user's line in errors.
        judge: the judge that counts.
    """

    def __init__(self, graph: fx.GraphModule, judge: Judge) -> None:
        super().__init__(graph)
        self.judge = judge
        self.node: fx.Node | None = None

    def run_node(self, n: fx.Node) -> Any:
        """Run one node and, where the device narrowed an output, give it back the dtype the graph declares."""
        self.node = n
        if n.op != "output":
            return super().run_node(n)
        values = self.map_nodes_to_values(n.args[0], n)
        declared = fx.map_arg(n.args[0], lambda node: node.meta.get("val"))
        return _restored(values, declared)

    def placeholder(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Bring an input to the device."""
        return self.judge.enter(super().placeholder(target, args, kwargs), str(target))

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Bring a constant to the device; a region body stays as it is."""
        value = super().get_attr(target, args, kwargs)
        return value if isinstance(value, fx.GraphModule) else self.judge.enter(value, str(target))

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Judge an op, enter a region, or do arithmetic on sizes."""
        assert self.node is not None
        place = where(self.node, STAGE)
        if isinstance(target, OpOverload):
            return self.judge.call(target, args, kwargs, place)
        if target is call_region:
            return RuleInterpreter(args[0], self.judge).run(*args[1:])
        if target is call_loop:
            body: Any = lambda *given: RuleInterpreter(args[0], self.judge).run(*given)  # noqa: E731
            return call_loop(body, *args[1:])
        if target is operator.getitem and not isinstance(args[0], torch.Tensor):
            return super().call_function(target, args, kwargs)
        if is_arithmetic(target) and not any(tensors_in((args, kwargs))):
            return super().call_function(target, args, kwargs)
        raise UnsupportedOpError(f"{target} is no ATen op: Python on tensors cannot be recorded", where=place)

    def call_method(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Refuse: a captured graph holds no method calls."""
        raise self._uncaptured(f"the method {target}")

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Refuse: a captured graph holds no modules but region bodies."""
        raise self._uncaptured(f"the module {target}")

    def _uncaptured(self, what: str) -> UnsupportedOpError:
        assert self.node is not None
        return UnsupportedOpError(f"the graph calls {what}, which is no ATen op", where=where(self.node, STAGE))


def interpret(
    graph: fx.GraphModule,
    *inputs: object,
    target: Target,
    mode: Mode = Mode.LAZY,
    on_unsupported: Literal["error", "host"] = "error",
) -> Result:
    """Run a graph under the target's rules.

    Args:
        graph: a torch.fx graph of ATen calls; region bodies are entered.
        *inputs: one value per placeholder.
        target: the chip.
        mode: the execution mode.
        on_unsupported: `error` or `host`, as for `Judge`.

    Returns:
        The outputs and the counts.

    Raises:
        UnsupportedOpError: a call is not supported, reads the host, or is no ATen call.
    """
    judge = Judge(target, mode, on_unsupported)
    with torch.no_grad():
        outputs = RuleInterpreter(graph, judge).run(*inputs)
    return Result(outputs, judge.calls, tuple(judge.fallbacks), judge.presumed, judge.overflowed)


def _restored(values: Any, declared: Any) -> Any:
    """Values with float64 restored where it is declared: the device keeps the name and loses the bits."""
    if isinstance(values, torch.Tensor):
        wide = isinstance(declared, torch.Tensor) and declared.dtype is torch.float64
        return values.to(torch.float64) if wide else values
    if isinstance(values, (list, tuple)) and isinstance(declared, (list, tuple)):
        return type(values)(_restored(value, kind) for value, kind in zip(values, declared, strict=True))
    if isinstance(values, dict) and isinstance(declared, dict):
        return {key: _restored(value, declared[key]) for key, value in values.items()}
    return values
