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
    LEAST_GAIN,
    ROOM,
    choose_split,
    family_bound,
    fused_seconds,
    limits_of,
    schedule_split,
    split_bound,
    unsplit_seconds,
)
from gaudicc.machine.split_table import MODELS, cell, chip_of, shape_of

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


@given(shapes(), st.sampled_from([GAUDI2, GAUDI3]), st.booleans())
def test_the_choice_is_that_of_exhaustive_search(shape: AttentionShape, chip: Chip, fused: bool) -> None:
    choice = choose_split(shape, chip, fused=fused, most_slices=30)
    costs = Costs(shape, chip)
    times = [schedule_split(costs, split).makespan for split in splits(shape, most_slices=30)]
    times += [unsplit_seconds(shape, chip), *([fused_seconds(costs)] if fused else [])]
    assert choice.options[0].seconds == pytest.approx(min(times))
    assert choice.best.seconds <= min(times) * (1 + LEAST_GAIN + 1e-9)
    close = [option for option in choice.options if option.seconds <= choice.options[0].seconds * (1 + LEAST_GAIN)]
    ranks = [(not option.has_room(chip), option.slices) for option in close]
    assert (not choice.best.has_room(chip), choice.best.slices) == min(ranks)


@pytest.mark.parametrize("chip", [GAUDI2, GAUDI3], ids=lambda chip: chip.name)
def test_a_prompt_of_an_8b_model_is_split_and_overlaps(chip: Chip) -> None:
    choice = choose_split(LLAMA_8B, chip)
    assert choice.best.split is not None
    seconds = {option.name: option.seconds for option in choice.options}
    assert choice.best.seconds < 0.9 * seconds["fused"] < 0.9 * seconds["unsplit"]
    timeline = schedule_split(Costs(LLAMA_8B, chip), choice.best.split)
    assert timeline.overlap_efficiency() > 0.62, "what was published for the graph compiler on its own"
    assert timeline.makespan <= 1.15 * family_bound(LLAMA_8B, chip)


def test_of_close_ways_one_with_room_is_taken() -> None:
    choice = choose_split(LLAMA_8B, GAUDI2)
    assert not choice.options[0].has_room(GAUDI2), "the fastest needs nearly all on-chip memory"
    assert choice.best.has_room(GAUDI2)
    assert choice.best.split is not None
    less = GAUDI2.scaled("memory.sram_usable", ROOM)
    assert schedule_split(Costs(LLAMA_8B, less), choice.best.split).spilled_bytes == 0


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
    best = choose_split(shape, GAUDI2, most_slices=None).best.split
    assert best is not None
    assert schedule_split(Costs(shape, GAUDI2), best).spilled_bytes == 0


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
