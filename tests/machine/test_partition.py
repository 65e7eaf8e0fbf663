"""How many layers a sub-graph holds: the optimum of the stated cost, and each constant moves it the right way."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from math import ceil, inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaudicc.errors import InputError
from gaudicc.machine import Chip, load_chip
from gaudicc.machine.partition import Layer, PartitionChoice, Stretch, choose_partition

GAUDI2 = load_chip("gaudi2")
REPLAY, COMPILE = "host.replay_seconds", "host.compile_seconds_per_node"
micros = st.floats(1.0, 1e4).map(lambda value: value * 1e-6)


@dataclass(frozen=True)
class Case:
    """`count` equal layers: each takes `interval` in the midst of a sub-graph and `fill` more at its start."""

    count: int
    nodes: int
    interval: float
    fill: float
    handed: int
    calls: int

    def choose(self, chip: Chip = GAUDI2, room: float = inf) -> PartitionChoice:
        layer = Layer(self.nodes, self.interval + self.fill, self.handed)
        stretch = Stretch(["layer"] * self.count, {"layer": layer}, {("layer", "layer"): self.fill})
        return choose_partition(stretch, chip, room=room, calls=self.calls)


cases = st.builds(
    Case, st.integers(1, 40), st.integers(1, 500), micros, st.one_of(st.just(0.0), micros),
    st.integers(0, 1 << 26), st.integers(0, 100_000),
)  # fmt: skip


def stated(case: Case, size: int, chip: Chip) -> float:
    """The cost as docs/machine.md states it, on its own."""
    launches, rest = ceil(case.count / size), case.count % size
    device = case.count * case.interval + launches * case.fill
    step = chip.host.replay_seconds + max(device, launches * chip.host.replay_seconds)
    return (size + rest) * case.nodes * chip.host.compile_seconds_per_node + case.calls * step


@given(cases)
def test_the_choice_is_the_optimum_of_the_stated_cost(case: Case) -> None:
    choice = case.choose()
    costs = [stated(case, size, GAUDI2) for size in range(1, case.count + 1)]
    assert [option.cost(case.calls) for option in choice.options] == pytest.approx(costs)
    assert costs[choice.best.size - 1] == pytest.approx(min(costs))


def tied(one: PartitionChoice, other: PartitionChoice) -> bool:
    """Two choices cost the same under the first one's constants, but for rounding."""
    costs = [each.best.size for each in (one, other)]
    mine, theirs = (one.options[size - 1].cost(one.calls) for size in costs)
    return mine == pytest.approx(theirs, rel=1e-9)


@given(cases, st.floats(1.0, 50.0))
def test_dearer_launches_never_give_more_of_them(case: Case, factor: float) -> None:
    now, dearer = case.choose(), case.choose(GAUDI2.scaled(REPLAY, factor))
    assert dearer.best.launches <= now.best.launches or tied(now, dearer)


@given(cases, st.floats(1.0, 50.0))
def test_dearer_compiling_never_gives_more_of_it(case: Case, factor: float) -> None:
    now, dearer = case.choose(), case.choose(GAUDI2.scaled(COMPILE, factor))
    assert dearer.best.compile_seconds <= now.best.compile_seconds * factor * (1 + 1e-9) or tied(now, dearer)


@given(cases, st.integers(1, 50))
def test_more_calls_never_give_a_longer_step(case: Case, factor: int) -> None:
    now, more = case.choose(), replace(case, calls=case.calls * factor).choose()
    assert more.best.step_seconds <= now.best.step_seconds * (1 + 1e-9) or tied(now, more)


@given(cases, st.floats(1.0, 50.0))
def test_more_overlap_to_lose_never_gives_more_cuts(case: Case, factor: float) -> None:
    chip = GAUDI2.with_value(REPLAY, case.interval)  # the device is busier than the host whatever is cut
    now, more = case.choose(chip), replace(case, fill=case.fill * factor).choose(chip)
    assert more.best.launches <= now.best.launches or tied(now, more)


@given(cases, st.floats(0.0, 1.0))
def test_what_does_not_fit_is_not_taken(case: Case, share: float) -> None:
    room = share * max(option.held_bytes for option in case.choose().options)
    choice = case.choose(room=room)
    fitting = [option for option in choice.options if option.held_bytes <= room]
    if fitting:
        assert choice.best in fitting
        assert choice.best.cost(case.calls) == min(option.cost(case.calls) for option in fitting)
    else:
        assert choice.best.held_bytes == min(option.held_bytes for option in choice.options)


def test_handing_on_weighs_against_many_sub_graphs_and_recipes_against_long_ones() -> None:
    long = Case(32, 20, 2e-4, 0.0, 1 << 26, 10_000)
    assert long.choose().best.size == 1
    assert long.choose(room=1 << 28).best.launches <= 4
    assert replace(long, handed=0, nodes=10_000).choose(room=1e8).best.size == 1


def test_bodies_that_take_turns_share_recipes_where_the_cut_respects_it() -> None:
    layers: dict[Hashable, Layer] = {name: Layer(10, 1e-6) for name in "ab"}
    choice = choose_partition(Stretch("ab" * 4, layers), GAUDI2, calls=1000)
    by_size = {option.size: option for option in choice.options}
    assert [by_size[size].recipes for size in (1, 2, 3, 4)] == [2, 1, 3, 1]
    assert by_size[1].compile_seconds == by_size[2].compile_seconds
    assert choice.best.size % 2 == 0


def test_a_size_can_be_asked_for() -> None:
    stretch = Stretch("aaa", {"a": Layer(10, 1e-6)})
    assert choose_partition(stretch, GAUDI2, size=2).best.size == 2
    assert choose_partition(stretch, GAUDI2, size=99).best.size == 3
    with pytest.raises(InputError, match="cannot hold 0 layers"):
        choose_partition(stretch, GAUDI2, size=0)
    with pytest.raises(InputError, match="no layers"):
        choose_partition(Stretch("", {}), GAUDI2)
