"""Capture: a size of 0 for which the model raises is none of its sizes: padded, it would compute with what the pads hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.export import Dim
from torch.utils import _pytree as pytree

from gaudicc.capture.shapes import declared_dims, resized

EagerError = Callable[[tuple[Any, ...], dict[str, Any]], Exception | None]
"""What the model raises in eager PyTorch, if it does."""


def from_one(
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    positional: Sequence[str],
    shapes: Mapping[str, Any] | None,
    eager_error: EagerError,
) -> tuple[Mapping[str, Any] | None, dict[str, Exception]]:
    """The declared sizes, those from 1 on that were declared from 0 on and for which the model raises at 0.

    Args:
        args: the example.
        kwargs: the example.
        positional: names of `args`.
        shapes: the declared sizes by argument name.
        eager_error: runs the model.

    Returns:
        The sizes, and by the name of each that was raised what the model raised.
    """
    entries = [entry for _, entry, _ in declared_dims(shapes, [*zip(positional, args, strict=False), *kwargs.items()])]
    roots = {entry.root.__name__ for entry in entries if hasattr(entry, "root")}
    names = {entry.__name__ for entry in entries if getattr(entry, "min", None) == 0 and hasattr(entry, "__name__")}
    found: dict[str, Exception] = {}
    for name in sorted(names - roots):
        error = eager_error(*resized(args, kwargs, positional, shapes, {name: 0}))
        if error is None:
            continue
        if not found and eager_error(args, kwargs) is not None:
            return shapes, {}  # it is not the size: this model cannot be run here at all
        found[name] = error

    def raised(leaf: Any) -> Any:
        name = getattr(leaf, "__name__", None)
        return Dim(name, min=1, max=leaf.max) if name in found else leaf

    return pytree.tree_map(raised, shapes), found
