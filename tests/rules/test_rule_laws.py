"""The table of the larger families: one call for each rule and each condition, and that none of them can be left out.

Every call is also captured, legalised and run by the rule interpreter, which accepts nothing but evidence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

from gaudicc.passes.legalize_ops import ALL_RULES
from gaudicc.pipeline import Numerics
from gaudicc.rules import (
    bags,
    booleans,
    distances,
    elementwise,
    elimination,
    gammas,
    histograms,
    index_generation,
    indexing,
    integer_scatter,
    integers,
    order,
    polynomials,
    pooling,
    promotion,
    reflections,
    resampling,
    scans,
    scattering,
    segments,
    slicing,
    small_integers,
    special,
    triangular,
    unsigned,
)
from gaudicc.rules.rule import Rule, always
from gaudicc.targets import Support, load_target
from gaudicc.targets.calls import OpCall, judge_call
from gaudicc.verify import differs

aten = torch.ops.aten
FAMILIES = (
    booleans, indexing, scattering, scans, histograms, order, distances, bags, pooling, resampling, elementwise, triangular,
    elimination, reflections, special, gammas, polynomials, segments, integer_scatter,
    unsigned, integers,
)  # fmt: skip
RULES: tuple[Rule, ...] = tuple(rule for family in FAMILIES for rule in family.RULES)

I32 = torch.tensor([[5, 0, 2], [-3, 7, 2]], dtype=torch.int32)
F32 = torch.tensor([[0.5, 2.5, -1.0], [3.0, -0.25, 0.5]])
WILD = torch.tensor([[0.5, float("nan"), float("inf"), -0.0], [-1.5, 0.0, 2.0, float("-inf")]])
BYTES = torch.tensor([[200, 7, 0], [255, 3, 129]], dtype=torch.uint8)
MASK = torch.tensor([[True, False, True], [False, True, True]])
AT = torch.tensor([2, 0, -1])
ROW = torch.tensor([1, 0, 1])
PLACES = torch.tensor([[0, 1, 0], [0, 1, 1]])
IMAGE = torch.arange(70.0).reshape(1, 2, 5, 7).sin()
SQUARE = torch.tensor([[0.1, 2.0, -1.0], [3.0, 0.5, 0.25], [-0.5, 1.0, 4.0]])
LOWER = torch.tensor([[2.0, 0.0, 0.0], [0.5, 1.5, 0.0], [-1.0, 0.25, 3.0]])
PIVOTS = torch.tensor([2, 3, 3], dtype=torch.int32)
TALL = torch.tensor([[1.0, 2.0], [-0.5, 0.25], [3.0, 1.0]])
TAUS = torch.tensor([1.3, 0.7])
POSITIVE = torch.tensor([[0.5, 1.5, 9.0, 30.0], [0.01, 4.0, 0.0, 100.0]])
SPREAD = torch.tensor([[0.3, -2.7, 9.0, 12.5], [-20.0, 4.0, 0.0, 0.5]])
LONG, HUGE = torch.empty(5000, device="meta"), torch.empty(40, 40, device="meta")
WIDE = torch.empty(1, 1 << 14, 1 << 14, device="meta")
DOUBLE = torch.ones(3, 3, dtype=torch.float64)
EDGES = torch.tensor([0.0, 1.0, 2.0, 4.0])
WEIGHT = torch.arange(24.0).reshape(8, 3).cos()
WORDS, OFFSETS = torch.tensor([1, 7, 3, 0, 2]), torch.tensor([0, 2, 2])

# (op, arguments, keywords, the rule that takes the call; None where none may)
Call = tuple[Any, tuple[Any, ...], dict[str, Any], str | None]
CALLS: list[Call] = [
    (aten.index.Tensor, (WILD, [None, AT]), {}, "index-by-position"),
    (aten.index.Tensor, (IMAGE, [None, ROW, None, AT]), {}, "index-by-position"),
    (aten.index.Tensor, (WILD, [WILD > 0]), {}, None),
    (aten.index_put.default, (F32.double(), [ROW, AT], torch.tensor(9.0).double()), {}, "assign-by-position"),
    (aten.index_put.default, (F32, [None, AT], torch.tensor(9.0), True), {}, "assign-by-position"),
    (aten.index_put.default, (F32, [MASK], torch.tensor(9.0)), {}, "assign-by-mask"),
    (aten.index_put.default, (F32, [MASK], torch.tensor([9.0, 8.0, 7.0, 6.0])), {}, "assign-by-mask"),
    (aten.index_put.default, (F32, [MASK], torch.empty(0)), {}, None),
    (aten.index_put.default, (F32, [MASK[0, :2], AT[:1]], torch.tensor(9.0)), {}, None),
    (aten.gather.default, (F32, 1, torch.empty(0, 2, dtype=torch.uint8)), {}, "gather-nothing"),
    (aten.gather.default, (F32, 1, ROW[None]), {}, None),
    (aten.nonzero_static.default, (WILD,), {"size": 4, "fill_value": -1}, "nonzero-static"),
    (aten.slice_scatter.default, (WILD, WILD[:, :2] + 1, 1, 0, 4, 2), {}, "slice-scatter"),
    (aten.select_scatter.default, (WILD, WILD[:, 0] + 1, 1, -2), {}, "select-scatter"),
    (aten.diagonal_scatter.default, (WILD, torch.ones(2), 1), {}, "diagonal-scatter"),
    (aten.diagonal_scatter.default, (WILD, torch.ones(0), 4), {}, None),
    (aten.as_strided_scatter.default, (WILD, torch.ones(2, 2), [2, 2], [4, 1], 1), {}, "as-strided-scatter"),
    (aten.as_strided_scatter.default, (WILD, torch.ones(2, 2), [2, 2], [1, 1], 0), {}, None),
    (aten.cumsum.default, (MASK, 1), {}, "running-count"),
    (aten.cumsum.default, (F32, 1), {}, None),
    (aten.cummax.default, (WILD, 1), {}, "cummax"),
    (aten.cummin.default, (I32, 0), {}, "cummin"),
    (aten.cummax.default, (MASK, 0), {}, "cummax-of-flags"),
    (aten.cummin.default, (MASK, 0), {}, "cummin-of-flags"),
    (aten.bucketize.Tensor, (F32, EDGES), {"right": True}, "bucketize"),
    (aten.histc.default, (F32, 4, 0, 3), {}, "histc"),
    (aten.histc.default, (DOUBLE, 4, 0, 3), {}, None),
    (aten.histogram.bin_ct, (F32, 4), {"density": True}, "histogram"),
    (aten.histogram.bin_ct, (DOUBLE, 4), {}, None),
    (aten.histogram.bins_tensor, (F32, EDGES), {}, "histogram-of-edges"),
    (aten.histogram.bins_tensor, (DOUBLE, EDGES.double()), {}, None),
    (aten._histogramdd_bin_edges.default, (F32, [2, 3, 4]), {}, "histogram-edges"),
    (aten._histogramdd_bin_edges.default, (DOUBLE, [2, 3, 4]), {}, None),
    (aten._histogramdd_from_bin_cts.default, (F32, [2, 3, 2]), {}, "histogram-of-points"),
    (aten._histogramdd_from_bin_cts.default, (DOUBLE, [2, 3, 2]), {}, None),
    (aten._histogramdd_from_bin_tensors.default, (F32, [EDGES - 1] * 3), {}, "histogram-of-points-and-edges"),
    (aten._histogramdd_from_bin_tensors.default, (DOUBLE, [EDGES.double()] * 3), {}, None),
    (aten.sort.stable, (I32 > 0,), {"stable": True, "dim": 0}, "stable-sort"),
    (aten.sort.stable, (LONG,), {"stable": True}, None),
    (aten.sort.default, (I32, 0, True), {}, "integer-sort"),
    (aten.sort.default, (LONG.int(),), {}, None),
    (aten.topk.default, (I32[:, [0, 1]], 1), {}, "integer-topk"),
    (aten.topk.default, (F32, 2), {}, None),
    (aten.mode.default, (SPREAD.round(), 0), {}, "mode"),
    (aten.mode.default, (I32, 0), {}, "mode"),
    (aten.mode.default, (I32.to(torch.int8), 0), {}, None),
    (aten.mode.default, (DOUBLE, 0), {}, None),
    (aten.nanmedian.default, (WILD,), {}, "nanmedian"),
    (aten.nanmedian.default, (I32,), {}, None),
    (aten.nanmedian.dim, (WILD, 1), {}, "nanmedian-dim"),
    (aten.nanmedian.dim, (I32, 1), {}, None),
    (aten._cdist_forward.default, (F32, F32 + 1, 1.0, None), {}, "cdist"),
    (aten._cdist_forward.default, (WIDE, WIDE, 1.0, None), {}, None),
    (aten._pdist_forward.default, (SQUARE, 2.0), {}, "pdist"),
    (aten._pdist_forward.default, (WIDE[0], 2.0), {}, None),
    (aten.renorm.default, (F32.bfloat16(), 2, 0, 1.0), {}, "renorm"),
    (aten.renorm.default, (F32, 2, 0, 1.0), {}, None),
    (aten.embedding.default, (WEIGHT, WORDS, -1, False, True), {}, "embedding-in-inference"),
    (aten.embedding.default, (WEIGHT, WORDS), {}, None),
    (aten._embedding_bag_forward_only.default, (WEIGHT, WORDS, OFFSETS, False, 1), {}, "embedding-bag"),
    (aten._embedding_bag_forward_only.default, (WEIGHT.double(), WORDS, OFFSETS), {}, None),
    (aten.adaptive_max_pool2d.default, (IMAGE, [3, 4]), {}, "adaptive-max-pool"),
    (aten.adaptive_max_pool2d.default, (WIDE, [1, 1]), {}, "adaptive-max-pool"),
    (aten.adaptive_max_pool2d.default, (torch.empty(8, *WIDE.shape, device="meta"), [1, 1]), {}, None),
    (
        aten.fractional_max_pool2d.default,
        (IMAGE, [2, 2], [3, 4], torch.full((1, 2, 2), 0.4)),
        {},
        "fractional-max-pool",
    ),
    (aten.fractional_max_pool2d.default, (WIDE, [64, 64], [999, 999], torch.full((1, 1, 2), 0.4)), {}, None),
    (aten.im2col.default, (IMAGE, [2, 3], [1, 1], [1, 0], [1, 2]), {}, "im2col"),
    (aten.im2col.default, (WIDE, [16, 16], [1, 1], [0, 0], [16, 16]), {}, None),
    (aten._upsample_bilinear2d_aa.default, (IMAGE, [3, 9], False), {}, "bilinear-anti-aliased"),
    (aten._upsample_bilinear2d_aa.default, ((IMAGE * 9).to(torch.uint8), [3, 9], False), {}, None),
    (aten._upsample_bicubic2d_aa.default, (IMAGE, [3, 9], True), {}, "bicubic-anti-aliased"),
    (aten._upsample_bicubic2d_aa.default, ((IMAGE * 9).to(torch.uint8), [3, 9], False), {}, None),
    (aten.neg.default, (I32,), {}, "integer-neg"),
    (aten.neg.default, (F32,), {}, None),
    (aten.abs.default, (I32,), {}, "integer-abs"),
    (aten.abs.default, (F32,), {}, None),
    (aten.round.default, (I32,), {}, "integer-rounding"),
    (aten.floor.default, (BYTES,), {}, "integer-rounding"),
    (aten.round.default, (F32,), {}, None),
    (aten.isfinite.default, (I32,), {}, "integer-isfinite"),
    (aten.isfinite.default, (WILD,), {}, None),
    (aten.gcd.default, (I32 * 6, I32.flip(0) * 4), {}, "gcd"),
    (aten.gcd.default, (I32.long() * 6, I32.long().flip(0) * 4), {}, "gcd"),
    (aten.gcd.default, (I32.short(), I32.short()), {}, None),
    (aten.lcm.default, (I32 * 6, I32.flip(0) * 4), {}, "lcm"),
    (aten.lcm.default, (I32.short(), I32.short()), {}, None),
    (aten.angle.default, (WILD,), {}, "angle"),
    (aten.hardswish.default, ((WILD * 3).bfloat16(),), {}, "hardswish"),
    (aten.angle.default, (I32,), {}, None),
    (aten._to_copy.default, (F32,), {"dtype": torch.int16}, "narrow-cast"),
    (aten._to_copy.default, (BYTES,), {"dtype": torch.int8}, "narrow-cast"),
    (aten._to_copy.default, (F32,), {"dtype": torch.int32}, None),
    (aten.mm.default, (I32, I32.t()), {}, "integer-product"),
    (aten.mm.default, (F32, F32.t()), {}, None),
    (aten.mm.default, (torch.empty(999, 999, dtype=torch.int32, device="meta"),) * 2, {}, None),
    (aten._trilinear.default, (SQUARE, SQUARE, SQUARE, [0], [1], [2], [2]), {}, "trilinear"),
    (aten._trilinear.default, (SQUARE.int(), SQUARE.int(), SQUARE.int(), [0], [1], [2], [2]), {}, None),
    (aten._trilinear.default, (WIDE[0], WIDE[0], WIDE[0], [0], [1], [2], [2]), {}, None),
    (aten.sign.default, (I32,), {}, "integer-sign"),
    (aten.sign.default, (F32,), {}, None),
    (aten.put.default, (I32, torch.tensor([4, -1]), torch.tensor([8, 9], dtype=torch.int32)), {}, "integer-put"),
    (aten.put.default, (F32, torch.tensor([4, -1]), torch.ones(2)), {}, None),
    (aten.add.Tensor, (MASK, MASK), {}, "add-of-flags"),
    (aten.add.Tensor, (MASK, 1), {}, None),
    (aten.add.Tensor, (MASK, F32), {}, None),
    *[
        (op, (MASK, MASK.flip(0)), {}, f"{op._schema.name[6:]}-of-flags")
        for op in (
            aten.ge.Tensor,
            aten.gt.Tensor,
            aten.le.Tensor,
            aten.lt.Tensor,
            aten.ne.Tensor,
            aten.maximum.default,
            aten.minimum.default,
        )
    ],
    *[
        (op, (F32, F32), {}, None)
        for op in (
            aten.ge.Tensor,
            aten.gt.Tensor,
            aten.le.Tensor,
            aten.lt.Tensor,
            aten.ne.Tensor,
            aten.maximum.default,
            aten.minimum.default,
        )
    ],
    (aten.sign.default, (MASK,), {}, "sign-of-flags"),
    (aten.amax.default, (MASK, [0]), {}, "amax-of-flags"),
    (aten.amax.default, (F32, [0]), {}, None),
    (aten.amin.default, (MASK, [0], True), {}, "amin-of-flags"),
    (aten.amin.default, (F32, [0]), {}, None),
    (aten.max.default, (MASK,), {}, "max-of-flags"),
    (aten.max.default, (F32,), {}, None),
    (aten.max.dim, (MASK, 1), {}, "max-along-a-dim-of-flags"),
    (aten.max.dim, (F32, 1), {}, None),
    (aten.min.default, (MASK,), {}, "min-of-flags"),
    (aten.min.default, (F32,), {}, None),
    (aten.min.dim, (MASK, 1, True), {}, "min-along-a-dim-of-flags"),
    (aten.min.dim, (F32, 1), {}, None),
    (aten.mode.default, (MASK, 1), {}, "mode-of-flags"),
    (aten.put.default, (MASK, torch.tensor([4, -1]), MASK[0, :2]), {}, "put-of-flags"),
    (aten.index_add.default, (MASK, 0, torch.tensor([1, 1]), MASK), {}, "index-add-of-flags"),
    (aten.index_add.default, (F32, 0, torch.tensor([1, 1]), F32), {}, None),
    (aten.scatter_add.default, (MASK, 0, PLACES, MASK), {}, "scatter-add-of-flags"),
    (aten.scatter_reduce.two, (MASK, 0, PLACES, MASK, "amax"), {}, "scatter-reduce-of-flags"),
    (aten.scatter_add.default, (I32, 0, PLACES, I32 * 3), {}, "integer-scatter-add"),
    (aten.scatter_add.default, (F32, 0, PLACES, F32), {}, None),
    (
        aten.scatter_reduce.two,
        (I32.long(), 0, PLACES, I32.long() * 3, "amin"),
        {"include_self": False},
        "integer-scatter-reduce",
    ),
    (aten.scatter_reduce.two, (I32, 0, PLACES, I32, "prod"), {}, None),
    (aten.scatter_reduce.two, (F32, 0, PLACES, F32, "sum"), {}, None),
    (aten.index_reduce.default, (F32, 0, ROW[:2], F32 * 3, "mean"), {"include_self": False}, "index-reduce"),
    (aten.linalg_solve_triangular.default, (LOWER, TALL), {"upper": False}, "solve-triangular"),
    (aten.linalg_solve_triangular.default, (HUGE, HUGE), {"upper": False}, None),
    (aten.triangular_solve.default, (TALL, LOWER.t().contiguous()), {}, "triangular-solve"),
    (aten.triangular_solve.default, (HUGE, HUGE), {}, None),
    (aten.cholesky_solve.default, (TALL, LOWER), {}, "cholesky-solve"),
    (aten.cholesky_solve.default, (HUGE, HUGE), {}, None),
    (aten.cholesky_inverse.default, (LOWER,), {}, "cholesky-inverse"),
    (aten.cholesky_inverse.default, (HUGE,), {}, None),
    (aten.linalg_lu_factor_ex.default, (SQUARE,), {}, "lu-factor"),
    (aten.linalg_lu_factor_ex.default, (HUGE,), {}, None),
    (aten.linalg_lu.default, (SQUARE,), {}, "lu"),
    (aten.linalg_lu.default, (HUGE,), {}, None),
    (aten.lu_unpack.default, (SQUARE, PIVOTS), {}, "lu-unpack"),
    (aten.lu_unpack.default, (HUGE, HUGE[0].int()), {}, None),
    (aten.linalg_lu_solve.default, (SQUARE, PIVOTS, TALL), {}, "lu-solve"),
    (aten.linalg_lu_solve.default, (HUGE, HUGE[0].int(), HUGE), {}, None),
    (aten._linalg_solve_ex.default, (SQUARE, TALL), {}, "solve"),
    (aten._linalg_solve_ex.default, (HUGE, HUGE), {}, None),
    (aten.linalg_inv_ex.default, (SQUARE,), {}, "inverse"),
    (aten.linalg_inv_ex.default, (HUGE,), {}, None),
    (aten._linalg_det.default, (SQUARE,), {}, "determinant"),
    (aten._linalg_det.default, (HUGE,), {}, None),
    (aten._linalg_slogdet.default, (SQUARE,), {}, "log-determinant"),
    (aten._linalg_slogdet.default, (HUGE,), {}, None),
    (aten.linalg_qr.default, (TALL,), {}, "qr"),
    (aten.linalg_qr.default, (HUGE,), {}, None),
    (aten.geqrf.default, (TALL,), {}, "geqrf"),
    (aten.geqrf.default, (HUGE,), {}, None),
    (aten.linalg_householder_product.default, (TALL, TAUS), {}, "householder-product"),
    (aten.linalg_householder_product.default, (HUGE, HUGE[0]), {}, None),
    (aten.ormqr.default, (TALL, TAUS, TALL * 2), {}, "ormqr"),
    (aten.ormqr.default, (HUGE, HUGE[0], HUGE), {}, None),
    (aten.polygamma.default, (1, SPREAD), {}, "polygamma"),
    (aten.polygamma.default, (4, SPREAD), {}, "polygamma"),
    (aten.polygamma.default, (9, SPREAD), {}, None),
    (aten.polygamma.default, (2, DOUBLE), {}, None),
    (aten.digamma.default, (SPREAD,), {}, "digamma"),
    (aten.digamma.default, (DOUBLE,), {}, None),
    (aten.segment_reduce.default, (F32, "mean"), {"lengths": AT[:2].abs(), "unsafe": True}, "segment-reduce"),
    (aten.segment_reduce.default, (F32, "sum"), {"offsets": ROW[:1]}, None),
    (aten.segment_reduce.default, (DOUBLE, "sum"), {"lengths": ROW}, None),
    (aten.special_ndtri.default, (POSITIVE / 100,), {}, "ndtri"),
    (aten.special_ndtri.default, (DOUBLE,), {}, None),
]
SECOND_KIND = ("k0", "k1", "y0", "y1")
for rule in special.RULES:
    if rule.name != "ndtri":
        domain = POSITIVE if rule.name.endswith(SECOND_KIND) else SPREAD
        CALLS += [(rule.ops[0], (domain,), {}, rule.name), (rule.ops[0], (DOUBLE,), {}, None)]
for rule in unsigned.RULES:
    other: tuple[Any, ...] = {"bitwise_not": (), "add": (BYTES,)}.get(rule.ops[0]._opname, (BYTES % 9,))
    other = (3,) if rule.ops[0]._overloadname.endswith("Scalar") else other
    CALLS += [(rule.ops[0], (BYTES, *other), {}, rule.name), (rule.ops[0], (BYTES.to(torch.int32), *other), {}, None)]
for rule in integers.RULES[1:]:
    other = (3,) if rule.ops[0]._overloadname == "Scalar" else (I32.flip(1).to(torch.int8),)
    CALLS += [(rule.ops[0], (I32.to(torch.int8) * 25, *other), {}, rule.name), (rule.ops[0], (I32, *other), {}, None)]
for rule in polynomials.RULES:
    CALLS += [(rule.ops[0], (SPREAD / 10, POSITIVE), {}, rule.name), (rule.ops[0], (DOUBLE, DOUBLE), {}, None)]
TAKEN = [
    call
    for call in CALLS
    if call[3] and not any(tensor.is_meta for tensor in pytree.tree_leaves(call[1]) if isinstance(tensor, torch.Tensor))
]
KEPT = {aten._embedding_bag_forward_only.default: 1, aten._linalg_det.default: 1, aten._linalg_slogdet.default: 2}
RANDOM = {"cauchy"}  # drawn: tested for its distribution in test_elementwise.py


def outcome(rules: Sequence[Rule], call: Call) -> Rule | None:
    op, args, kwargs, _ = call
    return next((rule for rule in rules if op in rule.ops and rule.check(*args, **kwargs) is None), None)


def compare(rule: Rule, call: Call) -> None:
    op, args, kwargs, _ = call
    theirs, ours = (pytree.tree_leaves(function(*args, **kwargs)) for function in (op, rule.rewrite))
    for left, right in zip(theirs, ours, strict=False):
        if rule.numerics is Numerics.BITWISE or not left.dtype.is_floating_point:
            assert differs(left, right, bitwise=True) is None, rule.name
        else:
            torch.testing.assert_close(right, left, rtol=2e-5, atol=2e-5, equal_nan=True)


def law(rules: Sequence[Rule], name: str) -> None:
    """Every call of the ops of a rule goes to the rule it is meant for, which computes the same."""
    ops = {op for each in RULES if each.name == name for op in each.ops}
    for call in [call for call in CALLS if call[0] in ops]:
        rule = outcome(rules, call)
        assert (rule.name if rule else None) == call[3], f"{call[0]}"
        if rule is not None and any(call is each for each in TAKEN):
            compare(rule, call)


ids = [rule.name for rule in RULES if rule.name not in RANDOM]


def mutated(name: str, change: Callable[[Rule], Rule | None]) -> list[Rule]:
    return [new for rule in RULES if (new := change(rule) if rule.name == name else rule) is not None]


@pytest.mark.parametrize("name", ids)
def test_the_law_holds_and_needs_the_rule_and_its_condition(name: str) -> None:
    law(RULES, name)
    with pytest.raises(AssertionError):
        law(mutated(name, lambda rule: None), name)
    with pytest.raises(AssertionError):
        law(
            mutated(name, lambda rule: replace(rule, check=lambda *a, **k: None if rule.check(*a, **k) else "no")), name
        )
    (rule,) = [rule for rule in RULES if rule.name == name]
    if rule.check is not always:
        with pytest.raises(AssertionError):
            law(mutated(name, lambda rule: replace(rule, check=always)), name)


@pytest.mark.parametrize("name", [name for name in ids if name != "gather-nothing"])  # which has no values
def test_a_rewrite_that_computes_another_value_is_seen(name: str) -> None:
    def off(rule: Rule) -> Rule:
        return replace(rule, rewrite=lambda *args, **kwargs: pytree.tree_map(_spoiled, rule.rewrite(*args, **kwargs)))

    with pytest.raises(AssertionError):
        law(mutated(name, off), name)


def _spoiled(leaf: Any) -> Any:
    return ~leaf if leaf.dtype is torch.bool else leaf + 1


def test_each_rule_has_a_call() -> None:
    assert set(ids) == {name for _, _, _, name in CALLS if name}
    elsewhere = {*index_generation.RULES, *slicing.RULES}  # in test_rule_table.py
    elsewhere |= {*small_integers.RULES, *promotion.RULES}  # each in its own file
    assert set(RULES) | elsewhere == set(ALL_RULES)


@pytest.mark.parametrize("call", TAKEN, ids=lambda call: f"{call[3]}")
def test_what_a_rule_emits_runs_on_evidence(call: Call, legally: Callable[..., Any]) -> None:
    op, args, kwargs, _ = call
    verdict = judge_call(load_target("gaudi3"), OpCall(op, args, kwargs))
    leaves, spec = pytree.tree_flatten((args, kwargs))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]

    def function(*tensors: torch.Tensor) -> Any:
        values = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            values[place] = tensor
        given, named = pytree.tree_unflatten(values, spec)
        result = op(*given, **named)
        return result[: KEPT[op]] if op in KEPT else result

    outputs = legally(function, *(leaves[place] for place in places))
    theirs = pytree.tree_leaves(function(*(leaves[place] for place in places)))
    for left, right in zip(theirs, outputs, strict=True):
        torch.testing.assert_close(
            right, left, rtol=2e-5, atol=2e-5, equal_nan=True, check_dtype=left.dtype is not torch.float64
        )
    assert verdict.support is not Support.EVIDENCED or op is aten.index_put.default
