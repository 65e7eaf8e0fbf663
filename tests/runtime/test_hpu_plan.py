"""Does it fit: bytes from sizes alone, tied weights once, and a verdict for so many cards."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import gaudicc
from gaudicc.buckets import Bucket
from gaudicc.cli import main
from gaudicc.cli.planning_lm import PlannedLM
from gaudicc.errors import LoweringError
from gaudicc.lm import compile_lm
from gaudicc.machine import known_decoders, load_chip
from gaudicc.models import load
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


class Cached(nn.Module):
    """Writes a row of a cache."""

    cache: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("cache", torch.zeros(4096, 8))

    def forward(self, x: Tensor, row: Tensor) -> Tensor:
        self.cache.index_copy_(0, row, x)
        return self.cache[:2] + x


def test_a_cache_that_is_written_in_place_is_counted_once() -> None:
    compiled = gaudicc.compile(Cached().eval(), (torch.ones(1, 8), torch.tensor([3])))
    (bucket,) = compiled.buckets
    plan = plan_memory({bucket: compiled.static_program()}, {bucket: compiled.plan()}, "gaudi2")
    assert plan.buckets[0].workspace < 1024 < plan.state == 4096 * 8 * 4


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


def test_a_script_is_told_by_the_exit_code(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["plan", "cuda-style-llm", "--memory", "--json"]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    needed = found["fixed_per_card"] + max(each["inputs"] + each["workspace"] for each in found["buckets"])
    for spare, code in ((0, 0), (-1, 1)):
        chip = load_chip("gaudi3")
        small = replace(chip, memory=replace(chip.memory, hbm_bytes=needed + spare))
        monkeypatch.setattr("gaudicc.runtime.hpu_plan.load_chip", lambda target, small=small: small)
        assert main(command) == code
        assert json.loads(capsys.readouterr().out)["fits"] is (code == 0)


def test_generation_counts_caches_and_every_step(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--max-batch", "2", "--max-context", "64"]
    assert main(["plan", "cuda-style-llm", "--generate", "--memory", *sizes, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    lm = compile_lm(load("cuda-style-llm")[0], max_batch=2, max_context=64, device="cpu")
    assert found["state"] == lm.bytes_held
    lm.warm_up()
    recorded = {str(bucket) for buckets in lm.buckets.values() for bucket in buckets}
    assert {each["bucket"] for each in found["buckets"]} == recorded
    assert all(each["workspace"] > 0 for each in found["buckets"])


def test_a_large_shape_takes_no_memory_here(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PlannedLM, "buckets", lambda lm: [("decode", Bucket(("batch", "context"), (1, 64)))])
    sizes = ["--max-batch", "1", "--max-context", "64", "--target", "gaudi3"]
    dimensions = replace(known_decoders()["Llama-3.1-70B"], layers=2)
    monkeypatch.setattr("gaudicc.cli.planning_lm.known_decoders", lambda: {"Llama-3.1-70B": dimensions})
    assert main(["plan", "Llama-3.1-70B", "--generate", "--memory", *sizes, "--json"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert "planning decode batch=1, context=64 (1 of 1)" in captured.err
    assert found["weights"] == pytest.approx(
        2 * (2 * 8192 * 128256 + 2 * 8192 * (2 * 8192 + 2 * 1024 + 3 * 28672)), rel=1e-3
    )
    caches = 2 * 2 * 8 * 65 * 128 * 2
    assert caches <= found["state"] <= caches * 1.1


@pytest.mark.parametrize(
    "wrong", [["--max-batch", "0"], ["--max-context", "1"], ["--dynamic", "batch=2"], ["--buckets", "exp"]]
)
def test_options_that_generation_has_no_use_for(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "cuda-style-llm", "--generate", *wrong]) == 1
    assert "compile_lm chooses the buckets" in capsys.readouterr().err


def test_a_planned_model_cannot_be_run() -> None:
    lm = PlannedLM(load("cuda-style-llm")[0], max_batch=1, max_context=64, target="gaudi3")
    with pytest.raises(LoweringError, match="planned model cannot be run"):
        lm.graphs.decode(1, 2, sampled=False)
