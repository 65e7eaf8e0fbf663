"""Functions of torch that take a plain number where a size is given leave the size dynamic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.export import Dim
from torch.nn import functional as F

import gaudicc
from gaudicc.capture import capture
from gaudicc.capture.size_factories import places_of_triangle
from gaudicc.errors import UnsupportedInputError


def written(x: torch.Tensor, index: Any, value: Any) -> torch.Tensor:
    y = x.clone()
    y[index] = value
    return y


def part_of_all(x: torch.Tensor) -> torch.Tensor:
    return x / x.shape[:2].numel()


MODELS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "linspace": lambda x: x * torch.linspace(-1, 2.5, steps=x.shape[1])[:, None],
    "linspace-ints": lambda x: x * torch.linspace(0, 10, x.shape[1], dtype=torch.int64)[:, None],
    "as_tensor": lambda x: x * torch.as_tensor(x.shape[:2]).prod(),
    "new_tensor": lambda x: x * x.new_tensor([x.shape[0], x.shape[1]]).sum(),
    "divmod": lambda x: x[:, : sum(divmod(x.shape[1], 2))].sum(1),
    "write-last": lambda x: written(x, (slice(None), x.shape[1] - 1), x[:, 0]),
    "write-from-end": lambda x: written(x, (..., -x.shape[0], slice(None)), 7.0),
    "write-leading-ones": lambda x: written(x, (0, x.shape[1] - 1), x[:1, :1, :]),
    "one-hot": lambda x: F.one_hot(torch.arange(3) % 2, x.shape[1]).float() @ x,
    "tril-indices": lambda x: x[:, torch.tril_indices(x.shape[1], x.shape[1])[1]].sum(1),
    "hann-window": lambda x: x * torch.hann_window(x.shape[1])[:, None],
    "hamming-window": lambda x: x * torch.hamming_window(x.shape[1], periodic=False)[:, None],
    "logspace": lambda x: x * torch.logspace(0, 1, x.shape[1])[:, None],
    "numel": part_of_all,
    "max-pool": lambda x: F.max_pool1d(x.mT, 3, 2, 1).sum(2),
    "largest": lambda x: F.adaptive_max_pool1d(x.mT, 1),
    "mean-of-all": lambda x: F.adaptive_avg_pool1d(x.mT, 1),
    "buckets": lambda x: torch.bucketize(x, torch.linspace(0, 1, x.shape[1])),
    "write-slice-from-end": lambda x: written(x, (slice(None), slice(-x.shape[0], None)), 0.0),
}


@pytest.mark.parametrize("name", MODELS)
def test_sizes_stay(name: str) -> None:
    model = MODELS[name]
    dims = {0: Dim("b", min=1, max=3), 1: Dim("n", min=3, max=8)}
    compiled = gaudicc.compile(
        model, (torch.randn(2, 5, 3),), dynamic_shapes={"x": dims}, buckets=[{"b": 3, "n": 8}], verify="poison"
    )
    for b, n in ((1, 3), (2, 5), (3, 7), (3, 8)):
        x = torch.randn(b, n, 3)
        torch.testing.assert_close(compiled(x), model(x))


@given(st.integers(0, 5), st.integers(0, 5), st.integers(-7, 7))
def test_places_of_a_triangle(rows: int, columns: int, offset: int) -> None:
    for plain, lower in ((torch.tril_indices, True), (torch.triu_indices, False)):
        assert torch.equal(places_of_triangle(rows, columns, offset, lower), plain(rows, columns, offset))


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("name", ["hann_window", "hamming_window", "blackman_window"])
def test_windows(name: str, periodic: bool) -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = getattr(torch, name)(x.shape[0], periodic)
        return x + made

    program = capture(model, (torch.zeros(4),), dynamic_shapes={"x": {0: Dim("n", min=1, max=9)}})
    for n in (1, 2, 3, 9):
        (found,) = program.run({program.user_inputs()[0].name: torch.zeros(n)})
        torch.testing.assert_close(found, model(torch.zeros(n)))


def test_linspace_of_one_step() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return x + torch.linspace(3, 5, x.shape[0])

    compiled = gaudicc.compile(model, (torch.zeros(4),), dynamic_shapes={"x": {0: Dim("n", min=1, max=4)}})
    for n in (1, 2, 4):
        torch.testing.assert_close(compiled(torch.zeros(n)), torch.linspace(3, 5, n))


def test_what_torch_itself_fixes_is_named() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return x + torch.bartlett_window(x.shape[0])

    with pytest.raises(UnsupportedInputError, match="fixed by the model") as caught:
        gaudicc.compile(model, (torch.randn(5),), dynamic_shapes={"x": {0: Dim("n", min=2, max=8)}})
    assert caught.value.where.source is not None
    assert caught.value.where.source.endswith(f"test_size_forms.py:{model.__code__.co_firstlineno + 1}")
