"""Models with loops that only data ends, compiled for sizes that are dynamic besides: padded by induction, saved and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.export import Dim
from torch.utils import _pytree as pytree

import gaudicc
from gaudicc.compiled import CompiledModel
from gaudicc.errors import DynamicControlFlowError
from gaudicc.lower import lower
from gaudicc.plan import HostLoop
from gaudicc.runtime.cpu import CpuDevice
from gaudicc.runtime.runner import Counters, Runner


def shrinks(x: torch.Tensor) -> Any:
    y, n = x.abs(), 0
    while y.sum() > 1:
        y = y * 0.9 - 0.01
        n = n + 1
    return y, y.amax() * n


def until_all_rows_are_done(x: torch.Tensor) -> torch.Tensor:
    h, done = torch.zeros_like(x), torch.zeros(x.shape[0], dtype=torch.bool)
    while not done.all():
        h = torch.where(done[:, None], h, h * 1.1 + x.abs() + 0.1)
        done = done | (h.sum(1) > 10)
    return h


def what_pads_hold_grows(x: torch.Tensor) -> torch.Tensor:
    y = torch.exp(x)
    while y.mean() > 1:
        y = y * 0.9
    return y


BODIES = (shrinks, until_all_rows_are_done, what_pads_hold_grows)


def compiled(body: Any) -> CompiledModel:
    shapes = ({0: Dim("batch", min=1, max=8)},)
    return gaudicc.compile(
        body, (torch.randn(3, 4),), dynamic_shapes=shapes, buckets=[{"batch": 4}, {"batch": 8}], verify="poison"
    )


def same(given: Any, wanted: Any) -> None:
    for a, b in zip(pytree.tree_leaves(given), pytree.tree_leaves(wanted), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("body", BODIES)
def test_one_recording_serves_every_number_of_trips(body: Any, tmp_path: Path) -> None:
    model = compiled(body)
    model.warm_up()
    records = model.stats.records
    for batch in (1, 2, 3, 5, 8):
        x = torch.randn(batch, 4, generator=torch.Generator().manual_seed(batch)) * 3
        same(model(x), body(x))
    assert model.stats.records == records
    model.save(tmp_path / "bundle")
    x = torch.randn(3, 4)
    same(gaudicc.load(tmp_path / "bundle")(x), body(x))


def test_chunks_on_padded_inputs() -> None:
    model = compiled(until_all_rows_are_done)
    bucket = next(iter(model.buckets))
    program = model.static_program(bucket)
    plan = lower(program, bucket, loops=False)
    assert any(isinstance(step, HostLoop) for step in plan.all_steps())
    runner = Runner(plan, program.bound(), CpuDevice(), Counters())
    for batch in (1, 3, 4):
        x = torch.zeros(4, 4)
        x[:batch] = torch.randn(batch, 4)
        given = dict(zip(runner.inputs, (x, torch.tensor(batch)), strict=True))
        (result, *_) = runner.run([given[name] for name in runner.inputs])
        same(result[:batch], until_all_rows_are_done(x[:batch]))


def test_a_state_that_grows_is_refused() -> None:
    def grows(x: torch.Tensor) -> torch.Tensor:
        y = x.abs() + 1
        while y.sum() < 100:
            y = torch.cat([y, y[:1]])
        return y

    with pytest.raises(DynamicControlFlowError, match="nothing but data ends this loop") as caught:
        compiled(grows)
    assert "fixed shapes" in caught.value.todo
