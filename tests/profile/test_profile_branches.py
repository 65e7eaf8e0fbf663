"""`gaudicc profile` of a model in which the host decides: one side of each branch, the longer one, after the host has looked."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import gaudicc
from gaudicc.lower_branches import holds_branches
from gaudicc.machine import Engine, load_chip
from gaudicc.modelled import ModelledRun, modelled_run
from gaudicc.program import Program


class Gated(nn.Module):
    """A long way and a short one, between two products that are always made."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 64), nn.Linear(64, 64)
        self.long = nn.ModuleList(nn.Linear(64, 64) for _ in range(5))
        self.short = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        if x.mean() > 0.3:
            for layer in self.long:
                x = torch.tanh(layer(x))
        else:
            x = torch.tanh(self.short(x))
        out: Tensor = self.last(x)
        return out


def program_of(model: nn.Module, form: str) -> Program:
    return gaudicc.compile(model.eval(), (torch.randn(128, 64),), device="cpu", branches=form).static_program()


def products(run: ModelledRun) -> int:
    return sum(event.task.engine is Engine.MME for event in run.timeline.events)


def test_the_longer_side_alone_is_run_behind_the_hosts_look() -> None:
    program, chip = program_of(Gated(), "host"), load_chip("gaudi3")
    assert holds_branches(program.root)
    run = modelled_run(program, chip)
    assert holds_branches(program.root), "the program is as it was"
    assert products(run) == 7
    assert len(run.branches) == 1
    assert "test_profile_branches.py" in run.branches[0]
    (look,) = [event for event in run.timeline.events if event.task.engine is Engine.HOST]
    assert look.end - look.start >= chip.host.transfer_latency
    for event in run.timeline.events:
        assert event is look or event.end <= look.start or event.start >= look.end
    assert run.bound <= run.timeline.makespan


def test_what_the_host_does_not_decide_is_all_run() -> None:
    run = modelled_run(program_of(Gated(), "predicate"), load_chip("gaudi3"))
    assert products(run) == 8
    assert run.branches == ()


class Twice(nn.Module):
    """A branch inside a side of another."""

    def __init__(self) -> None:
        super().__init__()
        self.outer, self.inner = Gated(), nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            out: Tensor = self.outer(x)
            return out
        return torch.tanh(self.inner(x))


def test_a_branch_inside_a_side_is_followed_too() -> None:
    run = modelled_run(program_of(Twice(), "host"), load_chip("gaudi2"))
    assert products(run) == 7
    assert len(run.branches) == 2
