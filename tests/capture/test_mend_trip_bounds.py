"""What is proved of an index holds in every trip of every length."""

from __future__ import annotations

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch._dynamo.source import ConstantSource
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.utils._sympy.value_ranges import ValueRanges

from gaudicc.capture.mend.internals import at_least_zero
from gaudicc.capture.mend.trips import SizeRange

LOW, HIGH = 1, 24
SMALL = st.integers(-3, 3)


def symbols() -> tuple[torch.SymInt, torch.SymInt]:
    """A size of 1 to 24, and the number of a trip."""
    env = ShapeEnv()
    symbol = env.create_symbol(8, ConstantSource("size"), dynamic_dim=DimDynamic.DYNAMIC, constraint_dim=None)
    env.var_to_range[symbol] = ValueRanges(LOW, HIGH)
    size = env.create_symintnode(symbol, hint=8)
    assert isinstance(size, torch.SymInt)
    return size, env.create_unbacked_symint()


@settings(max_examples=150, deadline=None)
@given(start=SMALL, stop=SMALL, step=st.sampled_from([-2, -1, 1, 2, 3]), factor=SMALL, offset=SMALL, grows=SMALL)
@example(start=0, stop=0, step=1, factor=1, offset=0, grows=0)
@example(start=0, stop=0, step=1, factor=-1, offset=-1, grows=1)
def test_what_is_proved_holds(start: int, stop: int, step: int, factor: int, offset: int, grows: int) -> None:
    size, number = symbols()
    items = SizeRange(start, size + stop, step) if step > 0 else SizeRange(size + stop, start, step)
    at = factor * (items.start + number * step) + offset + grows * size
    proved = at_least_zero(at, {str(number.node.expr): (items.span, abs(step))})
    values = [
        factor * t + offset + grows * n
        for n in range(LOW, HIGH + 1)
        for t in (range(start, n + stop, step) if step > 0 else range(n + stop, start, step))
    ]
    if proved:
        assert min(values, default=0) >= 0


def test_the_common_indices_are_proved() -> None:
    size, number = symbols()
    trips = {str(number.node.expr): (size, 1)}
    assert at_least_zero(number, trips)
    assert at_least_zero(size - 1 - number, trips)
    assert not at_least_zero(number - 1, trips)
    assert not at_least_zero(size - 2 - number, trips)


@settings(max_examples=60, deadline=None)
@given(start=SMALL, stop=SMALL, step=st.sampled_from([-3, -2, -1, 1, 2, 3]), n=st.integers(LOW, HIGH))
def test_a_range_has_the_trips_of_pythons(start: int, stop: int, step: int, n: int) -> None:
    plain = range(start, n + stop, step)
    items = SizeRange(start, n + stop, step)
    assert max(items.trips, 0) == len(plain)
    if plain:
        back = reversed(items)
        assert [back.start + i * back.step for i in range(back.trips)] == list(reversed(plain))
