"""Lists, dicts and tuples whose elements depend on data: every operation is that of eager Python, or refused.

PYTEST_DONT_REWRITE: pytest would change the messages of the asserts that are under test.
"""

from __future__ import annotations

import copy
import json
import math
import statistics

import pytest
import torch

from tests.capture.mended import VECTORS, Body, Wrap, check

CASES: dict[str, Body] = {}


def case(body: Body) -> Body:
    CASES[body.__name__] = body
    return body


@case
def dict_in(x):
    d = {}
    if x.sum() > 0:
        d["a"] = x
    if "a" in d:
        return x * 2
    return x * 3


@case
def dict_get(x):
    d = {}
    if x.sum() > 0:
        d["a"] = x
    return d.get("a", -x) + 1


@case
def dict_del(x):
    d = {"a": x}
    if x.sum() > 0:
        del d["a"]
    return d.get("a", -x)


@case
def dict_len(x):
    d = {}
    if x.sum() > 0:
        d["a"] = x
    return x * len(d)


@case
def dict_iter(x):
    d = {"b": x}
    if x.sum() > 0:
        d["a"] = x
    t = x * 0
    for k in d:
        t = t + d[k]
    return t


@case
def dict_items(x):
    d = {"b": x}
    if x.sum() > 0:
        d["a"] = x
    t = x * 0
    for k, v in d.items():
        t = t + v * len(k)
    return t


@case
def dict_sum_values(x):
    d = {"b": x}
    if x.sum() > 0:
        d["a"] = x
    return sum(d.values())


@case
def dict_key_error(x):
    d = {}
    if x.sum() > 0:
        d["a"] = x
    return d["a"] + 1


@case
def dict_bool(x):
    d = {}
    if x.sum() > 0:
        d["a"] = x
    return x if d else -x


@case
def dict_pop(x):
    d = {"b": x}
    if x.sum() > 0:
        d["a"] = x * 5
    y = d.pop("a", x)
    return y + len(d)


@case
def dict_setdefault(x):
    d = {}
    if x.sum() > 0:
        d["a"] = x
    return d.setdefault("a", -x) * 2


@case
def dict_star(x):
    d = {}
    if x.sum() > 0:
        d["scale"] = 2.0

    def f(x, scale=3.0):
        return x * scale

    return f(x, **d)


@case
def dict_update(x):
    d, e = {"a": x}, {}
    if x.sum() > 0:
        e["a"] = x * 2
    d.update(e)
    return d["a"]


@case
def dict_merge_op(x):
    e = {}
    if x.sum() > 0:
        e["a"] = x * 2
    d = {"a": x} | e
    return d["a"]


@case
def list_slice(x):
    items = [x * 2]
    if x.sum() > 0:
        items.append(x)
    return sum(items[1:], x)


@case
def list_neg(x):
    items = [x * 2]
    if x.sum() > 0:
        items.append(x)
    return items[-1]


@case
def list_add(x):
    items = [x * 2]
    if x.sum() > 0:
        items.append(x)
    tail = [x * 3]
    m = items + tail
    return m[1]


@case
def list_mul(x):
    items = [x * 2]
    if x.sum() > 0:
        items.append(x)
    m = items * 2
    return m[2]


@case
def list_zip(x):
    items = []
    if x.sum() > 0:
        items.append(x)
    items.append(x * 2)
    t = x
    for a, b in zip(items, [1.0, 10.0], strict=False):
        t = t + a * b
    return t


@case
def list_reversed(x):
    items = [x * 2]
    if x.sum() > 0:
        items.append(x)
    t = x * 0
    for v in reversed(items):
        t = t * 2 + v
    return t


@case
def list_insert(x):
    items = [x * 2]
    if x.sum() > 0:
        items.append(x)
    items.insert(1, x * 7)
    return items[1] + items[-1]


@case
def list_pop0(x):
    items = [x * 2]
    if x.sum() > 0:
        items.insert(0, x)
    return items.pop(0)


@case
def list_pop_last(x):
    items = [x * 2]
    if x.sum() > 0:
        items.append(x)
    items.pop()
    return x * len(items)


@case
def list_tuple(x):
    items = [x * 2]
    if x.sum() > 0:
        items.append(x)
    t = tuple(items)
    return x * len(t)


@case
def list_comp_over(x):
    items = [x * 2]
    if x.sum() > 0:
        items.append(x)
    m = [v + 1 for v in items]
    return m[-1] * len(m)


@case
def list_index(x):
    items = []
    if x.sum() > 0:
        items.append(1)
    items.append(2)
    return x * items.index(2)


@case
def list_count(x):
    items = [1]
    if x.sum() > 0:
        items.append(1)
    return x * items.count(1)


@case
def list_eq(x):
    items = [1]
    if x.sum() > 0:
        items.append(2)
    return x if items == [1] else -x


@case
def list_in(x):
    items = [1]
    if x.sum() > 0:
        items.append(2)
    return x if 2 in items else -x


@case
def list_del(x):
    items = [x, x * 2]
    if x.sum() > 0:
        del items[0]
    return items[0]


@case
def list_clear(x):
    items = [x, x * 2]
    if x.sum() > 0:
        items.clear()
    items.append(x * 5)
    return items[0]


@case
def list_extend(x):
    items, m = [x], []
    if x.sum() > 0:
        m.append(x * 2)
    items.extend(m)
    items += m
    return items[-1] * len(items)


@case
def list_copy(x):
    m = []
    if x.sum() > 0:
        m.append(x * 2)
    n = m.copy()
    n.append(x)
    return n[0] + len(m)


@case
def list_sorted(x):
    m = [3]
    if x.sum() > 0:
        m.append(1)
    return x * sorted(m)[0]


@case
def list_max(x):
    m = [3]
    if x.sum() > 0:
        m.append(10)
    return x * max(m)


@case
def list_join(x):
    m = ["a"]
    if x.sum() > 0:
        m.append("b")
    return x if "".join(m) == "ab" else -x


@case
def list_nested(x):
    m = [[x]]
    if x.sum() > 0:
        m[0].append(x * 2)
    return m[0][-1] * len(m[0])


@case
def list_tensor(x):
    m = [1.0]
    if x.sum() > 0:
        m.append(2.0)
    return torch.tensor(m).sum() * x


@case
def enum_(x):
    m = [x]
    if x.sum() > 0:
        m.insert(0, x * 2)
    t = x
    for i, v in enumerate(m):
        t = t + i * v
    return t


@case
def any_list(x):
    m = []
    if x.sum() > 0:
        m.append(x[0])
    return x if any(v > 1 for v in m) else -x


@case
def tuple_grow(x):
    t = (x,)
    if x.sum() > 0:
        more = (x * 2,)
        t = t + more
    return t[-1] * len(t)


@case
def tuple_unpack(x):
    t = (x, 1)
    if x.sum() > 0:
        t = (x * 2, 2)
    a, b = t
    return a * b


@case
def while_pop(x):
    items = [x, x + 1, x + 2]
    while items and items[-1].sum() > 0:
        items.pop()
    return x * len(items)


@case
def genexp(x):
    return sum(v * 2 for v in x if v > 0) + x


@case
def map_(x):
    return torch.stack(list(map(lambda v: v if v > 0 else -v, x)))


@case
def star_list(x):
    items = [x]
    if x.sum() > 0:
        items.append(x * 2)
    return torch.stack([*items, x]).sum(0)


@case
def starred_call(x):
    def f(*a, **k):
        return len(a) + len(k)

    items, d = [1], {}
    if x.sum() > 0:
        items.append(2)
        d["z"] = 1
    return x * f(*items, **d)


@case
def copy_list(x):
    items = [1]
    if x.sum() > 0:
        items.append(2)
    m = copy.copy(items)
    n = copy.deepcopy(items)
    return x * (len(m) + len(n))


@case
def json_(x):
    items = [1]
    if x.sum() > 0:
        items.append(2)
    return x * len(json.dumps(items))


@case
def math_prod(x):
    items = [2]
    if x.sum() > 0:
        items.append(3)
    return x * math.prod(items)


@case
def statistics_(x):
    items = [2]
    if x.sum() > 0:
        items.append(3)
    return x * statistics.mean(items)


@pytest.mark.parametrize("name", CASES)
def test_equal_to_eager(name: str) -> None:
    check(Wrap(CASES[name]), VECTORS)


@pytest.mark.sweep
@pytest.mark.parametrize("example", range(1, len(VECTORS)))
@pytest.mark.parametrize("name", CASES)
def test_equal_from_any_example(name: str, example: int) -> None:
    check(Wrap(CASES[name]), [VECTORS[example], *VECTORS])
