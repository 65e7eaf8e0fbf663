"""Layers that repeat are simulated from a few of them, with the result of simulating all."""

from __future__ import annotations

from time import process_time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gaudicc
from gaudicc import modelled
from gaudicc.machine import Engine, load_chip
from gaudicc.machine.fx_repeats import Repeat, repeats_of, with_repeats
from gaudicc.modelled import ModelledRun, modelled_run
from gaudicc.models import transformers_models
from gaudicc.profile.modelled import activities_of
from gaudicc.program import Program


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(256, width), nn.Linear(width, 256), nn.LayerNorm(256)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.down(torch.relu(self.up(self.norm(x))))
        return out


class Other(Block):
    """A layer of another kind."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.down(torch.tanh(self.up(self.norm(x))))
        return out


class Stack(nn.Module):
    def __init__(self, kinds: str) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(256, 256), nn.Linear(256, 1024)
        self.blocks = nn.ModuleList({"a": Block, "b": Other}[kind](512) for kind in kinds)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.last(x)
        return out


def program_of(kinds: str) -> Program:
    compiled = gaudicc.compile(Stack(kinds).eval(), (torch.randn(1, 512, 256),), device="cpu", target="gaudi2")
    return compiled.static_program()


def both(program: Program, monkeypatch: pytest.MonkeyPatch) -> tuple[ModelledRun, ModelledRun]:
    chip = load_chip("gaudi2")
    short = modelled_run(program, chip)
    with monkeypatch.context() as patch:
        patch.setattr(modelled, "repeats_of", lambda root: [])
        return short, modelled_run(program, chip)


@pytest.mark.parametrize(
    ("kinds", "units"), [("a" * 7, 7), ("ab" * 5, 5), ("ab" * 4 + "a", 4), ("aaab", 0), ("aba", 0)]
)
def test_the_run_is_that_of_all_layers(kinds: str, units: int, monkeypatch: pytest.MonkeyPatch) -> None:
    program = program_of(kinds)
    found = list(repeats_of(program.root))
    assert sum(len(repeat.kept) + len(repeat.left) for repeat in found) == units
    short, full = both(program, monkeypatch)
    assert short.timeline.makespan == pytest.approx(full.timeline.makespan)
    assert {e.task.name for e in short.timeline.events} == {e.task.name for e in full.timeline.events}
    starts = {event.task.name: event.start for event in full.timeline.events}
    assert {e.task.name: e.start for e in short.timeline.events} == pytest.approx(starts)
    assert short.bound <= full.bound * (1 + 1e-9)
    assert short.bound == pytest.approx(full.bound)
    assert len(short.works) == len(full.works)
    assert {(e.name, e.op, e.bound) for e in activities_of(short)} == {
        (e.name, e.op, e.bound) for e in activities_of(full)
    }


def test_projections_may_be_what_if_they_were_fp8() -> None:
    program, chip = program_of("a" * 5), load_chip("gaudi2")
    run, fp8 = modelled_run(program, chip), modelled_run(program, chip, "fp8")
    weights = [[work.weight_bytes for work in each.works if work.gemm] for each in (run, fp8)]
    assert weights[1] == [size // 4 for size in weights[0]]
    assert {work.dtype for work in fp8.works if work.gemm} == {"fp8"}
    assert fp8.timeline.busy(Engine.MME) < run.timeline.busy(Engine.MME) / 2
    assert fp8.timeline.busy(Engine.TPC) == pytest.approx(run.timeline.busy(Engine.TPC))


def test_layers_that_run_into_each_other_are_not_repeated() -> None:
    """The third starts later behind the second than the second behind the first: nothing is known of the fourth."""
    program = program_of("a" * 5)
    (repeat,) = repeats_of(program.root)
    run = modelled_run(program, load_chip("gaudi2")).timeline
    assert with_repeats(run, Repeat(repeat.kept[:2], repeat.left)) is not None
    last: Any = max(
        event for event in range(len(run.events)) if run.events[event].task.name.startswith(repeat.kept[1][0].name)
    )
    events = list(run.events)
    events[last] = type(events[last])(events[last].task, events[last].start * 1.01, events[last].end * 1.01)
    late = type(run)(tuple(events), run.spilled_bytes, run.peak_bytes)
    assert with_repeats(late, Repeat(repeat.kept[:2], repeat.left)) is None


@pytest.mark.sweep
def test_a_405b_prefill_of_126_layers_is_compiled_and_run_in_seconds() -> None:
    model = transformers_models.build("llama-405b", dtype=torch.bfloat16)
    ids = torch.zeros(1, 4096, dtype=torch.int64, device="meta")
    program = gaudicc.compile(
        model, {"input_ids": ids, "use_cache": False}, target="gaudi2", device="cpu"
    ).static_program()
    began = process_time()
    run = modelled_run(program, load_chip("gaudi2"))
    assert process_time() - began < 20
    layers = {event.task.name.partition("/")[0] for event in run.timeline.events if "/" in event.task.name}
    assert len(layers) == 126
    assert run.bound <= run.timeline.makespan <= 1.05 * run.bound
