"""int64 that leaves 32 bits and comes back by a remainder, against 64-bit eager, under Gaudi's rules."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gaudicc.calls import unflatten as give_back
from gaudicc.capture import capture
from gaudicc.errors import UnsupportedOpError
from gaudicc.interpreter import interpret
from gaudicc.passes import DEFAULT_PIPELINE
from gaudicc.pipeline import Pipeline
from gaudicc.program import InputKind, Program
from gaudicc.rules.wide_integers import MOST_MODULUS
from gaudicc.targets import load_target
from gaudicc.verify import Level

PRIME = 9_576_890_767
INTS = st.lists(st.integers(-(2**31), 2**31 - 1), min_size=6, max_size=6)
Body = Callable[[Tensor], Tensor]


def hashed(x: Tensor) -> Tensor:
    """A polynomial hash of windows, as byte-level models address their tables; it wraps in 64 bits, and is meant to."""
    windows = torch.cat([torch.zeros(5, dtype=torch.int64), x]).unfold(0, 6, 1)
    powers: Tensor = torch.tensor(PRIME) ** torch.arange(6)
    return (windows * powers).sum(-1) % 1000


def squared(x: Tensor) -> Tensor:
    return (x * x) % MOST_MODULUS


def polynomial(x: Tensor) -> Tensor:
    return (x * x * x - x * 3_000_000_019 + 7) % 99_991


def negated(x: Tensor) -> Tensor:
    return (-(x * 65_537) - torch.tensor([2**40, -(2**40), 1, 2**33, 5, -(2**62)])) % 7


def summed(x: Tensor) -> Tensor:
    return (x * 2**40 + 7).sum() % 3


BODIES = [hashed, squared, polynomial, negated, summed]


@cache
def program_of(body: Body) -> Program:
    program = capture(body, (torch.tensor([1, 2, 3, 4, 5, 6]),))
    program.target = load_target("gaudi3")
    return Pipeline(DEFAULT_PIPELINE).run(program, level=Level.STRUCTURE)[0]


@pytest.mark.parametrize("body", BODIES)
@settings(max_examples=12)
@given(numbers=INTS)
def test_exact_in_32_bits(body: Body, numbers: list[int]) -> None:
    x, program = torch.tensor(numbers), program_of(body)
    (path,) = [spec.source for spec in program.user_inputs()]
    name = next(spec.name for spec in program.user_inputs() if spec.source == path)
    result: Any = interpret(program.root, *program.feed({name: x}), target=load_target("gaudi3"))
    assert result.legal
    assert not result.overflowed
    assert torch.equal(give_back(program, result.outputs, []), body(x))


@pytest.mark.parametrize("body", BODIES)
def test_no_constant_is_left_that_does_not_fit(body: Body) -> None:
    program = program_of(body)
    held = [program.tensors[spec.source] for spec in program.inputs if spec.kind is InputKind.CONSTANT]
    assert all(tensor.abs().max() < 2**31 for tensor in held if tensor.dtype is torch.int64 and tensor.numel())
    assert not program.calling.raises


def test_what_fits_is_left_alone_and_other_ops_keep_their_checks() -> None:
    small, quotient = (lambda x: (x.clamp(0, 9) * 3) % 5), (lambda x: (x * x) // 5)
    assert not any("rshift" in name or "right_shift" in name for name in program_of(small).count_ops())
    assert [type(entry.error) for entry in program_of(quotient).calling.raises] == [OverflowError]


def test_a_large_tensor_of_a_number_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UnsupportedOpError, match="does not fit 32 bits"):
        program_of(lambda x: torch.full((1 << 18,), 2**40)[:6] // x)
