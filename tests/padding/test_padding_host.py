"""The host's part: zeros at the end, lengths, slices; and the grammar of sizes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import sympy
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.export import Dim
from torch.utils._sympy.functions import FloorDiv, Max, Min, Mod, PythonMod

from gaudicc.capture import capture
from gaudicc.errors import BundleError, InputError
from gaudicc.padding import HostPadding
from gaudicc.padding.host import size_function
from gaudicc.padding.sizes import grows, never_below_zero, only_value
from gaudicc.passes.pad import Pad
from gaudicc.program import Program


class Merge(nn.Module):
    """Returns a merged dim, so that the host views it as its factors."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.reshape(-1, 3), x.sum((0, 1))


@pytest.fixture(scope="module")
def merge() -> Program:
    shapes = {"x": {0: Dim("b", min=1, max=8), 1: Dim("s", min=1, max=8)}}
    return Pad().run(capture(Merge().eval(), (torch.randn(2, 5, 3),), dynamic_shapes=shapes)).program


@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 3), st.integers(0, 3))
def test_pad_run_slice(merge: Program, b: int, s: int, more_b: int, more_s: int) -> None:
    host = HostPadding(merge)
    x = torch.randn(b, s, 3)
    sizes, lengths = {"b": b + more_b, "s": s + more_s}, {"b": b, "s": s}
    merged, total = host.slice(merge.run(host.pad({"x": x}, sizes, lengths)), sizes, lengths)
    assert torch.equal(merged, x.reshape(-1, 3))
    torch.testing.assert_close(total, x.sum((0, 1)))


def test_pads_hold_zeros_and_lengths_are_told(merge: Program) -> None:
    feed = HostPadding(merge).pad({"x": torch.ones(2, 5, 3)}, {"b": 4, "s": 6}, {"b": 2, "s": 5})
    assert feed["x"].shape == (4, 6, 3)
    assert feed["x"].sum() == 30
    assert (int(feed["length_b"]), int(feed["length_s"])) == (2, 5)


def test_outputs_are_views_or_have_no_gaps(merge: Program) -> None:
    sizes, lengths = {"b": 4, "s": 6}, {"b": 2, "s": 5}
    square = replace_outputs(merge)
    raw = torch.arange(24).reshape(4, 6)
    (view,) = HostPadding(square).slice([raw], sizes, lengths)
    (dense,) = HostPadding(square, views=False).slice([raw], sizes, lengths)
    assert torch.equal(view, raw[:2, :5])
    assert torch.equal(dense, view)
    assert view.data_ptr() == raw.data_ptr()
    assert dense.is_contiguous()
    assert not view.is_contiguous()


def replace_outputs(merge: Program) -> Program:
    """A program that returns [b, s]."""
    assert merge.padded is not None
    padded = replace(merge.padded, outputs=((("b",), ("s",)),))
    return replace(merge.copy(), outputs=merge.outputs[:1], padded=padded)


def test_a_program_that_was_not_padded_is_refused(merge: Program) -> None:
    bare = merge.copy()
    bare.padded = None
    with pytest.raises(InputError, match="not padded"):
        HostPadding(bare)


@pytest.mark.parametrize("text", ["__import__('os')", "a.b", "[1]", "a if b else c", "open('x')", "a ** 9"])
def test_a_doctored_size_is_refused(text: str) -> None:
    with pytest.raises(BundleError):
        size_function(text)


@given(st.integers(0, 99), st.integers(0, 99))
def test_size_expressions(a: int, b: int) -> None:
    assert size_function("((a + 1) // 2 * min(b, 7)) % 5")({"a": a, "b": b}) == ((a + 1) // 2 * min(b, 7)) % 5


S, T = sympy.symbols("s t", integer=True, positive=True)
GROWING: tuple[Any, ...] = (
    2 * S * T + 3,
    FloorDiv(S + 1, 2) * T,
    S**2,
    Min(S, 4) + Max(T, 2),
    1 - Max(0, 1 - S),
    -FloorDiv(-2 * S, 3),
    S + Mod(8 - Mod(S, 8), 8),
    FloorDiv(S + PythonMod(-S, 8), 8) * T,
    sympy.expand(T * (S + PythonMod(-S, 8))),
)
RANGES = {"s": (1, 60), "t": (1, 60)}
OTHERS = (64 - S, Mod(S, 8), S - PythonMod(-S, 8), S - T, -S * T, -FloorDiv(S, 2), (S - 3) * (T - 3), Max(0, 3 - S))


def test_sizes_that_may_shrink_are_told_apart() -> None:
    assert all(grows(size, RANGES) for size in GROWING)
    assert not any(grows(size, RANGES) for size in OTHERS)


def test_a_size_that_is_one_number_at_every_length_is_found() -> None:
    rounded = S + Mod(8 - Mod(S, 8), 8)
    assert only_value(FloorDiv(rounded, FloorDiv(rounded, 8)), RANGES) == 8
    assert only_value(rounded, {"s": (1, 8)}) == 8
    assert only_value(rounded, {"s": (1, 9)}) is None
    assert never_below_zero(4 - Mod(S, 5), RANGES)
    assert not never_below_zero(3 - Mod(S, 5), RANGES)
    assert only_value(FloorDiv(S * T, S), {"s": (1, 10**5), "t": (1, 10**5)}) is None, "too many to try"


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 9), st.integers(0, 9))
def test_a_growing_size_is_bounded_by_its_physical_value(s: int, t: int, more_s: int, more_t: int) -> None:
    for size in GROWING:
        assert size.subs({S: s, T: t}) <= size.subs({S: s + more_s, T: t + more_t})
