"""Functions with loops that only data ends, for the tests of `data_loops.py`; inputs are float32 `[4]`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Body = Callable[[Tensor], Any]
CASES: dict[str, Body] = {}


def case(body: Body) -> Body:
    CASES[body.__name__] = body
    return body


@case
def converges(x: Tensor) -> Any:
    y, err = x, (x * x - x.abs()).abs().max()
    while err > 1e-3:
        y = 0.5 * (y + x.abs() / y)
        err = (y * y - x.abs()).abs().max()
    return y, err


@case
def converges_from_infinity(x: Tensor) -> Any:
    err: Any
    y, err = x.abs(), float("inf")
    while err > 1e-2:
        z = torch.sqrt(y + 0.25)
        err = (z - y).abs().max()
        y = z
    return y, err


@case
def counts_its_trips(x: Tensor) -> Any:
    y, n = x, 0
    while y.abs().max() > 1e-3:
        y, n = y / 2, n + 1
    if n > 9:
        y = y - n
    return y * n


@case
def reads_a_number_each_trip(x: Tensor) -> Any:
    y, err = x.abs(), 1e9
    while err > 1e-2:
        z = torch.sqrt(y)
        err = (z - y).abs().max().item()
        y = z
    return y * err


@case
def breaks(x: Tensor) -> Any:
    y = x
    while True:
        z = 0.5 * y
        if not (z - y).abs().max() > 1e-4:
            break
        y = z
    return y, z


@case
def until_an_item_says_so(x: Tensor) -> Any:
    y = x.nan_to_num()
    while True:
        if (y.abs() < 1).all().item():
            break
        y = y * 0.75
    return y


@case
def returns(x: Tensor) -> Any:
    y = x
    while True:
        y = y * 2 + 1
        if not y.sum().abs() < 1000:
            return y


@case
def returns_one_of_three(x: Tensor) -> Any:
    y, k = x, 1
    while y.sum() < 100:
        k = k + 2
        y = y + x.abs() + 0.5
        if y[0] > 20:
            return y * k
        if y[1] < -2:
            return y - k
    return y / k


@case
def raises(x: Tensor) -> Any:
    y = x.abs() + 0.5
    while y.sum() < 1000:
        y = y * 2
        if y.max() > 600:
            raise ValueError("too large")
    return y


@case
def asserts(x: Tensor) -> Any:
    y = x.abs() + 0.5
    while y.sum() < 500:
        y = y * 3
        assert y[0] < 400, "the first is too large"
    return y


@case
def has_an_else(x: Tensor) -> Any:
    y = x.abs() + 0.1
    while y.sum() < 1000:
        y = y * 2
        if y[0] > 300:
            break
    else:
        y = -y
    return y


@case
def continues(x: Tensor) -> Any:
    y, odd = x.abs() + 1, torch.zeros(())
    while y.sum() < 500:
        y = y * 1.5
        if y.sum().floor() % 2 == 0:
            continue
        odd = odd + 1
    return y, odd


@case
def in_a_branch(x: Tensor) -> Any:
    y = x
    if x.sum() > 2:
        while y.sum() > 1:
            y = y * 0.9
        y = y + 1
    return y


@case
def in_each_other(x: Tensor) -> Any:
    total, y = torch.zeros_like(x), x.clamp(-50, 50)
    while y.sum() > 1:
        z = y
        while z.max() > 0.5:
            z = z * 0.75
            total = total + z
        y = y * 0.5
    return total


@case
def swaps(x: Tensor) -> Any:
    a, b = x.abs() + 1, x.abs() + 2
    while b.sum() < 1000:
        a, b = b, a + b
    return a, b


@case
def writes_rows_by_a_counter(x: Tensor) -> Any:
    seen, n, y = torch.zeros(64), 1, x.abs() + 0.5
    while y.sum() < 900:
        seen[n] = y.sum()
        y = y * 1.5 + seen[n - 1] * 1e-3
        n += 1
    return seen, y


@case
def runs_off_its_buffer(x: Tensor) -> Any:
    seen, n, y = torch.zeros(30), 0, x.abs()
    while y.sum() < 900:
        seen[n] = y.sum()
        y = y * 1.25
        n += 1
    return seen, y


@case
def decodes(x: Tensor) -> Any:
    ids, n, h = torch.zeros(40, dtype=torch.int64), 0, x.clamp(-9, 9).nan_to_num()
    finished = torch.zeros(4, dtype=torch.bool)
    while not finished.all() and n < 40:
        h = torch.tanh(h * 1.1) + h.roll(1) * 0.3
        finished = finished | (h.abs() > 0.9 + 0.01 * n)
        ids[n] = h.argmax()
        n = n + 1
    return ids, h, finished


@case
def changes_its_input(x: Tensor) -> Any:
    while x.abs().sum() > 1:
        x *= 0.5
    return x + 1


@case
def as_many_as_data_says(x: Tensor) -> Any:
    n = int(x[0].nan_to_num(posinf=40.0).clamp(-3, 40))
    h = torch.zeros_like(x)
    for i in range(n):
        h = h * 0.5 + x * i
    return h


@case
def up_to_what_data_says(x: Tensor) -> Any:
    low, high = int(x[1].nan_to_num().clamp(0, 4)), int(x[0].nan_to_num(posinf=90.0).clamp(-3, 90))
    h = torch.zeros_like(x)
    for i in range(low, high, 2):
        if i > 50:
            break
        h = torch.tanh(h + i)
    return h


@case
def state_in_containers(x: Tensor) -> Any:
    state: dict[str, Any] = {"y": x.abs() + 0.1, "n": 0}
    trail = [x, x]
    while state["y"].sum() < 100:
        trail[0], trail[1] = trail[1], state["y"]
        state["y"] = state["y"] * 1.5
        state["n"] += 1
    return trail[0] + state["n"], state["y"]


@case
def two_after_each_other(x: Tensor) -> Any:
    y = x.abs() + 0.1
    while y.sum() < 50:
        y = y * 2
    while y.sum() > 5:
        y = y * 0.5
    return y


@case
def two_names_for_one_tensor(x: Tensor) -> Any:
    y = x.nan_to_num().abs() + 1
    before = y
    while y.sum() < 100:
        before = y
        y = y * 1.5
    return before, y


@case
def writes_in_place_in_a_branch(x: Tensor) -> Any:
    y = x.nan_to_num() * 1
    if x.sum() > 0:
        while y.sum() > 1:
            y.mul_(0.5)
            x.add_(1)
    return y, x + 0


@case
def numbers_that_accumulate(x: Tensor) -> Any:
    t, y, up = 0.0, x.abs() + 1, False
    while t < 5.0 and y.sum() < 1e4:
        t, up = t + 0.3, not up
        y = y * 1.3 + t if up else y + 1
    return y * t
