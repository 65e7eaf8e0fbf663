"""State that branches change, code in methods and classes, and sides of a branch that would fail if they ran.

PYTEST_DONT_REWRITE: pytest would change the messages of the asserts that are under test.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.capture.mended import INF, NAN, check

VECTORS = [
    (torch.tensor(values),)
    for values in (
        [1.0, 2.0, 3.0], [-1.0, -2.0, -3.0], [0.0, 0.0, 0.0], [3.0, -1.0, 0.5], [-7.0, 3.0, 3.5], [NAN, 1.0, 2.0],
        [4.0, 1.0, -1.0], [2.0, 4.0, NAN], [5.0, -INF, 0.0], [0.5, 0.25, 0.125], [1.0, INF, -0.0], [-0.0, 0.0, -1.0],
    )
]  # fmt: skip
MODELS: dict[str, type[nn.Module]] = {}


def model(kind: type[nn.Module]) -> type[nn.Module]:
    MODELS[kind.__name__] = kind
    return kind


@model
class BufferReplaced(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(3))

    def forward(self, x):
        if x.sum() > 0:
            self.count = self.count + 1
        else:
            self.count = self.count * 2 - 1
        return x + self.count


@model
class BufferInPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("cache", torch.zeros(3))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        if x[0] > 0:
            self.cache[1] += x[0]
            self.cache.mul_(2)
        elif x[1] > 0:
            return self.cache - 1
        self.step += 1
        return self.cache + self.step


@model
class AttributeInBranch(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = 1.0
        self.log = []

    def forward(self, x):
        self.scale, self.hidden = 1.0, x
        if x.sum() > 0:
            self.scale = 3.0
            self.hidden = x * 2
        return self.hidden * self.scale


@model
class AttributeMaybeNone(nn.Module):
    def forward(self, x):
        self.extra = None
        if x.sum() > 0:
            self.extra = x * 2
        return self.finish(x)

    def finish(self, x):
        if self.extra is None:
            return x - 1
        return x + self.extra


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))

    def forward(self, x):
        if x.max() > 2:
            return x * self.weight
        return x


@model
class WithSuper(Base):
    def forward(self, x):
        y = super().forward(x)
        if y.sum() > 4:
            y = super().forward(y) + 1
        return y


@model
class PrivateNames(nn.Module):
    def __init__(self):
        super().__init__()
        self.__gain = 2.0

    def __twice(self, x):
        if x.sum() > 0:
            return x * self.__gain
        return x

    def forward(self, x):
        return self.__twice(x) + self.__twice(-x)


@model
class StaticAndClassMethods(nn.Module):
    @staticmethod
    def shrink(v):
        return v / 2 if v.abs().max() > 2 else v

    @classmethod
    def grow(cls, v):
        if v.sum() > 1:
            return cls.shrink(v) + 1
        return v

    @property
    def offset(self):
        return 1.5

    def forward(self, x):
        return self.grow(x) + self.offset


class Gate(nn.Module):
    def __init__(self, at):
        super().__init__()
        self.at = at

    def forward(self, x):
        if x.mean() > self.at:
            x = torch.relu(x) - 1
        return x + 0.5


@model
class GatedStack(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Gate(i / 3) for i in range(5))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


@model
class ModuleChosenByData(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.experts = nn.ModuleList(nn.Linear(3, 3) for _ in range(3))

    def forward(self, x):
        return self.experts[x.nan_to_num().argmax()](x)


def decorated(function):
    def inner(*args, **kwargs):
        result = function(*args, **kwargs)
        return -result if result.sum() > 5 else result

    return inner


@model
class Decorated(nn.Module):
    @decorated
    def forward(self, x):
        return x * 2 if x[0] > 0 else x


class Tracker:
    def __init__(self):
        self.items, self.total = [], 0

    def add(self, value):
        self.items.append(value)
        self.total = self.total + 1


@model
class PlainObjectInBranch(nn.Module):
    def forward(self, x):
        tracker = Tracker()
        tracker.add(x)
        if x.sum() > 0:
            tracker.add(x * 2)
        else:
            tracker.add(x * 3)
        return tracker.items[1] + tracker.items[0] * tracker.total


@model
class IndexGuarded(nn.Module):
    def forward(self, x):
        table = torch.tensor([1.0, 2.0, 3.0, 4.0])
        index = x[0].nan_to_num(posinf=99.0).long()
        if index >= 0 and index < 4:
            return x + table[index]
        return x


@model
class IndexGuardedByNumber(nn.Module):
    def forward(self, x):
        index = int(x[0].nan_to_num(posinf=99.0))
        if 0 <= index < 3:
            return x + x[index]
        return x


@model
class IndexFailsWhereEagerFails(nn.Module):
    def forward(self, x):
        index = x[0].nan_to_num().long().reshape(1)
        if x[1] > 0:
            return x.index_select(0, index) * 2
        return x[:1]


@model
class GatherScatterGuarded(nn.Module):
    def forward(self, x):
        index = torch.nan_to_num(x, posinf=7.0, neginf=-7.0).long()
        y = x.clone()
        if (index >= 0).all() and (index < 3).all():
            y = y.gather(0, index)
            y.scatter_(0, index, 9.0)
            y = y + nn.functional.embedding(index, torch.arange(6.0).reshape(3, 2)).sum(-1)
        return y


@model
class IntegerDivisionGuarded(nn.Module):
    def forward(self, x):
        n = torch.nan_to_num(x, posinf=7.0, neginf=-7.0).long()
        if (n != 0).all():
            return 12 // n + 12 % n
        return n


@model
class NumberDivisionGuarded(nn.Module):
    def forward(self, x):
        n = int(x[0].nan_to_num())
        if n != 0:
            return x * (12 // n) + 7 % n + 1 / n
        return x


@model
class DivisionByZeroRaises(nn.Module):
    def forward(self, x):
        n = int(x[0].nan_to_num())
        return x * (12 // n)


@model
class NanSelectedAway(nn.Module):
    def forward(self, x):
        y = x
        if (x > 0).all():
            y = torch.log(x) / x
        return torch.where(y.isnan(), torch.zeros_like(y), y)


@model
class SizeGuarded(nn.Module):
    def forward(self, x):
        n = int(x[0].nan_to_num())
        if n > 0:
            return torch.ones(n).sum() + x
        return x


@model
class SliceByNumber(nn.Module):
    def forward(self, x):
        n = int(x[0].nan_to_num().clamp(0, 3))
        if n > 1:
            return x[:n].sum() + x[n - 1]
        return x[n:].sum()


@model
class AssertUnderFalseBranch(nn.Module):
    def forward(self, x):
        if x[0] > 0:
            assert x[1] > 0, "second"
            x = x * 2
        torch._assert(x[2] < 3.2, "third")
        return x


@model
class WritesAfterRaise(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(3))

    def forward(self, x):
        self.seen += 1
        if x[0] > 2:
            raise ValueError("big")
        self.seen += x
        return self.seen * 1


@model
class MessageOfBuiltin(nn.Module):
    def forward(self, x):
        return x * int(x[0])


@pytest.mark.parametrize("name", MODELS)
def test_equal_to_eager(name: str) -> None:
    check(MODELS[name](), VECTORS)


@pytest.mark.sweep
@pytest.mark.parametrize("example", range(1, len(VECTORS)))
@pytest.mark.parametrize("name", MODELS)
def test_equal_from_any_example(name: str, example: int) -> None:
    check(MODELS[name](), [VECTORS[example], *VECTORS])
