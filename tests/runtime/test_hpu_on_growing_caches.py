"""Caches held as state on a Gaudi, whose copy of them is the newer one after a replay: as on the CPU, in both modes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

HIGH = 12


class Mean(nn.Module):
    """The mean of everything so far, per row; two caches."""

    def forward(self, x: torch.Tensor, cache: list[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        grown = [torch.cat([cache[0], x], 1), torch.cat([cache[1], x * 2], 1)]
        return (grown[0] * grown[1]).sum(1) / grown[0].shape[1] + x.sum(1), grown


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import gaudicc

    made = tmp_path_factory.mktemp("growing")
    past, new = Dim("past", min=0, max=HIGH), Dim("new", min=1, max=4)
    compiled = gaudicc.compile(
        Mean().eval(), (torch.randn(2, 2, 8), [torch.randn(2, 3, 8), torch.randn(2, 3, 8)]),
        dynamic_shapes={"x": {1: new}, "cache": [{1: past}, {1: past}]},
        buckets=[{"new": 2, "past": HIGH}, {"new": 4, "past": HIGH}], static_state=True,
    )  # fmt: skip
    assert len(compiled.program.calling.caches) == 2
    compiled.save(made / "bundle")
    return made


def test_calls_that_hand_the_cache_on(folder: Path, mode: str) -> None:
    import gaudicc

    compiled = gaudicc.load(folder / "bundle", device="hpu")
    assert ("lazy mode" if mode == "lazy" else "compile mode") in compiled.notes[0]
    compiled.warm_up()
    model = Mean()
    expected: Any = None
    cache: Any = None
    for rows, begin in ((4, 0), (1, None), (2, None), (3, 5), (1, None), (4, None)):
        if begin is not None:
            expected = cache = [torch.randn(2, begin, 8), torch.randn(2, begin, 8)]
        x = torch.randn(2, rows, 8)
        wanted, expected = model(x, expected)
        found, cache = compiled(x, cache)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(cache, expected, rtol=0, atol=0)
    assert compiled.stats.copied_caches == 4
    assert compiled.stats.records == 2
