"""One call of a compiled model: arguments -> checked inputs and logical sizes; results -> the model's own output type."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree as pytree

from gaudicc.buckets import Bucket, BucketSet
from gaudicc.calling import Calling
from gaudicc.errors import (
    AutocastError,
    BucketMissError,
    GaudiccError,
    GradError,
    InputError,
    ModelRaisedError,
    ShapeError,
    Where,
)
from gaudicc.nodes import val
from gaudicc.padding import refusal_of
from gaudicc.program import Dimension, InputKind, OutputKind, Program
from gaudicc.rewriter import shape_text


class Expected(NamedTuple):
    """What one argument must be.

    Attributes:
        leaf: its index among the leaves of the arguments.
        path: what the user knows it by.
        dtype: its dtype.
        device: its device.
        sizes: per dim a number, a `Dimension`, or None for any size.
    """

    leaf: int
    path: str
    dtype: torch.dtype
    device: torch.device
    sizes: list[Any]


class Prologue:
    """Checks a call against the guards and gives the logical size of every dimension.

    Args:
        program: the symbolic program; its placeholders say what each input must be.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        placeholders = {node.name: node for node in program.root.graph.nodes if node.op == "placeholder"}
        where = {place: dim for dim in program.dimensions for place in dim.positions}
        leaves = {path: i for i, path in enumerate(program.calling.paths)}
        self._inputs: list[Expected] = []
        for spec in program.inputs:
            if spec.kind is InputKind.USER:
                value = val(placeholders[spec.name])
                sizes: list[Any] = [
                    where.get((spec.name, i), size if isinstance(size, int) else None)
                    for i, size in enumerate(value.shape)
                ]
                self._inputs.append(Expected(leaves[spec.source], spec.source, value.dtype, value.device, sizes))

    def bind(self, leaves: Sequence[Any]) -> tuple[list[torch.Tensor], dict[str, int]]:
        """Checks the leaves of the arguments.

        Args:
            leaves: in the order of the calling's `in_spec`.

        Returns:
            The tensors in the order of the user inputs, and dimension name -> logical size.

        Raises:
            InputError: a static argument differs from the one at compile time, a tensor is missing or of another dtype.
            ShapeError: a size is out of range, or equal sizes differ.
        """
        for index, expected in self.program.calling.static.items():
            if not _same(leaves[index], expected):
                self._refuse_static(index, leaves[index], expected)
        tensors: list[torch.Tensor] = []
        sizes: dict[str, int] = {}
        for expected in self._inputs:
            given = leaves[expected.leaf]
            self.check(expected, given, sizes)
            tensors.append(given)
        return tensors, sizes

    def check(self, expected: Expected, given: Any, sizes: dict[str, int]) -> None:
        """Checks one argument; raises as `bind`.

        Args:
            expected: what it must be.
            given: what it is.
            sizes: dimension name -> logical size, as far as known; what this argument tells is added.
        """
        _, path, dtype, device, wanted = expected
        if not _is_plain(given) or given.dtype != dtype or given.device != device:
            raise InputError(
                f"argument {path} is {_kind(given)}, not {dtype} on {device}",
                where=Where(stage="the call"),
                hint="convert it before the call, or compile again with such an example",
            )
        if given.requires_grad:
            raise GradError(f"argument {path} requires grad", where=Where(stage="the call"))
        shape = given.shape
        if len(shape) != len(wanted):
            raise self._shape_error(expected, given, "rank")
        for position, (size, want) in enumerate(zip(shape, wanted, strict=True)):
            if isinstance(want, int):
                if size != want:
                    raise self._shape_error(expected, given, position)
            elif want is not None:
                known = sizes.setdefault(want.name, size)
                if known != size or not want.low <= size <= want.high:
                    raise self._range_error(path, position, size, want, known)

    def _refuse_static(self, index: int, given: Any, expected: Any) -> None:
        path = self.program.calling.paths[index]
        hint = "such arguments are fixed when the model is compiled: compile once per value, or make it a tensor"
        raise InputError(
            f"argument {path} is {_kind(given)}, it was {expected!r} when the model was compiled",
            where=Where(stage="the call"),
            hint=hint,
        )

    def _shape_error(self, expected: Expected, given: torch.Tensor, position: int | str) -> ShapeError:
        _, path, _, _, wanted = expected
        shown = [size if isinstance(size, int) else getattr(size, "name", "?") for size in wanted]
        hint = "compile it with an example of this rank"
        if isinstance(position, int):
            name = f"{path.split('[', 1)[0].split('.', 1)[0]}_{position}"
            bound = max(given.shape[position], int(wanted[position]))
            hint = (
                f'compile with dynamic_shapes={{"{path}": {{{position}: Dim("{name}", min=1, max={bound})}}}} '
                "(from torch.export import Dim), and with buckets=[...] that hold the sizes you serve"
            )
        return ShapeError(
            f"argument {path} has shape {list(given.shape)}, the model was compiled for {shown}",
            where=Where(stage="the call"),
            hint=hint,
        )

    def _range_error(self, path: str, position: int, size: int, dim: Any, known: int) -> GaudiccError:
        if known != size:
            what = f"{path}.shape[{position}] is {size}, but another input says {dim.name} is {known}"
            return ShapeError(what, where=Where(stage="the call"), hint="these sizes were declared equal")
        return self.program.range_error(f"{path}.shape[{position}]", dim.name, size, (dim.low, dim.high))

    def __str__(self) -> str:
        """The guards as the Python that a reader may run in his head, one assertion a line."""
        lines = [f"assert {_in_user_names(self.program, g.text)}  # {g.reason}" for g in self.program.guards]
        lines += [
            f"assert {self.program.calling.paths[index]} == {value!r}  # fixed at compile time"
            for index, value in self.program.calling.static.items()
        ]
        return "\n".join(lines)


def choice_text(program: Program, buckets: BucketSet) -> str:
    """How a bucket is chosen for a call, as Python over logical sizes: cheapest first, the first that fits is taken."""
    if not program.dimensions:
        return ""
    places = {dim.name: dim.positions[0] for dim in program.dimensions}
    lines = [f"{dim} = {places[dim][0]}.shape[{places[dim][1]}]" for dim in buckets.dims]
    relation = "==" if program.padded is None else "<="
    word = "if"
    for bucket in sorted(buckets, key=buckets.cost):
        fits = " and ".join(f"{dim} {relation} {size}" for dim, size in bucket.as_dict().items())
        lines.append(f"{word} {fits}: bucket = {bucket.as_dict()}")
        word = "elif"
    return _in_user_names(program, "\n".join([*lines, "else: raise BucketMissError"]))


def _in_user_names(program: Program, text: str) -> str:
    """Writes `pair_1_more.shape[0]`, by the placeholder's name, as the user's `pair[1]['more'].shape[0]`."""
    held = {cache.state: program.calling.paths[cache.argument] for cache in program.calling.caches}
    paths = {spec.name: spec.source for spec in program.user_inputs()}
    paths |= {spec.name: held[spec.source] for spec in program.inputs if spec.source in held}
    return re.sub(r"\b\w+(?=\.shape\[)", lambda found: paths.get(found[0], found[0]), text)


def exact(program: Program, buckets: BucketSet, sizes: Mapping[str, int]) -> Bucket:
    """The bucket of exactly these sizes, for a program that is not padded.

    Raises:
        BucketMissError: there is none; says why the program is not padded.
    """
    bucket = Bucket(buckets.dims, tuple(sizes[dim] for dim in buckets.dims))
    if bucket not in buckets:
        raise BucketMissError(
            f"no bucket is exactly {bucket}, and the program is not padded: {refusal_of(program)}",
            where=Where(stage="the call"),
            hint=f"the buckets are {'; '.join(map(str, buckets))}",
        )
    return bucket


def bucket_for(sizes: Mapping[str, int], dimensions: Sequence[Dimension], *, exact: bool) -> Bucket:
    """A new bucket for sizes that none holds: the next power of two of each, within its dimension's range.

    Args:
        sizes: dimension name -> logical size.
        dimensions: with their ranges.
        exact: exactly these sizes, for a program that is not padded.
    """
    if exact:
        return Bucket.of({dim.name: sizes[dim.name] for dim in dimensions})
    ceiling = {dim.name: 1 << max(sizes[dim.name] - 1, 0).bit_length() for dim in dimensions}
    return Bucket.of({dim.name: min(ceiling[dim.name], dim.high) for dim in dimensions})


def refuse_ambient() -> None:
    """Refuses a call inside an autocast region: it would not change what was recorded.

    Raises:
        AutocastError: autocast is active for the CPU.
    """
    if torch.is_autocast_enabled("cpu"):
        raise AutocastError("autocast is active around the call", where=Where(stage="the call"))


def unflatten(
    program: Program,
    results: Sequence[torch.Tensor],
    leaves: Sequence[Any],
    held: Mapping[int, torch.Tensor] | None = None,
) -> Any:
    """Gives results back in the model's own type, and writes inputs that the model mutates.

    Args:
        program: the symbolic program.
        results: one tensor per output spec that is no state write.
        leaves: the leaves of the arguments, for mutated inputs.
        held: leaf index of the output -> a cache that is held as state.

    Returns:
        The output as the model would have returned it.

    Raises:
        Exception: what the model itself raises on these arguments.
    """
    users: list[Any] = []
    kinds = [spec for spec in program.outputs if spec.kind is not OutputKind.STATE]
    for spec, result in zip(kinds, results, strict=True):
        if spec.kind is OutputKind.USER:
            users.append(result if spec.target is None else result.item())
        elif spec.kind is OutputKind.INPUT:
            leaves[program.calling.paths.index(str(spec.target))].copy_(result)
        elif spec.kind is OutputKind.LENGTH:
            output, dim = map(int, str(spec.target).split(":"))
            users[output] = users[output].narrow(dim, 0, int(result))
    for spec, result in zip(kinds, results, strict=True):  # what the model wrote before it raised stays written
        if spec.kind is OutputKind.FLAG:
            _raise(program.calling, result)
    others = program.calling.literals if held is None else {**program.calling.literals, **held}
    for index, value in sorted(others.items()):
        users.insert(index, value)
    return pytree.tree_unflatten(users, program.calling.out_spec)


def _raise(calling: Calling, flags: torch.Tensor) -> None:
    """Raises what the model itself raises; the cause names the user's line."""
    for entry, flag in zip(calling.raises, flags.tolist(), strict=True):
        if flag:
            here = ModelRaisedError(
                "the model raises this", where=Where(source=entry.source, stage="the call"), hint=""
            )
            raise entry.error.with_traceback(None) from here


def _same(given: Any, expected: Any) -> bool:
    # By repr: nan is then the nan that was compiled in, and -0.0 is not 0.0.
    return given is expected or (type(given) is type(expected) and repr(given) == repr(expected))


def _is_plain(value: Any) -> bool:
    """Whether a value is a dense tensor and no subclass, whose meaning is not in the graph."""
    return type(value) in (torch.Tensor, torch.nn.Parameter) and value.layout is torch.strided


def _kind(value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return f"{value!r}"
    form = "" if _is_plain(value) else f" ({type(value).__name__}, {value.layout})"
    return f"{shape_text(value)} on {value.device}{form}"


def inputs_by_name(program: Program, tensors: Sequence[torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """User input name -> tensor."""
    return dict(zip((spec.name for spec in program.user_inputs()), tensors, strict=True))
