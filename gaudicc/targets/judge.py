"""Judges and runs one call under Gaudi's rules; the rule interpreter and an emulated device share it.

Values are narrowed as the device would narrow them, by running so. What is legal here was never run on a Gaudi: the
tables say what sources say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from gaudicc.errors import UnsupportedOpError, Where
from gaudicc.targets.calls import OpCall, can_decompose, map_values, own_verdict, reads_host, run_parts, tensors_in
from gaudicc.targets.dtypes import COMPLEX, code
from gaudicc.targets.model import Mode, Support, Verdict
from gaudicc.targets.target import Target, op_name

STAGE = "the rule interpreter"
INT32 = torch.iinfo(torch.int32)


@dataclass(frozen=True, slots=True)
class Fallback:
    """One call that ran on the host.

    Attributes:
        op: its name.
        reason: why the device does not run it.
        bytes: moved to the host (operands) and back (results).
    """

    op: str
    reason: str
    bytes: int


@dataclass
class Judge:
    """Judges and runs single calls, and keeps count.

    Attributes:
        target: the chip.
        mode: the execution mode.
        on_unsupported: `error` raises at the first unsupported call; `host` runs it on the host and counts it.
    """

    target: Target
    mode: Mode = Mode.LAZY
    on_unsupported: Literal["error", "host"] = "error"
    calls: int = 0
    fallbacks: list[Fallback] = field(default_factory=list)
    presumed: Counter[str] = field(default_factory=Counter)
    overflowed: Counter[str] = field(default_factory=Counter)

    def call(
        self,
        op: OpOverload,
        args: tuple[object, ...],
        kwargs: Mapping[str, object] | None = None,
        place: Where | None = None,
    ) -> object:
        """Run one op as the device would.

        Args:
            op: the overload.
            args: positional arguments with real CPU tensors.
            kwargs: keyword arguments.
            place: the user's source line, for the error.

        Returns:
            The op's result. Tensors of float64 come back as float32, and int64 values are those of int32 in lazy mode.

        Raises:
            UnsupportedOpError: the target does not support the call, or the call reads a value on the host.
        """
        call = OpCall(op, args, kwargs or {})
        verdict = own_verdict(self.target, call, self.mode)
        if reads_host(op):
            raise _refused(op, f"{op_name(op)} reads a value on the host, which splits a recorded graph", place)
        if not verdict.legal and verdict.composite and not verdict.dynamic and can_decompose(op):
            narrowed = call.map(self._narrow_argument, keep_written=True)
            with _Parts(self, op, place):
                return run_parts(narrowed)
        if verdict.support is Support.PRESUMED:
            self.presumed[op_name(op)] += 1
        elif not verdict.legal:
            return self._unsupported(call, verdict, place)
        self.calls += 1
        return self.run(call)

    def enter(self, value: object, name: str) -> object:
        """Bring a value to the device: the copy narrows it.

        Raises:
            UnsupportedOpError: a tensor is complex.
        """
        if held := _complex_in(value):
            raise _refused(name, f"the device holds no complex tensor ({held})", None)
        return map_values(value, lambda leaf: self._narrow(leaf, name))

    def run(self, call: OpCall) -> object:
        """Run a call without judging it: arguments and results are narrowed."""
        name, written = op_name(call.op), call.written()
        # An in-place op must meet the caller's own tensors; what it wrote is narrowed afterwards.
        result = call.map(self._narrow_argument, keep_written=True).run()
        for tensor in written:
            narrowed = self._narrow(tensor, name)
            if narrowed is not tensor and isinstance(narrowed, torch.Tensor):
                tensor.copy_(narrowed)
        return map_values(
            result, lambda leaf: leaf if any(leaf is each for each in written) else self._narrow(leaf, name)
        )

    def _unsupported(self, call: OpCall, verdict: Verdict, place: Where | None) -> object:
        if self.on_unsupported == "error" or _complex_in((call.args, dict(call.kwargs))):
            raise _refused(call.op, verdict.reason, place)
        result = call.run()
        if _complex_in(result):
            raise _refused(call.op, verdict.reason, place)
        moved = sum(tensor.nbytes for tensor in (*call.tensors(), *tensors_in(result)))
        self.fallbacks.append(Fallback(op_name(call.op), verdict.reason, moved))
        return map_values(result, lambda leaf: self._narrow(leaf, op_name(call.op)))

    def _narrow_argument(self, leaf: object) -> object:
        return torch.float32 if leaf is torch.float64 else self._narrow(leaf, "an argument")

    def _narrow(self, leaf: object, name: str) -> object:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        if leaf.dtype is torch.float64:
            return leaf.to(torch.float32)
        if leaf.dtype is not torch.int64 or self.mode is not Mode.LAZY or leaf.numel() == 0:
            return leaf
        low, high = torch.aminmax(leaf)
        if INT32.min <= int(low) and int(high) <= INT32.max:
            return leaf
        self.overflowed[name] += 1
        return leaf.to(torch.int32).to(torch.int64)


class _Parts(TorchDispatchMode):
    """Judges the parts of a composite while its kernel runs."""

    def __init__(self, judge: Judge, whole: OpOverload, place: Where | None) -> None:
        super().__init__()
        self.judge, self.whole, self.place = judge, whole, place

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        if func is self.whole:
            # The kernel calls the same op below autograd: it has no parts, and no source names it.
            self.judge.presumed[op_name(func)] += 1
            return self.judge.run(OpCall(func, args, kwargs or {}))
        return self.judge.call(func, args, kwargs, self.place)


def _complex_in(value: object) -> str:
    return next((name for tensor in tensors_in(value) if (name := code(tensor.dtype)) in COMPLEX), "")


def _refused(op: object, what: str, place: Where | None) -> UnsupportedOpError:
    return UnsupportedOpError(what, where=place or Where(op=op_name(op), stage=STAGE))
