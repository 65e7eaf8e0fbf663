"""The rule for reductions of segments that lengths or offsets divide a dim into."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gaudicc.pipeline import Numerics
from gaudicc.rules.rule import Rule

aten = torch.ops.aten
_REDUCTIONS = {
    "sum": ("sum", 0.0),
    "mean": ("sum", 0.0),
    "prod": ("prod", 1.0),
    "max": ("amax", -math.inf),
    "min": ("amin", math.inf),
}


def segment_reduce(
    data: Tensor,
    reduce: str,
    *,
    lengths: Tensor | None = None,
    indices: None = None,
    offsets: Tensor | None = None,
    axis: int = 0,
    unsafe: bool = False,
    initial: float | None = None,
) -> Tensor:
    """Each row of the dim goes to its segment, found by the ends; rows behind the last end to one that is dropped.

    Sums and products are made in float32.
    """
    given = lengths if lengths is not None else offsets
    assert given is not None, "the check asks for one of them"
    axis = given.dim() - 1
    shape, batch, rows, rest = data.shape, math.prod(data.shape[:axis]), data.shape[axis], data.shape[axis + 1 :]
    starts, sizes = _starts_and_sizes(aten.reshape(given, [batch, given.shape[axis]]), lengths is not None)
    op, neutral = _REDUCTIONS[reduce]
    start, segments = (neutral if initial is None else initial), sizes.shape[1]
    base = aten.full([batch, segments + 1, math.prod(rest)], start, dtype=torch.float32, device=data.device)
    flat = aten._to_copy(aten.reshape(data, [batch, rows, math.prod(rest)]), dtype=torch.float32)
    places = aten.expand(aten.unsqueeze(_segment_of_rows(starts, segments, rows), -1), list(flat.shape))
    found = aten.slice.Tensor(aten.scatter_reduce.two(base, 1, places, flat, op), 1, 0, segments)
    if reduce == "mean":
        counts = aten._to_copy(aten.unsqueeze(sizes, -1), dtype=torch.float32)
        empty = aten.full([], math.nan if initial is None else initial, dtype=torch.float32, device=data.device)
        found = aten.where.self(aten.eq.Scalar(counts, 0), empty, aten.div.Tensor(found, aten.clamp(counts, 1)))
    result: Tensor = aten._to_copy(aten.reshape(found, [*shape[:axis], segments, *rest]), dtype=data.dtype)
    return result


def _starts_and_sizes(given: Tensor, lengths: bool) -> tuple[Tensor, Tensor]:
    """Where each segment begins, with the end of the last one, and how long it is; `[batch, ...]`."""
    count = given.shape[1]
    if not lengths:
        behind, before = aten.slice.Tensor(given, 1, 1, count), aten.slice.Tensor(given, 1, 0, count - 1)
        return given, aten.sub.Tensor(behind, before)
    ends = aten.cumsum(given, 1)
    last = aten.slice.Tensor(ends, 1, count - 1, count)
    return aten.cat([aten.sub.Tensor(ends, given), last], 1), given


def _segment_of_rows(starts: Tensor, segments: int, rows: int) -> Tensor:
    """The segment of each row, int64 `[batch, rows]`; `segments` for a row of none."""
    order = aten.arange.start(0, rows, dtype=starts.dtype, device=starts.device)
    order = aten.clone(aten.expand(order, [starts.shape[0], rows]))
    segment = aten.add.Tensor(aten.searchsorted.Tensor(starts, order, right=True), -1)
    none = aten.full([], segments, dtype=segment.dtype, device=segment.device)
    result: Tensor = aten.where.self(aten.lt.Scalar(segment, 0), none, segment)
    return result


def _divided(
    data: Tensor,
    reduce: str,
    *,
    lengths: Tensor | None = None,
    indices: Tensor | None = None,
    offsets: Tensor | None = None,
    **options: object,
) -> str | None:
    given = lengths if lengths is not None else offsets
    if given is None:
        return "neither lengths nor offsets are given"
    if not data.numel() or given.shape[-1] < (1 if lengths is not None else 2):
        return "there is nothing to reduce"
    return None if data.dtype in (torch.float32, torch.bfloat16) else "it is no float32 or bfloat16"


RULES = (
    Rule(
        "segment-reduce", (aten.segment_reduce.default,), segment_reduce, check=_divided, numerics=Numerics.ROUNDING,
        cost="an index of the size of the data",
    ),
)  # fmt: skip
