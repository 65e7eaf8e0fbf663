"""A model whose Python decides on sizes is compiled once for every side, and every call goes to its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import gaudicc
from gaudicc.errors import InputError, RecordForbiddenError, ShapeError
from gaudicc.sided import SidedModel


def one(x: Tensor) -> Tensor:
    return x.cumsum(0) if x.shape[0] == 1 else x.softmax(0)


def multiple_of_four(x: Tensor) -> Tensor:
    return x.view(-1, 4, 2).sum(1) if x.shape[0] % 4 == 0 else x * 3


def three_ways(x: Tensor) -> Tensor:
    if x.shape[0] <= 2:
        return x.sum(0)
    return x.mean(0) if x.shape[0] <= 5 else x.amax(0)


def none_at_all(x: Tensor) -> Tensor:
    return x.sum(0) if x.shape[0] == 0 else x.sum(0) + 1


MODELS = [one, multiple_of_four, three_ways, none_at_all]


def compiled(model: Callable[..., Any], low: int = 0, **options: Any) -> Any:
    shapes = {"x": {0: Dim("n", min=low, max=8)}}
    return gaudicc.compile(model, (torch.randn(3, 2),), dynamic_shapes=shapes, **options)


def test_passes_are_checked_on_a_side_where_one_of_two_sizes_is_a_number() -> None:
    def model(x: Tensor) -> Tensor:
        return x * 2 if x.shape[1] == 1 else x.cumsum(1)

    shapes = {"x": {0: Dim("b", min=1, max=4), 1: Dim("t", min=1, max=8)}}
    served = gaudicc.compile(model, (torch.randn(2, 5),), dynamic_shapes=shapes, verify="numerics")
    for sizes in ((2, 5), (3, 1), (1, 8)):
        x = torch.randn(*sizes)
        assert torch.equal(served(x), model(x))


@pytest.mark.parametrize("buckets", [None, [{"n": 4}, {"n": 8}]])
@pytest.mark.parametrize("model", MODELS)
def test_every_size_equals_eager(model: Callable[[Tensor], Tensor], buckets: Any) -> None:
    served = compiled(model, buckets=buckets)
    assert isinstance(served, SidedModel)
    served.warm_up()
    served.forbid_records()
    records = served.stats.records
    for size in (3, 0, 8, 1, 4, 2, 5, 6, 7):
        x = torch.randn(size, 2)
        torch.testing.assert_close(served(x), model(x), rtol=1e-5, atol=1e-6)
    assert served.stats.records == records
    assert served.stats.calls == 9


def test_two_decisions_on_two_sizes() -> None:
    def model(x: Tensor) -> Tensor:
        rows = x.sum(0) if x.shape[0] > 3 else x.prod(0)
        return rows.cumsum(0) if x.shape[1] > 2 else rows * 2

    shapes = {"x": {0: Dim("n", min=1, max=6), 1: Dim("m", min=1, max=5)}}
    served = gaudicc.compile(model, (torch.randn(2, 3),), dynamic_shapes=shapes)
    assert isinstance(served, SidedModel)
    assert len(served.sides) == 4
    for n in range(1, 7):
        for m in range(1, 6):
            x = torch.randn(n, m)
            torch.testing.assert_close(served(x), model(x), rtol=1e-5, atol=1e-6)


def test_guards_and_certificate_tell_the_sides_apart() -> None:
    served = compiled(one, low=1)
    assert served.guards.startswith("n = x.shape[0]\nif n != 1:\n    ")
    assert "\nelif n == 1:\n" in served.guards
    assert {entry.bucket.partition(" where ")[2] for entry in served.certificate.buckets} == {"n != 1", "n == 1"}
    assert "where n == 1" in str(served.certificate)


class Counter(nn.Module):
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add_(x.sum(0) if x.shape[0] > 1 else x[0] * 10)
        return self.seen + 0


def test_sides_share_their_state() -> None:
    served = compiled(Counter().eval(), low=1)
    eager = Counter().eval()
    other = served.session()
    for size in (3, 1, 1, 5, 1):
        x = torch.ones(size, 2)
        assert torch.equal(served(x), eager(x))
    assert torch.equal(other(torch.ones(1, 2)), torch.full((2,), 10.0))


def test_bad_calls_are_refused_and_the_next_is_fine() -> None:
    served = compiled(one, low=1)
    with pytest.raises(ShapeError, match=r"x.shape\[0\] is 9, n runs from 1 to 8"):
        served(torch.randn(9, 2))
    with pytest.raises(InputError, match="argument x is"):
        served(torch.ones(3, 2, dtype=torch.int64))
    with pytest.raises(ShapeError, match="was compiled for"):
        served(torch.ones(3, 2, 1))
    served.forbid_records()
    with pytest.raises(RecordForbiddenError):
        served(torch.randn(1, 2))
    served.warm_up()
    assert torch.equal(served(torch.ones(1, 2)), torch.ones(1, 2))


def test_a_bundle_holds_one_side(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has 2 sides"):
        compiled(one, low=1).save(tmp_path / "bundle")
