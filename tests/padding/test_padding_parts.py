"""Calls in parts: what is proved of rows holds on every split of them, and the host puts the parts together again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.export import Dim
from torch.nn import functional as F

import gaudicc
from gaudicc.buckets import Bucket, BucketSet
from gaudicc.capture import capture
from gaudicc.errors import BucketMissError, InputError, PaddingError
from gaudicc.padding.independence import divisible, divisible_sizes
from gaudicc.padding.parts import Divisible, in_parts
from gaudicc.program import Program
from tests.padding import (
    test_padding_rules_indexing,
    test_padding_rules_products,
    test_padding_rules_reductions,
    test_padding_rules_views,
)
from tests.padding.conftest import BUCKET, captured, low_of, tensors

ROOMS = (
    test_padding_rules_indexing,
    test_padding_rules_products,
    test_padding_rules_reductions,
    test_padding_rules_views,
)
RULES = {f"{name}-{i}": case for i, room in enumerate(ROOMS) for name, case in room.CASES.items()}
"""What each padding rule was tried on: many mix rows, and must not be taken for what does not."""


def recurrent(x: torch.Tensor) -> torch.Tensor:
    """A state that is handed on from position to position."""
    state, states = x.new_zeros(x.shape[0], x.shape[2]), []
    for position in range(x.shape[1]):
        state = (state + x[:, position]).tanh()
        states.append(state)
    return torch.stack(states, 1)


KEEPS: dict[str, tuple[Any, ...]] = {
    "own-row": (lambda x, i: x[torch.arange(x.shape[0]), i.clamp(max=2)], "b 3 2 f", "b i"),
    "own-row-front": (lambda x, i: x[torch.arange(x.shape[0])[:, None], :, i], "b 2 4 f", "b t i"),
    "table": (lambda t, i: t[1, i], "2 5 f", "b i"),
    "merged": (lambda x, w: F.linear(x.flatten(0, 1), w).unflatten(0, x.shape[:2]).softmax(1), "b s 3 f", "2 3 f"),
    "product": (lambda x, y: (x @ y.transpose(1, 2)).softmax(-1) @ y, "b s 3 f", "b t 3 f"),
    "rows-of-product": (lambda x, w: torch.addmm(w[0], x, w), "b 3 f", "3 3 f"),
    "convolution": (lambda x, w: F.conv1d(x, w, padding=1).relu(), "b 2 s f", "3 2 3 f"),
    "constant": (lambda x: torch.cat([x, x.new_zeros(x.shape[0], 2)], 1), "b s f"),
    "mean-of-others": (lambda x: (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True), "b 4 f"),
    "the-same-for-all": (lambda x, y: (x + y.cumsum(0), y.cumsum(0)), "b s f", "s f"),
    "loop": (recurrent, "b s 3 f"),
    "pad-others": (lambda x: F.pad(x, (1, 2)).sort(1).values, "b s f"),
}
MIXES: dict[str, tuple[Any, ...]] = {
    "positions": (lambda x: x + torch.arange(x.shape[0])[:, None], "b s f"),
    "count": (lambda x: x / x.shape[0], "b s f"),
    "mean": (lambda x: x - x.mean(0), "b s f"),
    "first-row": (lambda x: x + x[:1], "b s f"),
    "shifted": (lambda x: x.roll(1, 0), "b s f"),
    "across": (lambda x: x @ x.t(), "b s f"),
    "pairs": (lambda x: x[:, None] + x[None], "b 2 f"),
    "merged-behind": (lambda x: x.transpose(0, 1).reshape(-1), "b 3 f"),
    "picked-rows": (lambda x, i: x[i.clamp(max=0)], "b s f", "t i"),
    "number-of-a-block": (lambda x: x.flatten()[torch.arange(x.shape[0])], "b 3 f"),
    "random": (lambda x: torch.bernoulli(x.sigmoid()), "b s f"),
}


def of_rows(program: Program, size: Divisible, given: Mapping[str, torch.Tensor], cuts: tuple[int, int]) -> list[Any]:
    """The program on each of two parts of the rows, put together."""

    def run(_: Bucket, parts: list[torch.Tensor], sizes: Mapping[str, int]) -> tuple[torch.Tensor, ...]:
        names = [spec.name for spec in program.user_inputs()]
        return tuple(program.run(dict(zip(names, parts, strict=True))))

    whole = {dim.name: BUCKET[dim.name] for dim in program.dimensions}
    bucket = Bucket.of({**whole, size.name: max(cuts)})
    inputs = [given[spec.source] for spec in program.user_inputs()]
    return list(in_parts([size], BucketSet([bucket]), inputs, whole, run))


def check_rows(function: Any, *shapes: str) -> list[str]:
    """Runs a function on all rows and on parts of them, for every size that is proved divisible; gives their names."""
    program = captured(function, shapes, False)
    proved = []
    for dim in program.dimensions:
        try:
            size = divisible(program, dim.name)
        except PaddingError:
            continue
        proved.append(dim.name)
        for seed, cut in enumerate(range(low_of(shapes, dim.name), BUCKET[dim.name])):
            if BUCKET[dim.name] - cut < low_of(shapes, dim.name):
                break
            given = {f"arg{i}": tensor for i, tensor in enumerate(tensors(shapes, BUCKET, seed))}
            expected = program.run({spec.name: given[spec.source] for spec in program.user_inputs()})
            parts = of_rows(program, size, given, (cut, BUCKET[dim.name] - cut))
            for part, whole in zip(parts, expected, strict=True):
                torch.testing.assert_close(part, whole, rtol=1e-4, atol=1e-5, equal_nan=True)
    return proved


@pytest.mark.parametrize(
    "name", [name if i % 12 == 0 else pytest.param(name, marks=pytest.mark.sweep) for i, name in enumerate(RULES)]
)
def test_what_is_proved_of_rows_holds(name: str) -> None:
    check_rows(*RULES[name])


@pytest.mark.parametrize("name", KEEPS)
def test_rows_that_stay_apart(name: str) -> None:
    assert "b" in check_rows(*KEEPS[name])


@pytest.mark.parametrize("name", MIXES)
def test_rows_that_meet_are_refused(name: str) -> None:
    function, *shapes = MIXES[name]
    with pytest.raises(PaddingError, match="not divided over b") as refused:
        divisible(captured(function, tuple(shapes), False), "b")
    assert refused.value.where is not None
    assert "test_padding_parts.py" in str(refused.value.where.source)


def test_a_size_is_found() -> None:
    sizes = divisible_sizes(captured(lambda x: x.cumsum(1), ("b s f",), False))
    assert [size.name for size in sizes] == ["b"]
    with pytest.raises(PaddingError, match="not divided over b"):
        divisible_sizes(captured(lambda x: x.sum(), ("b s f",), False))


class Counting(nn.Module):
    seen: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.add_(1)
        return x + self.seen


def test_state_is_refused() -> None:
    program = capture(Counting(), (torch.ones(2, 3),), dynamic_shapes={"x": {0: Dim("b", min=1, max=8)}})
    with pytest.raises(PaddingError, match="state"):
        divisible(program, "b")


@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=4),
    st.integers(1, 20),
    st.integers(1, 7),
    st.integers(1, 3),
)
def test_parts_fit_their_bucket_and_cover_the_call(
    boxes: list[tuple[int, int]], rows: int, length: int, block: int
) -> None:
    buckets = BucketSet([Bucket(("b", "s"), box) for box in boxes])
    size = Divisible("b", 1, (1, None), (0, None))
    x, same = torch.arange(rows * block * length).reshape(length, rows * block), torch.ones(2)
    seen: list[int] = []

    def run(bucket: Bucket, given: list[torch.Tensor], sizes: Mapping[str, int]) -> tuple[torch.Tensor, ...]:
        assert bucket.dominates(sizes)
        assert given[0].shape[1] == sizes["b"] * block
        seen.append(sizes["b"])
        return given[0].t() + 1, given[1] * 2

    call = {"b": rows, "s": length}
    if max(s for _, s in boxes) < length:
        with pytest.raises(BucketMissError, match=f"s={length}"):
            in_parts([size], buckets, [x, same], call, run)
        return
    first, second = in_parts([size], buckets, [x, same], call, run)
    torch.testing.assert_close(first, x.t() + 1)
    torch.testing.assert_close(second, same * 2)
    assert sum(seen) == rows
    assert max(seen) - min(seen) <= 1


def test_parts_have_as_many_rows_as_the_model_takes() -> None:
    buckets = BucketSet([Bucket(("b",), (3,))])
    with pytest.raises(BucketMissError, match="fewer rows"):
        in_parts([Divisible("b", 3, (0,), (0,))], buckets, [torch.ones(4)], {"b": 4}, lambda *_: ())


def test_a_call_that_no_bucket_holds_is_served_in_parts() -> None:
    class Scores(nn.Module):
        def forward(self, x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return (x @ w).softmax(1), w.sum(0)

    model = Scores().eval()
    buckets = [{"b": 4, "s": 16}, {"b": 2, "s": 32}]
    rows = Dim("b", min=1, max=64)
    dims = {"x": {0: rows, 1: Dim("s", min=1, max=32)}, "w": None}
    args = (torch.randn(3, 5, 4), torch.randn(4, 2))
    compiled = gaudicc.compile(model, args, dynamic_shapes=dims, buckets=buckets, on_miss="split")
    compiled.warm_up()
    compiled.forbid_records()
    for count, length, replays in ((4, 16, 1), (9, 16, 3), (9, 17, 5), (64, 1, 16)):
        args, before = (torch.randn(count, length, 4), torch.randn(4, 2)), compiled.stats.replays
        for part, whole in zip(compiled(*args), model(*args), strict=True):
            torch.testing.assert_close(part, whole)
        assert compiled.stats.replays - before == replays
    assert compiled.stats.records == 2
    assert any("divided over b" in note for note in compiled.notes)
    with pytest.raises(PaddingError, match=r"not divided over b: aten\.mean"):
        gaudicc.compile(lambda x: x - x.mean(0), (args[1],), dynamic_shapes={"x": {0: rows}}, on_miss="split")
    halves = {"x": {0: Dim("n", min=2, max=16)}}
    with pytest.raises(InputError, match="decides on sizes"):
        gaudicc.compile(lambda x: x[::2] if x.shape[0] % 2 else x, (args[1],), dynamic_shapes=halves, on_miss="split")
