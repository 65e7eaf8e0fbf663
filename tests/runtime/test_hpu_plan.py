"""Does it fit: bytes from sizes alone, tied weights once, and a verdict for so many cards."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import gaudicc
from gaudicc.cli import main
from gaudicc.runtime.hpu_plan import BucketMemory, MemoryPlan, plan_memory


class Tied(nn.Module):
    """Two layers with one weight, and a cache."""

    cache: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.second.weight = self.first.weight
        self.register_buffer("cache", torch.zeros(16))

    def forward(self, x: Tensor) -> Tensor:
        self.cache.add_(1)
        out: Tensor = self.second(torch.relu(self.first(x)))
        return out


def test_weights_state_and_graphs_are_counted() -> None:
    compiled = gaudicc.compile(Tied().eval(), (torch.ones(4, 8),))
    (bucket,) = compiled.buckets
    plan = plan_memory({bucket: compiled.static_program()}, {bucket: compiled.plan()}, "gaudi2")
    assert plan.weights == 8 * 8 * 4
    assert plan.state == 16 * 4
    (only,) = plan.buckets
    assert only.inputs == 4 * 8 * 4
    assert 2 * 4 * 8 * 4 <= only.workspace <= 5 * 4 * 8 * 4  # at least a product and what relu makes of it
    assert plan.verdict.startswith("fits: ")
    assert f"weights {8 * 8 * 4} B, state 64 B" in str(plan)


def test_the_verdict_names_what_is_missing() -> None:
    plan = MemoryPlan("gaudi3", 1, 100, 60, 20, (BucketMemory("a", 5, 10), BucketMemory("b", 1, 2)))
    assert (plan.fixed, plan.graphs) == (80, 18)
    assert plan.verdict == "fits: 2 B of 100 B are left with every bucket recorded"
    assert replace(plan, capacity=97).verdict == "fits with eviction: graphs take 18 B, 17 B are there for them"
    assert replace(plan, capacity=94).verdict == "does not fit: 95 B are needed, a card has 94 B"
    assert replace(plan, capacity=94, cards=3).fixed == 27
    assert replace(plan, capacity=94, cards=3).verdict.startswith("fits: ")


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "cuda-style-llm", "--memory", "--cards", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["cards"] == 2
    assert found["weights"] > 2 * found["fixed_per_card"] - 2
    assert found["verdict"].startswith("fits")
    assert main(["plan", "cuda-style-llm"]) == 0
    assert capsys.readouterr().out.startswith("plan for the only bucket:\n  record ")
    assert main(["plan", "cuda-style-llm", "--memory", "--cards", "0"]) == 1
