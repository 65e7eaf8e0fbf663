"""Caches that are held as state: rows behind the valid ones are 0 before a call, which the host sees to, and after it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from gaudicc.calling import GrowingCache
from gaudicc.nodes import val
from gaudicc.padding.sizes import expression
from gaudicc.program import InputKind, Program


def claims_on_caches(
    program: Program, sizes: Mapping[str, tuple[fx.Node, int]], claims: Mapping[fx.Node, Any]
) -> dict[fx.Node, Any]:
    """The claims on the placeholders of caches, with what is known of their last rows.

    Args:
        program: the program.
        sizes: symbol -> a placeholder and the dim of it that has this size.
        claims: on all placeholders.
    """
    symbols = {dim.name: dim.symbol for dim in program.dimensions}
    caches = _caches(program)
    found: dict[fx.Node, Any] = {}
    for node, (_, cache) in ((node, caches[node.name]) for node in claims if node.name in caches):
        marker, at = sizes[symbols[cache.dimension]]
        found[node] = replace(claims[node], zeros=(cache.dim, expression(val(marker).shape[at])))
    return found


def with_zeros(
    program: Program, state: Mapping[str, torch.Tensor], lengths: Mapping[str, int]
) -> dict[str, torch.Tensor]:
    """What a call of these lengths finds in the buffers of caches: placeholder name -> a copy with 0 behind the valid rows.

    Args:
        program: the program.
        state: source name -> buffer, of those that were written.
        lengths: dimension name -> logical size.
    """
    found: dict[str, torch.Tensor] = {}
    for name, (source, cache) in _caches(program).items():
        if source in state:
            rows, buffer = lengths[cache.dimension], state[source].clone()
            buffer.narrow(cache.dim, rows, buffer.shape[cache.dim] - rows).zero_()
            found[name] = buffer
    return found


def _caches(program: Program) -> dict[str, tuple[str, GrowingCache]]:
    """The placeholders of held caches, with the name of the buffer. Their arguments keep a placeholder of their own."""
    caches = {cache.state: cache for cache in program.calling.caches}
    state = [spec for spec in program.inputs if spec.kind is InputKind.STATE and spec.source in caches]
    return {spec.name: (spec.source, caches[spec.source]) for spec in state}
