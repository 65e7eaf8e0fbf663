"""stagger-rows: parts of batch or tokens where that is modelled faster, equal to the whole; nothing crosses a row."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

import gaudicc
from gaudicc.compiled import CompiledModel
from gaudicc.machine import load_chip, lower_bound, vendor_schedule
from gaudicc.machine.fx_program import ProgramTasks
from gaudicc.machine.split import limits_of
from gaudicc.nodes import op_name
from gaudicc.passes import DEFAULT_PIPELINE
from gaudicc.passes.recognize_rotary import RecognizeRotary
from gaudicc.passes.stagger_rows import StaggerRows
from gaudicc.program import Program
from gaudicc.targets import Engine

aten = torch.ops.aten


class Mlp(nn.Module):
    """Norm, gated projection and residual, then something that mixes rows."""

    def __init__(self, width: int = 8, inner: int = 16, *, mix: bool = False) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.gate, self.up = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)
        self.mix = mix

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        if self.mix:
            y = y - y.mean(1, keepdim=True)
        out: Tensor = x + self.down(nn.functional.silu(self.gate(y)) * self.up(y))
        return out.flip(1) * 2 if self.mix else out


def compiled(model: nn.Module, x: Tensor, parts: int | None, target: str = "gaudi3") -> CompiledModel:
    passes = [StaggerRows(parts) if isinstance(step, StaggerRows) else step for step in DEFAULT_PIPELINE]
    return gaudicc.compile(model.eval(), (x,), passes=passes, target=target, verify="ops" if x.is_meta else "numerics")


def rows_of(program: Program) -> dict[int, list[str]]:
    """Part -> what is computed of it alone, from its slice of batch or tokens on."""
    found: dict[int, list[str]] = {}
    for _, module in program.graphs():
        part_of: dict[fx.Node, int] = {}
        for node in module.graph.nodes:
            parts = {part_of[source] for source in node.all_input_nodes if source in part_of}
            if node.target is aten.slice.Tensor and not parts and node.args[1] in (0, 1):
                parts = {node.args[2] // (node.args[3] - node.args[2])}
            if len(parts) == 1 and node.op == "call_function":
                part_of[node] = parts.pop()
                found.setdefault(part_of[node], []).append(op_name(node))
    return found


@settings(max_examples=10)
@given(st.integers(1, 4), st.integers(1, 6), st.integers(2, 4), st.booleans())
def test_parts_equal_the_whole(batch: int, tokens: int, parts: int, mix: bool) -> None:
    torch.manual_seed(0)
    model, x = Mlp(mix=mix), torch.randn(batch, tokens, 8)
    made = compiled(model, x, parts)
    torch.testing.assert_close(made(x), model(x), rtol=1e-5, atol=1e-6)
    found = rows_of(made.static_program())
    if batch % parts and tokens % parts:
        assert found == {}
    else:
        assert set(found) == set(range(parts))
        assert len({tuple(ops) for ops in found.values()}) == 1, "every part does the same"
        assert found[0].count("aten.linear") == 3


def test_the_batch_is_cut_before_the_tokens() -> None:
    for batch, dim in ((2, 0), (4, 0), (1, 1), (3, 1)):
        program = compiled(Mlp(), torch.randn(batch, 4, 8), 2).static_program()
        (cut,) = {n.args[1] for n in program.root.graph.nodes if n.target is aten.slice.Tensor}
        assert cut == dim


def test_what_mixes_rows_reads_all_of_them() -> None:
    graph = compiled(Mlp(mix=True), torch.randn(1, 4, 8), 2).static_program().root.graph
    mixing = [n for n in graph.nodes if n.target in (aten.mean.dim, aten.flip.default) and n.args[1] == [1]]
    assert len(mixing) == 2
    assert all(n.args[0].target is aten.cat.default for n in mixing)


def test_what_was_left_on_the_host_is_not_cut(alone: Any) -> None:
    program = compiled(Mlp(), torch.randn(1, 4, 8), 1).static_program().copy()
    (silu,) = [n for n in program.root.graph.nodes if n.target is aten.silu.default]
    silu.meta["engine"] = Engine.HOST
    after, _ = alone(StaggerRows(2), program)
    found = rows_of(after)
    assert found[0].count("aten.linear") == 3
    assert "aten.silu" not in found[0]
    (kept,) = [n for n in after.root.graph.nodes if n.target is aten.silu.default]
    assert kept.meta["engine"] is Engine.HOST


def test_engines_are_assigned_and_one_part_is_none() -> None:
    program = compiled(Mlp(), torch.randn(1, 4, 8), 2).static_program()
    assert all("engine" in n.meta for n in program.root.graph.nodes if n.op == "call_function")
    assert rows_of(compiled(Mlp(), torch.randn(1, 4, 8), None).static_program()) == {}, "small ones stay whole"


class Rotary(nn.Module):
    """A projection whose heads are rotated, as in front of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(8, 8)

    def forward(self, x: Tensor, angle: Tensor) -> Tensor:
        q = self.project(x).view(*x.shape[:2], 2, 4).transpose(1, 2)
        turned = torch.cat([-q[..., 2:], q[..., :2]], -1)
        out: Tensor = q * angle.cos().unsqueeze(1) + turned * angle.sin().unsqueeze(1)
        return out.flip(2)


@given(st.integers(1, 4), st.sampled_from([2, 3, 4, 6]), st.integers(2, 3), st.booleans(), st.booleans())
def test_rotated_heads_are_cut_where_their_tokens_are(
    batch: int, tokens: int, parts: int, own: bool, one: bool
) -> None:
    torch.manual_seed(0)
    model, x = Rotary().eval(), torch.randn(batch, tokens, 8)
    angle = torch.randn(batch if own else 1, tokens, 4)
    steps = [step for step in DEFAULT_PIPELINE if one or not isinstance(step, RecognizeRotary)]
    passes = [StaggerRows(parts) if isinstance(step, StaggerRows) else step for step in steps]
    made = gaudicc.compile(model, (x, angle), passes=passes, verify="numerics")
    torch.testing.assert_close(made(x, angle), model(x, angle), rtol=1e-5, atol=1e-6)
    found = rows_of(made.static_program())
    if batch % parts == 0 or tokens % parts == 0:
        assert set(found) == set(range(parts))
        assert {"aten.linear", *(["gaudicc.rotary"] if one else ["aten.neg", "aten.add.Tensor"])} <= set(found[0])
        before = made.trace["stagger-rows"].before.count_ops().get("aten.clone", 0)
        assert made.static_program().count_ops().get("aten.clone", 0) == before, "nothing is copied"


def large(rows: tuple[int, int], target: str = "gaudi2", parts: int | None = None) -> CompiledModel:
    with torch.device("meta"):
        model = Mlp(4096, 14336).bfloat16()
        return compiled(model, torch.empty(*rows, 4096, dtype=torch.bfloat16), parts, target)


def seconds(program: Program, target: str) -> tuple[float, float]:
    found = ProgramTasks(load_chip(target))
    found.graph(program.root, {})
    memory = found.hbm_bytes / found.chip.memory.stream
    return max(vendor_schedule(found.tasks, limits_of(found.chip)).makespan, memory), max(
        lower_bound(found.tasks), memory
    )


@pytest.mark.parametrize("target", ["gaudi2", "gaudi3"])
@pytest.mark.parametrize("rows", [(1, 1024), (8, 256)])
def test_large_ones_are_cut_where_that_is_faster(rows: tuple[int, int], target: str) -> None:
    made = large(rows, target)
    (note,) = made.trace["stagger-rows"].notes
    told = re.fullmatch(
        rf"{rows[0]} x {rows[1]} rows in (\d) parts: whole ([\d.,]+) us, 2 parts ([\d.,]+) us,.* modelled on {target}",
        note,
    )
    assert told is not None
    whole, halves = (float(text.replace(",", "")) for text in told.groups()[1:])
    assert halves < whole * 0.97
    (found, bound), (before, _) = (
        seconds(large(rows, target, parts).static_program(), target) for parts in (int(told[1]), 1)
    )
    assert found - bound < 0.7 * (before - bound), "less waits"
    assert before * 1e6 == pytest.approx(whole, abs=0.1)


def test_few_rows_stay_whole() -> None:
    made = large((1, 256))
    assert made.trace["stagger-rows"].notes == ()
    assert rows_of(made.static_program()) == {}


def test_twice_is_once(alone: Any) -> None:
    program = compiled(Mlp(), torch.randn(1, 4, 8), 2).static_program()
    again, _ = alone(StaggerRows(), program)
    assert rows_of(again) == rows_of(program)


class Fused(nn.Module):
    """A fused projection whose first piece has vector work of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x).chunk(3, -1)
        out: Tensor = self.out(q.tanh().exp().sigmoid().tanh().exp().sigmoid() * k + v)
        return out


def test_a_fused_projection_apart_is_one_of_the_ways() -> None:
    with torch.device("meta"):
        made = compiled(Fused(4096).bfloat16(), torch.empty(1, 512, 4096, dtype=torch.bfloat16), None, "gaudi3")
    (note,) = made.trace["stagger-rows"].notes
    times = dict(re.findall(r"(whole|1 part, fused products apart|2 parts) ([\d.,]+) us", note))
    assert set(times) == {"whole", "1 part, fused products apart", "2 parts"}
    assert float(times["1 part, fused products apart"]) < 0.97 * float(times["whole"]), (
        "the first piece's work is hidden"
    )
    assert "in 1 part, fused products apart" in note
    graph = made.static_program().root.graph
    assert sum(n.target is aten.linear.default for n in graph.nodes) == 4
    assert all("engine" in n.meta for n in graph.nodes if n.op == "call_function")


def test_parts_of_a_fused_projection_are_not_copied() -> None:
    model, x = Fused(8).eval(), torch.randn(1, 4, 8)
    made = compiled(model, x, 2)
    torch.testing.assert_close(made(x), model(x), rtol=1e-5, atol=1e-6)
    assert made.static_program().count_ops().get("aten.clone", 0) == 0
