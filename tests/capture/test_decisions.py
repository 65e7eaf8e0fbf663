"""Decisions of Python on sizes: of no account, or refused by their line; never answered as the example answers them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.export import Dim

import gaudicc
from gaudicc.capture import capture, capture_sides
from gaudicc.capture.decisions import Decision, uncovered
from gaudicc.errors import UnsupportedInputError


def shapes(low: int = 1, high: int = 8) -> dict[str, Any]:
    return {"x": {0: Dim("n", min=low, max=high)}}


def more_than_one(x: Tensor) -> Tensor:
    return x * 2 if x.shape[0] > 1 else x * 3


def one(x: Tensor) -> Tensor:
    return x * 2 if x.shape[0] == 1 else x * 3


def multiple_of_four(x: Tensor) -> Tensor:
    return x * 2 if x.shape[0] % 4 == 0 else x * 3


def up_to_five(x: Tensor) -> Tensor:
    return x * 2 if x.shape[0] <= 5 else x * 3


def none_at_all(x: Tensor) -> Tensor:
    return x.sum() if x.shape[0] == 0 else x.sum() + 1


REFUSED: dict[Callable[[Tensor], Tensor], str] = {
    more_than_one: "n > 1",
    one: "n != 1",
    multiple_of_four: "(n % 4) != 0",
    up_to_five: "n <= 5",
}


@pytest.mark.parametrize("model", REFUSED, ids=lambda model: str(getattr(model, "__name__", model)))
def test_a_size_on_the_other_side_is_refused_by_its_line(model: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(UnsupportedInputError) as caught:
        capture(model, (torch.ones(3),), dynamic_shapes=shapes())
    assert f"something else where not {REFUSED[model]}" in caught.value.what
    assert str(caught.value.where.source).endswith(f"test_decisions.py:{model.__code__.co_firstlineno + 1}")
    assert "narrow the Dims" in caught.value.todo


@pytest.mark.parametrize(("model", "low", "high"), [(more_than_one, 2, 8), (one, 2, 8), (up_to_five, 1, 5)])
def test_a_dim_on_one_side_is_served(model: Callable[[Tensor], Tensor], low: int, high: int) -> None:
    compiled = gaudicc.compile(model, (torch.ones(3),), dynamic_shapes=shapes(low, high), buckets=[{"n": high}])
    for size in range(low, high + 1):
        assert torch.equal(compiled(torch.ones(size)), model(torch.ones(size)))


def test_a_decision_on_no_elements() -> None:
    with pytest.raises(UnsupportedInputError, match="n != 0"):
        capture(none_at_all, (torch.ones(3),), dynamic_shapes=shapes(0))
    capture(none_at_all, (torch.ones(3),), dynamic_shapes=shapes(1))


def always(x: Tensor) -> Tensor:
    return x * 2 if min(4, x.shape[0]) <= x.shape[0] else x * 3


def the_same_either_way(x: Tensor) -> Tensor:
    scale = 2 if x.shape[0] > 4 and x.dtype == torch.int64 else 3
    return (x * scale).contiguous()


def one_query(x: Tensor) -> Tensor:
    query = x.view(1, 1, -1, 2)
    mask = torch.ones(x.shape[0], x.shape[0], dtype=torch.bool).tril()
    causal = query.shape[2] > 1 and mask is None  # for one query, the condition on sizes itself
    result = torch.nn.functional.scaled_dot_product_attention(query, query, query, attn_mask=mask, is_causal=causal)
    return result[0, 0]


@pytest.mark.parametrize("model", [always, the_same_either_way, one_query])
def test_a_decision_that_changes_nothing_is_none(model: Callable[[Tensor], Tensor]) -> None:
    compiled = gaudicc.compile(model, (torch.randn(3, 2),), dynamic_shapes=shapes(), buckets=[{"n": 4}, {"n": 8}])
    for size in range(1, 9):
        x = torch.randn(size, 2)
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-6)


def both_sizes(x: Tensor) -> Tensor:
    return x * 2 if x.shape[0] * x.shape[1] > 6 else x * 3


def test_a_decision_on_two_sizes_together() -> None:
    sizes = {"x": {0: Dim("n", min=1, max=8), 1: Dim("m", min=1, max=8)}}
    with pytest.raises(UnsupportedInputError, match=r"m\*n > 6"):
        capture(both_sizes, (torch.ones(3, 3),), dynamic_shapes=sizes)
    large = {"x": {0: Dim("n", min=3, max=8), 1: Dim("m", min=3, max=8)}}
    assert len(capture(both_sizes, (torch.ones(3, 3),), dynamic_shapes=large).dimensions) == 2


def rows_of_one(x: Tensor) -> Tensor:
    y = x * 2 if x.shape[1] % 4 == 0 else x * 3
    return y * x.shape[0] if x.shape[0] > 1 else y * 1


def test_one_size_joins_a_side_for_all_others_at_once() -> None:
    sizes = {"x": {0: Dim("n", min=1, max=4), 1: Dim("m", min=1, max=64)}}
    sides = capture_sides(rows_of_one, (torch.ones(2, 8),), dynamic_shapes=sizes)
    assert len(sides) == 2
    for n, m in product((1, 2, 4), range(1, 65)):
        x = torch.randn(n, m)
        (side,) = [side for side in sides if side.serves({"n": n, "m": m})]
        assert torch.equal(side.program.run({"x": x})[0], rows_of_one(x))


def routed(x: Tensor) -> Tensor:
    y = x.repeat(4, 1) * (x @ x.new_ones(8, 4)).transpose(0, 1).reshape(-1, 1)
    return y if x.shape[0] < 2 else y * 2


@pytest.mark.parametrize("example", [1, 2, 3])
def test_a_reshape_looks_into_what_it_undoes_again(example: int) -> None:
    """For one row, torch finds that `[4, 1]` is the shape already: true of the example, not of `[4, n]`."""
    sizes = {"x": {0: Dim("n", min=1, max=4)}}
    sides = capture_sides(routed, (torch.ones(example, 8),), dynamic_shapes=sizes)
    for n in range(1, 5):
        x = torch.randn(n, 8)
        (side,) = [side for side in sides if side.serves({"n": n})]
        assert torch.equal(side.program.run({"x": x})[0], routed(x))


def in_blocks(x: Tensor) -> Tensor:
    pad = (4 - x.shape[0] % 4) % 4
    y = torch.nn.functional.pad(x, (0, 0, 0, pad)).view(-1, 4, 2).cumsum(1).view(-1, 2)
    if pad > 0:
        y = y[: x.shape[0]]
    return y.reshape(x.shape[0], -1) * 2


def test_what_is_cut_off_only_where_it_was_filled_up_is_one_graph() -> None:
    (side,) = capture_sides(in_blocks, (torch.randn(8, 2),), dynamic_shapes=shapes(high=16))
    for size in range(1, 17):
        x = torch.randn(size, 2)
        assert side.serves({"n": size})
        assert torch.equal(side.program.run({"x": x})[0], in_blocks(x))


def test_a_bucket_is_no_larger_than_one_of_its_sides_demands() -> None:
    compiled = gaudicc.compile(in_blocks, (torch.randn(8, 2),), dynamic_shapes=shapes(high=16), buckets=[{"n": 6}])
    assert [bucket.as_dict() for bucket in compiled.buckets] == [{"n": 6}]
    torch.testing.assert_close(compiled(torch.ones(5, 2)), in_blocks(torch.ones(5, 2)), rtol=1e-5, atol=1e-6)


def whole_blocks(x: Tensor) -> Tensor:
    filled = x.shape[0] + (4 - x.shape[0] % 4) % 4
    return x * 2 if filled % 4 == 0 and filled // (filled // 4) == 4 else x * 3


def test_what_holds_for_all_sizes_is_no_decision() -> None:
    (side,) = capture_sides(whole_blocks, (torch.randn(8),), dynamic_shapes=shapes(high=4000))
    assert side.when == ((),)


def one_block_is_a_view(x: Tensor) -> Tensor:
    filled = torch.nn.functional.pad(x, (0, 0, 0, (4 - x.shape[0] % 4) % 4))
    blocks = filled.reshape(-1, 4, 2)
    return torch.einsum("bsp,bst->bpt", blocks, blocks.transpose(1, 2).reshape(-1, 4, 2)).transpose(0, 1).reshape(2, -1)


@pytest.mark.parametrize("example", [3, 9])
def test_a_reshape_is_a_view_only_where_it_is_one_for_all_sizes(example: int) -> None:
    (side,) = capture_sides(one_block_is_a_view, (torch.randn(example, 2),), dynamic_shapes=shapes(high=16))
    compiled = gaudicc.compile(
        one_block_is_a_view, (torch.randn(example, 2),), dynamic_shapes=shapes(high=16), buckets=[{"n": 16}]
    )
    for size in range(1, 17):
        x = torch.randn(size, 2)
        assert torch.equal(side.program.run({"x": x})[0], one_block_is_a_view(x))
        torch.testing.assert_close(compiled(x), one_block_is_a_view(x), rtol=1e-5, atol=1e-6)


def test_what_a_side_settles_is_padded() -> None:
    compiled = gaudicc.compile(in_blocks, (torch.randn(8, 2),), dynamic_shapes=shapes(high=16), buckets=[{"n": 16}])
    for size in range(1, 17):
        x = torch.randn(size, 2)
        torch.testing.assert_close(compiled(x), in_blocks(x), rtol=1e-5, atol=1e-6)


def test_a_size_without_a_bound_is_refused_too() -> None:
    with pytest.raises(UnsupportedInputError, match=r"x_0 % 4"):
        capture(multiple_of_four, (torch.ones(3),), dynamic_shapes="auto")


RANGES = {"a": (0, 6), "b": (1, 5)}
TESTS: list[Callable[..., Decision]] = [
    lambda k: Decision(f"a > {k}", ("a",), lambda a: a > k, None),
    lambda k: Decision(f"b != {k}", ("b",), lambda b: b != k, None),
    lambda k: Decision(f"a % 3 != {k}", ("a",), lambda a: a % 3 != k, None),
    lambda k: Decision(f"a + b <= {k}", ("a", "b"), lambda a, b: a + b <= k, None),
]
DECISION = st.builds(lambda make, k: make(k), st.sampled_from(TESTS), st.integers(0, 6))


@given(sides=st.lists(st.lists(DECISION, max_size=3), min_size=1, max_size=3), a=st.integers(0, 6), b=st.integers(1, 5))
def test_what_is_uncovered_is_found(sides: list[list[Decision]], a: int, b: int) -> None:
    def covered(sizes: dict[str, int]) -> bool:
        return any(all(decision.holds(sizes) for decision in side) for side in sides)

    every = [{"a": a, "b": b} for a, b in product(range(7), range(1, 6))]
    example = {"a": a, "b": b}
    found = uncovered(sides, RANGES, example)
    assert (found is None) == all(covered(sizes) for sizes in every)
    if found is not None:
        assert not covered({**example, **found})


def test_a_decision_on_a_size_times_a_float() -> None:
    """Capacity of an expert: torch writes it with `torch.sym_float`."""

    def model(x: Tensor) -> Tensor:
        capacity = max(1, int(1.5 * x.shape[0] / 4))
        return torch.ones(capacity, 3).sum(0) + x

    compiled = gaudicc.compile(model, (torch.randn(4, 3),), dynamic_shapes={"x": {0: Dim("t", min=2, max=7)}})
    for rows in range(2, 8):
        x = torch.randn(rows, 3)
        assert torch.equal(compiled(x), model(x))


def squeezes(x: Tensor) -> Any:
    return x.squeeze(0).sum(0), torch.squeeze(x[:, None]) * 2, x[None].squeeze((0, 1)), x.unsqueeze(-1).squeeze()


def three_by_two_decisions(x: Tensor) -> Any:
    y = x[1:] if x.shape[0] <= 3 else x
    return y * 2 if x.shape[0] >= 3 else y * 3


def broadcasts_one(x: Tensor) -> Any:
    return x + torch.ones(4, 3) if x.shape[0] <= 1 else x * 2


def rest_by_steps(x: Tensor) -> Any:
    whole = x.shape[0] // 4 * 4
    parts = [x[:whole]] if whole > 0 else []
    if x.shape[0] - whole > 0:
        rest, state, rows = x[whole:], torch.zeros(3), []
        for t in range(rest.shape[0]):
            state = state * 0.5 + rest[t]
            rows.append(state)
        parts.append(torch.stack(rows))
    return torch.cat(parts)


@pytest.mark.parametrize("model", [squeezes, three_by_two_decisions, broadcasts_one, rest_by_steps])
def test_every_size_is_served_as_eager_does(model: Callable[[Tensor], Any]) -> None:
    sides = capture_sides(model, (torch.randn(5, 3),), dynamic_shapes=shapes())
    for n in range(1, 9):
        x = torch.randn(n, 3)
        (side,) = (side for side in sides if side.serves({"n": n}))
        expected = model(x)
        for got, want in zip(
            side.program.run({"x": x}), expected if isinstance(expected, tuple) else (expected,), strict=True
        ):
            torch.testing.assert_close(got, want)


def equal_sizes(x: Tensor) -> Tensor:
    return x * 2 if x.shape[0] == x.shape[1] else x * 3


def test_a_side_of_equal_sizes_serves_no_others() -> None:
    dims = {"x": {0: Dim("n", min=1, max=8), 1: Dim("m", min=1, max=8)}}
    buckets = [{"n": n, "m": m} for n, m in ((3, 3), (8, 7), (7, 8), (8, 8))]
    compiled = gaudicc.compile(equal_sizes, (torch.ones(3, 5),), dynamic_shapes=dims, buckets=buckets)
    for n, m in product(range(1, 9), repeat=2):
        x = torch.randn(n, m)
        torch.testing.assert_close(compiled(x), equal_sizes(x))
    sides = capture_sides(equal_sizes, (torch.ones(3, 5),), dynamic_shapes=dims)
    assert [str(side) for side in sides] == ["n != m", "m == n"]


def test_what_capture_decides_for_the_model_has_the_models_line() -> None:
    sides = capture_sides(squeezes, (torch.randn(5, 3),), dynamic_shapes=shapes())
    lines = {str(decision.source) for side in sides for entry in side.when for decision in entry}
    assert lines == {f"capture/test_decisions.py:{squeezes.__code__.co_firstlineno + 1}"}


def test_a_decision_that_divides_by_0_elsewhere() -> None:
    def model(x: Tensor) -> Tensor:
        n = x.shape[0]
        return x * 2 if n >= 4 and n % (n // 4) == 0 else x * 3

    compiled = gaudicc.compile(model, (torch.ones(8),), dynamic_shapes=shapes(1, 11), buckets=[{"n": 11}])
    for n in range(1, 12):
        assert torch.equal(compiled(torch.ones(n)), model(torch.ones(n)))
