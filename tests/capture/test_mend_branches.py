"""Branches on tensors, early exits and everything a branch can do, against eager, on inputs that take every path.

PYTEST_DONT_REWRITE: pytest would change the messages of the asserts that are under test.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.capture.mended import INF, NAN, Body, Wrap, check

VECTORS = [
    (torch.tensor(values),)
    for values in (
        [1.0, 2.0, 3.0], [-1.0, -2.0, -3.0], [0.0, 0.0, 0.0], [5.0, -1.0, 0.5], [-7.0, 3.0, 3.5], [NAN, 1.0, 2.0],
        [INF, 1.0, -1.0], [-INF, 4.0, 0.0], [INF, -INF, 0.0], [0.5, 0.25, 0.125], [100.0, -3.0, -0.0], [-0.0, 0.0, -1.0],
    )
]  # fmt: skip
CASES: dict[str, Body] = {}


def case(body: Body) -> Body:
    CASES[body.__name__] = body
    return body


@case
def if_else(x):
    return x * 2 if x.sum() > 0 else x - 1


@case
def if_without_else(x):
    y = x + 1
    if x.sum() > 0:
        y = y * 2
    return y


@case
def elif_chain(x):
    if x.sum() > 5:
        y = x * 2
    elif x.sum() > 1:
        y = x * 3
    elif x.min() < -2:
        y = x * 5
    else:
        y = -x
    return y


@case
def nested_if(x):
    y = x
    if x[0] > 0:
        if x[1] > 0:
            y = x + 1
        else:
            y = x + 2
            if x[2] > 0:
                y = y * 3
    return y - 1


@case
def early_return(x):
    if x.sum() > 1:
        return x * 2
    y = x + 1
    if y.max() > 3:
        return y * 3
    return y - 1


@case
def return_in_nested_branches(x):
    if x[0] > 0:
        if x[1] > 1:
            return x
        x = x * 2
    else:
        if x[2] < 0:
            return -x
    return x + 10


@case
def both_sides_return(x):
    if x.sum() > 0:
        return x + 1
    return x - 1


@case
def return_none_path(x):
    def inner(v):
        if v.sum() > 0:
            return v * 2
        return None

    y = inner(x)
    if y is None:
        y = x - 5
    return y


@case
def variable_set_on_one_side(x):
    if x.sum() > 0:
        y = x * 2
    if x.sum() > 0:
        return y
    return x


@case
def unbound_when_used(x):
    if x.sum() > 0:
        y = x * 2
    return y + 1


@case
def different_dtypes(x):
    y = x if x.sum() > 0 else x.double()
    return y.float() + 1


@case
def different_shapes_reduced(x):
    y = x[:2] if x.sum() > 0 else x
    return y.sum() * 2


@case
def different_shapes_returned(x):
    return x[:2] if x.sum() > 0 else x


@case
def number_merged(x):
    n = 2 if x.sum() > 0 else 5
    return x * n, n


@case
def float_and_int_merged(x):
    scale = 1 if x.sum() > 0 else 0.5
    return x * scale


@case
def bool_merged(x):
    flag = False
    if x.sum() > 0:
        flag = True
    if flag:
        x = x + 1
    return x


@case
def string_merged(x):
    mode = "double" if x.sum() > 0 else "negate"
    return x * 2 if mode == "double" else -x


@case
def none_or_tensor(x):
    residual = None
    if x[0] > 0:
        residual = x * 3
    y = x + 1
    if residual is not None:
        y = y + residual
    return y


@case
def tuple_merged(x):
    pair = (x, x + 1) if x.sum() > 0 else (x - 1, x * 2)
    a, b = pair
    return a * b


@case
def dict_merged(x):
    out = {"a": x, "b": x + 1}
    if x.sum() > 0:
        out["a"] = out["a"] * 2
        out["c"] = x
    else:
        out["c"] = -x
    return out["a"] + out["b"] + out["c"]


@case
def boolean_operators(x):
    if (x[0] > 0 and x[1] > 0) or not x[2] > 0:
        return x + 1
    return x - 1


@case
def value_of_and_or(x):
    y = (x.sum() > 0) and (x * 2)
    z = (x.max() > 3) or (x.min() < -2)
    return (y * 1.0).sum() + z


@case
def chained_comparison(x):
    return x * 2 if 0 < x.sum() <= 6 else x - 1


@case
def chain_value_kept(x):
    inside = -1 < x.mean() < 2
    return torch.where(inside, x, -x)


@case
def nested_ternary(x):
    return x if x[0] > 0 else (x * 2 if x[1] > 0 else x * 3)


@case
def walrus(x):
    if (s := x.sum()) > 0 and (m := x.max()) > 2:
        return x * s + m
    return x - s


@case
def in_operator(x):
    if x[0] in (1.0, 5.0, 100.0):
        return x + 1
    return x - 1 if x[1] not in [3.0, 4.0] else x


@case
def in_place_in_branch(x):
    y = x.clone()
    if x.sum() > 0:
        y += 1
        y.mul_(2)
    else:
        y[0] = 7.0
    return y


@case
def in_place_on_input(x):
    if x.sum() > 0:
        x.add_(1)
    x[1:] += 1
    return x * 2


@case
def in_place_on_view(x):
    y = x.clone()
    v = y[1:]
    if x[0] > 0:
        v.zero_()
    return y


@case
def alias_chosen_then_written(x):
    y = x if x.sum() > 0 else x.clone()
    y.add_(1)
    return y


@case
def alias_written_then_read(x):
    base = x * 1
    y = base if x.sum() > 0 else x * 2
    base.add_(10)
    return y


@case
def functional_inplace(x):
    y = x.clone()
    if y[0] > 0:
        nn.functional.relu(y, inplace=True)
    return y


@case
def masked_assignment(x):
    y = x.clone()
    if x.sum() > 0:
        y[x > 1] = 0.0
    return y


@case
def closure_nonlocal(x):
    total = x * 0
    count = 0

    def add(v):
        nonlocal total, count
        if v.sum() > 0:
            total = total + v
            count += 1

    add(x)
    add(-x)
    add(x * 2)
    return total, count


@case
def lambda_with_decision(x):
    pick = lambda v: v * 2 if v.sum() > 0 else v - 1  # noqa: E731
    return pick(x) + pick(-x)


@case
def nested_function_returns(x):
    def sign(v):
        if v > 0:
            return 1.0
        if v < 0:
            return -1.0
        return 0.0

    return x * sign(x[0]) + sign(x[1])


@case
def try_finally(x):
    y = x
    try:
        if x.sum() > 0:
            return y * 2
        y = y + 1
    finally:
        z = x * 3
    return y + z


@case
def with_block(x):
    with torch.no_grad():
        if x.sum() > 0:
            return x * 2
        x = x - 1
    return x + 0


@case
def assert_message(x):
    assert x[0] > -5, "first is too small"
    return x + 1


@case
def assert_under_branch(x):
    if x.sum() > 0:
        assert x.max() < 50, "too large"
        x = x * 2
    return x


@case
def raise_in_branch(x):
    if x[0] < -5:
        raise ValueError("below")
    if x[1] > 2.5:
        raise KeyError("above")
    return x * 2


@case
def raise_after_mutation(x):
    x[2] = 9.0
    if x[0] > 3:
        raise RuntimeError("late")
    x.mul_(2)
    return x


@case
def raise_in_helper(x):
    def need(v):
        if v.isnan().any():
            raise ArithmeticError("nan")
        return v * 2

    if x[1] > 0:
        return need(x)
    return x


@case
def caught_inside_one_path(x):
    if x.sum() > 0:
        try:
            raise ValueError("inner")
        except ValueError as error:
            return x + len(str(error))
    return x


@case
def default_arguments(x):
    def shift(v, by=1, *, times=2):
        return v + by * times if v.sum() > 0 else v - by

    return shift(x) + shift(x, 3, times=4)


@case
def delete_and_annotate(x):
    y: torch.Tensor
    y = x * 2
    if x.sum() > 0:
        z: float = 2.0
        y = y * z
        del z
    return y


@case
def float_item_arithmetic(x):
    f = float(x[0])
    g = f * 3.1 - 0.7 * f + f
    return x * g


@case
def item_decides(x):
    n = x[0].item()
    if n > 0.3:
        return x * n
    return x + n


@case
def bool_of_tensor(x):
    flag = bool(x.sum() > 0)
    return x if flag else -x


@pytest.mark.parametrize("name", CASES)
def test_equal_to_eager(name: str) -> None:
    check(Wrap(CASES[name]), VECTORS)


@pytest.mark.sweep
@pytest.mark.parametrize("example", range(1, len(VECTORS)))
@pytest.mark.parametrize("name", CASES)
def test_equal_from_any_example(name: str, example: int) -> None:
    check(Wrap(CASES[name]), [VECTORS[example], *VECTORS])
