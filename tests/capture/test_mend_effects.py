"""What code in a branch changes elsewhere: globals, closures, objects, defaults, `finally`.

PYTEST_DONT_REWRITE: pytest would change the messages of the asserts that are under test.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import threading
from typing import Any, ClassVar

import pytest
import torch

from tests.capture.mended import VECTORS, Body, Wrap, check

LOG: list[Any] = []
DEFAULT: list[Any] = []
TABLE: dict[str, Any] = {}


class Registry:
    items: ClassVar[list[Any]] = []
    count = 0


def outside_add(x):
    LOG.append(x)


def outside_len():
    return len(LOG)


def helper_default(x, acc=DEFAULT):
    acc.append(x)
    return len(acc)


CASES: dict[str, Body] = {}


def case(body: Body) -> Body:
    CASES[body.__name__] = body
    return body


@case
def hasattr_(x):
    class A:
        pass

    a = A()
    if x.sum() > 0:
        a.v = x
    if hasattr(a, "v"):
        return x * 2
    return x * 3


@case
def getattr_default(x):
    class A:
        pass

    a = A()
    if x.sum() > 0:
        a.v = x
    return getattr(a, "v", -x) * 2


@case
def callable_chosen(x):
    f = torch.sin
    if x.sum() > 0:
        f = torch.cos
    return f(x)


@case
def class_chosen(x):
    class A:
        def __init__(self, v):
            self.v = v

    class B(A):
        pass

    a = A(x)
    if x.sum() > 0:
        a = B(x * 2)
    return a.v + (1 if isinstance(a, B) else 0)


@case
def view_branch(x):
    y = x.clone()
    v = y[1:]
    if x.sum() > 0:
        v += 5
    else:
        y *= 2
    return y, v


@case
def out_arg(x):
    y = torch.zeros(3)
    if x.sum() > 0:
        torch.add(x, 1, out=y)
    return y


@case
def nested_fn_mut(x):
    log = []

    def add(v):
        if v.sum() > 0:
            log.append(v)

    add(x)
    add(-x)
    add(x * 2)
    return x * len(log) + (log[0] if log else 0)


@case
def break_in_try(x):
    t = x
    for i in range(3):
        try:
            if t.sum() > 4:
                break
            t = t + 1
        finally:
            t = t * 2
    return t


@case
def default_mut(x, acc=DEFAULT):
    acc = list(acc)
    if x.sum() > 0:
        acc.append(x)
    return x * len(acc)


@case
def global_list(x):
    LOG.clear()
    if x.sum() > 0:
        LOG.append(x)
    return x * len(LOG)


@case
def global_list_helper(x):
    LOG.clear()

    def add():
        LOG.append(x)

    if x.sum() > 0:
        add()
    return x * len(LOG)


@case
def global_list_helper2(x):
    LOG.clear()
    if x.sum() > 0:
        outside_add(x)
    return x * outside_len()


@case
def global_dict(x):
    TABLE.clear()
    if x.sum() > 0:
        TABLE["k"] = x
    return x * len(TABLE)


@case
def class_attr_list(x):
    Registry.items.clear()
    if x.sum() > 0:
        Registry.items.append(x)
    return x * len(Registry.items)


@case
def default_list(x, acc=DEFAULT):
    acc.clear()
    if x.sum() > 0:
        acc.append(x)
    return x * len(acc)


@case
def default_list_helper(x):
    helper_default.__defaults__[0].clear()
    if x.sum() > 0:
        helper_default(x)
    m = helper_default(x)
    return x * m


@case
def closure_counter(x):
    n = 0

    def inc():
        nonlocal n
        n += 1

    if x.sum() > 0:
        inc()
    return x * n


@case
def closure_counter2(x):
    n = 0

    def inc():
        nonlocal n
        n += 1

    def get():
        return n

    if x.sum() > 0:
        inc()
    return x * get()


@case
def dataclass_obj(x):
    @dataclasses.dataclass
    class D:
        v: object

    d = D(x)
    if x.sum() > 0:
        d.v = x * 2
    return d.v


@case
def namedtuple_obj(x):
    P = collections.namedtuple("P", "a b")
    p = P(x, 1)
    if x.sum() > 0:
        p = p._replace(b=2)
    return p.a * p.b


@case
def property_obj(x):
    class Holder:
        def __init__(self):
            self._v = 1

        @property
        def v(self):
            return self._v

        @v.setter
        def v(self, n):
            self._v = n

    o = Holder()
    if x.sum() > 0:
        o.v = 3
    return x * o.v


@case
def list_sub(x):
    class L(list):
        pass

    items = L([x])
    if x.sum() > 0:
        items.append(x)
    return x * len(items)


@case
def dict_sub(x):
    d = collections.defaultdict(int)
    if x.sum() > 0:
        d["a"] += 1
    return x * (d["a"] + len(d))


@case
def counter_cls(x):
    d = collections.Counter()
    if x.sum() > 0:
        d["a"] += 1
    return x * d["a"]


@case
def finally_return(x):
    def f(x):
        try:
            if x.sum() > 0:
                return x
            x = x + 1
        finally:
            if x[0] > 1.5:
                x = x * 100
        return x - 1

    return f(x)


@case
def for_finally(x):
    log = []
    for i in range(3):
        try:
            if x[i] > 1:
                continue
            if x[i] < -1:
                break
            log.append(i)
        finally:
            log.append(10)
    return x * sum(log)


@case
def dunder_call(x):
    class V:
        def __init__(self):
            self.d = []

        def __call__(self, y):
            self.d.append(y)
            return len(self.d)

    v = V()
    if x.sum() > 0:
        v(x)
    return x * v(x)


@case
def dunder_add(x):
    class V:
        def __init__(self, n):
            self.n = n

        def __add__(self, o):
            return V(self.n + o.n)

    v = V(1)
    if x.sum() > 0:
        v = v + V(2)
    return x * v.n


@case
def static_cache(x):
    if not hasattr(static_cache, "c"):
        static_cache.c = []
    static_cache.c.clear()
    if x.sum() > 0:
        static_cache.c.append(1)
    return x * len(static_cache.c)


@case
def cond_expr_side(x):
    log = []

    def a():
        log.append(1)
        return 1

    def b():
        log.append(2)
        log.append(3)
        return 2

    v = a() if x.sum() > 0 else b()
    return x * v + len(log)


@case
def bool_side(x):
    log = []

    def a():
        log.append(1)
        return True

    if x.sum() > 0 and a():
        pass
    return x * len(log)


@case
def comp_side(x):
    log = []

    def a(v):
        log.append(v)
        return v

    r = [a(v) for v in x if v > 0]
    return x * len(log) + len(r)


@case
def lambda_side(x):
    log = []
    f = (lambda: log.append(1)) if x.sum() > 0 else (lambda: None)
    f()
    return x * len(log)


@case
def map_side(x):
    log = []

    def g(v):
        if v > 0:
            log.append(v)
        return v

    list(map(g, x))
    return x * len(log)


@case
def sort_cb(x):
    log = []
    items = [3, 1, 2]

    def key(v):
        if x.sum() > 0:
            log.append(v)
        return v

    items.sort(key=key)
    return x * len(log) + items[0]


@case
def partial_(x):
    log = []
    f = functools.partial(log.append, 1)
    if x.sum() > 0:
        f()
    return x * len(log)


@case
def thread_(x):
    log = []
    if x.sum() > 0:
        t = threading.Thread(target=lambda: log.append(1))
        t.start()
        t.join()
    return x * len(log)


@pytest.mark.parametrize("name", CASES)
def test_equal_to_eager(name: str) -> None:
    check(Wrap(CASES[name]), VECTORS)


@pytest.mark.sweep
@pytest.mark.parametrize("example", range(1, len(VECTORS)))
@pytest.mark.parametrize("name", CASES)
def test_equal_from_any_example(name: str, example: int) -> None:
    check(Wrap(CASES[name]), [VECTORS[example], *VECTORS])
