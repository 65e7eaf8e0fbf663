"""Registers a semantic op with torch: schema, CPU reference, fake implementation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_LIBRARY = torch.library.Library("gaudicc", "DEF")


def define(schema: str, reference: Callable[..., Any], fake: Callable[..., Any]) -> torch._ops.OpOverload:
    """Defines `gaudicc::name`.

    Args:
        schema: `name(Tensor x, ...) -> Tensor`.
        reference: computes it on real tensors; says what the op means.
        fake: gives the result's shape, dtype and strides for fake tensors.

    Returns:
        The op's default overload.
    """
    name = schema.split("(", 1)[0]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"gaudicc::{name}", fake, lib=_LIBRARY)
    overload: torch._ops.OpOverload = getattr(torch.ops.gaudicc, name).default
    return overload
