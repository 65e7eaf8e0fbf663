"""Fourier transforms on pairs of reals: against PyTorch's complex ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gaudicc.errors import UnsupportedOpError
from gaudicc.rules import fourier
from gaudicc.rules.complex_pairs import Pair

aten = torch.ops.aten
SHAPE = st.lists(st.integers(1, 7), min_size=1, max_size=3)


def random(shape: list[int], dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


def close(found: Pair | Tensor, wanted: Tensor) -> None:
    parts = found.parts if isinstance(found, Pair) else found
    torch.testing.assert_close(
        parts, torch.view_as_real(wanted) if wanted.is_complex() else wanted, rtol=1e-4, atol=1e-4
    )


@given(shape=SHAPE, data=st.data(), normalization=st.integers(0, 2), flag=st.booleans())
def test_every_kind(shape: list[int], data: st.DataObject, normalization: int, flag: bool) -> None:
    dims = data.draw(st.permutations(range(len(shape))))[: data.draw(st.integers(1, len(shape)))]
    real, compound = random(shape, torch.float32), random(shape, torch.complex64)
    pairs = Pair(torch.view_as_real(compound))
    close(fourier.real_to_complex(real, dims, normalization, flag), aten._fft_r2c(real, dims, normalization, flag))
    close(
        fourier.complex_to_complex(pairs, dims, normalization, flag), aten._fft_c2c(compound, dims, normalization, flag)
    )
    size = 2 * (shape[dims[-1]] - 1) + flag
    if size:
        wanted = aten._fft_c2r(compound, dims, normalization, size)
        close(fourier.complex_to_real(pairs, dims, normalization, size), wanted)


def test_long_transforms_stay_exact_in_their_angles() -> None:
    x = random([1000], torch.float32)
    close(fourier.real_to_complex(x, [0], 1, True), aten._fft_r2c(x, [0], 1, True))


def test_a_spectrum_in_a_model_runs_on_evidence(legally: Callable[..., Any]) -> None:
    def model(x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(x, n=12, norm="ortho")
        result: Tensor = torch.fft.irfft(spectrum, n=12, norm="ortho") + torch.fft.fft2(x).abs()[..., :1]
        return result

    x = random([3, 8], torch.float32)
    (found,) = legally(model, x)
    torch.testing.assert_close(found, model(x), rtol=1e-4, atol=1e-4)


def test_a_transform_too_long_for_a_matrix_is_refused(legally: Callable[..., Any]) -> None:
    with pytest.raises(UnsupportedOpError, match="5000 points"):
        legally(lambda x: torch.fft.rfft(x).abs(), torch.randn(5000))
