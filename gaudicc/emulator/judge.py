"""Gaudi's rules as the emulated device applies them: the shared `Judge`, with eager fallback and its consequences.

Where the rule interpreter refuses, a device does something: it runs the op on the host and copies, reads the size of a
result on the host, or raises. Source: HabanaAI/gaudi-pytorch-bridge 1.19.0, `hpu_ops/cpu_fallback.cpp`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch._ops import OpOverload

from gaudicc.emulator.clock import Clock
from gaudicc.emulator.events import EventDispatcher, EventId
from gaudicc.emulator.kernels import execute
from gaudicc.emulator.ledger import Kind, Ledger
from gaudicc.emulator.settings import Settings, flag
from gaudicc.errors import Where
from gaudicc.interpreter import Fallback, Judge
from gaudicc.targets import Mode, Target, Verdict, op_name
from gaudicc.targets.calls import OpCall, map_values, on_meta, reads_host, tensors_in
from gaudicc.targets.model import Lazy
from gaudicc.targets.target import RELEASE

OWN_NAMESPACES = ("aten::", "prims::", "hpu::")


class DeviceJudge(Judge):
    """Judges and runs single ops for the emulated device.

    Eager mode asks the same tables as lazy mode: they share kernels and the CPU fallback. Only narrowing differs.

    Args:
        target: the chip.
        settings: what the environment says.
        ledger: where fallbacks and host reads are counted.
        clock: modelled time, which they take.
        flush: runs what lazy mode has gathered.
        capturing: whether an HPU graph is being captured.
        dry: whether that capture launches nothing.
    """

    def __init__(
        self,
        target: Target,
        settings: Settings,
        ledger: Ledger,
        clock: Clock,
        flush: Callable[[str], object],
        capturing: Callable[[], bool],
        dry: Callable[[], bool],
    ) -> None:
        super().__init__(target, Mode.LAZY, "host")
        self.settings, self.ledger, self.clock = settings, ledger, clock
        self._flush, self._capturing, self._dry = flush, capturing, dry

    def call(
        self,
        op: OpOverload,
        args: tuple[object, ...],
        kwargs: Mapping[str, object] | None = None,
        place: Where | None = None,
    ) -> object:
        """Judge and run an op; a read on the host inside the kernel of a composite is one, as anywhere."""
        return self.read(OpCall(op, args, kwargs or {})) if reads_host(op) else super().call(op, args, kwargs, place)

    def read(self, call: OpCall) -> object:
        """Run an op that turns values into a Python number: `item`, `equal`, `is_nonzero`."""
        name = op_name(call.op)
        self._flush(f"{name} reads a value on the host")
        moved = sum(tensor.element_size() for tensor in call.tensors())
        self.ledger.add(Kind.HOST_READ, name, moved, self.clock.fetch(moved))
        return execute(call)

    def run(self, call: OpCall) -> object:
        """Run a call without judging it: arguments and results are narrowed, a view shares its input's memory."""
        if call.op.is_view:
            return call.run()
        if flag("PT_COMPILE_ONLY_MODE", False):
            return _unlaunched(call)
        name, written = op_name(call.op), call.written()
        try:
            result = execute(call.map(self._narrow_argument, keep_written=True))
        except (IndexError, RuntimeError):
            if not self._dry():
                raise
            return _unlaunched(call)  # the device launches nothing, so it does not mind values
        for tensor in written:
            narrowed = self._narrow(tensor, name)
            if narrowed is not tensor and isinstance(narrowed, torch.Tensor):
                tensor.copy_(narrowed)
        kept = {id(tensor) for tensor in written}
        return map_values(result, lambda leaf: leaf if id(leaf) in kept else self._result(leaf, name))

    def whole(self, call: OpCall) -> object:
        """Judge and run a call; float64 keeps its name, as on the device, and float32's bits."""
        overflowed = dict(self.overflowed)
        result = self.call(call.op, call.args, call.kwargs)
        for name, count in self.overflowed.items():
            if count > overflowed.get(name, 0):
                self.ledger.add(Kind.OVERFLOW, op_name(call.op))
        return _with_float64(call, result)

    def again(self, call: OpCall) -> object:
        """Run a call that has been judged before, as a replayed graph does."""
        return _with_float64(call, self.run(call))

    def _unsupported(self, call: OpCall, verdict: Verdict, place: Where | None) -> object:
        name = op_name(call.op)
        row = self.target.rows.get(name)
        complex_values = any(tensor.is_complex() for tensor in call.tensors())
        if row is None and name not in self.target.overlays and name.startswith(OWN_NAMESPACES):
            raise NotImplementedError(
                f"Could not run '{name}' with arguments from the 'HPU' backend: release {RELEASE} has no such op."
            )
        if name.startswith("hpu::"):  # the vendor's own: the front end has it, and no host kernel stands behind it
            self.presumed[name] += 1
            self.calls += 1
            return self.run(call)
        if verdict.dynamic and not complex_values and row is not None and row.lazy is not Lazy.FALLBACK:
            self._flush("")
            self.ledger.add(Kind.HOST_READ, name, seconds=self.clock.fetch(0))
            self.calls += 1
            return self.run(call)
        return self._fall_back(call, verdict)

    def _fall_back(self, call: OpCall, verdict: Verdict) -> object:
        name, allowed = op_name(call.op), self.settings.fallback_ops
        if (
            allowed is not None
            and name != "aten::complex"
            and name not in allowed
            and name.split("::")[-1] not in allowed
        ):
            raise RuntimeError(
                f"{name} is not yet supported on HPU: PT_HPU_PLACE_ON_CPU does not permit its CPU fallback"
            )
        EventDispatcher.instance().publish(EventId.CPU_FALLBACK, [("op_name", name)])
        if self._capturing():
            raise RuntimeError(f"cpu fallback is not supported during hpu graph capturing ({name}: {verdict.reason})")
        self._flush("")
        result = execute(call)
        out, back = call.tensors(), list(tensors_in(result))
        read, written = (sum(tensor.nbytes for tensor in tensors) for tensors in (out, back))
        self.fallbacks.append(Fallback(name, verdict.reason, read + written))
        elements = max((tensor.numel() for tensor in (*out, *back)), default=0)
        self.ledger.add(
            Kind.FALLBACK,
            verdict.reason if verdict.reason.startswith(name) else f"{name}: {verdict.reason}",
            read + written,
            self.clock.fall_back(elements, read, written),
        )
        return map_values(result, lambda leaf: self._result(leaf, name))

    def _result(self, leaf: object, name: str) -> object:
        """A result; float64 that an op gives by itself, as `bincount` does, keeps its name and has float32's bits."""
        narrowed = self._narrow(leaf, name)
        wide = isinstance(leaf, torch.Tensor) and leaf.dtype is torch.float64
        return narrowed.to(torch.float64) if wide and isinstance(narrowed, torch.Tensor) else narrowed

    def _narrow(self, leaf: object, name: str) -> object:
        if self.settings.int64 and isinstance(leaf, torch.Tensor) and leaf.dtype is torch.int64:
            return leaf
        return super()._narrow(leaf, name)


def _unlaunched(call: OpCall) -> object:
    """Results of the right form without values; what the call would write stays as it is."""
    written = call.written()
    if any(argument.is_out for argument in call.op._schema.arguments):
        for tensor, sized in zip(written, tensors_in(on_meta(call).run()), strict=True):
            if tensor.shape != sized.shape:
                tensor.resize_(sized.shape)
    if written:
        return written[0] if len(call.op._schema.returns) == 1 else tuple(written)
    form = on_meta(call).run()
    return map_values(form, lambda leaf: _blank(leaf) if isinstance(leaf, torch.Tensor) else leaf)


def _blank(form: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(form.size(), form.stride(), dtype=form.dtype).zero_()


def _with_float64(call: OpCall, result: object) -> object:
    """The result with float64 where PyTorch declares it."""
    asked = call.named().get("dtype")
    if asked is not torch.float64 and not any(tensor.dtype is torch.float64 for tensor in call.tensors()):
        return result
    try:
        declared = [tensor.dtype for tensor in tensors_in(on_meta(call).run())]
    except (RuntimeError, NotImplementedError, TypeError):
        declared = []  # no meta kernel: what came out of float64 operands is taken for float64
    found = list(tensors_in(result))
    if len(declared) != len(found):
        declared = [torch.float64 if tensor.dtype is torch.float32 else tensor.dtype for tensor in found]
    wide = {id(tensor) for tensor, dtype in zip(found, declared, strict=True) if dtype is torch.float64}
    return map_values(result, lambda leaf: leaf.to(torch.float64) if id(leaf) in wide else leaf)  # type: ignore[attr-defined]
