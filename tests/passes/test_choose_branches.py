"""choose-branches: the host runs one side of an `if` alone, with the results, mutations and exceptions of eager PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import Dim

import gaudicc
from gaudicc.errors import InputError, RecordForbiddenError
from gaudicc.plan import HostBranch, Record


class EarlyExit(nn.Module):
    """Leaves its layers when it is sure, counts where, and gives up on what is too large."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.head = nn.Linear(4, 1)
        self.seen: Tensor
        self.register_buffer("seen", torch.zeros(()))
        self.left: Tensor
        self.register_buffer("left", torch.zeros(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = torch.tanh(layer(x))
            if self.head(x).mean() > 0.2:
                self.seen += i + 1
                self.left[i] = x[0]
                return x * 2
        if x[0].max() > x[1].max():
            if x.max() > 0.4:
                raise ValueError("too large")
            x = x @ x.T @ x
        return x


class Gated(nn.Module):
    """A layer that looks at its input; several of them share one body."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor, strong: Tensor) -> Tensor:
        if x.mean() > 0:
            x = x + self.b(torch.relu(self.a(x)))
            x[0] = 1.0
        if strong:
            x = x.sort(-1).values
        return x


class Stacked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Gated() for _ in range(3))

    def forward(self, x: Tensor, strong: Tensor) -> dict[str, Any]:
        state = {"total": x.new_zeros(())}
        x = x.clone()
        for layer in self.layers:
            x = layer(x, strong)
            if strong:
                state["total"] = state["total"] + x.sum()
        return {"x": x, "all": state["total"]}


VALUES = st.floats(-2, 2, width=16) | st.sampled_from([float("nan"), float("inf"), float("-inf"), 0.0, -0.0, 30.0])


def made(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(10)  # of which inputs drawn at random leave after each layer, and some are given up on
    return kind().eval()


def outcome(run: Callable[..., Any], x: Tensor) -> list[Any]:
    """What it gives or raises."""
    try:
        return list(torch.utils._pytree.tree_leaves(run(x)))
    except ValueError as error:
        return [str(error)]


def same(one: Any, other: Any) -> bool:
    if not isinstance(one, Tensor):
        return bool(one == other)
    return (one.shape == other.shape and one.dtype == other.dtype and one.equal(other)) or bits(one) == bits(other)


def bits(x: Tensor) -> list[int]:
    """Of the values; every NaN is the same one."""
    return torch.where(x.isnan(), torch.nan, x.float()).view(torch.int32).flatten().tolist()


@pytest.fixture(scope="module")
def early() -> tuple[nn.Module, gaudicc.CompiledModel]:
    model = made(EarlyExit)
    return model, gaudicc.compile(copy.deepcopy(model), (-torch.ones(2, 4),), branches="host")


@settings(max_examples=30)
@given(st.lists(VALUES, min_size=8, max_size=8))
def test_an_early_exit_is_as_in_eager(early: Any, values: list[float]) -> None:
    model, compiled = early
    x = torch.tensor(values).view(2, 4)
    assert all(map(same, outcome(compiled, x), outcome(model, x)))
    for name, state in model.named_buffers():
        assert same(compiled._state[name], state), name


def test_only_the_layers_before_the_exit_are_run(early: Any) -> None:
    model, compiled = early
    compiled.warm_up()
    compiled.forbid_records()
    records, counts, given_up = compiled.stats.records, set(), 0
    for seed in range(30):
        x = torch.randn(2, 4, generator=torch.Generator().manual_seed(seed)) * 2
        replays, reads, seen = compiled.stats.replays, compiled.stats.host_reads, model.seen.clone()
        outcome(compiled, x)
        given_up += "too large" in outcome(model, x)
        left = int(model.seen - seen)
        counts.add(left)
        assert compiled.stats.host_reads - reads == (left or 4)
        assert compiled.stats.replays - replays == ({1: 3, 2: 4, 3: 5, 0: 6}[left])
    assert counts == {0, 1, 2}
    assert given_up
    assert compiled.stats.records == records


def test_the_plan_and_the_stages_show_who_decides(early: Any) -> None:
    _, compiled = early
    assert "\n  if gt:  # passes/test_choose_branches.py:" in str(compiled.plan())
    assert "read by the host: gt (passes/test_choose_branches.py:" in str(compiled.certificate)
    record = next(record for record in compiled.trace.records if record.name == "choose-branches")
    assert "# TPC  decided by the host" in record.diff()
    assert all(
        "the host decides the condition at test_choose_branches.py:" in note.replace("passes/", "")
        for note in record.notes
    )
    assert "where" not in str([step.graph.code for step in compiled.plan().all_steps() if isinstance(step, Record)])


@pytest.fixture(scope="module")
def stacked() -> tuple[nn.Module, gaudicc.CompiledModel]:
    model, shapes = made(Stacked), {"x": {0: Dim("rows", min=1, max=8)}, "strong": None}
    inputs = (torch.ones(3, 4), torch.tensor(False))
    return model, gaudicc.compile(
        model, inputs, dynamic_shapes=shapes, buckets=[{"rows": 4}, {"rows": 8}], branches="host"
    )


@settings(max_examples=20)
@given(st.lists(VALUES, min_size=4, max_size=32), st.booleans())
def test_layers_that_decide_in_buckets(stacked: Any, values: list[float], strong: bool) -> None:
    model, compiled = stacked
    x = torch.tensor(values[: len(values) // 4 * 4]).view(-1, 4)
    with torch.no_grad():
        wanted = model(x, torch.tensor(strong))
    given_ = compiled(x, torch.tensor(strong))
    for name in ("x", "all"):
        torch.testing.assert_close(given_[name], wanted[name], equal_nan=True)


def test_both_sides_of_every_bucket_are_recorded_by_warm_up(stacked: Any) -> None:
    _, compiled = stacked
    compiled.warm_up()
    before = compiled.stats.records
    for rows in range(1, 9):
        for sign in (1, -1):
            for strong in (True, False):
                compiled(torch.randn(rows, 4) * 3 + sign, torch.tensor(strong))
    assert compiled.stats.records == before


# -- by cost --------------------------------------------------------------------------------------------------------


class Wide(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        if x.mean() > 0:
            for layer in self.layers:
                x = torch.relu(layer(x))
        if x[0, 0] > 1:
            x = x - 1
        return x


@pytest.mark.parametrize(("width", "hosted"), [(16, 0), (8192, 1)])
def test_long_sides_alone_are_decided_by_the_host(width: int, hosted: int) -> None:
    with torch.device("meta"):
        model = Wide(width).eval()
    compiled = gaudicc.compile(model, (torch.empty(2048, width, device="meta"),), verify="structure")
    branches = [step for step in compiled.plan().steps if isinstance(step, HostBranch)]
    assert len(branches) == hosted
    record = next(record for record in compiled.trace.records if record.name == "choose-branches")
    assert len(record.notes) == hosted
    assert all("us where it holds, 0.0 us where not" in note and "modelled on gaudi3" in note for note in record.notes)


def test_the_user_can_force_either_form() -> None:
    model, x = Wide(4).eval(), torch.ones(2, 4)
    steps = {form: gaudicc.compile(model, (x,), branches=form).plan().steps for form in ("predicate", "cost", "host")}
    assert [len(found) for found in steps.values()] == [1, 1, 4]
    with pytest.raises(InputError, match="branches is 'both'"):
        gaudicc.compile(model, (x,), branches="both")


# -- what else there is ---------------------------------------------------------------------------------------------


def test_a_bundle_keeps_what_the_host_decides(early: Any, tmp_path: Path) -> None:
    model, compiled = early
    compiled.save(tmp_path / "model.zip")
    loaded = gaudicc.load(tmp_path / "model.zip")
    assert str(loaded.plan()) == str(compiled.plan())
    for seed in range(12):
        x = torch.randn(2, 4, generator=torch.Generator().manual_seed(seed)) * 2
        assert all(map(same, outcome(loaded, x), outcome(model, x)))


def test_what_was_not_recorded_is_refused() -> None:
    compiled = gaudicc.compile(Wide(4).eval(), (torch.ones(2, 4),), branches="host")
    compiled.forbid_records()
    with pytest.raises(RecordForbiddenError):
        compiled(torch.ones(2, 4))


def test_many_threads_get_their_own_results() -> None:
    model = Wide(4).eval()
    compiled = gaudicc.compile(model, (torch.ones(2, 4),), branches="host")
    inputs = [torch.randn(2, 4, generator=torch.Generator().manual_seed(i)) for i in range(24)]
    found: dict[int, Tensor] = {}
    threads = [Thread(target=lambda i=i: found.update({i: compiled(inputs[i])})) for i in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[i], model(x)) for i, x in enumerate(inputs))


def test_an_if_in_a_loop_that_data_ends_stays_predicated() -> None:
    def halves(x: Tensor) -> Tensor:
        while x.abs().max() > 1:
            x = x.sin() * 2 if x.sum() > 5 else x / 2
        return x

    compiled = gaudicc.compile(halves, (torch.ones(4),), branches="host")
    assert [type(step) for step in compiled.plan().steps] == [Record]
    for scale in (0.5, 3.0, 100.0):
        x = torch.tensor([1.0, -0.2, 0.7, 0.1]) * scale
        assert torch.equal(compiled(x), halves(x))


def test_random_numbers_are_drawn_whatever_is_selected() -> None:
    """Eager PyTorch draws them on both sides of `torch.where`; those that follow would be others."""

    def noisy(x: Tensor) -> tuple[Tensor, Tensor]:
        noise = torch.rand_like(x)
        return torch.where(x.sum() > 0, noise.sin(), x), torch.rand_like(x)

    compiled = gaudicc.compile(noisy, (torch.ones(4),), branches="host")
    drawing = [step for step in compiled.plan().steps if isinstance(step, Record) and "rand_like" in step.graph.code]
    assert sum(step.graph.code.count("rand_like.default") for step in drawing) == 2
    for sign in (1.0, -1.0):
        torch.manual_seed(3)
        wanted = noisy(torch.full((4,), sign))
        torch.manual_seed(3)
        assert all(map(torch.equal, compiled(torch.full((4,), sign)), wanted))


def test_outputs_and_inputs_share_no_memory() -> None:
    def pick(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if x.sum() > 0:
            return x, x
        return y.exp(), x

    compiled = gaudicc.compile(pick, (torch.ones(4), torch.ones(4)), branches="host")
    for sign in (1.0, -1.0):
        x = torch.full((4,), sign)
        one, other = compiled(x, torch.zeros(4))
        one.add_(1), other.add_(2)
        assert torch.equal(x, torch.full((4,), sign))
        assert torch.equal(other, x + 2)
