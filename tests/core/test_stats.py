"""What stats say besides counts: the modelled time of each bucket, computed when it is asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gaudicc
from gaudicc import modelled
from gaudicc.buckets import Bucket
from gaudicc.compiled import CompiledModel
from gaudicc.machine import load_chip
from gaudicc.modelled import modelled_run
from gaudicc.program import Program


def compiled_for(target: str, **options: Any) -> CompiledModel:
    rows = torch.export.Dim("rows", min=2, max=4096)
    model = nn.Sequential(nn.Linear(64, 64), nn.GELU()).eval()
    return gaudicc.compile(model, (torch.randn(8, 64),), dynamic_shapes=({0: rows},), target=target, **options)


@pytest.mark.parametrize("target", ["gaudi2", "gaudi3"])
def test_every_bucket_has_the_time_that_profile_shows(target: str) -> None:
    model = compiled_for(target)
    seconds = model.stats.modelled_seconds
    assert list(seconds) == list(model.buckets)
    for bucket, time in seconds.items():
        assert time == modelled_run(model.static_program(bucket), load_chip(target)).timeline.makespan
    times = [seconds[bucket] for bucket in sorted(seconds, key=lambda bucket: bucket.sizes)]
    assert times == sorted(times)
    assert times[0] < times[-1]


def test_neither_a_recording_nor_a_call_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Program] = []

    def one_second(program: Program) -> float:
        asked.append(program)
        return 1.0

    monkeypatch.setattr(modelled, "modelled_seconds", one_second)
    model = compiled_for("gaudi3", buckets=[{"rows": 16}])
    model.warm_up()
    model(torch.randn(5, 64))
    assert "modelled" in repr(model.stats)
    assert not asked
    (bucket,) = model.buckets
    assert [model.stats.modelled_seconds[bucket] for _ in range(3)] == [1.0] * 3
    assert len(asked) == 1


def test_what_is_no_bucket_has_none() -> None:
    with pytest.raises(KeyError):
        compiled_for("gaudi3", buckets=[{"rows": 16}]).stats.modelled_seconds[Bucket.of({"rows": 64})]


def test_all_sides_of_a_model_have_theirs() -> None:
    class Sided(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if x.shape[0] > 16 else x @ x.t() @ x

    rows = torch.export.Dim("rows", min=2, max=64)
    model = gaudicc.compile(Sided().eval(), (torch.randn(20, 8),), dynamic_shapes=({0: rows},), target="gaudi3")
    sizes = {bucket.as_dict()["rows"] for bucket in model.stats.modelled_seconds}
    assert min(sizes) <= 16 < max(sizes)
