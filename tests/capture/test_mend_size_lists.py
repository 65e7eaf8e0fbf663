"""`list(range(n))` of a dynamic size: cut, joined and made a tensor of, for every size there is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from gaudicc.capture import capture_sides
from gaudicc.errors import DynamicControlFlowError, GaudiccError


class Model(nn.Module):
    """Calls a function with an input `[2, n]`."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def pooled(positions: list[int], first: int) -> list[int]:
    return [first] + positions[1:-1][::2]  # noqa: RUF005  # the form under test


def pools(x: Tensor) -> Any:
    positions = list(range(x.shape[1]))
    once = pooled(positions, -1)
    twice = pooled(once, -3)
    return torch.tensor(once), torch.tensor(twice), torch.arange(twice[-1] - once[0] + 9, -len(twice), -1)


def ends(x: Tensor) -> Any:
    positions = list(range(x.shape[1]))
    return x * positions[-1] + positions[0], torch.zeros(len(positions[3:]) + 1)


def backwards(x: Tensor) -> Any:
    positions = list(range(2, x.shape[1] + 2))
    return torch.tensor(positions[::-1]) * x, torch.tensor(positions[-2::-3], dtype=torch.float32)


def joins(x: Tensor) -> Any:
    positions = list(range(x.shape[1]))
    both = [7, 8, 9] + positions + list(range(0, x.shape[1], 2))  # noqa: RUF005  # the form under test
    return torch.tensor(both), torch.tensor(both[2:-1])


def loops(x: Tensor) -> Any:
    total = torch.zeros(2)
    for position in list(range(x.shape[1]))[1:]:
        total = total + x[:, position] * position
    return total


def picks(x: Tensor) -> Any:
    places = list(range(x.shape[1]))
    return x[:, places[1:]], x[:, places[::-1]], x[:, places, None]


@pytest.mark.parametrize("function", [pools, ends, backwards, joins, loops, picks])
def test_sizes_are_what_eager_says(function: Callable[[Tensor], Any]) -> None:
    model = Model(function).eval()
    shapes = {"x": {1: Dim("n", min=1, max=12)}}
    sides = capture_sides(model, (torch.randn(2, 5),), dynamic_shapes=shapes)
    for n in range(1, 13):
        x = torch.randn(2, n)
        (side,) = (side for side in sides if side.serves({"n": n}))
        expected = model(x)
        expected = expected if isinstance(expected, tuple) else (expected,)
        for got, want in zip(side.program.run({"x": x}), expected, strict=True):
            torch.testing.assert_close(got, want)


def appends(x: Tensor) -> Any:
    positions = list(range(x.shape[1]))
    positions.append(3)
    return torch.tensor(positions)


def searches(x: Tensor) -> Any:
    return x + (3 in list(range(x.shape[1])))


def sorts(x: Tensor) -> Any:
    return torch.tensor(sorted(list(range(x.shape[1])), reverse=True))


def cuts_joined(x: Tensor) -> Any:
    return torch.tensor(([5] + list(range(x.shape[1])))[::2])  # noqa: RUF005  # the form under test


@pytest.mark.parametrize("function", [appends, searches, sorts, cuts_joined])
def test_what_needs_every_number_is_refused(function: Callable[[Tensor], Any]) -> None:
    shapes = {"x": {1: Dim("n", min=1, max=12)}}
    with pytest.raises(DynamicControlFlowError, match=r"as long as a dynamic size.*\n.*test_mend_size_lists"):
        capture_sides(Model(function).eval(), (torch.randn(2, 5),), dynamic_shapes=shapes)


def test_an_item_that_is_not_there_raises_as_eager_does() -> None:
    def fifth(x: Tensor) -> Any:
        return x + list(range(x.shape[1]))[5]

    shapes = {"x": {1: Dim("n", min=6, max=12)}}
    (side,) = capture_sides(Model(fifth).eval(), (torch.randn(2, 7),), dynamic_shapes=shapes)
    torch.testing.assert_close(side.program.run({"x": torch.ones(2, 6)})[0], torch.full((2, 6), 6.0))
    with pytest.raises(GaudiccError, match="list index out of range"):
        capture_sides(Model(fifth).eval(), (torch.randn(2, 4),), dynamic_shapes={"x": {1: Dim("n", min=1, max=5)}})
