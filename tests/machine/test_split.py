"""Attention in slices: what a split covers, bounds that hold, and a choice that is that of exhaustive search."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaudicc.machine import Chip, Engine, list_schedule, load_chip, lower_bound
from gaudicc.machine.attention import KEY_STEP, AttentionShape, Split, count_slices, splits, tiles
from gaudicc.machine.attention_cost import Costs, split_tasks
from gaudicc.machine.split import (
    CLOSE,
    LEAST_GAIN,
    bounded_splits,
    choose_split,
    family_bound,
    fused_seconds,
    limits_of,
    moved_chips,
    option_seconds,
    schedule_split,
    split_bound,
    timed_options,
    timed_splits,
    unsplit_seconds,
)
from gaudicc.machine.split_table import MODELS, cell, chip_of, least_worst, shape_of

GAUDI2, GAUDI3 = load_chip("gaudi2"), load_chip("gaudi3")
LLAMA_8B = AttentionShape(1, 32, 8, 2048, 2048, 128, 128, ahead=0)


@st.composite
def shapes(draw: st.DrawFn) -> AttentionShape:
    kv_heads, groups = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([1, 2, 3]))
    ahead = draw(st.sampled_from([None, 0, 5, -3]))
    return AttentionShape(
        draw(st.integers(1, 3)), kv_heads * groups, kv_heads, draw(st.integers(1, 700)), draw(st.integers(1, 1500)), 64, 64,
        draw(st.sampled_from(["bf16", "fp32"])), ahead=ahead, window=draw(st.sampled_from([None, 1, 100, 400])),
    )  # fmt: skip


@given(shapes(), st.data())
def test_slices_cover_every_pair_that_may_attend_once(shape: AttentionShape, data: st.DataObject) -> None:
    found = list(splits(shape)) or [Split(shape.batch * shape.heads, shape.queries)]
    split = data.draw(st.sampled_from(found))
    covered = Counter(
        (batch, head, row)
        for tile in tiles(shape, split) if tile.first
        for batch, head, row in product(*(range(*span) for span in (tile.batch, tile.heads, tile.rows)))
    )  # fmt: skip
    assert set(covered.values()) == {1}
    assert len(covered) == shape.batch * shape.heads * shape.queries
    assert sum(1 for _ in tiles(shape, split)) == count_slices(shape, split)
    rows: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for tile in tiles(shape, split):
        if (tile.batch[0], tile.heads[0]) == (0, 0):
            rows.setdefault(tile.rows, []).append(tile.keys)
    for (first, last), chunks in rows.items():
        assert all(before[1] == after[0] for before, after in pairwise(chunks))
        for row in (first, last - 1):
            low = max(0, row + (shape.ahead or 0) + 1 - shape.window) if shape.window and shape.ahead is not None else 0
            high = shape.keys if shape.ahead is None else min(shape.keys, row + shape.ahead + 1)
            assert low >= high or (chunks[0][0] <= low and high <= chunks[-1][1])


@given(shapes(), st.sampled_from([GAUDI2, GAUDI3]), st.data())
def test_no_schedule_beats_the_bounds(shape: AttentionShape, chip: Chip, data: st.DataObject) -> None:
    found = list(splits(shape, most_slices=40))
    if not found:
        return
    costs, split = Costs(shape, chip), data.draw(st.sampled_from(found))
    tasks, vendor = split_tasks(costs, split), schedule_split(costs, split)
    bound = split_bound(costs, split)
    assert bound <= vendor.makespan * (1 + 1e-9)
    assert family_bound(shape, chip) <= bound * (1 + 1e-9)
    ours = list_schedule(tasks, limits_of(chip), restarts=5, swaps=10)
    assert bound <= ours.makespan * (1 + 1e-9)
    assert lower_bound(tasks) <= ours.makespan * (1 + 1e-9)
    mme = sum(cost.mme * count for cost, count in costs.counted(split))
    assert mme == pytest.approx(vendor.busy(Engine.MME))


@pytest.mark.parametrize(("floor", "node_us"), [(256, 0.1), (512, 0.5)])
def test_the_bound_holds_where_memory_keeps_slices_apart_and_where_a_merge_comes_last(
    floor: int, node_us: float
) -> None:
    chip = chip_of("gaudi3", floor, node_us)
    costs = Costs(shape_of(MODELS[0], 2048), chip)
    for split in (Split(32, 512, 1024), Split(32, 512, 512), Split(16, 512), Split(32, 1024, 512)):
        tasks, bound = split_tasks(costs, split), split_bound(costs, split)
        ours = list_schedule(tasks, limits_of(chip), restarts=20, swaps=50)
        for run in (ours, schedule_split(costs, split), *(schedule_split(costs, split, live) for live in (1, 2, 4))):
            assert bound <= run.makespan * (1 + 1e-9)
    apart = split_bound(costs, Split(32, 512, 1024))
    works = [(cost, count) for cost, count in costs.counted(Split(32, 512, 1024))]
    assert apart > max(sum(cost.mme * n for cost, n in works), sum(cost.tpc * n for cost, n in works))


def test_the_least_that_any_choice_loses_is_no_more_than_that_of_the_choice() -> None:
    for name in ("gaudi2", "gaudi3"):
        shape, chip = shape_of(MODELS[0], 512), load_chip(name)
        way, least = least_worst(shape, chip)
        chosen = choose_split(shape, chip).best
        chips = [chip, *moved_chips(chip)]
        best = [timed_options(shape, there)[0][0].seconds for there in chips]
        worst = {
            each: max(option_seconds(each, shape, there) / seconds for there, seconds in zip(chips, best, strict=True))
            for each in (way, chosen)
        }
        assert worst[way] == pytest.approx(least)
        assert 1 <= least <= worst[chosen] * (1 + 1e-9)


def test_long_rows_come_first() -> None:
    found = list(tiles(LLAMA_8B, Split(32, 512, 1024)))
    assert [tile.rows[0] for tile in found] == [1536, 1536, 1024, 1024, 512, 0]
    assert [tile.first for tile in found] == [True, False, True, False, True, True]


@given(shapes(), st.sampled_from([GAUDI2, GAUDI3]), st.booleans())
def test_the_choice_is_that_of_exhaustive_search(shape: AttentionShape, chip: Chip, fused: bool) -> None:
    choice = choose_split(shape, chip, fused=fused, most_slices=30)
    costs = Costs(shape, chip)
    times = [schedule_split(costs, split).makespan for split in splits(shape, most_slices=30)]
    times += [unsplit_seconds(shape, chip), *([fused_seconds(costs)] if fused else [])]
    assert choice.options[0].seconds == pytest.approx(min(times))
    assert choice.best.seconds <= min(times) * (1 + CLOSE + 1e-9)
    given = [option.seconds for option in choice.options if option.name in ("fused", "unsplit")]
    assert choice.best.seconds <= min(given)
    close = [o for o in choice.options if o.seconds <= min(choice.options[0].seconds * (1 + CLOSE), *given)]
    moved = [chip, *moved_chips(chip)]
    seconds = {option: [option_seconds(option, shape, there) for there in moved] for option in close}
    best = [min(each) for each in zip(*seconds.values(), strict=True)]
    losses = {option: max(x / y for x, y in zip(each, best, strict=True)) for option, each in seconds.items()}
    assert losses[choice.best] <= max(1 + LEAST_GAIN, min(losses.values())) * (1 + 1e-9), (
        "robust, or as robust as can be"
    )
    fewer = [option for option in close if option.slices < choice.best.slices]
    assert all(losses[option] > 1 + LEAST_GAIN for option in fewer)


@pytest.mark.parametrize("chip", [GAUDI2, GAUDI3], ids=lambda chip: chip.name)
def test_a_prompt_of_an_8b_model_is_split_and_overlaps(chip: Chip) -> None:
    choice = choose_split(LLAMA_8B, chip)
    assert choice.best.split is not None
    seconds = {option.name: option.seconds for option in choice.options}
    assert choice.best.seconds < 0.9 * seconds["fused"] < 0.9 * seconds["unsplit"]
    timeline = schedule_split(Costs(LLAMA_8B, chip), choice.best.split)
    assert timeline.overlap_efficiency() > 0.62, "what was published for the graph compiler on its own"
    assert timeline.makespan <= 1.15 * family_bound(LLAMA_8B, chip)


def test_of_close_ways_one_is_taken_that_bears_other_constants() -> None:
    shape = shape_of(MODELS[1], 1024)
    choice = choose_split(shape, GAUDI3)
    fewer = [
        option
        for option in choice.options
        if option.slices < choice.best.slices and option.seconds < 1.05 * choice.best.seconds
    ]
    assert fewer, "there are ways that cost less to compile"
    for option in fewer:
        worst = max(
            option_seconds(option, shape, chip) / option_seconds(choice.best, shape, chip)
            for chip in moved_chips(GAUDI3)
        )
        assert worst > 1 + LEAST_GAIN


def test_a_number_is_moved_no_further_than_it_can_be() -> None:
    down, up = moved_chips(GAUDI3, ("memory.sram_usable",))
    assert down.memory.sram_usable == pytest.approx(0.63)
    assert up.memory.sram_usable == 1.0, "a share of the capacity"
    _, slow = moved_chips(GAUDI3, ("host.node_seconds",))
    assert slow.host.node_seconds == pytest.approx(1.3e-7)


def test_a_decode_step_is_left_to_the_fused_kernel() -> None:
    for chip in (GAUDI2, GAUDI3):
        assert choose_split(AttentionShape(32, 32, 8, 1, 2048, 128, 128), chip).best.name == "fused"


def test_masked_blocks_cost_nothing() -> None:
    windowed = AttentionShape(1, 64, 8, 4096, 4096, 64, 64, ahead=0, window=128)
    causal = AttentionShape(1, 64, 8, 4096, 4096, 64, 64, ahead=0)
    full = AttentionShape(1, 64, 8, 4096, 4096, 64, 64)
    bounds = [family_bound(shape, GAUDI2) for shape in (windowed, causal, full)]
    assert bounds[0] < bounds[1] / 4 < bounds[2] / 4
    assert bounds[1] < 0.6 * bounds[2]
    assert windowed.span(1000, 1001) == (768, 1024)
    assert windowed.span(0, 1) == (0, KEY_STEP)


def test_more_live_memory_than_there_is_goes_to_hbm() -> None:
    whole_rows = Split(32, 2048)
    shape = AttentionShape(1, 32, 8, 8192, 8192, 128, 128, ahead=0)
    assert schedule_split(Costs(shape, GAUDI2), whole_rows).spilled_bytes > 0
    costs = Costs(shape, GAUDI2)
    best = min(timed_splits(costs, bounded_splits(costs)), key=lambda option: option.seconds).split
    assert best is not None
    assert schedule_split(costs, best).spilled_bytes == 0


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model[0])
def test_a_cell_of_the_table(model: tuple[str, int, int, int, int | None]) -> None:
    chip = chip_of("gaudi3", 256, 0.5)
    assert chip.mme.drain_floor == 256
    assert chip.host.node_seconds == pytest.approx(5e-7)
    found = cell(shape_of(model, 1024), chip)
    assert 1.0 <= found.split.seconds / found.bound <= 1.25, "the target at this node cost"
    assert 0.0 <= found.overlap <= 1.0
    assert found.exposed >= 0.0
    assert found.unsplit > 1.0
