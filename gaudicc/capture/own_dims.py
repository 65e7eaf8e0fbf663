"""Capture: Dims that torch sees otherwise than they were declared: derived from one that no input has, or made one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from gaudicc.capture.shapes import declared_dims


def with_own_dims(shapes: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], positional: Sequence[str]) -> Any:
    """The declared sizes, with a Dim of its own for every derived one (`4 * n`) whose root is the size of no input.

    That it is a multiple is left to the model, which decides on it if it matters. Its name is made of the argument.
    """
    entries = {
        path: entry for path, entry, _ in declared_dims(shapes, [*zip(positional, args, strict=False), *kwargs.items()])
    }
    known = {getattr(entry, "__name__", None) for entry in entries.values()}
    own: dict[str, Any] = {}
    for path, entry in entries.items():
        if hasattr(entry, "root") and entry.root.__name__ not in known:
            own.setdefault(entry.__name__, Dim(re.sub(r"\W+", "_", path), min=entry.min, max=entry.max))
    return pytree.tree_map(lambda leaf: own.get(getattr(leaf, "__name__", ""), leaf), shapes)


def joined_dims(
    exported: ExportedProgram,
    shapes: Any,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    positional: Sequence[str],
    names: Mapping[str, str],
) -> Iterator[tuple[str, str]]:
    """Pairs of Dims that are one size in an export, since the model decided so: they have one symbol, and it one name.

    Args:
        exported: the export.
        shapes: the declared sizes by argument name.
        args: the example.
        kwargs: the example.
        positional: names of `args`.
        names: symbol -> name of the size.
    """
    given = {spec.arg.name for spec in exported.graph_signature.input_specs if spec.kind.name == "USER_INPUT"}
    fakes = [node.meta.get("val") for node in exported.graph.find_nodes(op="placeholder") if node.name in given]
    _, spec = pytree.tree_flatten((args, dict(kwargs)), is_leaf=lambda leaf: leaf is None)
    traced, by_name = pytree.tree_unflatten(fakes, spec)
    for _, entry, size in declared_dims(shapes, [*zip(positional, traced, strict=False), *by_name.items()]):
        name = getattr(entry, "__name__", None)
        other = names.get(str(size.node.expr)) if isinstance(size, torch.SymInt) else None
        if name is not None and other is not None and name != other:
            yield name, other
