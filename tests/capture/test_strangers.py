"""What authors write in their own models: compiled by one path, called on all of them, equal to eager or refused by its line."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import gaudicc
from gaudicc.errors import GaudiccError
from tests.capture.stranger_decoders import FAST, SLOW
from tests.capture.stranger_modules import MODULES
from tests.capture.stranger_searches import CASES
from tests.capture.strangers import REFUSED


def outcome(call: Any, args: tuple[Tensor, ...]) -> list[Any]:
    with torch.no_grad():
        return pytree.tree_leaves(call(*(arg.clone() for arg in args)))


SWEEP = [pytest.param(name, marks=pytest.mark.sweep) for name in SLOW]


@pytest.mark.parametrize("name", [*CASES, *MODULES, *FAST, *SWEEP])
def test_as_in_eager_on_every_path(name: str) -> None:
    function, example, calls = {**CASES, **MODULES, **FAST, **SLOW}[name]
    torch.manual_seed(1)
    model = function.eval() if isinstance(function, torch.nn.Module) else function
    compiled = gaudicc.compile(model, example())
    for make in calls * 2:
        args = make()
        for ours, theirs in zip(outcome(compiled, args), outcome(model, args), strict=True):
            assert type(ours) is type(theirs)
            if not isinstance(theirs, Tensor):
                assert ours == theirs
            elif name in (
                "routed",
                "windows_with_a_rest",
            ):  # a product of some rows rounds otherwise, and so does attention
                torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
            else:
                assert torch.equal(ours.nan_to_num(), theirs.nan_to_num())
                assert ours.dtype == theirs.dtype


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_names_its_line(name: str) -> None:
    function, example, why = REFUSED[name]
    with pytest.raises(GaudiccError, match=why) as caught:
        gaudicc.compile(function, example())
    assert "strangers.py" in str(caught.value)
