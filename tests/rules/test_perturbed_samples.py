"""PyTorch's operator samples that a rule takes, with other strides, without entries, and with values at the edges.

Each is judged as in `gaudicc.bench.legal`: captured, legalised, run by the rule interpreter and compared with eager. What eager
refuses is no sample.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from itertools import islice
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from gaudicc.bench.legal_samples import ENTRIES, Status, judge, name_of

PLACES = {name_of(entry): place for place, entry in enumerate(ENTRIES)}
# Where a number that is none goes further than in eager, and why.
SPREADING = {
    "fft": "a transform is a matrix product, in which NaN meets every entry",
    "stft": "a transform is a matrix product, in which NaN meets every entry",
    "_upsample_bilinear2d_aa": "a resize is a matrix product, in which NaN meets every entry",
    "nn.functional.interpolate": "PyTorch decomposes it to a difference, which is NaN beside infinity",
    "nn.functional.upsample_bilinear": "PyTorch decomposes it to a difference, which is NaN beside infinity",
    "nn.functional.multi_margin_loss": "PyTorch decomposes it to a clamp, where its kernel leaves NaN out",
    "qr": "a factor of a matrix that is NaN in part is NaN",
    "linalg.qr": "a factor of a matrix that is NaN in part is NaN",
    "linalg.householder_product": "a factor of a matrix that is NaN in part is NaN",
    "geqrf": "a factor of a matrix that is NaN in part is NaN",
    "ormqr": "a factor of a matrix that is NaN in part is NaN",
    "mode": "what eager picks beside NaN depends on its sort",
    "special": "a degree that is NaN becomes any integer in eager's kernels",
}


def transposed(x: Tensor) -> Tensor:
    return x.mT.contiguous().mT if x.dim() > 1 else torch.stack([x, x], -1)[..., 0]


def cut(x: Tensor) -> Tensor:
    return torch.cat([x, x, x], -1)[..., x.shape[-1] : 2 * x.shape[-1]] if x.dim() else x


def holding(*values: float) -> Callable[[Tensor], Tensor]:
    """Puts values at a few places of a tensor of floats."""

    def put(x: Tensor) -> Tensor:
        if not x.is_floating_point() or not x.numel():
            return x
        flat = x.flatten().clone()
        for index, value in enumerate(values):
            flat[(7 * index + 1) % flat.numel()] = value
        return flat.view(x.shape)

    return put


def extreme(x: Tensor) -> Tensor:
    """The largest and the smallest integer; of int64 those that the device has."""
    if x.is_floating_point() or x.dtype is torch.bool or not x.numel():
        return x
    info = torch.iinfo(torch.int32 if x.dtype is torch.int64 else x.dtype)
    return torch.cat([torch.tensor([info.max, info.min], dtype=x.dtype), x.flatten()])[: x.numel()].view(x.shape)


SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": transposed,
    "cut": cut,
    "no rows": lambda x: x[:0] if x.dim() else x,
    "no columns": lambda x: x[..., :0] if x.dim() else x,
}
VALUES: dict[str, Callable[[Tensor], Tensor]] = {
    "nan": holding(float("nan")),
    "infinity": holding(float("inf"), -float("inf")),
    "zero": holding(-0.0, 0.0),
    "extreme": extreme,
}


def faults(place: int, dtype: torch.dtype, limit: int) -> Iterator[str]:
    """What is wrong with the samples of an entry that a rule takes, at most so many of them, once they are perturbed."""
    warnings.simplefilter("ignore")
    entry, name = ENTRIES[place], name_of(ENTRIES[place])
    spreads = any(name == known or name.startswith(f"{known}.") for known in SPREADING)
    ruled = (each for each in entry.sample_inputs("cpu", dtype) if judge(entry, each).status is Status.RULE)
    for sample in islice(ruled, limit):
        for change, perturb in (SHAPES if spreads else SHAPES | VALUES).items():
            perturbed = _perturbed(sample, perturb)
            if perturbed is None or not _runs(entry, perturbed):
                continue
            outcome = judge(entry, perturbed)
            if outcome.status >= Status.FAULT:
                yield f"{name}, {change}: {outcome.detail}"


def _perturbed(sample: Any, perturb: Callable[[Tensor], Tensor]) -> Any:
    """A sample with other tensors; None if nothing changes."""
    leaves, spec = pytree.tree_flatten((sample.input, sample.args, sample.kwargs))
    leaves = [leaf.detach() if _is_plain(leaf) else leaf for leaf in leaves]
    changed = [perturb(leaf) if _is_plain(leaf) else leaf for leaf in leaves]
    parts = pytree.tree_unflatten(changed, spec)
    same = all(new is old for new, old in zip(changed, leaves, strict=True))
    return None if same else SimpleNamespace(input=parts[0], args=parts[1], kwargs=parts[2])


def _is_plain(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.layout is torch.strided and not leaf.is_complex()


def _runs(entry: Any, sample: Any) -> bool:
    try:
        entry(*pytree.tree_map_only(Tensor, torch.clone, (sample.input, *sample.args)), **sample.kwargs)
    except (RuntimeError, IndexError, ValueError, TypeError):
        return False
    return True


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("cdist", torch.float32),
        ("sort", torch.int64),
        ("topk", torch.int64),
        ("scatter_add", torch.int64),
        ("nanmedian", torch.float32),
    ],
)
def test_perturbed_samples(name: str, dtype: torch.dtype) -> None:
    assert list(faults(PLACES[name], dtype, 1)) == []


@pytest.mark.sweep
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool])
@pytest.mark.parametrize("name", PLACES)
def test_all_perturbed_samples(name: str, dtype: torch.dtype) -> None:
    if dtype not in ENTRIES[PLACES[name]].dtypes:
        pytest.skip(f"the entry has no {dtype}")
    assert list(faults(PLACES[name], dtype, 2)) == []
