"""The trace: what each pass did, as a table, as diffs and as a folder of texts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import gaudicc
from gaudicc.compiled import CompiledModel
from gaudicc.passes import DEFAULT_PIPELINE
from gaudicc.printing import program_text
from gaudicc.trace import CompileTrace, PassRecord


class Model(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.diff(x, dim=1)[:, ::2] * 1.0


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[CompiledModel, Path]:
    folder = tmp_path_factory.mktemp("dump") / "new"
    return gaudicc.compile(Model().eval(), (torch.randn(2, 9),), dump=folder), folder


def test_one_record_per_pass_in_order(compiled: tuple[CompiledModel, Path]) -> None:
    trace = compiled[0].trace
    assert [record.name for record in trace] == [step.name for step in DEFAULT_PIPELINE]
    assert len(trace) == len(DEFAULT_PIPELINE)
    assert trace.names() == list(dict.fromkeys(record.name for record in trace))
    assert all(old.after is new.before for old, new in zip(trace.records, trace.records[1:], strict=False))
    assert trace[0] is trace[trace[0].name]
    assert {record.phase for record in trace} == {"symbolic", "static"}
    with pytest.raises(KeyError, match="no pass 'fuse' in this trace; it holds recognize-attention"):
        trace["fuse"]


def test_a_diff_shows_the_lines_that_a_pass_changed(compiled: tuple[CompiledModel, Path]) -> None:
    diff = compiled[0].trace["decompose"].diff()
    removed, added = ([line for line in diff.splitlines() if re.match(rf"{sign}\s", line)] for sign in (r"\-", r"\+"))
    assert any("aten.diff(" in line for line in removed)
    assert any("aten.sub.Tensor(" in line for line in added)
    assert diff.startswith("--- before decompose\n+++ after decompose\n")
    assert all("test_trace.py" in line for line in added if " = aten" in line)


def test_a_pass_that_changed_nothing_has_no_diff(compiled: tuple[CompiledModel, Path]) -> None:
    record = compiled[0].trace["recognize-attention"]
    assert not record.modified
    assert record.diff() == ""
    assert record.ops() == {}


def test_colour_only_adds_escapes(compiled: tuple[CompiledModel, Path]) -> None:
    record = compiled[0].trace["decompose"]
    coloured = record.diff(colour=True)
    assert re.sub(r"\x1b\[\d+m", "", coloured) == record.diff()
    assert "\x1b[31m-  %diff" in coloured
    assert re.search(r"\x1b\[32m\+.*aten\.sub.*\x1b\[0m", coloured)


def test_context_lines_are_asked_for(compiled: tuple[CompiledModel, Path]) -> None:
    record = compiled[0].trace["decompose"]
    assert len(record.diff(context=0).splitlines()) < len(record.diff(context=2).splitlines())


def test_the_table_has_a_row_per_pass(compiled: tuple[CompiledModel, Path]) -> None:
    trace = compiled[0].trace
    head, *rows = str(trace).splitlines()
    assert head.split() == ["pass", "phase", "ms", "checks", "ms", "nodes", "change", "what"]
    assert [row.split()[0] for row in rows] == [record.name for record in trace]
    decompose = next(row for row in rows if row.startswith("decompose"))
    assert re.search(r"\+\d+ .*aten.diff 1->0", decompose)
    columns = {row.index(record.phase) for row, record in zip(rows, trace, strict=True)}
    assert len(columns) == 1, "columns are aligned"


def test_a_dump_holds_the_text_of_every_stage(compiled: tuple[CompiledModel, Path]) -> None:
    model, folder = compiled
    files = sorted(file.name for file in folder.glob("*.txt"))
    assert len(files) == len(DEFAULT_PIPELINE) + 1
    assert files[:2] == ["00_capture.txt", "01_recognize-attention.txt"]
    assert files[-1] == f"{len(DEFAULT_PIPELINE):02d}_static.choose-branches.txt"
    assert (folder / files[0]).read_text() == program_text(model.trace[0].before)
    assert (folder / files[-1]).read_text() == program_text(model.static_program())
    lines = [json.loads(line) for line in (folder / "trace.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == [record.name for record in model.trace]
    decompose = next(line for line in lines if line["name"] == "decompose")
    assert decompose["ops"]["aten.diff"] == [1, 0]


def test_buckets_have_files_of_their_own(tmp_path: Path) -> None:
    shapes = {"x": {0: Dim("rows", min=1, max=8)}}
    gaudicc.compile(
        Model().eval(), (torch.randn(2, 9),), dynamic_shapes=shapes, buckets=[{"rows": 2}, {"rows": 4}], dump=tmp_path
    )
    names = [file.name for file in tmp_path.glob("*.txt")]
    assert sum("rows=2.specialize" in name for name in names) == 1
    assert sum("rows=4.specialize" in name for name in names) == 1


def test_stages_share_the_graphs_that_a_pass_left_alone(make_stack: Callable[..., nn.Module]) -> None:
    trace = gaudicc.compile(make_stack(4), (torch.randn(2, 8),)).trace
    graphs = {id(module) for record in trace for p in (record.before, record.after) for _, module in p.graphs()}
    unchanged = [record for record in trace if not record.modified]
    assert len(unchanged) >= 6
    assert len(graphs) <= 2 * (len(trace) + 1 - len(unchanged))


def test_an_observer_sees_each_pass_while_compiling() -> None:
    seen: list[PassRecord] = []
    compiled = gaudicc.compile(Model().eval(), (torch.randn(2, 9),), observer=seen.append)
    assert seen == compiled.trace.records


def test_an_empty_trace_prints_and_dumps(tmp_path: Path) -> None:
    assert CompileTrace().names() == []
    assert str(CompileTrace()).startswith("pass")
    assert [path.name for path in CompileTrace().dump(tmp_path)] == ["trace.jsonl"]
