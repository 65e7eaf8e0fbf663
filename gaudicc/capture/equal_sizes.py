"""Capture: sizes that were declared equal are one size from the first line of the model on, whether or not it compares them.

torch unites them where the model does. One that cuts tokens and their mask into blocks each compares sizes rounded up only,
from which it does not follow.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from gaudicc.capture.shapes import declared_dims


@contextmanager
def equal_sizes(module: nn.Module, shapes: Mapping[str, Any] | None) -> Iterator[None]:
    """Inside, a call of the module first compares the sizes of its arguments that have one Dim.

    Args:
        module: what is exported.
        shapes: the declared sizes by argument name.
    """
    signature = inspect.signature(module.forward)

    def compare(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        first: dict[str, Any] = {}
        for _path, entry, size in declared_dims(shapes, signature.bind(*args, **kwargs).arguments.items()):
            name = getattr(entry, "__name__", None)
            assert name is None or first.setdefault(name, size) == size, (
                f"the sizes of Dim {name} are one in the example"
            )

    handle = module.register_forward_pre_hook(compare, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
