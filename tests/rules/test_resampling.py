"""Anti-aliased resizing, up and down, and what its weights are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gaudicc.rules.resampling import RULES, cubic, linear, weights

aten = torch.ops.aten


@pytest.mark.parametrize("op", [aten._upsample_bilinear2d_aa.default, aten._upsample_bicubic2d_aa.default])
@given(size=st.tuples(*[st.integers(1, 9)] * 2), wanted=st.tuples(*[st.integers(1, 9)] * 2), corners=st.booleans())
def test_any_sizes(
    op: torch._ops.OpOverload, size: tuple[int, int], wanted: tuple[int, int], corners: bool, same: Callable[..., None]
) -> None:
    x = torch.randn(1, 2, *size, generator=torch.Generator().manual_seed(0))
    if 1 in (size[1], wanted[1]):
        (rule,) = [rule for rule in RULES if op in rule.ops]
        assert "one column wide" in str(rule.check(x, list(wanted), corners))
        return
    same(op, x, list(wanted), corners, scale=5)


@given(size=st.integers(1, 30), wanted=st.integers(1, 30))
def test_weights_sum_to_one_and_are_local(size: int, wanted: int) -> None:
    for kernel, radius in ((linear, 1), (cubic, 2)):
        matrix = weights(kernel, radius, size, wanted, False, None, torch.empty(0))
        torch.testing.assert_close(matrix.sum(1), torch.ones(wanted))
        assert (matrix != 0).sum(1).max() <= 2 * radius * max(size / wanted, 1) + 1
