"""From one call, real or fake, to its verdict: operands by schema, a factory's dtype, the parts of a composite.

`judge_call` is what the interpreter, `check` and the invariant `legal-ops` share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch._C import DispatchKey
from torch._ops import OpOverload
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from gaudicc.targets.call_keys import call_key
from gaudicc.targets.dtypes import COMPLEX, code
from gaudicc.targets.fused import fused_op
from gaudicc.targets.model import Mode, Support, Verdict
from gaudicc.targets.target import HOST, Target, op_name, with_composite_parts

Arguments = Mapping[str, object]

# Ops that answer from a tensor's sizes, strides or type: no value is read.
METADATA = HOST | {
    f"aten::{name}"
    for name in (
        "dim", "size", "size.int", "stride", "stride.int", "numel", "storage_offset", "is_same_size", "is_contiguous",
        "is_contiguous.memory_format", "is_floating_point", "is_complex", "is_pinned", "sym_is_contiguous",
    )
} | {"prim::device", "prim::layout"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class OpCall:
    """One call of an op overload.

    Attributes:
        op: the overload.
        args: positional arguments; tensors real or fake.
        kwargs: keyword arguments.
    """

    op: OpOverload
    args: tuple[object, ...] = ()
    kwargs: Arguments = field(default_factory=dict)

    def named(self) -> dict[str, object]:
        """All given arguments by schema name."""
        schema = self.op._schema.arguments
        positional = {argument.name: value for argument, value in zip(schema, self.args, strict=False)}
        return positional | dict(self.kwargs)

    def tensors(self) -> list[torch.Tensor]:
        """The tensor operands in schema order, lists flattened."""
        named = self.named()
        ordered = [named.get(argument.name) for argument in self.op._schema.arguments]
        return list(tensors_in(ordered))

    def dtypes(self) -> tuple[torch.dtype, ...]:
        """Dtypes of the operands, then the dtype asked for or, for a factory, implied."""
        operands = [tensor.dtype for tensor in self.tensors()]
        named = self.named()
        asked = named.get("dtype")
        if isinstance(asked, torch.dtype):
            return (*operands, asked)
        return tuple(operands) or _implied(self.op, named)

    def map(self, change: Callable[[object], object], *, keep_written: bool = False) -> OpCall:
        """The call with every leaf of its arguments changed, or only of those that the op does not write to."""
        kept = self._written_names() if keep_written else set()
        names = [argument.name for argument in self.op._schema.arguments]
        args = tuple(
            value if name in kept else map_values(value, change) for name, value in zip(names, self.args, strict=False)
        )
        kwargs = {name: value if name in kept else map_values(value, change) for name, value in self.kwargs.items()}
        return OpCall(self.op, args, kwargs)

    def written(self) -> list[torch.Tensor]:
        """The tensor operands that the op writes to."""
        named = self.named()
        return list(tensors_in([named.get(name) for name in self._written_names()]))

    def _written_names(self) -> set[str]:
        arguments = self.op._schema.arguments
        return {each.name for each in arguments if each.alias_info is not None and each.alias_info.is_write}

    def run(self) -> object:
        """Run it."""
        return self.op(*self.args, **self.kwargs)


def tensors_in(value: object) -> Iterator[torch.Tensor]:
    """The tensors in a value, through lists, tuples and dicts."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)


def map_values(value: object, change: Callable[[object], object]) -> object:
    """The value with every leaf changed; lists, tuples, named tuples and dicts keep their form."""
    if isinstance(value, Mapping):
        return {key: map_values(item, change) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_make"):
        named: object = value._make(map_values(item, change) for item in value)
        return named
    if isinstance(value, (list, tuple)):
        items = [map_values(item, change) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    return change(value)


def judge_call(target: Target, call: OpCall, mode: Mode = Mode.LAZY) -> Verdict:
    """The verdict on one call; a composite without a kernel is judged by its parts.

    Args:
        target: the chip.
        call: the call; with fake tensors nothing is computed.
        mode: the execution mode.

    Returns:
        The verdict, with all conditions on sizes and arguments applied.
    """
    key = call_key((call.op, mode, call.args, dict(call.kwargs)))
    if key is None:
        return _judge(target, call, mode)
    if (known := target.verdicts.get(key)) is None:
        if len(target.verdicts) >= _REMEMBERED:
            target.verdicts.clear()
        known = target.verdicts[key] = _judge(target, call, mode)
    return known


def _judge(target: Target, call: OpCall, mode: Mode) -> Verdict:
    verdict = own_verdict(target, call, mode)
    if verdict.legal or not verdict.composite or verdict.dynamic or COMPLEX.intersection(map(code, call.dtypes())):
        return verdict
    parts = parts_of(call)
    if parts is None:
        return verdict
    return with_composite_parts(verdict, [judge_call(target, part, mode) for part in parts])


# Every pass and check of every bucket asks about the same calls again. So many verdicts take a few MB.
_REMEMBERED = 20_000


def own_verdict(target: Target, call: OpCall, mode: Mode = Mode.LAZY) -> Verdict:
    """The verdict on the call's op itself, its parts unseen; a semantic op is judged as the fused kernel it maps to."""
    if fused := _as_fused(target, call, mode):
        return fused
    sizes = tuple(tuple(tensor.shape) for tensor in call.tensors())
    verdict = target.lookup(call.op, call.dtypes(), mode, sizes, call.named())
    if verdict.support not in (Support.NO, Support.PRESUMED) or verdict.dynamic:
        return verdict
    unknown = op_name(call.op) not in target.rows and op_name(call.op) not in target.overlays
    # In compile mode AOTAutograd decomposes what upstream calls composite, even where the device has a kernel.
    decomposed = mode is Mode.COMPILE and call.op._can_decompose()
    return replace(verdict, composite=True) if decomposed or (unknown and can_decompose(call.op)) else verdict


def _as_fused(target: Target, call: OpCall, mode: Mode) -> Verdict | None:
    symbolic = any(isinstance(size, torch.SymInt) for tensor in call.tensors() for size in tensor.shape)
    fused = fused_op(target, call.op, mode, dtypes=call.dtypes(), symbolic=symbolic)
    return replace(fused[1], reason=f"{op_name(call.op)} as {fused[1].reason}") if fused else None


def can_decompose(op: OpOverload) -> bool:
    """Whether upstream's dispatcher has parts for the op."""
    return op._can_decompose() or op.has_kernel_for_dispatch_key(DispatchKey.CompositeExplicitAutograd)


def reads_host(op: OpOverload) -> bool:
    """Whether an op turns a tensor's values into a Python number: `item`, `is_nonzero`, `equal`, but not `sym_size`."""
    takes = any("Tensor" in str(argument.type) for argument in op._schema.arguments)
    gives = {str(result.type) for result in op._schema.returns}
    return takes and bool(gives & {"number", "bool", "int", "float", "Scalar"}) and op_name(op) not in METADATA


@contextmanager
def without_onednn() -> Iterator[None]:
    """Keeps torch from kernels that only its CPU build has; `mkldnn.flags` would warn about its other settings."""
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)


def run_parts(call: OpCall) -> object:
    """Run a composite through its own kernel, so that a dispatch mode that is active sees its parts."""
    # Upstream picks kernels by device: Gaudi has none of its own for attention, which there is matmul, softmax, matmul, and
    # not the CPU's kernel for a whole LSTM.
    with sdpa_kernel(SDPBackend.MATH), without_onednn():
        if call.op._can_decompose():
            return call.op.decompose(*call.args, **call.kwargs)
        return call.op._op_dk(DispatchKey.CompositeExplicitAutograd, *call.args, **call.kwargs)


def parts_of(call: OpCall) -> list[OpCall] | None:
    """The ops that a composite's kernel calls for these arguments; None where they cannot be known.

    A call that does nothing, such as a cast to the same dtype, has an empty list.
    """
    if not can_decompose(call.op):
        return None
    recorder = _Recorder()
    try:
        static = on_meta(call)
        with torch.no_grad(), recorder:
            run_parts(static)
    except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
        return None  # the kernel reads values: the composite's own verdict stands
    return None if any(part.op is call.op for part in recorder.parts) else recorder.parts


class _Recorder(TorchDispatchMode):
    """Lists the calls made while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[OpCall] = []

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        if op_name(func) not in METADATA:
            self.parts.append(OpCall(func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def on_meta(call: OpCall) -> OpCall:
    """The same call on meta tensors, which computes nothing; symbolic sizes take their example value, adding no guard.

    Raises:
        ValueError: a size is read from data and has no example value.
    """

    def known(size: int | torch.SymInt) -> int:
        value = example_size(size)
        if value is None:
            raise ValueError(f"the size {size} has no example value")
        return value

    def to_meta(value: object) -> object:
        if isinstance(value, torch.Tensor):
            sizes, strides = map(known, value.size()), map(known, value.stride())
            return torch.empty_strided(list(sizes), list(strides), dtype=value.dtype, device="meta")
        if isinstance(value, torch.SymInt):
            return known(value)
        return torch.device("meta") if isinstance(value, torch.device) else value

    return call.map(to_meta)


def example_size(size: int | torch.SymInt) -> int | None:
    """A size as a number, the example value if it is symbolic, without adding a guard; None if it is read from data."""
    if not isinstance(size, torch.SymInt):
        return size
    hint: int | None = size.node.hint
    return hint


def _implied(op: OpOverload, named: Arguments) -> tuple[torch.dtype, ...]:
    """The dtype that a factory without a `dtype` argument makes; nothing for ops that make no tensor."""
    if not any(str(result.type) == "Tensor" for result in op._schema.returns):
        return ()
    name = op_name(op).split("::")[-1].split(".")[0]
    if name in ("triu_indices", "tril_indices", "randint", "randperm"):
        return (torch.int64,)
    values = [named[key] for key in ("start", "end", "step", "fill_value", "s") if key in named]
    if not values:
        return (torch.get_default_dtype(),)
    if any(isinstance(value, complex) for value in values):
        return (torch.complex64,)
    if any(isinstance(value, (float, torch.SymFloat)) for value in values):
        return (torch.get_default_dtype(),)
    if name != "scalar_tensor" and all(isinstance(value, bool) for value in values):
        return (torch.bool,)
    return (torch.get_default_dtype() if name == "scalar_tensor" else torch.int64,)
