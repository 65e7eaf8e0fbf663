"""split-attention: slices equal the whole, masked blocks are skipped, the choice and its alternatives are in the trace."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional

import gaudicc
from gaudicc.kernels import attention, merge_parts, softmax_part
from gaudicc.kernels.split import plain_merge_parts, sliced_attention
from gaudicc.machine import Engine, list_schedule, load_chip, vendor_schedule
from gaudicc.machine.attention import AttentionShape, Split, body_heads, head_blocks, tiles
from gaudicc.machine.attention_cost import Costs
from gaudicc.machine.fx import op_name
from gaudicc.machine.fx_program import ProgramTasks
from gaudicc.machine.fx_tasks import tasks_of
from gaudicc.machine.split import choose_split, fused_seconds, limits_of, schedule_split
from gaudicc.nodes import call_region
from gaudicc.passes import DEFAULT_PIPELINE
from gaudicc.passes.legalize_dtypes import LegalizeDtypes
from gaudicc.passes.lower_semantic_ops import LowerSemanticOps
from gaudicc.passes.split_attention import SplitAttention
from gaudicc.pipeline import Pass
from gaudicc.program import Program
from gaudicc.rules import masks
from gaudicc.targets import load_target

LOWEST = torch.finfo(torch.float32).min


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@st.composite
def cases(draw: st.DrawFn, dtype: torch.dtype) -> dict[str, Any]:
    """An attention with a split of it: grouped heads, ragged edges, every kind of mask, rows without keys, sinks."""
    batch, kv_heads, groups = draw(st.integers(1, 2)), draw(st.sampled_from([1, 2])), draw(st.sampled_from([1, 2, 3]))
    queries, keys = draw(st.integers(1, 300)), draw(st.integers(1, 600))
    dim, value_dim = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    heads = kv_heads * groups
    kind = draw(st.sampled_from(["none", "causal", "bool", "added", "lowest", "causal and bool"]))
    mask: Tensor | None = None
    if kind not in ("none", "causal"):
        shape = [draw(st.sampled_from([1, n])) for n in (batch, heads, queries)]
        drawn = random(*shape, keys, seed=3) > draw(st.sampled_from([-1.0, 0.0, 3.0]))
        drawn[..., : draw(st.integers(0, keys)), :] = draw(st.booleans())
        mask = drawn if "bool" in kind else torch.where(drawn, 0.0, LOWEST if kind == "lowest" else float("-inf"))
        mask = mask if "bool" in kind else mask.to(dtype)
    size = draw(st.sampled_from([1, groups, heads, heads * batch]))
    return {
        "q": random(batch, heads, queries, dim, dtype=dtype) * draw(st.sampled_from([1.0, 10.0])),
        "k": random(batch, kv_heads, keys, dim, seed=1, dtype=dtype),
        "v": random(batch, kv_heads, keys, value_dim, seed=2, dtype=dtype),
        "mask": mask,
        "causal": "causal" in kind,
        "scale": dim**-0.5,
        "split": Split(size, draw(st.sampled_from([1, 128, 200, 1000])) if queries < 20 else 128,
                       draw(st.sampled_from([0, 128, 200]))),
        "sink": random(heads, seed=4) * 3 if draw(st.booleans()) else None,
    }  # fmt: skip


def dense(case: dict[str, Any], dtype: torch.dtype) -> Tensor:
    """The same in one go, products in `dtype`; a sink is one more key with value zero, a row without any key gives zeros."""
    q, k, v = (case[name].to(dtype) for name in "qkv")
    groups = q.shape[1] // k.shape[1]
    scores = (q @ k.repeat_interleave(groups, 1).transpose(-1, -2)).float() * case["scale"]
    seen = torch.ones(scores.shape[-2:], dtype=torch.bool)
    if case["causal"]:
        seen = seen.tril()
    if case["mask"] is not None and case["mask"].dtype == torch.bool:
        seen = seen & case["mask"]
    elif case["mask"] is not None:
        scores = scores + case["mask"].float()
    scores = torch.where(seen, scores, float("-inf")).double()
    if case["sink"] is not None:
        sink = case["sink"].to(torch.float64).reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sink], -1)
    weights = torch.softmax(scores, -1).nan_to_num(0.0)[..., : k.shape[2]]
    out: Tensor = weights.to(dtype) @ v.repeat_interleave(groups, 1)
    return out


def split(case: dict[str, Any]) -> Tensor:
    batch, heads, queries, dim = case["q"].shape
    _, kv_heads, keys, value_dim = case["v"].shape
    shape = AttentionShape(batch, heads, kv_heads, queries, keys, dim, value_dim, ahead=0 if case["causal"] else None)
    whole = (case["q"], case["k"], case["v"], case["mask"], case["causal"], case["scale"])
    return sliced_attention(*whole, tiles(shape, case["split"]), case["sink"])


@given(cases(torch.float32))
def test_slices_equal_the_whole_in_float32(case: dict[str, Any]) -> None:
    largest = float(case["v"].abs().max())  # every result is a mean of values
    torch.testing.assert_close(split(case), dense(case, torch.float32), rtol=1e-6, atol=1e-6 * largest)


@given(cases(torch.bfloat16))
def test_slices_equal_the_whole_within_one_rounding_step_of_bfloat16(case: dict[str, Any]) -> None:
    # Both round scores and weights; one step is that of the largest value, of which every result is a mean.
    step = torch.finfo(torch.bfloat16).eps * float(case["v"].abs().max())
    whole = dense(case, torch.bfloat16).double()
    assert float((split(case).double() - whole).abs().max()) <= step


@given(st.permutations(range(4)), st.integers(0, 3))
def test_parts_merge_in_any_order(order: list[int], empty: int) -> None:
    scores, values = random(2, 3, 40), random(2, 40, 5, seed=1)
    scores[..., 10 * empty : 10 * empty + 10] = float("-inf")
    whole = torch.softmax(scores, -1) @ values
    parts = []
    for index in order:
        keys = slice(10 * index, 10 * index + 10)
        weights, maximum, total = softmax_part(scores[..., keys], None, None, None, 1.0)
        parts.append((weights @ values[:, keys], maximum, total))
    result = parts[0]
    for part in parts[1:]:
        result = merge_parts(*result, *part)
    torch.testing.assert_close(result[0], whole, rtol=1e-5, atol=1e-6)


def test_a_sink_counts_once_however_many_chunks() -> None:
    """A peer's hand-written kernel adds it once per block of keys, which is 4 % off at 32 blocks."""
    q, k, v = random(1, 2, 4, 8), random(1, 2, 4096, 8, seed=1), random(1, 2, 4096, 8, seed=2)
    sink = torch.tensor([4.0, 6.0])
    case = {"q": q, "k": k, "v": v, "mask": None, "causal": False, "scale": 1.0, "sink": sink}
    whole = dense(case, torch.float32)
    for keys in (128, 512, 0):
        torch.testing.assert_close(split({**case, "split": Split(1, 4, keys)}), whole, rtol=1e-5, atol=1e-6)
    alone = split({**case, "split": Split(1, 4, 128), "sink": None})
    assert (alone - whole).abs().max() > 0.001, "the sink takes no part"


def test_ops_keep_what_torch_asks_of_them() -> None:
    scores, row = random(2, 3, 4), random(2, 3, 1)
    for op, arguments in (
        (torch.ops.gaudicc.softmax_tile.default, (scores, scores > 0, None, 1, 0.5)),
        (torch.ops.gaudicc.softmax_part.default, (scores.bfloat16(), None, row, None, 0.5)),
        (torch.ops.gaudicc.merge_parts.default, (scores, row, row, scores, row, row)),
    ):
        torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out: Tensor = attention(q, k, v, None, True, 0.25)
    return out


def qkv(length: int, heads: int = 4, kv_heads: int = 2, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    counts = (heads, kv_heads, kv_heads)
    return tuple(random(1, count, length, 16, seed=i, dtype=dtype) for i, count in enumerate(counts))


def ops_of(program: Program) -> dict[str, int]:
    return program.count_ops()


@pytest.mark.parametrize("force", [Split(2, 128), Split(4, 128, 128), Split(1, 256), Split(4, 256, 128)])
def test_a_split_graph_computes_the_same(capture_of: Any, alone: Any, force: Split) -> None:
    after, record = alone(SplitAttention(force=force), capture_of(attend, *qkv(256)))
    assert record.modified
    assert "gaudicc.attention" not in ops_of(after)
    lowered, _ = alone(LowerSemanticOps(fused=False), after)
    assert not [op for op in ops_of(lowered) if op.startswith("gaudicc.")]


def test_each_slice_is_a_product_one_vector_node_and_a_product(capture_of: Any, alone: Any) -> None:
    after, _ = alone(SplitAttention(force=Split(2, 128)), capture_of(attend, *qkv(256)))
    slices: dict[int, list[str]] = {}
    for node in after.root.graph.nodes:
        if "slice" in node.meta:
            slices.setdefault(node.meta["slice"], []).append(str(node.target))
    wanted = ["aten.matmul.default", "gaudicc.softmax_tile.default", "aten.matmul.default"]
    assert list(slices.values()) == [wanted] * 4


def sizes_of_scores(program: Program) -> list[tuple[int, ...]]:
    tiles_of = ("gaudicc.softmax_tile.default", "gaudicc.softmax_part.default")
    return [tuple(n.meta["val"].shape[-2:] if "tile" in str(n.target) else n.meta["val"][0].shape[-2:])
            for n in program.root.graph.nodes if str(n.target) in tiles_of]  # fmt: skip


def test_blocks_that_causality_rules_out_are_not_computed(capture_of: Any, alone: Any) -> None:
    after, _ = alone(SplitAttention(force=Split(4, 128)), capture_of(attend, *qkv(512)))
    assert sizes_of_scores(after) == [(128, 512), (128, 384), (128, 256), (128, 128)], "long rows first"
    after, _ = alone(SplitAttention(force=Split(4, 128, 256)), capture_of(attend, *qkv(512)))
    assert sizes_of_scores(after) == [(128, 256), (128, 256), (128, 256), (128, 128), (128, 256), (128, 128)]


def test_blocks_that_a_constant_window_rules_out_are_not_computed(capture_of: Any, alone: Any) -> None:
    def windowed(q: Tensor, k: Tensor, v: Tensor, padding: Tensor) -> Tensor:
        rows, keys = torch.arange(512).unsqueeze(1), torch.arange(512).unsqueeze(0)
        band = (keys <= rows) & (keys > rows - 128)
        out: Tensor = attention(q, k, v, torch.logical_and(band, padding).unsqueeze(0), False, 0.25)
        return out

    padding = torch.arange(512) < 400
    after, _ = alone(SplitAttention(force=Split(4, 128)), capture_of(windowed, *qkv(512), padding))
    assert sizes_of_scores(after) == [(128, 256), (128, 256), (128, 256), (128, 128)]


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("shown", ["bool", "added", "expanded", "shifted"])
def test_a_mask_is_looked_at_some_rows_at_a_time(
    capture_of: Any, monkeypatch: pytest.MonkeyPatch, window: int | None, shown: str
) -> None:
    ahead = -3 if shown == "shifted" else 0

    def masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows, keys = torch.arange(512).unsqueeze(1), torch.arange(512).unsqueeze(0)
        seen = keys <= rows + ahead
        if window is not None:
            seen = torch.logical_and(seen, keys > rows + ahead - window)
        if shown == "added":
            seen = torch.zeros(1, 1).masked_fill(~seen, float("-inf"))
        mask = seen.expand(1, 4, 512, 512) if shown == "expanded" else seen.unsqueeze(0)
        out: Tensor = attention(q, k, v, mask, False, 0.25)
        return out

    monkeypatch.setattr(masks, "_MASK_BLOCK", 512 * 60)
    program = capture_of(masked, *qkv(512))
    after = SplitAttention(force=Split(4, 128)).run(program).program
    expected = AttentionShape(1, 4, 4, 512, 512, 16, 16, ahead=ahead, window=window)
    assert sizes_of_scores(after) == [
        (tile.rows[1] - tile.rows[0], tile.keys[1] - tile.keys[0]) for tile in tiles(expected, Split(4, 128))
    ]


def test_a_mask_that_only_a_call_knows_skips_nothing(capture_of: Any, alone: Any) -> None:
    def masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        out: Tensor = attention(q, k, v, mask, False, 0.25)
        return out

    mask = torch.ones(256, 256, dtype=torch.bool).tril()
    after, _ = alone(SplitAttention(force=Split(4, 128)), capture_of(masked, *qkv(256), mask))
    assert sizes_of_scores(after) == [(128, 256)] * 2


def test_a_constant_mask_without_values_skips_nothing(capture_of: Any, alone: Any) -> None:
    def masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        hidden = torch.ones(256, 256, dtype=torch.bool, device="meta").tril()
        out: Tensor = attention(q, k, v, hidden, False, 0.25)
        return out

    program = capture_of(masked, *(x.to("meta") for x in qkv(256)))
    result = SplitAttention(force=Split(4, 128)).run(program)
    assert sizes_of_scores(result.program) == [(128, 256)] * 2


def decision(capture_of: Any, alone: Any, step: Pass, *operands: Tensor) -> tuple[Program, str]:
    after, record = alone(step, capture_of(attend, *operands))
    return after, " ".join(record.notes)


def test_the_choice_and_its_alternatives_are_noted(capture_of: Any, alone: Any) -> None:
    after, note = decision(capture_of, alone, SplitAttention(), *qkv(2048, 32, 8, torch.bfloat16))
    assert re.search(r"attention\w* \d+ slices: \d+ heads x \d+ rows x \w+ keys [\d.]+ us modelled on gaudi3", note)
    assert "fused" in note
    assert "unsplit" in note
    assert ops_of(after)["aten.matmul"] >= 4


def test_what_gains_nothing_is_left(capture_of: Any, alone: Any) -> None:
    after, note = decision(capture_of, alone, SplitAttention(), *qkv(16))
    assert ops_of(after)["gaudicc.attention"] == 1
    assert "left as it is: fused" in note


def test_other_dtypes_are_left_with_a_reason(capture_of: Any, alone: Any) -> None:
    after, note = decision(capture_of, alone, SplitAttention(), *qkv(16, dtype=torch.float64))
    assert ops_of(after)["gaudicc.attention"] == 1
    assert "left: its operands are torch.float64" in note


def test_more_slices_than_allowed_are_not_chosen(capture_of: Any, alone: Any) -> None:
    after, _ = decision(capture_of, alone, SplitAttention(most_slices=4), *qkv(2048, 32, 8, torch.bfloat16))
    assert len(sizes_of_scores(after)) <= 4


def with_split(step: Pass) -> tuple[Pass, ...]:
    """The default pipeline with this step where split-attention belongs."""
    passes = [entry for entry in DEFAULT_PIPELINE if not isinstance(entry, SplitAttention)]
    at = next(i for i, entry in enumerate(passes) if isinstance(entry, LegalizeDtypes))
    return (*passes[:at], step, *passes[at:])


class Layer(torch.nn.Module):
    """A block of attention as users write it."""

    def __init__(self) -> None:
        super().__init__()
        self.project = torch.nn.Linear(64, 64 + 2 * 32)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x).split([64, 32, 32], -1)
        q, k, v = (part.view(*x.shape[:2], -1, 16).transpose(1, 2) for part in (q, k, v))
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return out.transpose(1, 2).reshape(x.shape)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("force", [Split(2, 128), Split(4, 128, 128)])
def test_the_compiled_model_runs_on_the_cpu(force: Split, fused: bool) -> None:
    model, x = Layer().eval(), random(2, 256, 64)
    passes = [
        LowerSemanticOps(fused) if isinstance(step, LowerSemanticOps) else step
        for step in with_split(SplitAttention(force=force))
    ]
    compiled = gaudicc.compile(model, (x,), device="cpu", passes=passes, verify="numerics")
    assert "gaudicc.attention" not in ops_of(compiled.static_program())
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("target", ["gaudi2", "gaudi3"])
def test_the_graph_costs_what_the_choice_was_made_by(capture_of: Any, alone: Any, target: str) -> None:
    """The nodes that the pass emits, priced and scheduled one by one, against the time in its note."""
    program = capture_of(attend, *qkv(1024, 32, 8, torch.bfloat16))
    program.target = load_target(target)
    chip, shape = load_chip(target), AttentionShape(1, 32, 8, 1024, 1024, 16, 16, ahead=0)
    choice = choose_split(shape, chip)
    assert choice.best.split is not None
    after, _ = alone(SplitAttention(), program)
    after, _ = alone(LowerSemanticOps(), after)
    for node in after.root.graph.nodes:
        if node.target is torch.ops.aten.cat.default:  # a logical concat
            node.meta["engine"] = program.target.lookup(node.target, (torch.bfloat16,)).engine
    found = ProgramTasks(chip)
    found.graph(after.root, {})
    modelled = vendor_schedule(found.tasks, limits_of(chip))
    assert modelled.makespan == pytest.approx(choice.best.seconds, rel=0.01)
    work = {
        engine: sum(task.seconds for task in found.tasks if task.engine is engine)
        for engine in (Engine.MME, Engine.TPC)
    }
    chosen = schedule_split(Costs(shape, chip), choice.best.split)
    assert work == {engine: pytest.approx(chosen.busy(engine), rel=0.05) for engine in work}


def test_the_fused_node_costs_what_the_choice_was_made_by(capture_of: Any) -> None:
    program, chip = capture_of(attend, *qkv(1024, 32, 8, torch.bfloat16)), load_chip("gaudi2")
    tasks = tasks_of(program.root.graph.nodes, chip)
    costs = Costs(AttentionShape(1, 32, 8, 1024, 1024, 16, 16, ahead=0), chip)
    assert list_schedule(tasks).makespan == pytest.approx(fused_seconds(costs))


def test_a_merge_costs_what_its_nodes_cost() -> None:
    """The choice prices a merge as the plain ATen that it becomes."""
    chip = load_chip("gaudi3").with_value("host.node_seconds", 1e-3)
    out, row = torch.empty(2, 128, 16, dtype=torch.bfloat16), torch.empty(2, 128, 1)
    graph = make_fx(lambda *parts: plain_merge_parts(*parts)[0].to(torch.bfloat16))(out, row, row, out, row, row).graph
    nodes = [n for n in graph.nodes if n.op == "call_function" and op_name(n) not in ("unsqueeze", "cat", "select")]
    costs = Costs(AttentionShape(1, 2, 2, 128, 256, 16, 16), chip)
    (last,) = [cost for cost, _ in costs.counted(Split(2, 128, 128)) if cost.merge is not None]
    assert last.merge is not None
    assert round(last.merge.seconds / 1e-3) == len(nodes)


def attend_masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    out: Tensor = attention(q, k, v, mask, False, 0.25)
    return out


def calls_of(program: Program) -> list[str]:
    return [str(node.args[0].target) for node in program.root.graph.nodes if node.target is call_region]


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(
    ("split", "most"), [(Split(1, 128), 2), (Split(1, 128, 128), 6), (Split(2, 128), 2), (Split(4, 128), 2)]
)
def test_a_graph_of_calls_computes_the_same(
    capture_of: Any, alone: Any, batch: int, kv_heads: int, split: Split, most: int
) -> None:
    operands = (random(batch, 4, 256, 16), *(random(batch, kv_heads, 256, 16, seed=i) for i in (1, 2)))
    step = SplitAttention(force=split, body_slices=most)
    shape = AttentionShape(batch, 4, kv_heads, 256, 256, 16, 16, ahead=0)
    blocks = list(head_blocks(shape, body_heads(shape, split, most)))
    after, _ = alone(step, capture_of(attend, *operands))
    assert "gaudicc.attention" not in after.count_ops()
    assert calls_of(after) == (["attention_of_heads"] * len(blocks) if len(blocks) > 1 else [])


@pytest.mark.parametrize(
    "sizes", [(256, 256), (4, 256, 256), (1, 1, 256), (2, 1, 256, 256), (2, 4, 1, 256), (2, 4, 256, 256)]
)
def test_masks_are_cut_with_their_heads(capture_of: Any, alone: Any, sizes: tuple[int, ...]) -> None:
    operands = (random(2, 4, 256, 16), *(random(2, 2, 256, 16, seed=i) for i in (1, 2)), random(*sizes, seed=3) > -1)
    after, _ = alone(SplitAttention(force=Split(1, 128), body_slices=2), capture_of(attend_masked, *operands))
    assert len(calls_of(after)) == 8


def test_two_attentions_have_bodies_of_different_names(capture_of: Any, alone: Any) -> None:
    def twice(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(attend(q, k, v), q, q)

    operands = (random(1, 4, 256, 16), *(random(1, 4, 256, 16, seed=i) for i in (1, 2)))
    after, _ = alone(SplitAttention(force=Split(1, 128), body_slices=2), capture_of(twice, *operands))
    assert calls_of(after) == ["attention_of_heads"] * 4 + ["attention_of_heads_2"] * 4
    assert set(after.bodies) == {"attention_of_heads", "attention_of_heads_2"}
