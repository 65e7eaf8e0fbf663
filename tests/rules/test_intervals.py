"""Intervals hold what they claim to: every form against the numbers themselves, and every value of programs against its range."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx

from gaudicc.capture import capture
from gaudicc.passes import CleanUp, Decompose
from gaudicc.pipeline import Pipeline
from gaudicc.rules import intervals
from gaudicc.rules.integer_ranges import IntegerRanges
from gaudicc.rules.intervals import INT32, Interval
from gaudicc.targets import load_target
from gaudicc.verify import Level

NUMBERS = st.one_of(st.integers(-9, 9), st.integers(-(2**33), 2**33))
ENDS = st.tuples(NUMBERS, NUMBERS).map(lambda pair: Interval(min(pair), max(pair)))

BINARY: dict[str, tuple[Callable[..., Interval], Callable[[int, int], int]]] = {
    "add": (intervals.add, lambda x, y: x + y),
    "multiply": (intervals.multiply, lambda x, y: x * y),
    "floor": (intervals.divide_whole, lambda x, y: x // y),
    "trunc": (intervals.divide_whole, lambda x, y: abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)),
    "remainder": (intervals.remainder, lambda x, y: x % y),
    "truncated": (intervals.truncated, lambda x, y: int(math.copysign(abs(x) % abs(y), x))),
    "or": (intervals.bits, lambda x, y: x | y),
    "xor": (intervals.bits, lambda x, y: x ^ y),
    "and": (intervals.shared_bits, lambda x, y: x & y),
    "gcd": (intervals.divisor, math.gcd),
}
UNARY: dict[str, tuple[Callable[[Interval], Interval], Callable[[int], float]]] = {
    "negative": (intervals.negative, lambda x: -x),
    "absolute": (intervals.absolute, abs),
    "square": (lambda a: intervals.power(a, 2), lambda x: x**2),
    "cube": (lambda a: intervals.power(a, 3), lambda x: x**3),
    "root": (intervals.rising(math.sqrt, 0.0), lambda x: math.sqrt(max(x, 0))),
    "cast": (intervals.whole, lambda x: math.trunc(x * 1.0)),
}


def holds(interval: Interval, number: float) -> bool:
    return interval.low <= number <= interval.high


@pytest.mark.parametrize("name", BINARY)
@given(a=ENDS, b=ENDS, data=st.data())
def test_a_form_of_two_operands_holds_every_result(name: str, a: Interval, b: Interval, data: Any) -> None:
    form, op = BINARY[name]
    x, y = (data.draw(st.integers(int(each.low), int(each.high))) for each in (a, b))
    if y or name not in ("floor", "trunc", "remainder", "truncated"):
        assert holds(form(a, b), op(x, y))


@pytest.mark.parametrize("name", UNARY)
@given(a=ENDS, data=st.data())
def test_a_form_of_one_operand_holds_every_result(name: str, a: Interval, data: Any) -> None:
    form, op = UNARY[name]
    x = data.draw(st.integers(int(a.low), int(a.high)))
    assert holds(form(a), op(x))


@given(a=ENDS, entries=st.lists(st.integers(0, 10**6), max_size=5))
def test_sums_and_their_beginnings_are_held(a: Interval, entries: list[int]) -> None:
    numbers = [int(a.low) + entry % (int(a.high) - int(a.low) + 1) for entry in entries]
    found = intervals.times(a, Interval(0, len(numbers)))
    assert all(holds(found, sum(numbers[:count])) for count in range(len(numbers) + 1))


class Watched(IntegerRanges):
    """Keeps the range of every value of the root."""

    def _node(self, module: fx.GraphModule, node: fx.Node, known: dict[fx.Node, Any]) -> Any:
        found = super()._node(module, node, known)
        self.__dict__.setdefault("found", {})[node] = found
        return found


PROGRAMS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "clamps": lambda x, y: (x.clamp(-5, 7) * y.clamp(0, 3) - 4).abs().cumsum(0).sum(),
    "choices": lambda x, y: torch.where(x > y, x % 7, y & 15).minimum(torch.tensor(9)) << 2,
    "places": lambda x, y: (x.argmax(0) + torch.arange(6), x.sort(0)[1] * 6, (x > y).sum() * 3, x.topk(2)[1] + y.argmin()),
    "draws": lambda x, y: (
        torch.multinomial(torch.ones(6, 5), 3).sum(1) * 6 + x % 3, torch.randperm(4) * 2 - torch.randint(3, (4,)), y % 2,
    ),
    "moves": lambda x, y: (
        torch.stack([x % 5, y % 3]).flip(0).cumsum(1).amax(), torch.cat([x, y]).remainder(11)[::2].unfold(0, 2, 1),
        torch.nn.functional.pad(x % 4, (1, 1), value=-2) - 1, (x % 6).gather(0, y % 6),
        x.new_full((2,), 3).index_put((y[:2] % 2,), x[:2] % 9),
    ),
    "casts": lambda x, y: (
        (x % 10).float().sqrt().mul(3.0).long() - 1, (y.float().sigmoid() * 40).int().long(), (x > 0).long() - (y // 7) % 2,
    ),
    "bits": lambda x, y: ((x & 63) | (y & 7), (x & 63) ^ (y & 1), ~(x & 3), (x & 255) >> 2, -(x % 9), (x % 9) ** 2),
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_value_of_a_program_is_in_its_range(name: str) -> None:
    example = (torch.arange(6), torch.arange(6) - 3)
    program = capture(PROGRAMS[name], example)
    program.target = load_target("gaudi3")
    program, _ = Pipeline((Decompose(), CleanUp())).run(program, level=Level.STRUCTURE)
    ranges = Watched(program)
    ranges.run()
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        inputs = [torch.randint(int(INT32.low), int(INT32.high), (6,), generator=generator) for _ in example]
        values = _Values(program.root)
        values.run(*program.feed(dict(zip((spec.name for spec in program.user_inputs()), inputs, strict=True))))
        for node, found in ranges.found.items():  # type: ignore[attr-defined]
            if isinstance(found, Interval) and isinstance(value := values.seen[node], Tensor) and value.numel():
                assert holds(found, value.min().item()), f"{node.format_node()} {found}"
                assert holds(found, value.max().item()), f"{node.format_node()} {found}"
    assert not [
        node for node in ranges.open if node.target is not torch.ops.aten.__lshift__.Scalar
    ]  # no form says less


class _Values(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.seen: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.seen[n] = super().run_node(n)
        return self.seen[n]
