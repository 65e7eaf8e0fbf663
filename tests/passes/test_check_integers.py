"""int64 in 32 bits: what is proved, what the added checks say against Python's own integers, and what is refused."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeAlias

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import gaudicc
from gaudicc.calls import unflatten as give_back
from gaudicc.capture import capture
from gaudicc.errors import UnsupportedOpError
from gaudicc.interpreter import interpret
from gaudicc.invariants import SHAPES_GUARDED
from gaudicc.passes import (
    CheckIntegers,
    CleanUp,
    Decompose,
    InsertBucketGuards,
    LegalizeDtypes,
    LegalizeOps,
    Pad,
    Specialize,
)
from gaudicc.pipeline import CAPTURED, Pipeline
from gaudicc.program import InputKind, OutputKind, Program
from gaudicc.targets import load_target
from gaudicc.verify import Level

LOW, HIGH = -(2**31), 2**31 - 1
Alone: TypeAlias = Callable[..., Any]  # see conftest.py
CaptureOf: TypeAlias = Callable[..., Any]
PASSES = (Decompose(), CleanUp(), CheckIntegers(), InsertBucketGuards(), Specialize(), LegalizeDtypes(), LegalizeOps())
EDGES = st.sampled_from([0, 1, -1, 2, 3, 46340, 46341, -46341, HIGH, HIGH - 1, LOW, LOW + 1, 2**30, -(2**30), 65536])
WORDS = st.one_of(EDGES, st.integers(LOW, HIGH), st.integers(-50000, 50000))


def legal(function: Callable[..., Any], *example: Tensor) -> Program:
    """A function after the passes that concern it."""
    program = capture(function, example)
    program.target = load_target("gaudi3")
    after, _ = Pipeline(PASSES, initial=CAPTURED | {SHAPES_GUARDED}).run(program, level=Level.STRUCTURE)
    return after


def on_device(program: Program, *inputs: Tensor) -> tuple[list[Tensor], bool]:
    """The results under Gaudi's rules, where int64 wraps as int32 does, and whether a flag is set."""
    names = [spec.name for spec in program.user_inputs()]
    result: Any = interpret(
        program.root, *program.feed(dict(zip(names, inputs, strict=True))), target=load_target("gaudi3")
    )
    assert result.legal
    pairs = list(zip(program.outputs, result.outputs, strict=True))
    flags = [bool(value.any()) for spec, value in pairs if spec.kind is OutputKind.FLAG]
    return [value for spec, value in pairs if spec.kind is OutputKind.USER], any(flags)


BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "floor": lambda x, y: x // (y | 1),
    "gcd": lambda x, y: torch.gcd(x, y) if isinstance(x, Tensor) else math.gcd(x, y),
    "lcm": lambda x, y: torch.lcm(x % 2**20, y % 2**20) if isinstance(x, Tensor) else math.lcm(x % 2**20, y % 2**20),
    "scaled": lambda x, y: x * 3 + y,
    "reversed": lambda x, y: 7 - x - y,
}
UNARY: dict[str, Callable[[Any], Any]] = {
    "neg": operator.neg,
    "abs": abs,
    "plus": lambda x: x + 5,
    "square": lambda x: x * x,
}


@cache
def binary(name: str) -> Program:
    return legal(BINARY[name], torch.ones(3, dtype=torch.int64), torch.ones(3, dtype=torch.int64))


@cache
def unary(name: str) -> Program:
    return legal(UNARY[name], torch.ones(3, dtype=torch.int64))


def fits(*numbers: int) -> bool:
    return all(LOW <= number <= HIGH for number in numbers)


@pytest.mark.parametrize("name", BINARY)
@settings(max_examples=15)
@given(x=st.lists(WORDS, min_size=3, max_size=3), y=st.lists(WORDS, min_size=3, max_size=3))
def test_two_operands_are_flagged_exactly_when_a_true_value_leaves_32_bits(
    name: str, x: list[int], y: list[int]
) -> None:
    steps = {"scaled": lambda a, b: (a * 3,), "reversed": lambda a, b: (7 - a,)}.get(name, lambda a, b: ())
    true = [BINARY[name](a, b) for a, b in zip(x, y, strict=True)]
    met = [number for a, b in zip(x, y, strict=True) for number in steps(a, b)]
    (result,), flag = on_device(binary(name), torch.tensor(x), torch.tensor(y))
    assert flag == (not fits(*true, *met))
    assert flag or result.tolist() == true


@pytest.mark.parametrize("name", UNARY)
@settings(max_examples=15)
@given(x=st.lists(WORDS, min_size=3, max_size=3))
def test_one_operand_is_flagged_exactly_when_a_true_value_leaves_32_bits(name: str, x: list[int]) -> None:
    true = [UNARY[name](a) for a in x]
    (result,), flag = on_device(unary(name), torch.tensor(x))
    assert flag == (not fits(*true))
    assert flag or result.tolist() == true


MANY: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Sequence[int]], list[int]]]] = {
    "sum": (lambda x: x.sum(), lambda x: [sum(x)]),
    "cumsum": (lambda x: x.cumsum(0), lambda x: [sum(x[: i + 1]) for i in range(len(x))]),
    "prod": (lambda x: x.prod(), lambda x: [math.prod(x)]),
    "index": (
        lambda x: x.new_zeros(2).index_put((x % 2,), x, accumulate=True),
        lambda x: [sum(a for a in x if a % 2 == odd) for odd in (0, 1)],
    ),
    "scatter": (
        lambda x: x.new_ones(2).scatter_add(0, x % 2, x),
        lambda x: [1 + sum(a for a in x if a % 2 == odd) for odd in (0, 1)],
    ),
    "pow": (lambda x: x**3, lambda x: [a**3 for a in x]),
    "shift": (lambda x: x << 5, lambda x: [a << 5 for a in x]),
}


@cache
def many(name: str) -> Program:
    return legal(MANY[name][0], torch.ones(5, dtype=torch.int64))


@pytest.mark.parametrize("name", MANY)
@settings(max_examples=15)
@given(x=st.lists(st.one_of(EDGES, st.integers(-2000, 2000)), min_size=5, max_size=5))
def test_many_entries_are_flagged_exactly_when_a_result_leaves_32_bits(name: str, x: list[int]) -> None:
    true = MANY[name][1](x)
    (result,), flag = on_device(many(name), torch.tensor(x))
    assert flag == (not fits(*true))
    assert flag or result.flatten().tolist() == true


@given(x=st.lists(WORDS, min_size=3, max_size=3), y=st.lists(WORDS, min_size=3, max_size=3))
def test_nothing_is_flagged_where_64_bits_are_kept(x: list[int], y: list[int]) -> None:
    for program in [binary(name) for name in ("add", "mul", "reversed")]:
        names = [spec.name for spec in program.user_inputs()]
        outputs = program.run(dict(zip(names, map(torch.tensor, (x, y)), strict=True)))
        assert not outputs[-1].any()


@settings(max_examples=30)
@given(x=st.lists(st.floats(width=32), min_size=3, max_size=3))
def test_casts_are_flagged_exactly_where_a_finite_number_leaves_32_bits(x: list[float]) -> None:
    (result,), flag = on_device(casts(), torch.tensor(x))
    kept = [(number, value) for number, value in zip(x, result.tolist(), strict=True) if math.isfinite(number)]
    assert flag == any(not LOW <= math.trunc(number) <= HIGH for number, _ in kept)
    assert flag or all(value == math.trunc(number) for number, value in kept)


@cache
def casts() -> Program:
    return legal(lambda x: x.long(), torch.ones(3))


class Layer(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x + 1


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def called_on_device(program: Program, *inputs: Tensor) -> Any:
    """What a caller gets: the results, or the exception of the flag that is set."""
    names = [spec.name for spec in program.user_inputs()]
    result: Any = interpret(
        program.root, *program.feed(dict(zip(names, inputs, strict=True))), target=load_target("gaudi3")
    )
    return give_back(program, result.outputs, list(inputs))


def test_what_a_repeated_layer_checks_is_raised_for_each_of_its_calls() -> None:
    program = legal(Layers().eval(), torch.tensor([1, 0]))
    assert called_on_device(program, torch.tensor([0, 1])).tolist() == Layers()(torch.tensor([0, 1])).tolist()
    for call in ([3, 15], [50000, 1]):
        with pytest.raises(OverflowError, match=r"aten\.mul") as caught:
            called_on_device(program, torch.tensor(call))
        assert "test_check_integers.py" in str(caught.value.__cause__)


def weighted(x: Tensor) -> Tensor:
    return (x * 1000 + 7).cumsum(0)


def test_pads_set_no_flag() -> None:
    program = capture(
        weighted, (torch.tensor([1, 2, 3]),), dynamic_shapes={"x": {0: torch.export.Dim("n", min=1, max=8)}}
    )
    program.target = load_target("gaudi3")
    steps = (Decompose(), CleanUp(), CheckIntegers(), Pad(), InsertBucketGuards(), Specialize(sizes=(("n", 8),)))
    after, _ = Pipeline((*steps, LegalizeDtypes(), LegalizeOps())).run(program, level=Level.STRUCTURE)
    for call, overflows in (([5], False), ([100, -4, 7], False), ([2_200_000], True), ([1, 2_147_483], True)):
        padded = torch.cat([torch.tensor(call), torch.zeros(8 - len(call), dtype=torch.int64)])
        given = {spec.name: torch.tensor(len(call)) for spec in after.inputs if spec.kind is InputKind.LENGTH}
        given[after.user_inputs()[0].name] = padded
        result: Any = interpret(after.root, *after.feed(given), target=load_target("gaudi3"))
        assert bool(result.outputs[-1].any()) == overflows
        assert overflows or result.outputs[0][: len(call)].tolist() == weighted(torch.tensor(call)).tolist()


def test_a_compiled_model_that_keeps_64_bits_computes_with_them() -> None:
    compiled = gaudicc.compile(Layers().eval(), (torch.tensor([1, 0]),), device="cpu", verify="numerics")
    assert compiled(torch.tensor([3, 15])).tolist() == Layers()(torch.tensor([3, 15])).tolist()


PROVED: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "positions of a mask": (lambda x: (x > 0).long().cumsum(1) * (x > 0).long() + 1, (torch.randn(2, 5),)),
    "places": (lambda x: x.argmax(1) + torch.arange(2) * x.shape[1], (torch.randn(2, 5),)),
    "bounded": (lambda x: (x.clamp(-9, 9) * 7 - 3).sum(), (torch.ones(4, dtype=torch.int64),)),
    "remainder": (lambda x: (x % 1000) * 1000, (torch.ones(4, dtype=torch.int64),)),
    "tokens": (
        lambda x, w: (nn.functional.embedding(x, w), x * 100 + 1),
        (torch.ones(2, 3, dtype=torch.int64), torch.randn(9, 2)),
    ),
    "buckets": (lambda x: torch.bucketize(x, torch.arange(4.0)) * 16, (torch.randn(5),)),
    "rounded": (lambda x: (x.sigmoid() * 31).long() + 8, (torch.randn(5),)),
    "choices": (lambda x: torch.where(x > 3, x & 255, 7) << 4, (torch.ones(4, dtype=torch.int64),)),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(PROVED.keys() - {"choices"}))
def test_what_is_bounded_stays_as_it_is(name: str, capture_of: CaptureOf, alone: Alone) -> None:
    function, inputs = PROVED[name]
    program, _ = Pipeline((Decompose(), CleanUp())).run(capture_of(function, *inputs))
    after, record = alone(CheckIntegers(), program)
    assert after.count_ops() == program.count_ops()
    assert "to fit 32 bits" in record.notes[0]
    assert record.notes[0].split()[0] == record.notes[0].split()[2]


def test_an_argument_that_is_declared_is_checked_once(capture_of: CaptureOf, alone: Alone) -> None:
    def positions(x: Tensor, rest: Tensor) -> Tensor:
        return x.cumsum(1) * x + 2 + rest.argmax()

    inputs = (torch.tensor([[1, 1, 0]]), torch.randn(4))
    free, _ = alone(CheckIntegers(ranges=()), capture_of(positions, *inputs))
    told, record = alone(CheckIntegers(ranges=(("x", 0, 1), ("rest", 0, 1))), capture_of(positions, *inputs))
    assert record.notes == ("5 of 5 int64 results proved to fit 32 bits", "1 checks added")
    assert sum(told.count_ops().values()) < sum(free.count_ops().values())
    outputs = told.run({**told.example, told.user_inputs()[0].name: torch.tensor([[1, 2, 0]])})
    assert outputs[-1].tolist() == [True]
    assert told.run(told.example)[-1].tolist() == [False]


def test_what_the_caller_keeps_is_not_checked_again(capture_of: CaptureOf, alone: Alone) -> None:
    class Counter(nn.Module):
        seen: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(3, dtype=torch.int64))

        def forward(self, x: Tensor) -> Tensor:
            return x * 1000 + self.seen * 1000

    program = capture(Counter().eval(), (torch.tensor([1, 2, 3]),))
    program.target = load_target("gaudi3")
    kept = (("x", 0, 10**6), ("seen", 0, 1000))
    after, record = alone(CheckIntegers(kept=kept), program.copy())
    assert record.notes == ("3 of 3 int64 results proved to fit 32 bits",)
    assert after.count_ops() == program.count_ops()
    for loose in (kept[:1], kept[1:], (("x", 0, 3 * 10**6), kept[1])):
        _, record = alone(CheckIntegers(kept=loose), program.copy())
        assert any("checks added" in note for note in record.notes), loose


def test_a_check_joins_the_flags_that_a_model_has_already() -> None:
    def guarded(x: Tensor) -> Tensor:
        if x.sum() < 0:
            raise ValueError("negative")
        return x * x

    program = legal(guarded, torch.tensor([1, 2]))
    assert called_on_device(program, torch.tensor([3, 4])).tolist() == [9, 16]
    with pytest.raises(ValueError, match="negative"):
        called_on_device(program, torch.tensor([-3, 1]))
    with pytest.raises(OverflowError):
        called_on_device(program, torch.tensor([100000, 1]))


def test_what_has_no_check_is_refused_by_line(capture_of: CaptureOf) -> None:
    program = capture_of(lambda x: torch.mm(x[None], x[:, None]), torch.tensor([1, 2, 3]))
    with pytest.raises(UnsupportedOpError, match=r"nothing bounds the int64 values of aten\.mm") as caught:
        Pipeline((CheckIntegers(),)).run(program)
    assert "test_check_integers.py" in str(caught.value)
