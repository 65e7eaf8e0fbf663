"""specialize: one bucket's sizes put in place of the symbols."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from gaudicc.errors import InternalError, UnsupportedOpError
from gaudicc.fake_values import fake_mode_of, propagate
from gaudicc.invariants import (
    FUNCTIONAL,
    NO_DYNAMIC_CONTROL_FLOW,
    SHAPES_GUARDED,
    STATIC,
    TYPED,
    WELL_FORMED,
    Invariant,
)
from gaudicc.nodes import CALLS, call_loop, op_name, operands_of, val, where
from gaudicc.pipeline import Numerics, PassResult
from gaudicc.program import InputKind, Program
from gaudicc.rewriter import Rewriter

_NUMBERS = (int, float, bool)


@dataclass(frozen=True)
class Specialize:
    """Puts the sizes of one bucket in place of the symbols; size arithmetic disappears.

    A recorded graph has fixed shapes; and what Gaudi supports depends on sizes, so all static passes need them.

        %0: int = aten.sym_size.int(%ids, 1); %9 = aten.view(%8, [2, %0, -1, 16])    ->    %9 = aten.view(%8, [2, 128, -1, 16])

    Refuses a bucket that leaves a dimension out, and sizes that depend on the values of a tensor (`nonzero`, boolean selection).

    Attributes:
        sizes: dimension name -> size, one entry per dimension of the program.
    """

    sizes: tuple[tuple[str, int], ...] = ()

    name: ClassVar[str] = "specialize"
    requires: ClassVar[frozenset[Invariant]] = frozenset(
        {WELL_FORMED, TYPED, FUNCTIONAL, NO_DYNAMIC_CONTROL_FLOW, SHAPES_GUARDED}
    )
    ensures: ClassVar[frozenset[Invariant]] = frozenset({STATIC})
    breaks: ClassVar[frozenset[Invariant]] = frozenset()
    numerics: ClassVar[Numerics] = Numerics.BITWISE

    def run(self, program: Program) -> PassResult:
        """Propagates fake tensors of the bucket's sizes, then replaces every node that turned into a number."""
        _refuse_unbounded(program, self.name)
        if not program.dimensions:
            return PassResult(program, False)
        sizes = dict(self.sizes)
        if missing := [dim.name for dim in program.dimensions if dim.name not in sizes]:
            raise InternalError(f"the bucket {sizes} leaves out {missing[0]}")
        example = dict(program.example)
        for dim in program.dimensions:
            for name, position in dim.positions:
                example[name] = _resized(example[name], position, sizes[dim.name])
        lengths = {
            spec.name: torch.tensor(sizes[spec.source]) for spec in program.inputs if spec.kind is InputKind.LENGTH
        }
        example.update(lengths)  # the resized example fills the bucket
        mode = fake_mode_of(program.root.graph)
        placeholders = program.root.graph.find_nodes(op="placeholder")
        values = [
            val(node) if _is_static(val(node)) else _fake(value, mode)
            for node, value in zip(placeholders, program.feed(example), strict=True)
        ]
        propagate(program.root, values, mode)
        for _, module in program.graphs():
            _replace_numbers(module)
        _drop_size_operands(program.root)
        return PassResult(replace(program, dimensions=(), example=example), True)


def _fake(value: torch.Tensor, mode: FakeTensorMode) -> torch.Tensor:
    """A fake tensor of plain numbers; `mode.from_tensor` would remember that this very example had symbolic sizes."""
    with mode:
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)


def _is_static(value: torch.Tensor) -> bool:
    return all(isinstance(size, int) for size in (*value.shape, *value.stride()))


def _refuse_unbounded(program: Program, stage: str) -> None:
    """Refuses sizes that the values of a tensor decide: no bucket has a number for them."""
    for _, module in program.graphs():
        for node in module.graph.nodes:
            value = node.meta.get("val")
            sizes = [size for leaf in _leaves(value) if isinstance(leaf, torch.Tensor) for size in leaf.shape]
            if any(isinstance(size, torch.SymInt) and size.node.hint is None for size in sizes):
                raise UnsupportedOpError(
                    f"the size of what {op_name(node)} gives depends on the values of a tensor",
                    where=where(node, stage),
                    hint="keep the full size and mask instead of selecting, or use a form with a size, such as "
                    "torch.nonzero_static(x, size=...)",
                )


def _leaves(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _resized(tensor: torch.Tensor, dim: int, size: int) -> torch.Tensor:
    """The example repeated or cut to a size, so that later numerics checks have values in range."""
    if tensor.shape[dim] == size:
        return tensor
    shape = list(tensor.shape)
    if not tensor.shape[dim]:
        shape[dim] = size
        return tensor.new_zeros(shape)
    return tensor.index_select(dim, torch.arange(size, device=tensor.device) % tensor.shape[dim])


def _replace_numbers(module: fx.GraphModule) -> None:
    rewriter = Rewriter(module)
    for node in list(module.graph.nodes):
        if node.op == "call_function" and isinstance(val(node), _NUMBERS):
            rewriter.replace(node, val(node))
    rewriter.finish()


def _drop_size_operands(module: fx.GraphModule) -> None:
    """Bodies took sizes as operands; now that they are numbers, the operands go."""
    calls: dict[str, list[fx.Node]] = {}
    for node in module.graph.nodes:
        if node.target in CALLS:
            calls.setdefault(str(node.args[0].target), []).append(node)
    for name, sites in calls.items():
        body = getattr(module, name)
        placeholders = [node for node in body.graph.nodes if node.op == "placeholder"]
        sizes = [i for i, node in enumerate(placeholders) if isinstance(val(node), _NUMBERS)]
        rewriter = Rewriter(body)
        for i in sizes:
            rewriter.replace(placeholders[i], val(placeholders[i]))
        rewriter.finish()
        _drop_size_operands(body)
        for site in sites:
            first = len(site.args) - len(operands_of(site))  # what a loop says of itself comes before the operands
            number = 1 if site.target is call_loop else 0  # and its body is given the number of the trip before them
            operands: list[Any] = [arg for i, arg in enumerate(operands_of(site)) if i + number not in sizes]
            site.args = (*site.args[:first], *operands)
    module.recompile()
