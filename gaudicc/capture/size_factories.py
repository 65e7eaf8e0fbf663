"""Capture, around export: tensors that torch makes for plain numbers only, made of what it makes for sizes too."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from gaudicc.capture.size_forms import wherever_imported


@contextmanager
def sizes_make_tensors() -> Iterator[None]:
    """Inside, `one_hot`, `tril_indices`, `triu_indices`, windows, `logspace` and pooling to one element take sizes."""
    with ExitStack() as patches:
        for home, plain, other in _FORMS:
            patches.enter_context(wherever_imported(home, plain, other))
        yield


def _is_size(value: Any) -> bool:
    return isinstance(value, torch.SymInt)


def _count(size: Any, **options: Any) -> Tensor:
    positions: Tensor = torch.arange(size, **options)
    return positions


_plain_one_hot, _plain_logspace = functional.one_hot, torch.logspace


@wraps(_plain_one_hot)
def _one_hot(tensor: Tensor, num_classes: Any = -1) -> Tensor:
    if not _is_size(num_classes):
        return _plain_one_hot(tensor, num_classes)
    return (tensor[..., None] == _count(num_classes, device=tensor.device)).to(torch.int64)


@wraps(_plain_logspace)
def _logspace(start: Any, end: Any, steps: Any, base: float = 10.0, **options: Any) -> Tensor:
    if not _is_size(steps):
        return _plain_logspace(start, end, steps, base, **options)
    return torch.pow(base, torch.linspace(start, end, steps, **options))


def _below(row: Any, column: Any, offset: Any) -> Any:
    """How many places of `row` rows of `column` columns are on the diagonal or below it."""

    def up_to(last: Any) -> Any:
        """The sum of min(j, column) for j from 1 to last."""
        most = torch.sym_max(last, 0)
        over = torch.sym_max(most - column, 0)
        return (most * (most + 1) - over * (over + 1)) // 2

    return up_to(row + offset) - up_to(offset)


def places_of_triangle(
    row: Any, column: Any, offset: Any, lower: bool, dtype: torch.dtype = torch.int64, device: Any = None, **_: Any
) -> Tensor:
    """The places of a triangle row by row: each is in the first row that ends behind it.

    Args:
        row: number of rows.
        column: number of columns.
        offset: of the diagonal.
        lower: whether what is below the diagonal is meant.
        dtype: of the places.
        device: of the places.
    """
    ends_at = (_count(row, device=device) + offset + (1 if lower else 0)).clamp(min=0)
    bound = torch.minimum(ends_at, torch.scalar_tensor(column, dtype=torch.int64, device=device))
    lengths = bound if lower else column - bound
    ends = lengths.cumsum(0)
    number = _below(row, column, offset) if lower else row * column - _below(row, column, offset - 1)
    place = _count(number, device=device)
    at = torch.searchsorted(ends, place, right=True)
    within = place - (ends - lengths)[at]
    return torch.stack([at, within if lower else within + bound[at]]).to(dtype)


def _triangle(plain: Any, lower: bool) -> Any:
    @wraps(plain)
    def indices(row: Any, col: Any, offset: Any = 0, **options: Any) -> Tensor:
        if not any(map(_is_size, (row, col, offset))):
            made: Tensor = plain(row, col, offset, **options)
            return made
        return places_of_triangle(row, col, offset, lower, **options)

    return indices


def _window(plain: Any, *weights: float) -> Any:
    """A window that is a sum of cosines, with alternating signs."""

    @wraps(plain)
    def window(window_length: Any, periodic: bool = True, *given: Any, **options: Any) -> Tensor:
        if not _is_size(window_length) or given or "alpha" in options or "beta" in options:
            made: Tensor = plain(window_length, periodic, *given, **options)
            return made
        dtype = options.get("dtype") or torch.get_default_dtype()
        last = torch.sym_max(window_length if periodic else window_length - 1, 1)
        angle = _count(window_length, device=options.get("device")).to(dtype) * (2 * math.pi / last)
        terms = [(-1) ** k * weight * torch.cos(angle * k) for k, weight in enumerate(weights)]
        whole = sum(terms[1:], terms[0])
        return torch.where(torch.scalar_tensor(window_length, device=whole.device) == 1, torch.ones_like(whole), whole)

    return window


def _largest(plain: Any, rank: int) -> Any:
    """Pooling to one element is the maximum."""

    @wraps(plain)
    def pooled(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
        wanted = output_size if isinstance(output_size, (tuple, list)) else (output_size,)
        if return_indices or any(size != 1 for size in wanted) or not any(map(_is_size, input.shape[-rank:])):
            return plain(input, output_size, return_indices)
        return input.amax(tuple(range(-rank, 0)), keepdim=True)

    return pooled


_FORMS: tuple[tuple[ModuleType, Any, Any], ...] = (
    (functional, functional.one_hot, _one_hot),
    (torch, torch.tril_indices, _triangle(torch.tril_indices, True)),
    (torch, torch.triu_indices, _triangle(torch.triu_indices, False)),
    (torch, torch.hann_window, _window(torch.hann_window, 0.5, 0.5)),
    (torch, torch.hamming_window, _window(torch.hamming_window, 0.54, 0.46)),
    (torch, torch.blackman_window, _window(torch.blackman_window, 0.42, 0.5, 0.08)),
    (torch, torch.logspace, _logspace),
    (functional, functional.adaptive_max_pool1d, _largest(functional.adaptive_max_pool1d, 1)),
    (functional, functional.adaptive_max_pool2d, _largest(functional.adaptive_max_pool2d, 2)),
    (functional, functional.adaptive_max_pool3d, _largest(functional.adaptive_max_pool3d, 3)),
)
