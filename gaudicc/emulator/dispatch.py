"""One op on the emulated device: devices are checked, the rules judge, the CPU computes, and the graph grows by a node."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C._dynamo.eval_frame import set_eval_frame
from torch._ops import OpOverload

from gaudicc.emulator import collectives, transfers
from gaudicc.emulator.cells import PARTS
from gaudicc.emulator.emulation import Emulation, current
from gaudicc.emulator.ledger import Kind
from gaudicc.emulator.tensor import DEVICE, HpuTensor, raw_of
from gaudicc.targets import op_name
from gaudicc.targets.calls import OpCall, map_values, reads_host, tensors_in

aten = torch.ops.aten

ALLOCATIONS = frozenset(
    (
        aten.empty.memory_format, aten.empty_strided.default, aten.empty_like.default, aten.new_empty.default,
        aten.new_empty_strided.default,
    )
)  # fmt: skip
POINTERS = frozenset(
    (aten.set_.source_Tensor, aten.set_.source_Storage, aten.set_.source_Storage_storage_offset, aten.set_.default,
     aten.resize_.default, aten.resize_as_.default)
)  # fmt: skip
ON_HOST_ALLOWED = ("aten::index", "aten::_index_put", "aten::_foreach")
"""Ops that take CPU tensors in every mode: indices, and the scalar lists of foreach."""


def dispatch(op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run one op.

    Args:
        op: the overload.
        args: positional arguments; at least one `HpuTensor`, or a device argument `hpu`.
        kwargs: keyword arguments.

    Returns:
        What the op gives; tensors on the device are `HpuTensor`s.

    Raises:
        RuntimeError: the device would raise: mixed devices, a forbidden fallback, a fallback inside a capture.
        NotImplementedError: neither the device nor its tables know the op.
    """
    emulation = current()
    emulation.acquire()
    traced = set_eval_frame(None)  # after a graph break dynamo would trace the emulator
    try:
        return _run(emulation, op, args, kwargs)
    finally:
        set_eval_frame(traced)


def _run(emulation: Emulation, op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with torch._C._ExcludeDispatchKeyGuard(_MODES):
        if op is aten.copy_.default:
            return transfers.copy(emulation, _compute, args, kwargs)
        if op is aten._to_copy.default and _leaves(kwargs):
            return transfers.to_host(emulation, args[0], kwargs)
        if op is aten._has_compatible_shallow_copy_type.default:
            return all(isinstance(arg, HpuTensor) for arg in args)
        if op in PARTS:
            return PARTS[op](*args, **kwargs)
        if reads_host(op):
            return transfers.read(emulation, op, args, kwargs)
        if collectives.is_collective(op):
            return collectives.collect(emulation, op, args, kwargs)
        if op in POINTERS:
            return _repoint(emulation, op, args, kwargs)
        return _compute(emulation, op, args, kwargs)


# Autocast has done its part above; on the CPU it must not act again.
_MODES = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)


def _compute(emulation: Emulation, op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    given = OpCall(op, args, kwargs)
    _check_devices(emulation, given)
    asked = kwargs.get("device")
    call = _on_cpu(given)
    if emulation.capture is not None:
        call = call.map(lambda leaf: _frozen(leaf, given), keep_written=True)
    if op in ALLOCATIONS:
        result = call.run()
        if isinstance(result, Tensor) and result.is_complex() and (asked is None or torch.device(asked).type == DEVICE):
            raise RuntimeError(f"{op_name(op)}: the device holds no complex tensor ({result.dtype})")
    elif op.is_view:
        result = _viewed(call, clustered=emulation.clustered)
        _gather(emulation, call, result, computes=False)
    else:
        if emulation.capture is not None:
            emulation.capture.before(call)
        fallbacks = len(emulation.judge.fallbacks)
        result = emulation.judge.again(call) if emulation.clustered else emulation.judge.whole(call)
        result = _dense(call, result)
        if len(emulation.judge.fallbacks) == fallbacks:  # else the host made it: an input of what is gathered next
            _gather(emulation, call, result, computes=True)
    if asked is not None and torch.device(asked).type != DEVICE:
        return map_values(result, lambda leaf: leaf.to(asked) if isinstance(leaf, Tensor) else leaf)
    if (
        given.op.is_view
        and torch.is_inference_mode_enabled()
        and not any(leaf.is_inference() for leaf in given.tensors())
    ):
        with torch.inference_mode(mode=False):  # a view of a plain tensor is a plain tensor
            return _wrap(emulation, given, result)
    return _wrap(emulation, given, result)


def _viewed(call: OpCall, *, clustered: bool) -> object:
    """A view; in a cluster, where strides are the graph compiler's, one that these do not allow is a copy."""
    try:
        return call.run()
    except RuntimeError:
        if not clustered or call.op is not aten.view.default:
            raise
        return aten.reshape.default(*call.args)


def _dense(call: OpCall, result: object) -> object:
    """Results lie in memory in the order of their dims, or channels last, whatever strides the operands have.

    Source: HabanaAI/gaudi-pytorch-bridge 1.19.0, `hpu_ops/backend/op_backend.cpp`; PyTorch's fake tensors say the same of hpu.
    """
    if all(leaf.layout is not torch.strided or leaf.is_contiguous() for leaf in tensors_in(result)):
        return result
    held = {tensor.untyped_storage()._cdata for tensor in call.tensors() if tensor.layout is torch.strided}

    def lay(leaf: object) -> object:
        if not isinstance(leaf, Tensor) or leaf.layout is not torch.strided or leaf.untyped_storage()._cdata in held:
            return leaf
        last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(leaf.dim())
        return leaf if last is not None and leaf.is_contiguous(memory_format=last) else leaf.contiguous()

    return map_values(result, lay)


def _gather(emulation: Emulation, call: OpCall, result: object, *, computes: bool) -> None:
    """Add the op to the graph that is being gathered and, inside a capture, to the capture."""
    made = call.written() if result is None else result  # foreach ops that write give nothing back
    emulation.recipes.add(op_name(call.op), call.args, call.kwargs, made, computes=computes)
    if emulation.capture is not None:
        emulation.capture.add(call, result)
    elif not emulation.settings.lazy and not emulation.clustered:
        emulation.recipes.flush()


def _on_cpu(call: OpCall) -> OpCall:
    """The call with the wrapped CPU tensors, and without a device: the CPU computes it."""
    raw = call.map(raw_of)
    kwargs = {name: value for name, value in raw.kwargs.items() if name not in ("device", "pin_memory")}
    device = [torch.device("cpu") if isinstance(value, torch.device) else value for value in raw.args]
    return OpCall(raw.op, tuple(device), kwargs)


def _frozen(leaf: object, given: OpCall) -> object:
    """A CPU tensor among the operands is copied to the device once: replays see what it held then."""
    if isinstance(leaf, Tensor) and any(leaf is tensor for tensor in given.tensors()):
        return leaf.clone()
    return leaf


def _wrap(emulation: Emulation, given: OpCall, result: object) -> object:
    """Results as device tensors; one that the op wrote to is the caller's own, with its shape brought up to date."""
    own = {id(tensor.raw): tensor for tensor in given.written() if isinstance(tensor, HpuTensor)}
    for tensor in own.values():
        emulation.memory.note(tensor.raw)
        if tensor.shape != tensor.raw.shape or tensor.stride() != tensor.raw.stride():
            tensor.point_to(tensor.raw)

    def wrap(leaf: object) -> object:
        if not isinstance(leaf, Tensor) or leaf.is_complex():
            return leaf  # complex results live on the host
        if id(leaf) in own:
            return own[id(leaf)]
        emulation.memory.note(leaf)
        return HpuTensor(leaf)

    return map_values(result, wrap)


def _check_devices(emulation: Emulation, call: OpCall) -> None:
    """CPU tensors among the operands: lazy mode copies them silently, the other modes raise.

    Raises:
        RuntimeError: the device does not take them.
    """
    strangers = [tensor for tensor in call.tensors() if not isinstance(tensor, HpuTensor)]
    if not strangers:
        return
    name = op_name(call.op)
    strict = emulation.settings.strict_devices or not emulation.settings.lazy
    for tensor in strangers:
        written = any(tensor is each for each in call.written())
        harmless = tensor.dim() == 0 or name.startswith(ON_HOST_ALLOWED) or tensor.is_complex()
        if written or (strict and not harmless):
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found at least two devices, hpu:0 and "
                f"{tensor.device}! (when checking the arguments of {name})"
            )
        if tensor.dim() > 0:
            if emulation.capture is not None:
                emulation.flush("a copy to the device")
            emulation.ledger.add(Kind.MIXED, name, tensor.nbytes, emulation.clock.send(tensor.nbytes))


def _repoint(emulation: Emulation, op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> HpuTensor:
    """`set_` and `resize_`: the tensor gets another memory, shape or both; nothing runs on the device."""
    tensor: HpuTensor = args[0]
    raw = [raw_of(arg) for arg in args]
    op(*raw, **kwargs)
    emulation.memory.note(tensor.raw)
    tensor.point_to(tensor.raw)
    return tensor


def _leaves(kwargs: dict[str, Any]) -> bool:
    device = kwargs.get("device")
    return device is not None and torch.device(device).type != DEVICE
