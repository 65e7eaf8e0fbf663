"""Capture, third step: symbolic sizes. Bounds are required, sizes of 1 are grown, what specialises is listed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from gaudicc.errors import InputError

UNBOUNDED = 2**31
"""A size from here on is no bound: what torch takes for one is of this order."""

MOST = 2**16
"""Decisions on a size without a bound (Dim.AUTO) are tried up to here; most repeat with a small period."""


def _pairs(spec: Any, value: Any, path: str) -> Iterator[tuple[str, Any, torch.Tensor]]:
    """Walks a dynamic-shape spec beside the value it describes: (path, spec of the tensor, tensor).

    Raises:
        InputError: the spec is nested otherwise than the value.
    """
    if isinstance(value, torch.Tensor):
        yield path, spec, value
    elif spec is None or value is None:
        return
    elif isinstance(value, Mapping):
        _demand(isinstance(spec, Mapping), path, spec, "a dict, like the argument")
        for key, item in value.items():
            yield from _pairs(spec.get(key), item, f"{path}[{key!r}]")
    elif (items := _items(value)) is not None:
        _demand(isinstance(spec, (list, tuple)), path, spec, "a list, like the argument")
        for i, (inner, item) in enumerate(zip(spec, items, strict=False)):
            yield from _pairs(inner, item, f"{path}[{i}]")


def _items(value: Any) -> Sequence[Any] | None:
    """What a list holds, or a container of a class that is registered, as transformers' caches are: a list per layer."""
    if isinstance(value, Sequence):
        return None if isinstance(value, str) else value
    kind = pytree.SUPPORTED_NODES.get(type(value))
    return None if kind is None else list(kind.flatten_fn(value)[0])


def _demand(holds: bool, path: str, spec: Any, wanted: str) -> None:
    if not holds:
        raise InputError(f"dynamic_shapes of {path} is {spec!r}", hint=f"write {wanted}")


def _dims(spec: Any) -> dict[int, Any]:
    if spec is None:
        return {}
    entries = spec.items() if isinstance(spec, Mapping) else enumerate(spec)
    return {dim: entry for dim, entry in entries if entry not in (None, Dim.STATIC) and not isinstance(entry, int)}


def declared_dims(shapes: Mapping[str, Any] | None, given: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any, Any]]:
    """Every dynamic dim of named arguments: a name made of the argument (`input_ids_1`), what was declared, and the size."""
    for name, value in given:
        for path, spec, tensor in _pairs((shapes or {}).get(name), value, name):
            for dim, entry in _dims(spec).items():
                yield f"{path}_{dim}", entry, tensor.shape[dim]


def check_dims(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], positional: Sequence[str], shapes: Mapping[str, Any] | None
) -> None:
    """Demands that every dim exists, and of every named Dim a maximum (the buckets' range) that admits the example.

    Raises:
        InputError: one of these does not hold.
    """
    for name, value in [*zip(positional, args, strict=False), *kwargs.items()]:
        for path, spec, tensor in _pairs((shapes or {}).get(name), value, name):
            _demand(spec is None or isinstance(spec, (Mapping, list, tuple)), path, spec, "{dim: Dim(...)}, or None")
            for dim, entry in _dims(spec).items():
                if not 0 <= dim < tensor.dim():
                    raise InputError(
                        f"dynamic_shapes names dim {dim} of {path}, which has {tensor.dim()} dims",
                        hint="count from 0; negative dims are not read",
                    )
                _check_bounds(entry, path, dim, tensor.shape[dim])


def _check_bounds(entry: Any, path: str, dim: int, size: int) -> None:
    name, low, high = (getattr(entry, field, None) for field in ("__name__", "min", "max"))
    if name is None:
        return  # Dim.AUTO and the like: torch finds the range
    if not isinstance(high, int) or high >= UNBOUNDED:
        raise InputError(f"Dim {name!r} has no max", hint=f"write Dim({name!r}, min=1, max=...): buckets need a bound")
    if isinstance(low, int) and not any(low <= n <= high for n in (size, max(size, 2))):  # 0 and 1 are grown to 2
        raise InputError(
            f"{path}.shape[{dim}] is {size} in the example, but Dim {name!r} runs from {low} to {high}",
            hint="give an example in the range, or widen it",
        )


def separate(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Copies a tensor that is given more than once: torch.export would take all its places for one argument."""
    seen: set[int] = set()

    def own(leaf: Any) -> Any:
        repeated = isinstance(leaf, torch.Tensor) and id(leaf) in seen
        seen.add(id(leaf))
        return leaf.clone() if repeated else leaf

    separated: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_map(own, (args, kwargs))
    return separated


def grow_ones(
    args: tuple[Any, ...], kwargs: dict[str, Any], positional: Sequence[str], shapes: Mapping[str, Any] | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Repeats example sizes of 0 and 1 in dynamic dims to 2, since torch.export would fix them for good.

    Returns:
        args and kwargs with grown copies of the tensors concerned.
    """
    return _with_sizes(args, kwargs, positional, shapes, lambda _name, size: max(size, 2))


def resized(
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    positional: Sequence[str],
    shapes: Mapping[str, Any] | None,
    sizes: Mapping[str, int],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """An example with other sizes: rows are dropped from the end, or repeated from the start.

    Args:
        args: the example.
        kwargs: the example.
        positional: names of `args`.
        shapes: the declared sizes by argument name.
        sizes: name of a size, as `names_of` gives it -> the new one; the others stay.

    Returns:
        args and kwargs with new copies of the tensors concerned.
    """
    return _with_sizes(args, kwargs, positional, shapes, lambda name, size: sizes.get(name, size))


def without(shapes: Any, names: Collection[str]) -> Any:
    """The declared sizes, or a part of them, without the Dims of these names: they are those of the example."""
    return pytree.tree_map(lambda leaf: Dim.STATIC if getattr(leaf, "__name__", None) in names else leaf, shapes)


def sizes_of(
    args: tuple[Any, ...], kwargs: dict[str, Any], positional: Sequence[str], shapes: Mapping[str, Any] | None
) -> dict[str, int]:
    """Name of a declared size -> what it is in an example."""
    found: dict[str, int] = {}
    _with_sizes(args, kwargs, positional, shapes, lambda name, size: found.setdefault(name, size))
    return found


def dims_by_size(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], positional: Sequence[str], shapes: Mapping[str, Any] | None
) -> dict[int, Any]:
    """Size in the example -> the Dim of that size, where there is one only; sizes of 0 and 1 tell nothing."""
    found: dict[int, set[Any]] = {}
    for _, entry, size in declared_dims(shapes, [*zip(positional, args, strict=False), *kwargs.items()]):
        if hasattr(entry, "__name__"):
            found.setdefault(size, set()).add(entry)
    return {size: next(iter(dims)) for size, dims in found.items() if len(dims) == 1 and size > 1}


def _with_sizes(
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    positional: Sequence[str],
    shapes: Mapping[str, Any] | None,
    choose: Callable[[str, int], int],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if shapes is None:
        return args, kwargs

    def change(argument: str, value: Any) -> Any:
        changed: dict[int, torch.Tensor] = {}
        for path, spec, tensor in _pairs(shapes.get(argument), value, argument):
            current = tensor
            for dim, entry in _dims(spec).items():
                current = _with_size(current, dim, choose(_name(entry, path, dim), current.shape[dim]))
            changed[id(tensor)] = current
        return pytree.tree_map(lambda leaf: changed.get(id(leaf), leaf), value, is_leaf=lambda x: x is None)

    return (
        tuple(change(name, value) for name, value in zip(positional, args, strict=False)) + args[len(positional) :],
        {name: change(name, value) for name, value in kwargs.items()},
    )


def _with_size(tensor: torch.Tensor, dim: int, size: int) -> torch.Tensor:
    old = tensor.shape[dim]
    if size == old:
        return tensor
    if not old:
        return tensor.new_zeros([*tensor.shape[:dim], size, *tensor.shape[dim + 1 :]])
    return tensor.index_select(dim, torch.arange(size, device=tensor.device) % old)


def _name(entry: Any, path: str, dim: int) -> str:
    """The name of a declared size: its Dim's, or one made of the argument."""
    return str(getattr(entry, "__name__", None) or f"{path}_{dim}")


def names_of(
    exported: ExportedProgram,
    shapes: Mapping[str, Any] | None,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    positional: Sequence[str],
) -> dict[str, str]:
    """Symbol -> the user's name of the Dim it came from, or a name made of the argument (`input_ids_1`)."""
    fakes = {
        spec.arg.name: node.meta.get("val")
        for spec, node in zip(exported.graph_signature.input_specs, exported.graph.nodes, strict=False)
        if spec.kind.name == "USER_INPUT"
    }
    fake_leaves = list(fakes.values())
    leaves = pytree.tree_leaves((args, kwargs), is_leaf=lambda x: x is None)
    by_leaf = {id(leaf): fake for leaf, fake in zip(leaves, fake_leaves, strict=True)}
    names: dict[str, str] = {}
    for argument, value in [*zip(positional, args, strict=False), *kwargs.items()]:
        for path, spec, tensor in _pairs((shapes or {}).get(argument), value, argument):
            for dim, entry in _dims(spec).items():
                size = by_leaf[id(tensor)].shape[dim]
                if isinstance(size, torch.SymInt):
                    names.setdefault(str(size.node.expr), _name(entry, path, dim))
    return names


def ranges_of(exported: ExportedProgram, names: Mapping[str, str]) -> dict[str, tuple[int, int]]:
    """Name of a size -> smallest and largest.

    Args:
        exported: the program.
        names: symbol -> name, as `names_of` gives them.
    """
    bounds = {str(symbol): bounds_of(symbol, bound, MOST) for symbol, bound in exported.range_constraints.items()}
    return {name: bounds[symbol] for symbol, name in names.items() if symbol in bounds}


def bounds_of(symbol: Any, declared: Any, unbounded: int) -> tuple[int, int]:
    """The smallest and the largest size of a symbol.

    Args:
        symbol: torch may have taken it for positive while it exported, then no size is 0.
        declared: the range that torch gives it.
        unbounded: the largest, where there is none.
    """
    return max(bounded(declared.lower, 0), int(bool(symbol.is_positive))), bounded(declared.upper, unbounded)


def bounded(value: Any, unbounded: int) -> int:
    """A bound of a range as an int; `unbounded` where it is none."""
    known = (isinstance(value, int) or value.is_Integer) and int(value) < UNBOUNDED
    return int(value) if known else unbounded


def settled(value: torch.Tensor) -> torch.Tensor:
    """A fake tensor whose symbolic sizes are plain numbers where torch.export found them to be fixed."""

    def number(size: Any) -> Any:
        return int(size) if isinstance(size, torch.SymInt) and size.node.expr.is_number else size

    shape, strides = [number(size) for size in value.shape], [number(step) for step in value.stride()]
    if not isinstance(value, FakeTensor) or [*map(type, shape)] == [*map(type, value.shape)]:
        return value
    with value.fake_mode:
        return torch.empty_strided(shape, strides, dtype=value.dtype, device=value.device)


def specialized(exported: ExportedProgram, paths: Sequence[str]) -> tuple[str, ...]:
    """Every dim of a tensor input that did not become symbolic, as `path.shape[d] == n`."""
    specs = [s for s in exported.graph_signature.input_specs if s.kind.name == "USER_INPUT"]
    nodes = {node.name: node for node in exported.graph.nodes if node.op == "placeholder"}
    found = []
    for path, spec in zip(paths, specs, strict=True):
        value = nodes[spec.arg.name].meta.get("val") if spec.arg.name in nodes else None
        if isinstance(value, torch.Tensor):
            found += [
                f"{path}.shape[{d}] == {size}" for d, size in enumerate(settled(value).shape) if isinstance(size, int)
            ]
    return tuple(found)
