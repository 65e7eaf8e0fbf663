"""Capture: derived Dims. torch follows their root, which padding could not: no input has its size."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch.export import Dim
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
