"""Rules for windows: adaptive and fractional max pooling with windows of varying places, any number of dims, and `im2col`.

For pooling, the windows of one dim after the other are gathered, so that each output has its window as the last dim; one `max`
over it gives value and place. Where a window is narrower than the widest one, its last entry is repeated, which changes no
maximum; of equal entries the first is taken, as in PyTorch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gaudicc.rules.rule import Rule

aten = torch.ops.aten
MOST = 1 << 28  # entries of all windows side by side: 1 GiB in float32
MOST_PLACES = 64  # slices that one op may become: of larger windows the places are gathered


def adaptive_max_pool(x: Tensor, output_size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Maxima of windows that divide each dim into `output_size` parts, and their places in the flattened input."""
    sizes = x.shape[x.dim() - len(output_size) :]
    windows = []
    for size, parts in zip(sizes, output_size, strict=True):
        part = line(x, parts)
        first = aten.floor_divide(aten.mul.Tensor(part, size), parts)
        end = aten.floor_divide(aten.add.Tensor(aten.mul.Tensor(aten.add.Tensor(part, 1), size), parts - 1), parts)
        windows.append((first, end))
    return _pooled(x, windows, [_widest(size, parts) for size, parts in zip(sizes, output_size, strict=True)])


def line(x: Tensor, parts: int) -> Tensor:
    """`0, 1, ..., parts - 1`, int32."""
    result: Tensor = aten.arange.start(0, parts, dtype=torch.int32, device=x.device)
    return result


def _widest(size: int, parts: int) -> int:
    return max((-(-(i + 1) * size // parts) - i * size // parts for i in range(parts)), default=0)


def _pooled(x: Tensor, windows: Sequence[tuple[Tensor, Tensor]], widths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Maxima over windows that are the same for all channels: `windows` holds first and end places per dim."""
    dims = len(widths)
    lead, sizes = list(x.shape[: x.dim() - dims]), list(x.shape[x.dim() - dims :])
    places = []
    for (first, end), width in zip(windows, widths, strict=True):
        offsets = aten.unsqueeze(line(x, width), 0)
        reach = aten.add.Tensor(aten.unsqueeze(first, 1), offsets)
        last = aten.unsqueeze(aten.add.Tensor(end, -1), 1)
        places.append(aten.where.self(aten.lt.Tensor(reach, last), reach, last))
    for dim, place in enumerate(places):
        parts, width = place.shape
        before = math.prod(lead) * math.prod(places[d].numel() for d in range(dim))
        rows = aten.reshape(x, [before, sizes[dim], math.prod(sizes[dim + 1 :])])
        x = aten.index_select(rows, 1, aten.reshape(place, [parts * width]))
    outputs = [place.shape[0] for place in places]
    return _choose(x, lead, outputs, widths, sizes, [aten.reshape(place, [1, *place.shape]) for place in places])


def _choose(
    x: Tensor, lead: Sequence[int], outputs: Sequence[int], widths: Sequence[int], sizes: Sequence[int], places: Any
) -> tuple[Tensor, Tensor]:
    """The maximum of each window and its place; `places` hold `[1 or channels, output, width]` per dim."""
    dims, channels = len(widths), math.prod(lead)
    split = [channels, *(n for pair in zip(outputs, widths, strict=True) for n in pair)]
    order = [0, *range(1, 2 * dims, 2), *range(2, 2 * dims + 1, 2)]
    shape = [channels, *outputs, math.prod(widths)]
    values, local = aten.max.dim(aten.reshape(aten.permute(aten.reshape(x, split), order), shape), -1)
    flat: Any = None
    for dim in range(dims):
        below = math.prod(widths[dim + 1 :])
        offset = aten.remainder.Scalar(aten.floor_divide(aten._to_copy(local, dtype=torch.int32), below), widths[dim])
        table = places[dim]
        at = [table.shape[0], *(outputs[d] if d == dim else 1 for d in range(dims))]
        first = aten.reshape(aten.clone(aten.select.int(table, 2, 0)), at)
        place = aten.add.Tensor(offset, first)
        flat = place if flat is None else aten.add.Tensor(aten.mul.Tensor(flat, sizes[dim]), place)
    full = [*lead, *outputs]
    return aten.reshape(values, full), aten._to_copy(aten.reshape(flat, full), dtype=torch.int64)


def _fits(x: Tensor, output_size: Sequence[int]) -> str | None:
    sizes = x.shape[x.dim() - len(output_size) :]
    if 0 in output_size or 0 in sizes:
        return "it is empty"
    widths = [_widest(size, parts) for size, parts in zip(sizes, output_size, strict=True)]
    entries = math.prod(x.shape[: x.dim() - len(output_size)]) * math.prod(widths) * math.prod(output_size)
    return f"its windows hold {entries} entries, more than {MOST}" if entries > MOST else None


def fractional_max_pool(
    x: Tensor, kernel: Sequence[int], output_size: Sequence[int], samples: Tensor
) -> tuple[Tensor, Tensor]:
    """Maxima of windows at pseudo-random places, drawn per channel: `samples` is `[batch, channels, dims]`."""
    dims = len(output_size)
    lead, sizes = list(x.shape[: x.dim() - dims]), list(x.shape[x.dim() - dims :])
    channels = math.prod(lead)
    drawn = aten.reshape(samples, [channels, dims])
    places = []
    for dim, (size, width, parts) in enumerate(zip(sizes, kernel, output_size, strict=True)):
        sample = dims - 1 - dim if dims == 2 else dim  # in two dims eager has the width first
        column = aten.slice.Tensor(drawn, 1, sample, sample + 1)
        first = _starts(column, size, width, parts)
        places.append(aten.add.Tensor(aten.unsqueeze(first, 2), line(x, width)))
    for dim, place in enumerate(places):
        _, parts, width = place.shape
        before, after = math.prod(p.shape[1] * p.shape[2] for p in places[:dim]), math.prod(sizes[dim + 1 :])
        rows = aten.reshape(x, [channels, before, sizes[dim], after])
        index = aten.reshape(place, [channels, 1, parts * width, 1])
        index = aten._to_copy(aten.expand(index, [channels, before, parts * width, after]), dtype=torch.int64)
        x = aten.gather(rows, 2, index)
    return _choose(x, lead, output_size, kernel, sizes, places)


def _starts(sample: Tensor, size: int, width: int, parts: int) -> Tensor:
    """First places `[channels, parts]` of the windows, int32; the last window ends with the input."""
    last: Tensor = aten.full([sample.shape[0], 1], size - width, dtype=torch.int32, device=sample.device)
    if parts == 1:
        return last
    # eager computes the step in the dtype of the samples
    step = aten.div.Tensor(aten.full([], size - width, dtype=sample.dtype, device=sample.device), parts - 1)
    part = aten._to_copy(line(sample, parts - 1), dtype=sample.dtype)
    moved = aten._to_copy(aten.mul.Tensor(aten.add.Tensor(sample, part), step), dtype=torch.int32)
    origin = aten._to_copy(aten.mul.Tensor(sample, step), dtype=torch.int32)
    result: Tensor = aten.cat([aten.add.Tensor(moved, aten.mul.Tensor(origin, -1)), last], 1)
    return result


def _fractional_fits(x: Tensor, kernel: Sequence[int], output_size: Sequence[int], samples: Tensor) -> str | None:
    if 0 in output_size:
        return "it is empty"
    entries = math.prod(x.shape[: x.dim() - len(kernel)]) * math.prod(kernel) * math.prod(output_size)
    return f"its windows hold {entries} entries, more than {MOST}" if entries > MOST else None


def im2col(
    x: Tensor, kernel: Sequence[int], dilation: Sequence[int], padding: Sequence[int], stride: Sequence[int]
) -> Tensor:
    """Windows as columns `[batch, channels * kernel, windows]`: one slice of the planes per place in the window."""
    if any(padding):
        x = aten.constant_pad_nd(x, [padding[1], padding[1], padding[0], padding[0]], 0)
    counts = [
        (size - step * (width - 1) - 1) // by + 1
        for size, width, step, by in zip(x.shape[-2:], kernel, dilation, stride, strict=True)
    ]
    planes = []
    for place in itertools.product(*map(range, kernel)):
        plane = x
        for dim, at, step, count, by in zip((-2, -1), place, dilation, counts, stride, strict=True):
            plane = aten.slice.Tensor(plane, dim, at * step, at * step + (count - 1) * by + 1, by)
        planes.append(plane)
    stacked = aten.stack(planes, -3)
    result: Tensor = aten.reshape(stacked, [*x.shape[:-3], x.shape[-3] * len(planes), math.prod(counts)])
    return result


def _few_places(x: Tensor, kernel: Sequence[int], *args: Any) -> str | None:
    places = math.prod(kernel)
    return f"a window of {places} places is {places} slices" if places > MOST_PLACES else None


RULES = (
    Rule(
        "adaptive-max-pool", (aten.adaptive_max_pool2d.default, aten.adaptive_max_pool3d.default), adaptive_max_pool,
        check=_fits, cost="writes every window once: the input once or, where windows overlap, about twice per dim",
    ),
    Rule(
        "fractional-max-pool", (aten.fractional_max_pool2d.default, aten.fractional_max_pool3d.default),
        fractional_max_pool, check=_fractional_fits, cost="writes every window once",
    ),
    Rule(
        "im2col", (aten.im2col.default,), im2col, check=_few_places,
        cost="writes every window once, and the padded planes; no index is computed",
    ),
)  # fmt: skip
