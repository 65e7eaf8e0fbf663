"""The host's part: pads inputs with zeros to the bucket, gives the lengths, slices outputs."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from gaudicc.errors import BundleError, InputError
from gaudicc.program import InputKind, OutputKind, Program

_ALLOWED = (
    ast.Expression, ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Mod, ast.UnaryOp, ast.USub,
    ast.Constant, ast.Name, ast.Load, ast.Call,
)  # fmt: skip

Size = Callable[[Mapping[str, int]], int]


def size_function(expression: str) -> Size:
    """A size expression as a function of dimension name -> size.

    Raises:
        BundleError: the text holds anything but names, integers, `+ - * // %`, `min` and `max`.
    """
    tree = ast.parse(expression, mode="eval")
    for node in ast.walk(tree):
        calls_other = isinstance(node, ast.Call) and not (
            isinstance(node.func, ast.Name) and node.func.id in ("min", "max")
        )
        if not isinstance(node, _ALLOWED) or calls_other:
            raise BundleError(f"{expression!r} is no size expression")
    if expression.isdigit():
        number = int(expression)
        return lambda sizes: number
    if isinstance(tree.body, ast.Name):
        return operator.itemgetter(tree.body.id)
    code = compile(tree, "size", "eval")
    return lambda sizes: int(eval(code, {"__builtins__": {}, "min": min, "max": max}, dict(sizes)))  # checked above


class HostPadding:
    """Pads and slices for one padded program. Used at every call, by many threads.

    Args:
        program: after the pass `pad`; symbolic or specialized.
        views: outputs may be views of padded ones; otherwise what has gaps is copied.

    Raises:
        InputError: the program was not padded.
    """

    def __init__(self, program: Program, *, views: bool = True) -> None:
        if program.padded is None:
            raise InputError("the program was not padded", hint="put Pad() into the pipeline")
        self._views = views
        users = program.user_inputs()
        self._inputs = [
            (spec.name, [(i, size_function(size)) for i, size in enumerate(sizes) if not size.isdigit()])
            for spec, sizes in zip(users, program.padded.inputs, strict=True)
        ]
        self._lengths = [(spec.name, spec.source) for spec in program.inputs if spec.kind is InputKind.LENGTH]
        self._scalars: dict[int, torch.Tensor] = {}
        self._outputs = [
            _slicer(dims)
            for spec, dims in zip(program.outputs, program.padded.outputs, strict=True)
            if spec.kind is not OutputKind.STATE  # a state buffer has no pads
        ]

    def pad(
        self, inputs: Mapping[str, torch.Tensor], sizes: Mapping[str, int], lengths: Mapping[str, int]
    ) -> dict[str, torch.Tensor]:
        """The feed of a recorded graph.

        Args:
            inputs: placeholder name -> tensor of the logical size.
            sizes: dimension name -> physical size: the bucket.
            lengths: dimension name -> logical size.

        Returns:
            Placeholder name -> tensor for every user input and length (int64, to be read only). Pads hold 0 (False).
        """
        exact = sizes == lengths
        feed = {}
        for name, dims in self._inputs:
            given = inputs[name]
            feed[name] = given if exact or not dims else _padded(given, dims, sizes)
        for name, dim in self._lengths:
            length = lengths[dim]
            scalar = self._scalars.get(length)
            feed[name] = self._scalars.setdefault(length, torch.tensor(length)) if scalar is None else scalar
        return feed

    def slice(self, outputs: Sequence[Any], sizes: Mapping[str, int], lengths: Mapping[str, int]) -> tuple[Any, ...]:
        """The logical part of every output.

        Args:
            outputs: those of the root that are not new values of state.
            sizes: the bucket.
            lengths: dimension name -> logical size.
        """
        if sizes == lengths:
            return tuple(outputs)
        return tuple(
            output if cut is None else self._dense(cut(output, sizes, lengths))
            for output, cut in zip(outputs, self._outputs, strict=True)
        )

    def _dense(self, output: torch.Tensor) -> torch.Tensor:
        """Eager outputs have no gaps, and user code views them."""
        if self._views or output.is_contiguous():
            return output
        return output.clone(memory_format=torch.preserve_format)  # in the order of its strides


def _padded(given: torch.Tensor, dims: Sequence[tuple[int, Size]], sizes: Mapping[str, int]) -> torch.Tensor:
    rank = given.dim()
    widths = [0] * (2 * rank)  # last dim first, before and after
    for dim, size in dims:
        widths[2 * (rank - 1 - dim) + 1] = size(sizes) - given.shape[dim]
    return torch.constant_pad_nd(given, widths, 0) if any(widths) else given


Slicer = Callable[[torch.Tensor, Mapping[str, int], Mapping[str, int]], torch.Tensor]


def _slicer(dims: Sequence[Sequence[str]]) -> Slicer | None:
    """Cuts one output; None if it has no pads."""
    if all(factor.isdigit() for dim in dims for factor in dim):
        return None
    functions = [[size_function(factor) for factor in dim] for dim in dims]
    if any(len(dim) > 1 for dim in functions):
        return lambda output, sizes, lengths: _sliced_factors(output, functions, sizes, lengths)
    cuts = [(i, functions[i][0]) for i, (size,) in enumerate(dims) if not size.isdigit()]

    def cut(output: torch.Tensor, sizes: Mapping[str, int], lengths: Mapping[str, int]) -> torch.Tensor:
        for dim, size in cuts:
            length = size(lengths)
            if length != output.shape[dim]:
                output = output.narrow(dim, 0, length)
        return output

    return cut


def _sliced_factors(
    output: torch.Tensor, dims: Sequence[Sequence[Size]], sizes: Mapping[str, int], lengths: Mapping[str, int]
) -> torch.Tensor:
    """Merged dims are viewed as their factors, cut, and merged again."""
    output = output.reshape([factor(sizes) for dim in dims for factor in dim])
    logical = [[factor(lengths) for factor in dim] for dim in dims]
    for i, size in enumerate(size for dim in logical for size in dim):
        output = output.narrow(i, 0, size)
    return output.reshape([math.prod(dim) for dim in logical])
