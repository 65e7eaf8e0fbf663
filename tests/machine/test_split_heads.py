"""Attention of many slices: those of some heads stand for those of all."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gaudicc.machine import load_chip
from gaudicc.machine.attention import (
    AttentionShape,
    Split,
    body_heads,
    count_slices,
    head_blocks,
    splits,
    tiles,
    with_heads,
)
from gaudicc.machine.attention_cost import Costs
from gaudicc.machine.split import BODY_SLICES, choose_split, schedule_split, split_bound, split_seconds


@st.composite
def shapes(draw: st.DrawFn) -> AttentionShape:
    kv_heads, groups = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([1, 2, 3]))
    queries = draw(st.integers(1, 700))
    ahead = draw(st.sampled_from([None, 0]))
    return AttentionShape(
        draw(st.sampled_from([1, 2, 4])), kv_heads * groups, kv_heads, queries, queries, 64, 64, ahead=ahead
    )


@given(shapes(), st.integers(1, 40), st.data())
def test_the_slices_of_the_blocks_are_those_of_the_whole(shape: AttentionShape, most: int, data: st.DataObject) -> None:
    found = list(splits(shape, most_slices=200))
    if not found:
        return
    split = data.draw(st.sampled_from(found))
    heads = body_heads(shape, split, most)
    body = with_heads(shape, heads)
    each = count_slices(body, split)
    assert each <= most or heads == split.heads
    assert each * len(list(head_blocks(shape, heads))) == count_slices(shape, split)
    groups = shape.heads // shape.kv_heads
    places = []
    for (batch, _), (low, _) in head_blocks(shape, heads):
        for tile in tiles(body, split):
            sequences = tile.batch[0] + batch, tile.batch[1] + batch
            places.append(
                (sequences, (tile.heads[0] + low, tile.heads[1] + low), tile.rows, tile.keys, tile.first, tile.last)
            )
    assert places == [(t.batch, t.heads, t.rows, t.keys, t.first, t.last) for t in tiles(shape, split)]
    assert body.heads // body.kv_heads in (groups, min(groups, heads))


def test_some_heads_stand_for_all_in_the_time_of_many_slices() -> None:
    chip, shape = load_chip("gaudi2"), AttentionShape(1, 32, 8, 4096, 4096, 128, 128, ahead=0)
    costs, split = Costs(shape, chip), Split(1, 256, 768)
    heads = body_heads(shape, split, 1200)
    assert heads < shape.heads, "more slices than are simulated"
    seconds, whole = split_seconds(costs, split), schedule_split(costs, split).makespan
    assert seconds == 32 // heads * schedule_split(Costs(with_heads(shape, heads), chip), split).makespan
    assert split_bound(costs, split) <= whole <= seconds <= 1.02 * whole


def test_long_prompts_are_split_too() -> None:
    shape = AttentionShape(1, 64, 8, 32768, 32768, 128, 128, ahead=0)
    choice = choose_split(shape, load_chip("gaudi2"))
    assert choice.best.split is not None
    assert choice.best.seconds <= 1.05 * choice.bound
    heads = body_heads(shape, choice.best.split, BODY_SLICES)
    assert count_slices(with_heads(shape, heads), choice.best.split) <= BODY_SLICES
