"""The host's part: pads inputs with zeros to the bucket, gives the lengths, slices outputs."""

from __future__ import annotations

import ast
import math
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
        name = tree.body.id
        return lambda sizes: sizes[name]
    code = compile(tree, "size", "eval")
    return lambda sizes: int(eval(code, {"__builtins__": {}, "min": min, "max": max}, dict(sizes)))  # checked above


class HostPadding:
    """Pads and slices for one padded program.

    Args:
        program: after the pass `pad`; symbolic or specialized.
        views: outputs may be views of padded ones; otherwise what has gaps is copied.

    Raises:
        InputError: the program was not padded.
    """

    def __init__(self, program: Program, *, views: bool = True) -> None:
        if program.padded is None:
            raise InputError("the program was not padded", hint="put Pad() into the pipeline")
        users = program.user_inputs()
        self._inputs = [
            (spec.name, tuple(size_function(size) for size in sizes), all(size.isdigit() for size in sizes))
            for spec, sizes in zip(users, program.padded.inputs, strict=True)
        ]
        self._views = views
        self._lengths = [(spec.name, spec.source) for spec in program.inputs if spec.kind is InputKind.LENGTH]
        self._outputs = [
            [[size_function(factor) for factor in dim] for dim in dims] if _dynamic(dims) else None
            for spec, dims in zip(program.outputs, program.padded.outputs, strict=True)
            if spec.kind is not OutputKind.STATE  # a state buffer has no pads
        ]

    def pad(
        self, inputs: Mapping[str, torch.Tensor], sizes: Mapping[str, int], lengths: Mapping[str, int],
        buffers: Mapping[str, torch.Tensor] | None = None,
    ) -> dict[str, torch.Tensor]:  # fmt: skip
        """The feed of a recorded graph.

        Args:
            inputs: placeholder name -> tensor of the logical size.
            sizes: dimension name -> physical size: the bucket.
            lengths: dimension name -> logical size.
            buffers: tensors of the physical size to write into, by placeholder name (lengths included); else new ones.

        Returns:
            Placeholder name -> tensor for every user input and length. Pads hold 0 (False).
        """
        feed = {}
        for name, functions, static in self._inputs:
            given = inputs[name]
            shape = given.shape if static else tuple(function(sizes) for function in functions)
            into = buffers.get(name) if buffers is not None else None
            feed[name] = given if into is None and given.shape == shape else _padded(given, shape, into)
        for name, dim in self._lengths:
            into = buffers.get(name) if buffers is not None else None
            feed[name] = torch.tensor(lengths[dim]) if into is None else into.fill_(lengths[dim])
        return feed

    def slice(self, outputs: Sequence[Any], sizes: Mapping[str, int], lengths: Mapping[str, int]) -> tuple[Any, ...]:
        """The logical part of every output.

        Args:
            outputs: those of the root that are not new values of state.
            sizes: the bucket.
            lengths: dimension name -> logical size.
        """
        return tuple(
            output if dims is None else self._dense(_sliced(output, dims, sizes, lengths))
            for output, dims in zip(outputs, self._outputs, strict=True)
        )

    def _dense(self, output: torch.Tensor) -> torch.Tensor:
        """Eager outputs have no gaps, and user code views them."""
        if self._views or output.is_contiguous():
            return output
        return output.clone(memory_format=torch.preserve_format)  # in the order of its strides


def _dynamic(dims: Sequence[Sequence[str]]) -> bool:
    return any(not factor.isdigit() for dim in dims for factor in dim)


def _padded(given: torch.Tensor, shape: tuple[int, ...], into: torch.Tensor | None) -> torch.Tensor:
    buffer = torch.zeros(shape, dtype=given.dtype, device=given.device) if into is None else into.zero_()
    part = buffer
    for dim, size in enumerate(given.shape):
        part = part.narrow(dim, 0, size)
    part.copy_(given)
    return buffer


def _sliced(
    output: torch.Tensor, dims: Sequence[Sequence[Size]], sizes: Mapping[str, int], lengths: Mapping[str, int]
) -> torch.Tensor:
    logical = [[factor(lengths) for factor in dim] for dim in dims]
    if any(len(dim) > 1 for dim in dims):
        output = output.reshape([factor(sizes) for dim in dims for factor in dim])
    for i, size in enumerate(size for dim in logical for size in dim):
        output = output.narrow(i, 0, size)
    return output.reshape([math.prod(dim) for dim in logical]) if any(len(dim) > 1 for dim in dims) else output
