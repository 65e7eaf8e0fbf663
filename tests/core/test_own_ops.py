"""Ops of other libraries, and sizes whose bound only the buckets give."""

import pytest
import torch
from torch import Tensor, nn

import gaudicc
from gaudicc.errors import ShapeError, UnsupportedOpError


@torch.library.custom_op("gaudicc_tests::twice", mutates_args=())
def twice(x: Tensor) -> Tensor:
    return x * 2


@twice.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Own(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        doubled: Tensor = twice(x)
        return doubled + 1


def test_a_library_s_own_op_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedOpError, match="twice") as caught:
        gaudicc.compile(Own().eval(), (torch.ones(3),))
    assert "test_own_ops.py" in str(caught.value)


def test_a_library_s_own_op_may_stay_on_the_host() -> None:
    compiled = gaudicc.compile(Own().eval(), (torch.ones(3),), on_unsupported="host")
    assert torch.equal(compiled(torch.ones(3)), torch.full((3,), 3.0))


def test_buckets_bound_a_size_without_a_maximum() -> None:
    compiled = gaudicc.compile(
        nn.ReLU().eval(), (torch.ones(2, 6),), dynamic_shapes="auto",
        buckets=[{"input_0": 2, "input_1": 6}, {"input_0": 2, "input_1": 9}],
    )  # fmt: skip
    assert compiled(torch.ones(2, 9)).shape == (2, 9)
    with pytest.raises(ShapeError):
        compiled(torch.ones(2, 10))
