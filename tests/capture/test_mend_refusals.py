"""What mending refuses: each refusal names what, the line, the op where one is at fault, and what to write instead.

PYTEST_DONT_REWRITE: pytest would change the messages of the asserts that are under test.
"""

from __future__ import annotations

import array
import collections
import contextlib
import functools
import inspect
import io
import itertools
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import nn

from gaudicc.capture.mend import export_mending
from gaudicc.errors import DynamicControlFlowError

X = torch.tensor([1.0, 2.0, 3.0])
FILE = Path(__file__).name
Body = Callable[..., Any]
CASES: dict[str, tuple[Body, str, str, str | None]] = {}


class Registry:
    count = 0


def refused(what: str, todo: str, op: str | None = None) -> Callable[[Body], Body]:
    def note(body: Body) -> Body:
        CASES[body.__name__] = body, what, todo, op
        return body

    return note


class Wrap(nn.Module):
    """A model whose forward is a plain function of the tests."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body = body

    def forward(self, x):
        return self.body(x)


WRAPPED = Wrap.forward.__code__.co_firstlineno
"""Where the model as a whole is: what it returns is refused there."""


@refused("`**` in a dict is given a list whose length depends on data, or an item of it", "use torch.stack")
def dict_display(x):
    e = {}
    if x.sum() > 0:
        e["a"] = x * 2
    d = {"a": x, **e}  # refused
    return d["a"]


@refused(
    "a value is of type tuple on one path and of type tuple on the other, and is used where Python needs one value",
    "give both paths values of one type and shape",
)
def list_unpack(x):
    items = [x * 2, x]
    if x.sum() > 0:
        items.append(x)
    a, *b = items  # refused
    return a + len(b)


@refused(
    "a value is of type tuple on one path and of type tuple on the other, and is used where Python needs one value",
    "give both paths values of one type and shape",
)
def list_unpack_exact(x):
    items = [x * 2]
    if x.sum() > 0:
        items.append(x)
    a, b = items  # refused
    return a + b


@refused("a deque gets different elements on two paths of a branch on a tensor", "keep the elements in a list")
def deque_(x):
    m = collections.deque([x])
    if x.sum() > 0:  # refused
        m.append(x * 2)
    return m[-1] * len(m)


@refused("a number read from a tensor becomes text", "leave the text out")
def str_frozen(x):
    return x if f"{int(x[0].nan_to_num(posinf=9.0))}" == "1" else -x  # refused


@refused("a number read from a tensor is the key of a dict or an element of a set", "look it up in a list")
def int_dict(x):
    n = 0
    if x.sum() > 0:
        n = 1
    return {n: x, 1: -x}[1]  # refused


@refused("Python decides on the value of a tensor", "let the decision stay on tensors (torch.where")
def filter_(x):
    return sum(filter(lambda v: v > 0, x)) + x  # refused


@refused("Python decides on the value of a tensor", "let the decision stay on tensors (torch.where")
def sorted_(x):
    return sorted(x)[0] + x  # refused


@refused("the class Registry is changed in a branch on a tensor", "change it before or after the branch")
def class_attr_set(x):
    Registry.count = 0
    if x.sum() > 0:  # refused
        Registry.count = 1
    return x * Registry.count


@refused("a _lru_cache_wrapper is changed in a branch on a tensor", "change it before or after the branch")
def lru(x):
    calls = []

    @functools.lru_cache
    def f(k):
        calls.append(k)
        return k

    if x.sum() > 0:  # refused
        f(1)
    f(1)
    return x * len(calls)


@refused("a list_iterator is changed in a branch on a tensor", "change it before or after the branch")
def iterator_shared(x):
    it = iter([1.0, 2.0, 3.0])
    if x.sum() > 0:  # refused
        next(it)
    return x * next(it)


@refused("a StringIO is changed in a branch on a tensor", "change it before or after the branch")
def file_like(x):
    s = io.StringIO()
    if x.sum() > 0:  # refused
        s.write("a")
    return x * len(s.getvalue())


@refused("a count is changed in a branch on a tensor", "change it before or after the branch")
def counter_itertools(x):
    c = itertools.count()
    if x.sum() > 0:  # refused
        next(c)
    return x * next(c)


@refused(
    "torch's modes (grad, default dtype, autocast) or a random generator is changed in a branch on a tensor",
    "change it before or after the branch",
)
def random_py(x):
    random.seed(0)
    if x.sum() > 0:  # refused
        random.random()
    return x * random.random()


@refused("a S is changed in a branch on a tensor", "change it before or after the branch")
def slots_obj(x):
    class S:
        __slots__ = ("v",)

    s = S()
    s.v = x
    if x.sum() > 0:  # refused
        s.v = x * 2
    return s.v


@refused("the order of the keys of a dict is changed in a branch on a tensor", "change it before or after the branch")
def ordered(x):
    d = collections.OrderedDict(a=x, b=x * 2)
    if x.sum() > 0:  # refused
        d.move_to_end("a")
    return next(iter(d.values()))


@refused("the order of the keys of a dict is changed in a branch on a tensor", "change it before or after the branch")
def dict_order(x):
    d = {"a": x, "b": x * 2}
    if x.sum() > 0:  # refused
        d["a"] = d.pop("a")
    return next(iter(d.values()))


@refused("a bytearray is changed in a branch on a tensor", "change it before or after the branch")
def bytearr(x):
    b = bytearray(b"a")
    if x.sum() > 0:  # refused
        b.append(1)
    return x * len(b)


@refused("a array is changed in a branch on a tensor", "change it before or after the branch")
def arr(x):
    b = array.array("i", [1])
    if x.sum() > 0:  # refused
        b.append(1)
    return x * len(b)


@refused("a ndarray is changed in a branch on a tensor", "change it before or after the branch")
def np_arr(x):
    b = numpy.zeros(2)
    if x.sum() > 0:  # refused
        b[0] = 1
    return x * float(b.sum())


@refused("Python decides on the value of a tensor", "let the decision stay on tensors (torch.where")
def str_index(x):
    n = int(x[0].nan_to_num(posinf=9.0).clamp(0, 2))
    return x * {"a": 1, "b": 2, "c": 3}["abc"[n]]  # refused


@refused("Python decides on the value of a tensor", "let the decision stay on tensors (torch.where")
def mul_list(x):
    n = int(x[0].nan_to_num(posinf=9.0).clamp(0, 2))
    return x * len([1] * n)  # refused


@refused("Python decides on the value of a tensor", "let the decision stay on tensors (torch.where")
def slice_list(x):
    n = int(x[0].nan_to_num(posinf=9.0).clamp(0, 2))
    return x * len([1, 2, 3][:n])  # refused


@refused("nothing but data ends this loop, and its trips append to a list", "write to the rows of a tensor")
def sum_gen(x):
    n = int(x[0].nan_to_num(posinf=9.0).clamp(0, 2))
    return x * sum(i for i in range(n))  # refused


@refused("Python decides on the value of a tensor", "let the decision stay on tensors (torch.where")
def math_log(x):
    n = x[0].nan_to_num(posinf=9.0).clamp(1, 2).item()
    return x * math.log(n)  # refused


@refused("Python decides on the value of a tensor", "let the decision stay on tensors (torch.where")
def math_isclose(x):
    n = x[0].nan_to_num(posinf=9.0).item()
    return x if math.isclose(n, 1.0) else -x  # refused


@refused("Python decides on the value of a tensor", "let the decision stay on tensors (torch.where")
def chunk_dyn(x):
    n = int((x > 0).sum())
    parts = x.split(1)[:n]  # refused
    return x + len(parts)


@refused(
    "UnboundLocalError is raised depending on a tensor, and line",
    "test the condition with an `if` in place of try/except",
)
def del_local(x):
    y = x
    if x.sum() > 0:
        del y
    try:
        return y  # refused
    except UnboundLocalError:
        return -x


@refused(
    "torch's modes (grad, default dtype, autocast) or a random generator is changed in a branch on a tensor",
    "change it before or after the branch",
)
def grad_mode(x):
    if x.sum() > 0:  # refused
        torch.set_grad_enabled(False)
    return x if torch.is_grad_enabled() else -x


@refused(
    "torch's modes (grad, default dtype, autocast) or a random generator is changed in a branch on a tensor",
    "change it before or after the branch",
)
def dtype_mode(x):
    if x.sum() > 0:  # refused
        torch.set_default_dtype(torch.float64)
    y = torch.ones(3)
    torch.set_default_dtype(torch.float32)
    return x + y


@refused("a path leaves a `with` block of CM early, depending on a tensor", "leave the function")
def with_enter_state(x):
    class CM:
        def __init__(self):
            self.n = 0

        def __enter__(self):
            self.n += 1
            return self

        def __exit__(self, *a):
            self.n += 10

    cm = CM()

    def f(x):
        with cm:  # refused
            if x.sum() > 0:
                return x
        return -x

    y = f(x)
    return y * cm.n


@refused("a generator or coroutine decides on a tensor", "return a list in place of yielding")
def with_gen(x):
    log = []

    @contextlib.contextmanager
    def cm():
        log.append(1)
        yield  # refused
        log.append(2)

    with cm():
        if x.sum() > 0:
            x = x * 2
    return x * len(log)


@refused("a path leaves a `with` block of suppress early, depending on a tensor", "leave the function")
def suppress_(x):
    with contextlib.suppress(ValueError):  # refused
        if x.sum() > 0:
            raise ValueError("a")
        x = x + 1
    return x


@refused(
    "ValueError is raised depending on a tensor, and line",
    "test the condition with an `if` in place of try/except",
)
def except_star(x):
    try:
        n = int(x[0])  # refused
    except (ValueError, OverflowError):
        n = 7
    return x * n


@refused(
    "an exception that depends on a tensor leaves a `try` that has a `finally`", "test the condition before the `try`"
)
def raise_from_finally(x):
    y = x
    try:
        if x.sum() > 0:  # refused
            y = y * 2
            raise ValueError("a")
    finally:
        y = y + 1
    return y


@refused(
    "which attributes a V has, whose class computes others, is changed in a branch on a tensor",
    "change it before or after the branch",
)
def dunder_getattr(x):
    class V:
        def __getattr__(self, n):
            return 5

    v = V()
    if x.sum() > 0:  # refused
        v.k = 1
    return x * v.k


@refused("rand draws random numbers in a branch on a tensor", "draw them before the branch", op="rand")
def random_in_branch(x):
    if x.sum() > 0:
        x = x + torch.rand(3)  # refused
    return x


@refused("dropout draws random numbers in a branch on a tensor", "draw them before the branch", op="dropout")
def dropout(x):
    if x.sum() > 0:
        x = nn.functional.dropout(x, 0.5, True)  # refused
    return x


@refused("resize_ changes the shape of a tensor in place", "make a new tensor of that shape", op="resize_")
def resized(x):
    y = x.clone()
    if x.sum() > 0:
        y.resize_(2)  # refused
    return y


@refused("unsqueeze_ changes the shape of a tensor in place", "use unsqueeze", op="unsqueeze_")
def unsqueezed(x):
    y = x.clone()
    if x.sum() > 0:
        y.unsqueeze_(0)  # refused
    return y


@refused("nothing but data ends this loop, and it does something else in other trips", "fixed shapes")
def unbounded(x):
    while x.sum() > 0:  # refused
        x = torch.cat([x, -x])
    return x


@refused("this loop runs over a tensor whose length depends on data", "declare the most trips")
def over_unknown(x):
    total = x.sum()
    for v in torch.ones(int(x[0])):  # refused
        total = total + v
    return total


@refused("code that was not rewritten loops over a range", "loop over it with a `for` statement")
def mapped_range(x):
    return sum(map(abs, range(int(x[0])))) + x  # refused


@refused("the model returns a value that is", "pad to the larger one")
def two_ranks(x):  # refused
    if x.sum() > 0:
        return x
    return x.reshape(1, 3)


@refused("the model returns a value that is", "return one type and structure on every path")
def two_types(x):  # refused
    if x.sum() > 0:
        return x
    return "negative"


@refused("a set gets different elements on two paths", "keep the elements in a list")
def set_in_branch(x):
    seen = set()
    if x.sum() > 0:  # refused
        seen.add(1)
    return x * len(seen)


@refused("ValueError is raised depending on a tensor, and line", "test the condition with an `if`")
def caught(x):
    try:
        if x.sum() > 0:
            raise ValueError("positive")  # refused
    except ValueError:
        x = -x
    return x


@refused("cat is given a list whose length depends on data", "use torch.stack")
def joined_along_columns(x):
    parts = [v.reshape(1, 1) for v in x if v > 0]
    return torch.cat(parts, 1)  # refused


@refused("a generator or coroutine decides on a tensor", "return a list in place of yielding")
def generator(x):
    def items():
        for v in x:
            if v > 0:
                yield v  # refused

    return sum(items())


@refused("nothing but data ends the recursion of recursion", "write it as a loop")
def endless(x):
    return recursion(x)


def recursion(x):
    if x.sum() > 0:
        return recursion(x + 1)
    return x


@refused("an operation that needs to know which elements there are", "use torch.stack")
def too_many_conditions(x):
    items = [v for v in torch.cat([x, x + 1]) if v > 0]
    return torch.tensor(sorted(items)[0].item()) + x  # refused


def line_of(body: Body) -> int:
    """The line marked `# refused` in a function; its first for one that has no such mark."""
    lines, start = inspect.getsourcelines(body)
    return next((start + i for i, text in enumerate(lines) if text.rstrip().endswith("# refused")), 0)


@pytest.mark.parametrize("name", CASES)
def test_refusal_names_what_line_op_and_alternative(name: str) -> None:
    body, what, todo, op = CASES[name]
    with pytest.raises(DynamicControlFlowError) as caught:
        export_mending(Wrap(body).eval(), (X,))
    assert what in caught.value.what
    assert todo in caught.value.todo
    assert caught.value.where.op == op
    if line := line_of(body):
        assert caught.value.where.source in (f"capture/{FILE}:{line}", f"capture/{FILE}:{WRAPPED}")


def test_refused_models_are_left_as_they_were() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen: torch.Tensor
            self.register_buffer("seen", torch.zeros(3))
            self.log: list[Any] = []

        def forward(self, x):
            self.seen += 1
            self.log.append(x)
            while x.sum() > 0:
                x = torch.cat([x, -x])
            return x

    model, code = Model().eval(), Model.forward.__code__
    random_state = torch.get_rng_state()
    with pytest.raises(DynamicControlFlowError):
        export_mending(model, (X,))
    assert Model.forward.__code__ is code
    assert model.seen.tolist() == [0.0, 0.0, 0.0]
    assert model.log == []
    assert torch.equal(torch.get_rng_state(), random_state)
    assert "forward" not in vars(model)


def test_a_function_without_source() -> None:
    names: dict[str, Any] = {}
    exec("def missing(x):\n    if x.sum() > 0:\n        return x\n    return -x\n", names)
    with pytest.raises(DynamicControlFlowError, match="its source is missing") as caught:
        export_mending(Wrap(names["missing"]).eval(), (X,))
    assert caught.value.where.source == "<string>:2"


def test_a_message_may_name_the_number_that_it_is_about() -> None:
    def body(x):
        n = int(x[0])
        if n > 3:
            raise ValueError(f"{n} is too large")
        return x * n

    mended = export_mending(Wrap(body).eval(), (X,))
    assert mended.run(X).tolist() == [1.0, 2.0, 3.0]
    with pytest.raises(ValueError, match="a number read from a tensor> is too large"):
        mended.run(X + 7)
