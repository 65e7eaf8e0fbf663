"""Rules of pointwise ops, reductions, softmax, cumulative ops and sorting, against brute force (see conftest.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from gaudicc.padding.rules import losses, medians, ordering, pointwise, reductions

ops = torch.ops.aten

CASES: dict[str, tuple[Any, ...]] = {
    "add-broadcast": (lambda x, y: x * 2 + y, "b s f", "s f"),
    "size-as-value": (lambda x: x / x.shape[1] + x.shape[0], "b s f"),
    "size-squared": (lambda x: x * x.shape[1] ** 2 + (x.shape[0] + 3), "b s f"),
    "exp-sum": (lambda x: x.exp().sum(1), "b s f"),
    "sum-both": (lambda x: x.sum((0, 1)), "b s 3 f"),
    "sum-all": (lambda x: (x + 1).sum(), "b s f"),
    "sum-of-sums": (lambda x: x.sum(1).sum(0), "b s f"),
    "sum-ints": (lambda x: (x + 1).sum(1), "b s i"),
    "mean": (lambda x: x.mean(1), "b s f"),
    "mean-keep": (lambda x: x.cos().mean((0, 1), keepdim=True), "b s f"),
    "var": (lambda x: x.var(1, correction=0), "b s f"),
    "std": (lambda x: x.std((0, 1)), "b s:4 f"),
    "var-mean": (lambda x: torch.var_mean(x, 1, correction=0), "b s f"),
    "amax": (lambda x: x.amax(1), "b s f"),
    "amin": (lambda x: (x + 9).amin(1), "b s f"),
    "max-all": (lambda x: (x - 9).max(), "b s f"),
    "min-all": (lambda x: (x + 9).min(), "b s f"),
    "max-ints": (lambda x: (x.cumsum(1) - 99).amax(1), "b s i"),
    "min-ints": (lambda x: (x + 9).amin(0), "b s i"),
    "max-all-ints": (lambda x: (-x - 9).max(), "b s i"),
    "max-dim": (lambda x: (x - 9).max(1), "b s f"),
    "min-dim-ties": (lambda x: (x + 9).min(1), "b s i"),
    "argmax-ties": (lambda x: (x.cumsum(0) % 4 - x).argmax(1), "b s i"),
    "argmin": (lambda x: (x + 9).argmin(0), "b s f"),
    "any": (lambda x: (x > 9).logical_not().logical_not().any(1), "b s f"),
    "any-not": (lambda x: (x > 0).logical_not().any(1), "b s f"),
    "all": (lambda x: (x > -99).all(1), "b s f"),
    "all-of-flag": (lambda x: (x.abs() > 0).all(), "b s f"),
    "any-of-flag": (lambda x: (x.abs() < 1e-9).any(), "b s f"),
    "prod": (lambda x: x.prod(1), "b s f"),
    "prod-all": (lambda x: x.prod(), "b s f"),
    "logsumexp": (lambda x: x.logsumexp(1), "b s f"),
    "norm": (lambda x: torch.linalg.vector_norm(x + 1, dim=1), "b s f"),
    "norm-op": (lambda x: ops.norm.ScalarOpt_dim(x + 1, 2, [1]), "b s f"),
    "zero": (lambda x: ops.zero(x.exp()).sum(1), "b s f"),
    "norm-inf": (lambda x: torch.linalg.vector_norm(x + 1, float("inf"), dim=(0, 1)), "b s f"),
    "count-nonzero": (lambda x: torch.count_nonzero(x + 1, 1), "b s f"),
    "softmax": (lambda x: x.softmax(1), "b s f"),
    "softmax-sum": (lambda x: (x.softmax(1) * x).sum(1), "b s f"),
    "log-softmax": (lambda x: x.log_softmax(-1), "b s f"),
    "softmax-minus-inf-mask": (
        lambda x, m: x.masked_fill(m.cumsum(0) > 1, float("-inf")).softmax(0).nan_to_num(),
        "s b f",
        "s b m",
    ),
    "cumsum": (lambda x: x.cumsum(1), "b s f"),
    "cumsum-merged": (lambda x: x.reshape(-1).cumsum(0), "b s f"),
    "cumprod": (lambda x: x.cumprod(0), "b s f"),
    "cummax": (lambda x: x.cummax(1), "b s f"),
    "logcumsumexp": (lambda x: x.logcumsumexp(1), "b s f"),
    "reverse-cumsum": (lambda x: x.flip(1).cumsum(1).flip(1), "b s f"),
    "sort": (lambda x: x.sort(1), "b s f"),
    "sort-down-ties": (lambda x: (-x - 1).sort(dim=1, descending=True, stable=True), "b s i"),
    "argsort-ties": (lambda x: x.argsort(dim=0, stable=True), "s b i"),
    "sort-static-dim": (lambda x: x.sort(-1), "b s 5 f"),
    "topk": (lambda x: x.topk(2, 1).values, "b s:4 f"),
    "topk-small": (lambda x: x.topk(2, 1, largest=False), "b s:4 f"),
    "topk-static": (lambda x: x.reshape(-1, 5).softmax(-1).topk(2), "b s 5 f"),
    "masked-mean": (lambda x, m: (x * m[..., None]).sum(1) / m.sum(1)[:, None].clamp(min=1), "b s 2 f", "b s i"),
    "mean-all": (lambda x: x.mean(), "b s f"),
    "log-sigmoid": (lambda x: (ops.log_sigmoid_forward(x)[0] * x).sum(1), "b s f"),
    "glu": (lambda x: (torch.nn.functional.glu(x + 1, 1) * 2).sum(2), "b 4 s f"),
    "glu-padded": (lambda x: torch.nn.functional.glu(torch.cat([x + 1, x.cos()], 1), 1).sum(1), "b s f"),
    "rsub": (lambda x, y: ops.rsub.Tensor(x.exp(), y).sum(1), "b s f", "b s f"),
    "floor-divide": (lambda x, y: ops.floor_divide(x + 7, y + 1).sum(1), "b s i", "b s i"),
    "nansum": (lambda x: (x + 1).nansum(1), "b s f"),
    "count-nonzero-dims": (lambda x: torch.count_nonzero(x + 1, (0, 1)), "b s 2 f"),
    "any-dims": (lambda x: ops.any.dims((x > 0).logical_not(), [0, 1]), "b s 2 f"),
    "all-dims": (lambda x: ops.all.dims(x > -99, [0, 1]), "b s 2 f"),
    "cummin": (lambda x: x.cummin(1), "b s f"),
    "softmax-native": (lambda x: ops._softmax(x, 1, False), "b s f"),
    "median": (lambda x: (x - 9).median(1).values, "b s f"),
    "median-nan": (lambda x: (x + 0.7).log().median(1).values, "b s f"),
    "median-static": (lambda x: x.median(1).values.sum(0), "b 5 f"),
    "median-ints": (lambda x: (x - 9).median(0, keepdim=True).values, "s b i"),
    "median-all": (lambda x: (x - 9).median(), "b s f"),
    "nanmedian": (lambda x: (x + 0.7).log().nanmedian(1, keepdim=True).values, "b s f"),
    "nanmedian-all": (lambda x: x.log().nanmedian(), "b s f"),
    "kth": (lambda x: (x - 9).kthvalue(2, 1).values, "b s:4 f"),
    "kth-of-size": (lambda x: x.kthvalue(x.shape[1], 1).values, "b s f"),
    "copy": (lambda x, y: ops.copy(x.exp(), y).sum(1) + ops.copy(x, y + 1).sum(1), "b s f", "b s f"),
    "nll": (lambda x, t: torch.nn.functional.cross_entropy(x, t.abs() % 3), "b 3 f", "b i"),
    "nll-each": (
        lambda x, t: torch.nn.functional.cross_entropy(x, t.abs() % 3, reduction="none").sum(0),
        "b 3 f",
        "b i",
    ),
    "nll-merged": (
        lambda x, t: torch.nn.functional.cross_entropy(
            x.reshape(-1, 3),
            (t.abs() % 3).reshape(-1),
            ignore_index=1,
            reduction="sum",
            weight=torch.tensor([1.0, 2, 3]),
        ),
        "b s 3 f",
        "b s i",
    ),
    "nll-classes-padded": (lambda x: torch.nn.functional.nll_loss(x.exp(), torch.tensor([0, 0])), "2 s f"),
    "nll-2d": (
        lambda x, t: torch.nn.functional.cross_entropy(x, t.abs() % 3, reduction="none").sum(1),
        "b 3 s 2 f",
        "b s 2 i",
    ),
    "copy-half": (lambda x, y: ops.copy(x.half(), y).sum(1), "b s f", "b s f"),
}
# The op reaches its rule whole, as on a target that registers it.
WHOLE: dict[str, tuple[Any, ...]] = {
    "var-dim": (lambda x: ops.var.dim(x, [1], False), "b s f"),
    "std-dim": (lambda x: ops.std.dim(x, [0, 1], False), "b s f"),
    "softmax-whole": (lambda x: ops.softmax.int(x, 1), "b s f"),
    "log-softmax-whole": (lambda x: ops.log_softmax.int(x, 1), "b s f"),
    "argsort-whole": (lambda x: ops.argsort(x.cumsum(1), 1), "b s f"),
    "argsort-stable": (lambda x: ops.argsort.stable(-x, stable=True, dim=1, descending=True), "b s i"),
}


@pytest.mark.parametrize("name", [*CASES, *WHOLE])
def test_every_split_of_valid_and_pad(name: str, brute_force: Callable[..., set[Any]]) -> None:
    brute_force(*(CASES.get(name) or WHOLE[name]), composites=name in WHOLE)


@pytest.mark.sweep
def test_every_rule_has_a_case(brute_force: Callable[..., set[Any]]) -> None:
    met = set().union(*(brute_force(*case, composites=name in WHOLE) for name, case in {**CASES, **WHOLE}.items()))
    table = (
        *pointwise.RULES,
        *reductions.RULES,
        *ordering.RULES,
        *medians.RULES,
        *losses.RULES,
    )
    assert sorted(str(op) for rule in table for op in rule.ops if op not in met) == []
