"""Numbers and sizes that depend on data, used as Python uses them.

PYTEST_DONT_REWRITE: pytest would change the messages of the asserts that are under test.
"""

from __future__ import annotations

import functools
import math

import pytest
import torch

from tests.capture.mended import VECTORS, Body, Wrap, check

CASES: dict[str, Body] = {}


def case(body: Body) -> Body:
    CASES[body.__name__] = body
    return body


@case
def string_grow(x):
    s = "a"
    if x.sum() > 0:
        s += "b"
    return x * len(s)


@case
def isinst(x):
    v = 1
    if x.sum() > 0:
        v = x
    if isinstance(v, torch.Tensor):
        return v * 2
    return x - v


@case
def int_hash_set(x):
    n = 0
    if x.sum() > 0:
        n = 1
    return x if n in {1, 2} else -x


@case
def int_eq_str(x):
    n = 0
    if x.sum() > 0:
        n = 1
    return x if n == "1" else -x


@case
def int_bit(x):
    n = 2
    if x.sum() > 0:
        n = 5
    return x * (n & 3) + (n << 1) + (n ^ 1) + (n >> 1)


@case
def int_pow(x):
    n = 2
    if x.sum() > 0:
        n = 3
    return x**n


@case
def int_neg_div(x):
    n = -7
    if x.sum() > 0:
        n = 7
    return x + n // 2 + n % 3 + divmod(n, 4)[1]


@case
def float_div(x):
    n = x.sum().item()
    return x + (1.0 / n if n != 0 else 0.0)


@case
def math_sqrt(x):
    n = abs(x[1].item())
    return x + math.sqrt(n)


@case
def size_eq(x):
    y = x[x > 0]
    if y.shape[0] == 2:
        return x * 2
    return x


@case
def numel_zero(x):
    y = x[x > 0]
    if y.numel() == 0:
        return x * 0
    return x + y.max()


@case
def list_of_masked(x):
    items = x[x > 0].tolist()
    return x + len(items)


@case
def all_any(x):
    return x if torch.all(x > 0) and not torch.any(x > 2) else -x


@case
def allclose(x):
    return x if torch.allclose(x, x.abs()) else -x


@case
def is_nonzero(x):
    return x if x[0].is_nonzero() else -x


@case
def setitem_mask(x):
    y = x.clone()
    if x.sum() > 0:
        y[y > 1] = 0
    else:
        y[y < 0] = y[y < 0] * 2
    return y


@case
def setitem_slice(x):
    y = x.clone()
    n = int(x[0].nan_to_num(posinf=9.0).clamp(0, 2))
    y[:n] = 7
    y[n] = 9
    return y


@case
def unique_all(x):
    u, inv, c = torch.unique(x.nan_to_num(), return_inverse=True, return_counts=True)
    if c.max() > 1:
        return u[inv] * 2
    return u[inv]


@case
def repeat_int(x):
    r = (x.nan_to_num(posinf=2.0) > 0).long() + 1
    y = torch.repeat_interleave(x, r)
    if r.sum() > 4:
        return y * 2
    return y


@case
def split_lens(x):
    n = int((x > 0).sum())
    a, b = x.split([n, 3 - n])
    if n > 1:
        return a.sum() + b * 2
    return a.sum() - b


@case
def bincount(x):
    c = torch.bincount(x.nan_to_num(posinf=3.0, neginf=0.0).clamp(0, 3).long(), minlength=4)
    return x if c[0] > c[1] else x * c.max()


@case
def chain_cmp(x):
    return x if -1 < x[0] < x[1] <= 2 else -x


@case
def isnone_chain(x):
    a = None
    if x[0] > 0:
        a = x
    b = a if a is not None else x * 9
    c = a or x if a is None else b
    return b + c


@case
def frozen_in_default(x):
    n = int(x[0].nan_to_num(posinf=9.0).clamp(0, 3))
    return torch.full((3,), n) + x


@case
def int_range_list(x):
    n = int(x[0].nan_to_num(posinf=9.0).clamp(0, 3))
    return x + torch.tensor(list(range(4)))[n]


@case
def py_index(x):
    n = int(x[0].nan_to_num(posinf=9.0).clamp(0, 2))
    return [x, x * 2, x * 3][n]


@case
def tuple_index(x):
    n = int(x[0].nan_to_num(posinf=9.0).clamp(0, 2))
    return (x, x * 2, x * 3)[n]


@case
def range_in(x):
    n = int(x[0].nan_to_num(posinf=9.0).clamp(0, 2))
    return x if n in range(1, 3) else -x


@case
def min_key(x):
    n = int(x[0].nan_to_num(posinf=9.0).clamp(0, 2))
    return x * min(n, 1) + max(n, 1, 2)


@case
def is_int(x):
    n = int(x[0].nan_to_num(posinf=9.0).clamp(0, 2))
    return x if n is True else x * isinstance(n, int)


@case
def type_is(x):
    n = int(x[0].nan_to_num(posinf=9.0).clamp(0, 2))
    return x if type(n) is int else -x


@case
def type_float(x):
    n = float(x[0].nan_to_num(posinf=9.0).clamp(0, 2))
    return x if type(n) is float else -x


@case
def bool_type(x):
    n = bool(x[0] > 0)
    return x if type(n) is bool else -x


@case
def bool_index(x):
    n = bool(x[0] > 0)
    return [x, -x][n]


@case
def math_inf(x):
    n = x[0].item()
    return x if math.isinf(n) else (x * 2 if n != n else -x)


@case
def float_cmp_nan(x):
    n = x[0].item()
    return x if n < 1 else (x * 2 if n >= 1 else x * 3)


@case
def float_ops(x):
    n = x[0].item()
    return x + (n * 0.1 + 0.2 - n) // 0.3 if n == n and n < 9 else x


@case
def int_big(x):
    n = int(x[0].nan_to_num(posinf=9.0)) * 2**40
    return x + n


@case
def nested_tolist(x):
    a, b, c = x.tolist()
    return x if a < b else x * c


@case
def shape_branch(x):
    y = torch.nonzero(x > 0)
    return x if len(y) > 1 else -x


@case
def unbind_nz(x):
    t = x
    for (i,) in torch.nonzero(x > 0).tolist():
        t = t + i
    return t


@case
def where_unpack(x):
    (i,) = torch.where(x > 0)
    if i.numel() > 0:
        return x + x[i].sum()
    return x


@case
def topk_dyn(x):
    k = int((x > 0).sum())
    return x.nan_to_num(posinf=9.0).topk(3).values[:k].sum() + x


@case
def narrow_dyn(x):
    n = int((x > 0).sum())
    return x.narrow(0, 0, n).sum() + x


@case
def cat_dyn(x):
    y = torch.cat([x[x > 0], x[x <= 0]])
    return y.sum() + x if y.shape[0] == 3 else -x


@case
def reduce_(x):
    return functools.reduce(lambda a, b: a if a > b else b, list(x)) + x


@case
def rows_with_an_inferred_size(x):
    """Of no rows torch cannot infer -1: only the taken branch may say so."""
    y = torch.zeros(2)
    if x.sum() > 0:
        picked = torch.stack([x, -x], 1)[x > 2]
        y = y + picked.view(len(picked), -1).sum(0)
    return y


@pytest.mark.parametrize("name", CASES)
def test_equal_to_eager(name: str) -> None:
    check(Wrap(CASES[name]), VECTORS)


@pytest.mark.sweep
@pytest.mark.parametrize("example", range(1, len(VECTORS)))
@pytest.mark.parametrize("name", CASES)
def test_equal_from_any_example(name: str, example: int) -> None:
    check(Wrap(CASES[name]), [VECTORS[example], *VECTORS])
