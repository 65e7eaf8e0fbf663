"""Buffers that forward assigns anew: kept in the root module, refused in a submodule where torch.export would lose them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import gaudicc
from gaudicc.errors import UnsupportedInputError

X = torch.ones(3)


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(3))
        self.count: Tensor

    def forward(self, x: Tensor) -> Tensor:
        self.count = self.count + 1
        return x + self.count


class AssignedToItself(Counter):
    def forward(self, x: Tensor) -> Tensor:
        self.count = self.count.to(device=x.device, dtype=x.dtype)
        return x + self.count


class AssignedBeforeRead(Counter):
    def forward(self, x: Tensor) -> Tensor:
        self.count = x * 2
        return x + self.count


class Around(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        return y


def test_the_root_module_counts_on() -> None:
    compiled = gaudicc.compile(Counter().eval(), (X,))
    assert [float(compiled(X)[0]) for _ in range(3)] == [2.0, 3.0, 4.0]


def test_a_submodule_that_would_lose_its_state_is_refused_with_the_line() -> None:
    with pytest.raises(UnsupportedInputError, match=r"inner\.count is assigned anew") as refusal:
        gaudicc.compile(Around(Counter()).eval(), (X,))
    assert refusal.value.where.source == f"capture/test_assignments.py:{Counter.forward.__code__.co_firstlineno + 1}"
    assert "self.count.copy_(...)" in refusal.value.todo


def test_a_buffer_that_is_assigned_to_itself_is_not_lost() -> None:
    assert gaudicc.compile(Around(AssignedToItself()).eval(), (X,))(X * 5).tolist() == [5.0, 5.0, 5.0]


def test_a_buffer_that_is_assigned_before_it_is_read_is_no_state() -> None:
    compiled = gaudicc.compile(Around(AssignedBeforeRead()).eval(), (X,))
    assert compiled(X * 5).tolist() == [15.0, 15.0, 15.0]
