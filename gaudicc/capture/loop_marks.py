"""Capture, around export: the two ops between which one trip of a time-step loop stands in an exported graph.

Mending traces the trip once, between `begin_loop` and `end_loop`; `outline_loops.py` makes the body of a loop of what lies
between. Neither op ever runs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("gaudicc_capture", "FRAGMENT")
_LIBRARY.define("begin_loop(Tensor[] carried, SymInt trips) -> Tensor[]")
_LIBRARY.define("end_loop(Tensor index, Tensor[] carried, Tensor[] rows, SymInt trips) -> Tensor[]")


def _empty(tensor: Tensor, *sizes: Any) -> Tensor:
    return torch.empty((*sizes, *tensor.shape), dtype=tensor.dtype, device=tensor.device)


def _fake_begin(carried: list[Tensor], trips: Any) -> list[Tensor]:
    device = carried[0].device if carried else None
    return [torch.empty((), dtype=torch.int64, device=device), *map(_empty, carried)]


def _fake_end(index: Tensor, carried: list[Tensor], rows: list[Tensor], trips: Any) -> list[Tensor]:
    return [*map(_empty, carried), *(_empty(row, trips) for row in rows)]


torch.library.register_fake("gaudicc_capture::begin_loop", _fake_begin, lib=_LIBRARY)
torch.library.register_fake("gaudicc_capture::end_loop", _fake_end, lib=_LIBRARY)

begin_loop: torch._ops.OpOverload = torch.ops.gaudicc_capture.begin_loop.default
"""Carried values and the number of trips -> the number of the trip, from 0, and the carried values as the trip finds them."""
end_loop: torch._ops.OpOverload = torch.ops.gaudicc_capture.end_loop.default
"""What a trip leaves -> the carried values after the last trip, and what each trip adds to a list, stacked."""
UNTIL_DATA_ENDS = -1
"""Stands for the number of trips of a loop that goes on while its first carried value, a bool `[]`, is true."""
