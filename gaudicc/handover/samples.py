"""One call of each core or pointwise op in a Gaudi's table, small and valid on the CPU: what a probe runs on the device.

Arguments are made from the schema alone. An op whose schema asks for more than shapes and plain numbers has no sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from gaudicc.targets import Target, op_name
from gaudicc.targets.calls import OpCall, reads_host, tensors_in
from gaudicc.targets.dtypes import code
from gaudicc.targets.model import Kind

DTYPES = (torch.float32, torch.bfloat16, torch.int32, torch.int64, torch.bool)
_TAGS = {torch.Tag.core, torch.Tag.pointwise}
"""What captured programs consist of. Others crash, even on the CPU, on arguments that they do not expect."""
_SHAPES = ((4, 4), (2, 4, 4), (2, 4, 4, 4), (4,))


@dataclass(frozen=True, slots=True)
class Sample:
    """One call.

    Attributes:
        op: as the tables spell it.
        call: on CPU tensors.
        expected: what it gives on the CPU.
    """

    op: str
    call: OpCall
    expected: tuple[Tensor, ...]

    @property
    def dtypes(self) -> str:
        """Codes of the operands' dtypes, each once."""
        return "|".join(dict.fromkeys(code(tensor.dtype) for tensor in self.call.tensors()))

    @property
    def deterministic(self) -> bool:
        """Whether two runs give the same values."""
        random = torch.Tag.nondeterministic_seeded in self.call.op.tags
        return not random and "empty" not in self.op and "rand" not in self.op


def samples(target: Target, ops: Sequence[str] = ()) -> Iterator[Sample]:
    """The samples, in the order of the table, the same in every process.

    Args:
        target: whose table.
        ops: ops to take; all if none is given.
    """
    for name, row in target.rows.items():
        op = _overload(name)
        if op is None or (ops and name not in ops) or row.kind is not Kind.KERNEL or _is_left_out(op):
            continue
        for dtype in DTYPES:
            sample = _sample(name, op, dtype)
            if sample is not None:
                yield sample


def _overload(name: str) -> OpOverload | None:
    namespace, _, rest = name.partition("::")
    base, _, overload = rest.partition(".")
    packet = getattr(getattr(torch.ops, namespace), base, None)
    found = getattr(packet, overload or "default", None)
    return found if isinstance(found, OpOverload) and op_name(found) == name else None


def _is_left_out(op: OpOverload) -> bool:
    """In-place and out variants are judged as their functional form; views compute nothing; a host read is a host read."""
    written = op._schema.is_mutable or op.is_view or "batch_norm" in op._schema.name  # which crashes without statistics
    return written or not _TAGS.intersection(op.tags) or reads_host(op) or not _tensor_arguments(op)


def _tensor_arguments(op: OpOverload) -> bool:
    return any(str(argument.type) in ("Tensor", "List[Tensor]") for argument in op._schema.arguments)


def _sample(name: str, op: OpOverload, dtype: torch.dtype) -> Sample | None:
    """The first shape that the CPU takes."""
    for shape in _SHAPES:
        made = [_argument(argument, shape, dtype) for argument in op._schema.arguments if _is_required(argument)]
        if any(value is NotImplemented for value in made):
            return None
        call = OpCall(op, tuple(made))
        try:
            with torch.no_grad():
                expected = tuple(tensors_in(call.run()))
        except (RuntimeError, IndexError, ValueError, TypeError, NotImplementedError):
            continue  # not a shape, dtype or number for this op
        if expected:
            return Sample(name, call, expected)
    return None


def _is_required(argument: Any) -> bool:
    return not argument.has_default_value() and not argument.kwarg_only


def _argument(argument: Any, shape: tuple[int, ...], dtype: torch.dtype) -> Any:
    kind = str(argument.type)
    values = {
        "Tensor": lambda: _tensor(shape, dtype),
        "List[Tensor]": lambda: [_tensor(shape, dtype), _tensor(shape, dtype)],
        "int": lambda: 1,
        "number": lambda: 1,
        "float": lambda: 0.5,
        "bool": lambda: False,
        "List[int]": lambda: [1],
        "ScalarType": lambda: dtype,
    }
    if kind.startswith("Optional["):
        return None
    return values[kind]() if kind in values else NotImplemented


def _tensor(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    count = torch.Size(shape).numel()
    if dtype is torch.bool:
        return (torch.arange(count) % 2 == 0).reshape(shape)
    if dtype.is_floating_point:  # inside the domain of logarithms and inverse functions
        return torch.linspace(0.1, 0.9, count).reshape(shape).to(dtype)
    return (torch.arange(count) % 3).reshape(shape).to(dtype)
