"""Every rule against brute force: the op on every split of valid and pad, poisoned, against no pads at all."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch.export import Dim
from torch.nn import functional as F

from gaudicc.capture import capture
from gaudicc.errors import NumericsError
from gaudicc.kernels import rms_norm
from gaudicc.padding import certificate_of
from gaudicc.padding.poison import check
from gaudicc.passes import CleanUp, Decompose, RecognizeAttention
from gaudicc.passes.pad import Pad
from gaudicc.pipeline import Pipeline
from gaudicc.program import Program
from gaudicc.targets import load_target
from gaudicc.verify import Level

ops = torch.ops.aten


@dataclass(frozen=True)
class Case:
    """A function of tensors with dynamic sizes.

    `shapes` names the sizes: b, s, t are dynamic, numbers fixed; a trailing letter i makes integers below 4, m a bool,
    f floats. `low` is the least length of s. With `composites` the op reaches its rule whole, as on a target that
    registers it.
    """

    name: str
    function: Callable[..., Any]
    shapes: tuple[str, ...]
    low: int = 1
    composites: bool = False


def case(name: str, function: Callable[..., Any], *shapes: str, low: int = 1) -> Case:
    return Case(name, function, shapes, low)


def index_put_rows(x: torch.Tensor, i: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.Tensor.index_put(x, (i,), v)


CASES = [
    case("add-broadcast", lambda x, y: x * 2 + y, "b s f", "s f"),
    case("size-as-value", lambda x: x / x.shape[1] + x.shape[0], "b s f"),
    case("size-squared", lambda x: x * x.shape[1] ** 2 + (x.shape[0] + 3), "b s f"),
    case("exp-sum", lambda x: x.exp().sum(1), "b s f"),
    case("sum-both", lambda x: x.sum((0, 1)), "b s 3 f"),
    case("sum-all", lambda x: (x + 1).sum(), "b s f"),
    case("sum-of-sums", lambda x: x.sum(1).sum(0), "b s f"),
    case("sum-ints", lambda x: (x + 1).sum(1), "b s i"),
    case("mean", lambda x: x.mean(1), "b s f"),
    case("mean-keep", lambda x: x.cos().mean((0, 1), keepdim=True), "b s f"),
    case("var", lambda x: x.var(1, correction=0), "b s f"),
    case("std", lambda x: x.std((0, 1)), "b s f", low=4),
    case("var-mean", lambda x: torch.var_mean(x, 1, correction=0), "b s f"),
    case("amax", lambda x: x.amax(1), "b s f"),
    case("amin", lambda x: (x + 9).amin(1), "b s f"),
    case("max-all", lambda x: (x - 9).max(), "b s f"),
    case("min-all", lambda x: (x + 9).min(), "b s f"),
    case("max-ints", lambda x: (x.cumsum(1) - 99).amax(1), "b s i"),
    case("max-dim", lambda x: (x - 9).max(1), "b s f"),
    case("min-dim-ties", lambda x: (x + 9).min(1), "b s i"),
    case("argmax-ties", lambda x: (x.cumsum(0) % 4 - x).argmax(1), "b s i"),
    case("argmin", lambda x: (x + 9).argmin(0), "b s f"),
    case("any", lambda x: (x > 9).logical_not().logical_not().any(1), "b s f"),
    case("any-not", lambda x: (x > 0).logical_not().any(1), "b s f"),
    case("all", lambda x: (x > -99).all(1), "b s f"),
    case("all-of-flag", lambda x: (x.abs() > 0).all(), "b s f"),
    case("any-of-flag", lambda x: (x.abs() < 1e-9).any(), "b s f"),
    case("prod", lambda x: x.prod(1), "b s f"),
    case("prod-all", lambda x: x.prod(), "b s f"),
    case("logsumexp", lambda x: x.logsumexp(1), "b s f"),
    case("norm", lambda x: torch.linalg.vector_norm(x + 1, dim=1), "b s f"),
    case("norm-inf", lambda x: torch.linalg.vector_norm(x + 1, float("inf"), dim=(0, 1)), "b s f"),
    case("count-nonzero", lambda x: torch.count_nonzero(x + 1, 1), "b s f"),
    case("softmax", lambda x: x.softmax(1), "b s f"),
    case("softmax-sum", lambda x: (x.softmax(1) * x).sum(1), "b s f"),
    case("log-softmax", lambda x: x.log_softmax(-1), "b s f"),
    case(
        "softmax-minus-inf-mask",
        lambda x, m: x.masked_fill(m.cumsum(0) > 1, float("-inf")).softmax(0).nan_to_num(),
        "s b f",
        "s b m",
    ),
    case("cumsum", lambda x: x.cumsum(1), "b s f"),
    case("cumsum-merged", lambda x: x.reshape(-1).cumsum(0), "b s f"),
    case("cumprod", lambda x: x.cumprod(0), "b s f"),
    case("cummax", lambda x: x.cummax(1), "b s f"),
    case("logcumsumexp", lambda x: x.logcumsumexp(1), "b s f"),
    case("reverse-cumsum", lambda x: x.flip(1).cumsum(1).flip(1), "b s f"),
    case("sort", lambda x: x.sort(1), "b s f"),
    case("sort-down-ties", lambda x: x.sort(dim=1, descending=True, stable=True), "b s i"),
    case("argsort-ties", lambda x: x.argsort(dim=0, stable=True), "s b i"),
    case("sort-static-dim", lambda x: x.sort(-1), "b s 5 f"),
    case("topk", lambda x: x.topk(2, 1).values, "b s f", low=4),
    case("topk-small", lambda x: x.topk(2, 1, largest=False), "b s f", low=4),
    case("topk-static", lambda x: x.reshape(-1, 5).softmax(-1).topk(2), "b s 5 f"),
    case("flip", lambda x: x.flip(0, 1), "b s 2 f"),
    case("flip-static", lambda x: x.flip(1, 2), "b s 2 f"),
    case("roll", lambda x: x.roll(2, 1), "b s f"),
    case("roll-back", lambda x: x.roll((-1, 1), (1, 2)), "b s 3 f"),
    case("cat", lambda x, y: torch.cat([x, y], 1), "b s f", "b t f"),
    case("cat-three", lambda x, y: torch.cat([x, y, x.neg(), y.new_ones(y.shape[0], 2)], 1), "b s f", "b t f"),
    case("cat-cls", lambda x, y: torch.cat([y, x], 1), "b s f", "b 2 f"),
    case("cat-sum", lambda x, y: torch.cat([x + 1, y + 1], 1).sum(1), "b s f", "b t f"),
    case("cat-split-view", lambda x: torch.cat([x, x + 1], 1).view(x.shape[0], 2, -1), "b s f"),
    case("stack", lambda x, y: torch.stack([x, y], 1), "b s f", "b s f"),
    case("last", lambda x: x[:, -1], "b s f"),
    case("last-two", lambda x: x[:, -2:], "b s f", low=4),
    case("not-last", lambda x: x[:, :-1], "b s f", low=4),
    case("shift-mean", lambda x: (x[:, 1:] - x[:, :-1]).sum(1), "b s f", low=4),
    case("strided", lambda x: x[:, ::2].sum(1), "b s f", low=4),
    case("strided-from-one", lambda x: x[:, 1::2], "b s f", low=4),
    case("select-size", lambda x: x[:, x.shape[1] - 1], "b s f"),
    case("select-first", lambda x: x[:, 0] + 1, "b s f"),
    case("slice-to-other", lambda x, y: (x[:, : y.shape[1]] + y).sum(1), "b 70 f", "b s f"),
    case("slice-first", lambda x: x[:, :2].sum(1), "b s f", low=4),
    case("diff", lambda x: x.diff(dim=1), "b s f", low=4),
    case("windows", lambda x: x.unfold(1, 3, 2).sum(-1), "b s f", low=5),
    case("windows-sum", lambda x: x.unfold(1, 2, 1).sum(1), "b s f", low=4),
    case("pad-right", lambda x: F.pad(x + 1, (0, 2), value=7.0), "b s f"),
    case("pad-both-sum", lambda x: F.pad(x + 1, (1, 1)).sum(1), "b s f"),
    case("pad-left", lambda x: F.pad(x + 1, (2, 0)), "b s f"),
    case("gather", lambda x, i: x.gather(1, i), "b 4 f", "b s i"),
    case("gather-shift", lambda x, i: x.gather(1, 3 - i), "b 4 f", "b s i"),
    case("index-select", lambda x, i: x.index_select(0, 3 - i), "4 b f", "s i"),
    case("index-two", lambda x, i, j: x[i, j], "4 4 f", "b 1 i", "s i"),
    case("index-shift", lambda x, i: x[:, 3 - i], "b 4 f", "s i"),
    case("index-negative", lambda x, i: x[:, -1 - (i % 2)], "b s f", "t i", low=4),
    case("index-last", lambda x, i: x[torch.arange(x.shape[0]), i % x.shape[1]], "b s f", "b i"),
    case("last-token", lambda x, m: x[torch.arange(x.shape[0]), m.sum(1) - m.sum(1)], "b s 2 f", "b s i"),
    case("embedding", lambda w, i: F.embedding(3 - i, w), "4 3 f", "b s i"),
    case("scatter", lambda x, i, v: x.scatter(1, 3 - i, v), "b 4 f", "b s i", "b s f"),
    case("scatter-add", lambda x, i, v: x.scatter_add(1, i, v + 1), "b 4 f", "b s i", "b s f"),
    case("scatter-value", lambda x, i: x.scatter(0, 3 - i, 5.0), "4 b f", "s b i"),
    case("index-add", lambda x, i, v: x.index_add(0, i, v + 1), "4 b f", "s i", "s b f"),
    case("index-copy", lambda x, v: x.index_copy(1, torch.arange(v.shape[1]) + 1, v.cos()), "b 9 f", "b s f"),
    case("index-put", index_put_rows, "4 b f", "s i", "s b f"),
    case("index-put-add", lambda x, i, v: ops.index_put(x, [3 - i], v + 1, True), "4 b f", "s i", "s b f"),
    case(
        "index-put-two",
        lambda x, i, v: ops.index_put(x, [torch.arange(x.shape[0])[:, None], i], v),
        "b 4 f",
        "b s i",
        "b s f",
    ),
    case("slice-scatter", lambda x, v: ops.slice_scatter(x, v.exp(), 1, 1, 1 + v.shape[1]), "b 9 f", "b s f"),
    case(
        "slice-scatter-start",
        lambda x, v, y: ops.slice_scatter(x, v.exp(), 1, y.shape[0], y.shape[0] + v.shape[1]),
        "b 12 f",
        "b s f",
        "t f",
    ),
    case("searchsorted", lambda x, v: torch.searchsorted(x.cumsum(-1), v, right=True), "s i", "t i"),
    case("matmul", lambda x, y: x.exp() @ y.exp(), "b s f", "s 3 f"),
    case("matmul-zero-one-side", lambda x, y: x @ y.exp(), "b s f", "s 3 f"),
    case("matmul-batched", lambda x, y: x.exp() @ y.transpose(1, 2), "b 2 s f", "b t s f"),
    case("bmm", lambda x, y: torch.bmm(x.rsqrt(), y.rsqrt()), "b 3 s f", "b s 2 f"),
    case("linear", lambda x, w: F.linear(x, w), "b s 4 f", "3 4 f"),
    case("addmm", lambda x, y, z: torch.addmm(z, x.exp(), y.exp()), "b s f", "s 3 f", "3 f"),
    case(
        "merge-linear-split",
        lambda x, w: F.linear(x.reshape(-1, 4), w).view(x.shape[0], -1, 3).sum(1),
        "b s 4 f",
        "3 4 f",
    ),
    case("merge-add-arange", lambda x: x.reshape(-1) + torch.arange(x.numel()), "b s f"),
    case("merge-argmax", lambda x: x.reshape(-1).argmax(0), "b s f"),
    case("merge-index", lambda x, i: x.reshape(-1, 3)[i % 2], "b s 3 f", "t i", low=4),
    case("swap-view", lambda x: x.reshape(x.shape[1], x.shape[0]), "b s f"),
    case("repeat", lambda x: x.repeat(1, 2), "b s f"),
    case("repeat-interleave", lambda x: x.repeat_interleave(3, 1).sum(1), "b s f"),
    case("expand", lambda x, y: x[:, None].expand(-1, y.shape[0], -1).sum(1), "b 3 f", "s f"),
    case("tril", lambda x, y: (x[:, None] * y[None]).tril().sum(1), "s f", "t f"),
    case("triu", lambda x: (x[:, :, None] + x[:, None, :]).triu(1), "b s f"),
    case("arange-from-size", lambda x, y: torch.arange(x.shape[0], x.shape[0] + y.shape[0]) * 2, "s f", "t f"),
    case("full-of-size", lambda x: torch.full((x.shape[0], 2), x.shape[1], dtype=torch.float32), "b s f"),
    case(
        "sdpa",
        lambda q, k, v: F.scaled_dot_product_attention(q.cos(), k.exp(), v.exp()),
        "b 2 s 4 f",
        "b 2 t 4 f",
        "b 2 t 4 f",
    ),
    case("layer-norm", lambda x: F.layer_norm(x, (4,)), "b s 4 f"),
    case("group-norm", lambda x: F.group_norm(x, 2, eps=1e-3), "b 4 s f", low=4),
    case("conv1d", lambda x, w: F.conv1d(x.cos(), w, padding=1), "b 2 s f", "3 2 3 f"),
    case(
        "conv1d-stride",
        lambda x, w: F.conv1d(F.conv1d(x, w, padding=1, stride=2), w, padding=1),
        "b 3 s f",
        "3 3 3 f",
        low=3,
    ),
    case("conv1d-valid", lambda x, w: F.conv1d(x.cos(), w), "b 2 s f", "3 2 3 f", low=4),
    case("conv2d", lambda x, w: F.conv2d(x.cos(), w, padding=1), "1 2 s t f", "3 2 3 3 f"),
    case("conv-transpose", lambda x, w: F.conv_transpose1d(x.cos(), w, stride=2), "b 2 s f", "2 3 3 f"),
    case("max-pool2d", lambda x: F.max_pool2d(x - 9, 2, 1, padding=1), "1 2 s t f", low=4),
    case("avg-pool", lambda x: F.avg_pool1d(x.cos(), 3, 2, padding=1), "b 2 s f", low=4),
    case("avg-pool-valid", lambda x: F.avg_pool2d(x.cos(), (2, 1), 1), "1 2 s t f", low=4),
    case("masked-mean", lambda x, m: (x * m[..., None]).sum(1) / m.sum(1)[:, None].clamp(min=1), "b s 2 f", "b s i"),
]


def whole(name: str, function: Callable[..., Any], *shapes: str, low: int = 1) -> Case:
    return Case(name, function, shapes, low, composites=True)


CASES += [
    case("mean-all", lambda x: x.mean(), "b s f"),
    case("nansum", lambda x: (x + 1).nansum(1), "b s f"),
    case("count-nonzero-dims", lambda x: torch.count_nonzero(x + 1, (0, 1)), "b s 2 f"),
    case("any-dims", lambda x: ops.any.dims((x > 0).logical_not(), [0, 1]), "b s 2 f"),
    case("all-dims", lambda x: ops.all.dims(x > -99, [0, 1]), "b s 2 f"),
    case("cummin", lambda x: x.cummin(1), "b s f"),
    case("softmax-native", lambda x: ops._softmax(x, 1, False), "b s f"),
    case(
        "factories", lambda x: x + torch.zeros(x.shape[1]) + torch.ones(x.shape[0], 1) + x.new_zeros(x.shape), "b s f"
    ),
    case(
        "factories-like", lambda x: (x + ops.ones_like(x) + ops.full_like(x, 2.0) + ops.zeros_like(x)).sum(1), "b s f"
    ),
    case("new-full", lambda x: (x + x.new_full((x.shape[0], x.shape[1]), 3.0)).sum(1), "b s f"),
    case("empty", lambda x: torch.where(x == x, x, ops.empty_like(x) + torch.empty(x.shape[0], 1)), "b s f"),
    case("copy", lambda x, y: ops.copy(x.exp(), y).sum(1) + ops.copy(x, y + 1).sum(1), "b s f", "b s f"),
    case("copy-half", lambda x, y: ops.copy(x.half(), y).sum(1), "b s f", "b s f"),
    case("select-scatter", lambda x, y: ops.select_scatter(x, y.exp(), 2, -1).sum(1), "b s 3 f", "b s f"),
    case("select-scatter-padded", lambda x, y: ops.select_scatter(x, y.exp(), 1, 0).sum(1), "b s f", "b f"),
    case("new-empty", lambda x: torch.where(x == x, x, x.new_empty(x.shape)).sum(1), "b s f"),
    case("arange-step", lambda x: torch.arange(0, 2 * x.shape[0], 2), "b s f"),
    case("split", lambda x: x.split(2, 2)[1].sum(1), "b s 4 f"),
    case("split-sizes", lambda x: x.split([1, 3], 2)[1].sum(1), "b s 4 f"),
    case("chunk", lambda x: ops.chunk(x, 2, 2)[1].sum(1), "b s 4 f"),
    case("unbind", lambda x: x.unbind(2)[1].sum(1), "b s 3 f"),
    case(
        "complex", lambda x: torch.view_as_real(torch.view_as_complex(x) * torch.view_as_complex(x)).sum(1), "b s 2 f"
    ),
    case("squeeze-all", lambda x: (x[:, :, None] + 1).squeeze().sum(1), "3 s f", low=2),
    case("unsafe-view", lambda x: ops._unsafe_view(x, [x.shape[0], x.shape[1] * 2]).sum(1), "b s 2 f"),
    case("unsafe-index", lambda x, i: ops._unsafe_index(x, [None, 3 - i]), "b 4 f", "s i"),
    case("scatter-reduce", lambda x, i, v: x.scatter_reduce(1, i, v + 9, "amax"), "b 4 f", "b s i", "b s f"),
    case(
        "scatter-mean", lambda x, i, v: x.scatter_reduce(1, i, v, "mean", include_self=False), "b 4 f", "b s i", "b s f"
    ),
    case("index-fill", lambda x, i: x.index_fill(1, 3 - i, 2.0), "b 4 f", "s i"),
    case("mm", lambda x, y: x.exp().mm(y.exp()), "b s f", "s t f"),
    case("mv", lambda x, y: x.exp().mv(y.exp()), "b s f", "s f"),
    case("dot", lambda x, y: x.exp().dot(y.exp()), "s f", "s f"),
    case("baddbmm", lambda x, y, z: torch.baddbmm(z, x.exp(), y.exp()), "b 3 s f", "b s 2 f", "b 3 2 f"),
    case("rms-norm", lambda x, w: rms_norm(x, w, 1e-5, False), "b s 4 f", "4 f"),
    whole("reshape", lambda x: ops.reshape(x, [x.shape[0], -1]).sum(1), "b s 3 f"),
    whole("reshape-copy", lambda x: ops._reshape_copy(x, [x.shape[0], x.shape[1] * 3]).sum(1), "b s 3 f"),
    whole("t", lambda x: ops.t(x.exp()).sum(0), "b s f"),
    whole("mT", lambda x: ops.mT(x.exp()).sum(1), "b s 3 f"),
    whole("numpy-T", lambda x: ops.numpy_T(x.exp()).sum(0), "b s f"),
    whole("swapaxes", lambda x: ops.swapaxes(x.exp(), 0, 1).sum(0), "b s f"),
    whole("var-dim", lambda x: ops.var.dim(x, [1], False), "b s f"),
    whole("std-dim", lambda x: ops.std.dim(x, [0, 1], False), "b s f"),
    whole("softmax-whole", lambda x: ops.softmax.int(x, 1), "b s f"),
    whole("log-softmax-whole", lambda x: ops.log_softmax.int(x, 1), "b s f"),
    whole("argsort-whole", lambda x: ops.argsort(x.cumsum(1), 1), "b s f"),
    whole("argsort-stable", lambda x: ops.argsort.stable(-x, stable=True, dim=1, descending=True), "b s i"),
    case("scalar-of-size", lambda x: x + ops.scalar_tensor(x.shape[1]), "b s f"),
    whole("conv1d-whole", lambda x, w: ops.conv1d(x.cos(), w, None, [2], [1]), "b 2 s f", "3 2 3 f", low=3),
    whole("conv2d-whole", lambda x, w: ops.conv2d(x.cos(), w, None, [1, 1], [1, 1]), "1 2 s t f", "3 2 3 3 f"),
    whole("conv3d-whole", lambda x, w: ops.conv3d(x.cos(), w, None, [1] * 3, [1] * 3), "1 2 s t 2 f", "3 2 3 3 3 f"),
    whole("max-pool2d-whole", lambda x: ops.max_pool2d(x - 9, [2, 2], [1, 1], [1, 1]), "1 2 s t f", low=4),
    whole("avg-pool1d-whole", lambda x: ops.avg_pool1d(x.cos(), [3], [2], [1]), "b 2 s f", low=4),
    whole("layer-norm-whole", lambda x: ops.layer_norm(x, [4]), "b s 4 f"),
    whole("rms-norm-whole", lambda x: ops.rms_norm(x, [4]), "b s 4 f"),
    whole("group-norm-whole", lambda x, w: ops.group_norm(x, 2, w, w, 1e-3), "b 4 s f", "4 f", low=4),
    whole(
        "batch-norm-whole", lambda x, w: ops.batch_norm(x, w, w, w, w * w, False, 0.1, 1e-5, False), "b 4 s f", "4 f"
    ),
    case(
        "batch-norm",
        lambda x, w: ops._native_batch_norm_legit_no_training(x, w, w, w, w * w, 0.1, 1e-5)[0],
        "b 4 s f",
        "4 f",
    ),
]
BUCKET = {"b": 3, "s": 6, "t": 5}


def tensors(case: Case, sizes: dict[str, int], seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for shape in case.shapes:
        *dims, kind = shape.split()
        given = [sizes[dim] if dim in sizes else int(dim) for dim in dims]
        if kind == "f":
            made.append(torch.randn(given, generator=generator))
        elif kind == "m":
            made.append(torch.rand(given, generator=generator) < 0.3)
        else:
            made.append(torch.randint(0, 4, given, generator=generator))
    return tuple(made)


@lru_cache
def captured(case: Case) -> Program:
    names = [f"arg{i}" for i in range(len(case.shapes))]
    scope: dict[str, Any] = {"function": case.function}
    exec(f"def forward(self, {', '.join(names)}):\n    return function({', '.join(names)})", scope)
    module = type("Model", (torch.nn.Module,), {"forward": scope["forward"]})().eval()
    dims = {letter: Dim(letter, min=case.low if letter == "s" else 1, max=64) for letter in BUCKET}
    shapes = {
        name: {i: dims[dim] for i, dim in enumerate(shape.split()[:-1]) if dim in dims}
        for name, shape in zip(names, case.shapes, strict=True)
    }
    program = capture(module, tensors(case, BUCKET), dynamic_shapes=shapes)
    program.target = load_target("gaudi3")
    passes = (CleanUp(),) if case.composites else (RecognizeAttention(), Decompose(), CleanUp())
    return Pipeline(passes).run(program, level=Level.STRUCTURE)[0]


def calls(program: Program, case: Case, limit: int = 24) -> Iterator[tuple[dict[str, torch.Tensor], dict[str, int]]]:
    used = {dim.name for dim in program.dimensions}
    ranges = [
        range(case.low if name == "s" else 1, BUCKET[name] + 1) if name in used else [BUCKET[name]] for name in BUCKET
    ]
    splits = list(itertools.product(*ranges))
    step = -(-len(splits) // limit) | 1  # an odd stride meets every length of every dim
    for i, lengths in enumerate(splits):
        if i % step == 0:
            given = tensors(case, dict(zip(BUCKET, lengths, strict=True)), seed=i)
            by_source = {f"arg{n}": tensor for n, tensor in enumerate(given)}
            inputs = {spec.name: by_source[spec.source] for spec in program.user_inputs()}
            yield inputs, {dim.name: BUCKET[dim.name] for dim in program.dimensions}


def masks_inserted(program: Program, padded: Program) -> list[str]:
    """The `where` nodes that padding added to the root."""
    before = {node.name for node in program.root.graph.nodes}
    where = [node for node in padded.root.graph.nodes if node.target is ops.where.self]
    return [node.name for node in where if node.name not in before and is_fill(node)]


def is_fill(node: torch.fx.Node) -> bool:
    """Whether a `where` keeps one operand where valid and a 0-d value elsewhere."""
    return isinstance(node.args[2], torch.fx.Node) and node.args[2].meta["val"].dim() == 0


def mutated(padded: Program, name: str, how: str) -> Program:
    """The program with one mask deleted or negated, and no claim made on it."""
    copy = padded.copy()
    node = next(node for node in copy.root.graph.nodes if node.name == name)
    mask, kept, value = node.args
    node.args = (mask, kept, kept) if how == "deleted" else (mask, value, kept)
    node.meta.pop("pads", None)
    copy.root.recompile()
    return copy


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_split_of_valid_and_pad(case: Case) -> None:
    """Against brute force; in strict mode too; and each mask is needed: deleted or negated, it is missed."""
    program = captured(case)
    padded = Pad().run(program.copy()).program
    check(padded, program, calls(program, case))
    survivors = [
        (name, how)
        for name in masks_inserted(program, padded)
        for how in ("deleted", "negated")
        if passes(mutated(padded, name, how), program, case)
    ]
    assert not survivors
    if certificate_of(padded).finite:
        strict = Pad(strict=True).run(program.copy()).program
        assert not certificate_of(strict).finite
        check(strict, program, calls(program, case, limit=6))


def passes(mutant: Program, program: Program, case: Case) -> bool:
    try:
        check(mutant, program, calls(program, case))
    except (NumericsError, IndexError, RuntimeError):
        return False
    return True
