"""What authors write around their models: decoders, tilings, caches and states that decide on data in plain Python."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tests.capture.stranger_searches import normal
from tests.capture.strangers import Function, Inputs, given

T = TypeVar("T", bound=Callable[..., Any])
FAST: dict[str, tuple[Function, Inputs, list[Inputs]]] = {}
SLOW: dict[str, tuple[Function, Inputs, list[Inputs]]] = {}


def case(example: Inputs, *calls: Inputs, slow: bool = False) -> Callable[[T], T]:
    """Adds a function, the example that it is compiled with, and what makes the inputs of its calls."""

    def add(function: T) -> T:
        made = function() if isinstance(function, type) else function
        (SLOW if slow else FAST)[function.__name__] = made, example, [example, *calls]
        return function

    return add


@dataclass
class Beam:
    tokens: list[Tensor]
    score: Any
    done: Any = False


@case(normal((4, 6)), normal((4, 6), scale=4.0), given([[9.0, 0, 0, 0, 0, 1]] * 4), given([[0.0] * 6] * 4), slow=True)
def beam_search_that_stops(steps: Tensor) -> Any:
    beams = [Beam([], steps.new_zeros(())), Beam([], steps.new_full((), -1e9))]
    for logits in steps:
        if all(beam.done for beam in beams):
            break
        chances = logits.log_softmax(-1)
        best, index = torch.stack([beam.score + chances for beam in beams]).flatten().topk(2)
        rows = torch.stack([torch.stack(b.tokens) if b.tokens else index.new_zeros(0) for b in beams])
        beams = [
            Beam([*rows[place // 6], place % 6], score, (place % 6 == 0).item())
            for score, place in zip(best, index, strict=True)
        ]
    return beams[0].score, beams[1].score, len(beams[0].tokens)


@case(given([0.1, 0.7, 0.2], 0.5), given([0.1, 0.7, 0.2], 0.05), given([0.1, 0.7, 0.2], 0.99), given([0.0, 0, 1], 0.0))
def sample(chances: Tensor, at: Tensor) -> Any:
    total = 0.0
    for place, chance in enumerate(chances):
        total += chance.item()
        if at < total:
            return place
    return len(chances) - 1


@case(given([1.0, 3, 2, 0], 0.5), given([9.0, 0, 0, 0], 0.9), given([0.0] * 4, 1.0), given([1.0, 2, 3, 4], 0.0))
def keep_the_likely(logits: Tensor, share: Tensor) -> Any:
    chances, order = logits.softmax(-1).sort(descending=True)
    total, kept = 0.0, 0
    for chance in chances:
        total = total + chance
        kept += 1
        if total >= share:
            break
    mask = torch.ones_like(logits, dtype=torch.bool)
    mask[order[:kept]] = False
    return logits.masked_fill(mask, float("-inf")), kept


@case(
    given([1.0, 2, 3, 4], [True, False, True, True]), given([1.0, 2, 3, 4], [False] * 4), given([1.0] * 4, [True] * 4)
)
def drop_and_restore(x: Tensor, keep: Tensor) -> Any:
    if not keep.any():
        return x.clone(), torch.tensor(0)
    kept = x[keep]
    kept = kept * 2 + kept.amax(0)
    out = torch.zeros_like(x)
    out[keep] = kept
    return out, keep.sum()


@case(given([-1, 0, 0, 1]), given([-1, 0, 1, 2]), given([-1] * 4), given([-1, 0, 0, 0]), slow=True)
def ancestors(parent: Tensor) -> Tensor:
    mask = torch.eye(4, dtype=torch.bool)
    for row in range(4):
        at = parent[row]
        while at >= 0:
            mask[row, at] = True
            at = parent[at]
    return mask


@case(given([100, 300]), given([300, 100]), given([7, 7]), given([1, 1000]), given([500, 499]))
def best_tiling(size: Tensor) -> Any:
    height, width = size[0].item(), size[1].item()
    best, choice = float("inf"), (1, 1)
    for rows in range(1, 3):
        for columns in range(1, 4):
            if rows * columns > 4:
                continue
            off = abs(width / height - columns / rows)
            if off < best:
                best, choice = off, (rows, columns)
            elif off == best and height * width > 0.5 * 224 * 224 * rows * columns:
                choice = (rows, columns)
    return choice[0], choice[1], best


ROWS = [[1.0, 2, 3], [4, 5, 6], [7, 8, 9]]


@case(given(ROWS, [3, 2, 1]), given(ROWS, [1, 1, 1]), given(ROWS, [0, 3, 3]), given(ROWS, [0, 0, 0]))
def largest_of_ragged_rows(x: Tensor, lengths: Tensor) -> Tensor:
    found = []
    for row, length in zip(x, lengths, strict=True):
        if length == 0:
            found.append(row.new_zeros(()))
        else:
            found.append(row[:length].amax(0))
    return torch.stack(found)


@case(normal((2, 4)), normal((2, 4), scale=5.0), given([[0.0] * 4] * 2), normal((2, 4), scale=0.1), slow=True)
class Patience(nn.Module):
    """Stops when three layers in a row agree."""

    used: Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(5))
        self.head = nn.Linear(4, 3)
        self.register_buffer("used", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Any:
        last, streak, number = None, 0, 0
        for layer in self.layers:
            number += 1
            x = torch.tanh(layer(x))
            label = self.head(x).argmax(-1)
            streak = streak + 1 if last is not None and torch.equal(label, last) else 0
            last = label
            if streak == 2:
                break
        self.used = self.used + number + 1
        return self.head(x), number, self.used


@case(normal((2, 3)), normal((2, 3), scale=10.0), given([[0.0] * 3] * 2))
class Adaptive(nn.Module):
    """Ponders until every row has no share left."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.cell, self.halt = nn.GRUCell(3, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Any:
        state, left, steps = x.new_zeros(2, 4), x.new_ones(2), 0
        total = torch.zeros_like(state)
        while left.max() > 0.05 and steps < 6:
            state = self.cell(x, state)
            share = torch.sigmoid(self.halt(state)).squeeze(-1)
            share = torch.minimum(share, left) if steps < 5 else left
            total, left, steps = total + share[:, None] * state, left - share, steps + 1
        return total, steps


@case(given([1.0, -2, 3], [0.0, 0, 9]), given([0.0] * 3, [0.0] * 3), given([-1.0] * 3, [1.0, -5, 1]))
def by_generators(a: Tensor, b: Tensor) -> Any:
    total = sum(value for value in a if value > 0)
    more, all_more = any(x > y for x, y in zip(a, b, strict=True)), all(x >= y for x, y in zip(a, b, strict=True))
    first = next((place for place, value in enumerate(a) if value > b[place]), -1)
    return total + a.new_zeros(()), more, all_more, first


@case(given([[2.0, 1], [1, 2]]), given([[0.0] * 2] * 2), given([[1.0] * 2] * 2))
def try_and_finally(a: Tensor) -> Any:
    try:
        y = a.t() if (a[0, 0] * a[1, 1] - a[0, 1] * a[1, 0]).abs() < 1e-6 else a * 2
    finally:
        z = a + 1
    return y, z


@case(given([0, 2, 1], [1.0, 2, 4]), given([0, 0, 0], [1.0, 2, 4]), given([2, 1, 2], [1.0, 2, 4]), slow=True)
def dict_of_lists(labels: Tensor, x: Tensor) -> Any:
    groups: dict[int, list[Tensor]] = {0: [], 1: [], 2: []}
    for kind, group in groups.items():
        for label, value in zip(labels, x, strict=True):
            if label == kind:
                group.append(value)
    return [torch.stack(group).sum(0) if group else x.new_full((), -1.0) for group in groups.values()]


@dataclass
class Record:
    at: int = 0
    best: Any = None
    seen: list[int] = field(default_factory=list)


@case(given([1.0, 3, 2, 5]), given([4.0, 3, 2, 1]), given([1.0, 2, 3, 4]), given([0.0] * 4))
def keep_a_record(x: Tensor) -> Any:
    record = Record()
    for place, value in enumerate(x):
        if record.best is None or value > record.best:
            record.best, record.at = value, place
            record.seen.append(place)
    return record.best, record.at, len(record.seen)


@case(given([[1.0, 2], [3, 4]]), given([[-1.0, 2], [-3, -4]]), given([[0.0] * 2] * 2))
def text_of_sizes(x: Tensor) -> Tensor:
    name = f"{x.shape[0]}x{x.shape[1] + 1}"
    if x.sum() > 0:
        name = name[::-1]
    return x * {"2x3": 2.0, "3x2": 3.0}.get(name, 5.0)


@case(given([1, 5, 2, 0, 7]), given([0] * 5), given([9, 8, 7, 6, 5]), given([2] * 5))
def until_the_end(ids: Tensor) -> Any:
    out = []
    for token in ids.tolist():
        if token == 0:
            break
        if token > 6:
            continue
        out.append(token)
    return len(out), sum(out)


@case(given([1.0, -2, 3], 1), given([1.0, -2, 3], 0), given([1.0, -2, 3], 2), given([1.0, -2, 3], -1))
def by_mode(x: Tensor, mode: Tensor) -> Tensor:
    match int(mode):
        case 0:
            return x.relu()
        case 1 | 2:
            y = x * 3
            return y if mode == 1 else y * 2
        case _:
            return x - x.amax()


@case(given([1.0, 2, -1, -1, 3]), given([0.0] * 5), given([1.0, -1, 1, -1, 1]), slow=True)
def runs(x: Tensor) -> Any:
    at, count, longest = 0, 0, 0
    while at < 5:
        length = 0
        while at + length < 5 and (x[at + length] > 0) == (x[at] > 0):
            length += 1
        count, longest, at = count + 1, max(longest, length), at + length
    return count, longest


@case(normal((3,)), normal((3,), scale=3.0), given([0.0] * 3), slow=True)
def descend(x: Tensor) -> Any:
    for trip in range(4):
        slope, step, value = x.clamp(-50, 50) * 2, 1.0, (x * x).amax()
        while ((x - step * slope) ** 2).amax() > value - 0.1 * step * (slope * slope).amax() and step > 1e-2:
            step *= 0.5
        new = x - step * slope
        if (new - x).abs().amax() < 0.5:
            return new, trip
        x = new
    return x, 4


@case(given([[1.0, 2], [3, 4]], [0, 1]), given([[1.0, 2], [3, 4]], [1, 1]), given([[1.0, 2], [3, 4]], [0, 0]))
def write_while_a_view_is_held(x: Tensor, mask: Tensor) -> Any:
    y, row = x, x[1]
    for place in range(2):
        if mask[place]:
            y[place] += row
    return y.clone(), row.clone()


@case(given([1.0, -2, 3]), given([-1.0] * 3), given([0.0] * 3))
def default_that_is_none(x: Tensor) -> Any:
    def push(value: Tensor, into: Any = None) -> Any:
        into = [] if into is None else into
        if value > 0:
            into.append(value)
        return into

    held: Any = None
    for value in x:
        held = push(value, held)
    return len(held), sum(held) + x.new_zeros(())


@case(given([1, 2, 3, 2, 1]), given([1, 2, 3, 4, 5]), given([7] * 5), given([1, 2, 2, 2, 3]))
def palindrome(ids: Tensor) -> Any:
    low, high = 0, len(ids) - 1
    while low < high:
        if ids[low] != ids[high]:
            return False, low
        low, high = low + 1, high - 1
    return True, low


@case(given([[1.0, 2], [3, 4]]), given([[0.0] * 2] * 2), given([[0.0, 0], [5, 6]]), slow=True)
class Ring(nn.Module):
    """A cache of four rows that wraps, and takes no empty row."""

    rows: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(4, 2))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Any:
        for row in x:
            if row.abs().amax() == 0:
                continue
            self.rows[self.count % 4] = row
            self.count += 1
        filled = min(int(self.count), 4)
        mask = torch.arange(4) < filled
        return (self.rows * mask[:, None]).amax(0), filled


@case(given([3.0, 1, 2, 3, 1]), given([0.0] * 5), given([1.0, 2, 3, 4, 5]), slow=True)
def three_largest(x: Tensor) -> Tensor:
    held: list[Any] = []
    for value in x:
        if len(held) < 3:
            held.append(value)
        else:
            least = min(range(3), key=lambda place: held[place].item())
            if value > held[least]:
                held[least] = value
    return torch.stack(held)
