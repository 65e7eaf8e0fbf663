"""Plain numbers that a model makes of sizes: `int(x.shape[1])`, `float(n)`, `math.log(n)`: for every size, none is fixed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.export import Dim

import gaudicc
from gaudicc.errors import CaptureError, UnsupportedInputError


def as_ints(x: Any) -> Any:
    n = int(x.shape[1])
    return x.reshape(int(x.shape[0]) * n, 3) + torch.zeros(n).sum()


def in_a_generator(x: Any) -> Any:
    b, n, d = tuple(int(size) for size in x.shape)
    return x.reshape(b * n, d)


def mapped(x: Any) -> Any:
    b, n, d = map(int, x.shape)
    return x.reshape(b * n, d)


def by_len(x: Any) -> Any:
    return x.sum() + torch.arange(len(x)) * len(x[0])


def as_float(x: Any) -> Any:
    return x * float(x.shape[1]) + torch.tensor(float(x.shape[0])).sqrt()


def by_math(x: Any) -> Any:
    n = x.shape[1]
    return x / math.sqrt(n) + math.log(n + 1) * math.log(n + 2, 10) - math.log2(n)


def half(x: Any) -> Any:
    return x[:, : int(x.shape[1] * 0.5)].sum(1)


def larger_half(x: Any) -> Any:
    return x[:, : math.ceil(x.shape[1] / 2)]


def one_row_more(x: Any) -> Any:
    out = x.new_zeros((x.size(0), int(x.size(1)) + 1, x.size(2)))
    out[:, : int(x.size(1))] = x
    return out


@pytest.mark.parametrize(
    "model",
    [as_ints, in_a_generator, mapped, by_len, as_float, by_math, half, larger_half, one_row_more],
    ids=lambda model: model.__name__,
)
def test_numbers_of_sizes_stay_sizes(model: Callable[..., Any]) -> None:
    dims = {0: Dim("b", min=1, max=3), 1: Dim("n", min=2, max=8)}
    buckets = [{"b": 3, "n": 8}]
    compiled = gaudicc.compile(
        model, (torch.randn(2, 5, 3),), dynamic_shapes={"x": dims}, buckets=buckets, verify="poison"
    )
    for b, n in ((1, 2), (2, 5), (3, 7), (3, 8)):
        x = torch.randn(b, n, 3)
        torch.testing.assert_close(compiled(x), model(x))


def test_what_still_fixes_a_size_is_named() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        names = ["a"] * x.shape[1]  # here
        return x + len(names)

    with pytest.raises(UnsupportedInputError, match="fixed by the model") as caught:
        gaudicc.compile(model, (torch.randn(2, 5),), dynamic_shapes={"x": {1: Dim("n", min=2, max=8)}})
    assert caught.value.where.source is not None
    assert caught.value.where.source.endswith(f"test_mend_size_numbers.py:{model.__code__.co_firstlineno + 1}")


def test_a_size_that_is_a_key_is_named() -> None:
    masks: dict[int, torch.Tensor] = {}

    def model(x: torch.Tensor) -> torch.Tensor:
        n = int(x.shape[1])
        if n not in masks:
            masks[n] = torch.ones(n)
        return x * masks[n]

    with pytest.raises(UnsupportedInputError, match="key of a dict") as caught:
        gaudicc.compile(model, (torch.randn(2, 5),), dynamic_shapes={"x": {1: Dim("n", min=2, max=8)}})
    assert caught.value.where.source is not None
    assert "test_mend_size_numbers.py" in caught.value.where.source


def test_sizes_that_are_returned_are_those_of_the_call() -> None:
    def model(x: torch.Tensor) -> Any:
        return x + 1, x.shape[1], [2 * x.shape[0] + 1, "text"], x.shape

    dims = {0: Dim("b", min=1, max=3), 1: Dim("n", min=1, max=8)}
    compiled = gaudicc.compile(model, (torch.ones(2, 4),), dynamic_shapes={"x": dims}, verify="poison")
    for size in ((1, 1), (3, 7), (2, 8)):
        got, wanted = compiled(torch.ones(size)), model(torch.ones(size))
        assert got[1:] == wanted[1:]
        assert type(got[1]) is int


def test_a_real_number_that_is_returned_is_refused() -> None:
    with pytest.raises(CaptureError, match="no whole one"):
        gaudicc.compile(lambda x: (x, x.shape[0] / 2), (torch.ones(4),), dynamic_shapes={"x": {0: Dim("n", max=8)}})
