"""Rotary embedding: each pair of features is turned by its angle."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from gaudicc.kernels import rotary


@given(
    shape=st.lists(st.integers(0, 3), min_size=1, max_size=3),
    half=st.integers(1, 4),
    interleaved=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_every_pair_is_turned_by_its_angle(shape: list[int], half: int, interleaved: bool, dtype: torch.dtype) -> None:
    x, angles = torch.randn(*shape, 2 * half), torch.randn(half)
    wide = angles.repeat_interleave(2) if interleaved else torch.cat([angles, angles])
    found = rotary(x.to(dtype), wide.cos().to(dtype), wide.sin().to(dtype), interleaved)
    if interleaved:
        a, b = x[..., ::2], x[..., 1::2]
    else:
        a, b = x.chunk(2, -1)
    turned = torch.view_as_real(torch.complex(a, b) * torch.polar(torch.ones(half), angles))
    expected = turned.flatten(-2) if interleaved else torch.cat([turned[..., 0], turned[..., 1]], -1)
    assert found.dtype is dtype
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=1e-5 if dtype is torch.float32 else 0.1)
