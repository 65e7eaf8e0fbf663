"""Loops that only data ends, and that no loop region can be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Body = Callable[[Tensor], Any]
REFUSED: dict[str, tuple[Body, str, str]] = {}


def refused(why: str, todo: str) -> Callable[[Body], Body]:
    def note(body: Body) -> Body:
        REFUSED[body.__name__] = body, why, todo
        return body

    return note


@refused("its trips append to a list", "tensor that is long enough")
def keeps_a_list(x: Tensor) -> Any:
    seen, y = [], x.abs() + 1
    while y.sum() < 100:
        y = y * 1.01
        seen.append(y)
    return torch.stack(seen)


@refused("other trips", "fixed shapes")
def grows(x: Tensor) -> Any:
    y = x.abs()
    while y.sum() < 1000:
        y = torch.cat([y, y[:1]])
    return y


@refused("draws random numbers", "draw them before")
def random(x: Tensor) -> Any:
    y = x.abs() + 1
    while y.sum() < 1000:
        y = y + torch.rand(4)
    return y


@refused("used after the loop", "before the loop")
def leaves_a_variable(x: Tensor) -> Any:
    y = x.abs() + 1
    while y.sum() < 1000:
        y = y * 1.5
        z = y + 1
    return z


@refused("number", "tensor")
def counter_as_a_size(x: Tensor) -> Any:
    y, n = x.abs() + 1, 0
    while y.sum() < 1000:
        n = n + 1
        y = y + torch.ones(n).sum()
    return y
