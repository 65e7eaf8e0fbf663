"""The rule of pointwise ops, over every op that it claims: operands are made from the op's schema, not from the rule."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from gaudicc.padding.rules.pointwise import pointwise

aten = torch.ops.aten
_INTEGERS = ("bitwise", "gcd", "lcm", "__and__", "__or__", "__xor__", "__lshift__", "__rshift__")
_NUMBERS = {"number": 2, "float": 0.5, "int": 2, "bool": True}


def overloads() -> Iterator[Any]:
    """Every functional pointwise overload of ATen that takes tensors, and numbers besides."""
    for name in sorted(name for name in dir(aten) if not name.endswith("_backward")):  # inference only
        packet = getattr(aten, name)
        for overload in packet.overloads() if hasattr(packet, "overloads") else ():
            op = getattr(packet, overload)
            random = torch.Tag.nondeterministic_seeded in op.tags
            if pointwise(op) and not random and not op._schema.is_mutable and operands(op) is not None:
                yield op


def operands(op: Any) -> tuple[list[str], list[Any]] | None:
    """The kinds of the tensors an op takes, and for each required argument a number or None for the next tensor."""
    shapes: list[str] = []
    arguments: list[Any] = []
    kind = "i" if op._schema.name.removeprefix("aten::").startswith(_INTEGERS) else "f"
    for argument in op._schema.arguments:
        if argument.has_default_value() or argument.kwarg_only:
            if argument.kwarg_only and not argument.has_default_value():
                return None
            continue
        if str(argument.type) == "Tensor":
            boolean = argument.name in ("mask", "condition")
            shapes.append(f"b s {'m' if boolean else kind}" if len(shapes) < 2 else f"s {kind}")
            arguments.append(None)
        elif str(argument.type) in _NUMBERS:
            arguments.append(_NUMBERS[str(argument.type)])
        else:
            return None
    returns_one = len(op._schema.returns) == 1 and str(op._schema.returns[0].type) == "Tensor"
    return (shapes, arguments) if shapes and returns_one else None


def reduced(op: Any, arguments: list[Any]) -> Callable[..., torch.Tensor]:
    """The op, summed over a padded dim: whatever its pads hold must not be counted."""

    def function(*tensors: torch.Tensor) -> torch.Tensor:
        feed = iter(tensors)
        result: torch.Tensor = op(*(next(feed) if argument is None else argument for argument in arguments))
        return result.nan_to_num(0.5, 9.0, -9.0).sum(1) if result.is_floating_point() else result.sum(1)

    return function


def example(rank: int, kind: str) -> torch.Tensor:
    floats = torch.rand((2,) * rank)
    return floats > 0.5 if kind == "m" else (4 * floats).long() if kind == "i" else floats


def runs(op: Any) -> bool:
    """Whether eager takes such operands: some ops want other dtypes, or are no CPU ops."""
    found = operands(op)
    assert found is not None, "listed only if so"
    made = [example(len(dims), kind) for *dims, kind in map(str.split, found[0])]
    try:
        reduced(op, found[1])(*made)
    except (RuntimeError, NotImplementedError):
        return False
    return True


OPS = {str(op): op for op in overloads() if runs(op)}


@pytest.mark.parametrize(
    "name", [name if i % 20 == 0 else pytest.param(name, marks=pytest.mark.sweep) for i, name in enumerate(OPS)]
)
def test_what_a_pointwise_op_leaves_in_pads(name: str, brute_force: Callable[..., set[Any]]) -> None:
    found = operands(OPS[name])
    assert found is not None
    shapes, arguments = found
    brute_force(reduced(OPS[name], arguments), *shapes)
