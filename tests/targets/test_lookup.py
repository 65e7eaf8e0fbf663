import json
import math
import operator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gaudicc.targets import Engine, Mode, Support, Target, load_target, op_name
from gaudicc.targets.dtypes import CODES, COMPLEX
from gaudicc.targets.fused import FUSED, fused_op
from gaudicc.targets.model import OverlayRow
from gaudicc.targets.target import HOST

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
I64, I32, BOOL = torch.int64, torch.int32, torch.bool
TARGET = load_target("gaudi3")
OVERLOADS = sorted(
    str(getattr(packet, name))
    for packet in (getattr(torch.ops.aten, op) for op in dir(torch.ops.aten))
    if isinstance(packet, torch._ops.OpOverloadPacket)
    for name in packet.overloads()
)
DTYPES = [getattr(torch, name) for name in CODES]


@pytest.mark.parametrize("mode", Mode)
def test_lookup_is_total_over_aten(target: Target, mode: Mode) -> None:
    assert len(OVERLOADS) > 2000
    for op in OVERLOADS:
        for dtypes in ((F32,), (I64, BOOL), ()):
            verdict = target.lookup(op, dtypes, mode)
            assert verdict.reason
            assert verdict.source
            assert verdict.release


@given(st.sampled_from(OVERLOADS), st.lists(st.sampled_from(DTYPES), max_size=4), st.sampled_from(list(Mode)))
def test_verdicts_obey_the_dtype_facts(op: str, dtypes: list[torch.dtype], mode: Mode) -> None:
    verdict = TARGET.lookup(op, dtypes, mode)
    codes = {CODES[str(dtype).removeprefix("torch.")] for dtype in dtypes}
    host = op_name(op) in HOST
    if codes & COMPLEX and not host:
        assert verdict.support is Support.NO
    if verdict.legal:
        assert not verdict.dynamic
        assert host or set(verdict.narrowed) == codes & ({"f64", "i64"} if mode is Mode.LAZY else {"f64"})
    assert verdict.engine is not Engine.DMA


@given(st.sampled_from(OVERLOADS), st.sampled_from([F32, BF16, torch.float16]))
def test_float64_is_judged_as_float32(op: str, other: torch.dtype) -> None:
    wide, narrow = (TARGET.lookup(op, (dtype, other)).support for dtype in (torch.float64, F32))
    # An overlay row may list its dtypes; float64 is then left to the table.
    assert wide is narrow or op_name(op) in TARGET.overlays


LEGAL = [
    ("aten.mm.default", (BF16, BF16), Engine.MME),
    ("aten::mm", (F32, F32), Engine.MME),
    ("aten.linear.default", (BF16, BF16, BF16), Engine.MME_TPC),
    ("aten._softmax.default", (F32,), Engine.TPC),
    ("aten.clone.default", (F32,), Engine.TPC),
    ("aten.view.default", (BOOL,), Engine.NONE),
    ("aten.permute.default", (I64,), Engine.NONE),
    ("aten.slice.Tensor", (F32,), Engine.NONE),
    ("aten.detach.default", (F32,), Engine.NONE),
    ("aten.embedding.default", (BF16, I64), Engine.TPC),
    ("aten.gather.default", (F32, I64), Engine.TPC),
    ("aten.where.self", (BOOL, F32, F32), Engine.TPC),
    ("aten.where.self", (BOOL, BOOL, BOOL), Engine.TPC),
    ("aten.masked_fill.Scalar", (BF16, BOOL), Engine.TPC),
    ("aten.index_put.default", (F32, I64, I64, F32), Engine.TPC),
    ("aten._to_copy.default", (F32, BF16), Engine.TPC),
    ("aten.add.Tensor", (I64, I64), Engine.TPC),
    ("aten.sub.Tensor", (I64, I64), Engine.TPC),
    ("aten.sub.Tensor", (F32, I64), Engine.TPC),
    ("aten.rsub.Scalar", (I32,), Engine.TPC),
    ("aten.hardswish.default", (F32,), Engine.TPC),
    ("aten.sym_size.int", (F32,), Engine.NONE),
    ("getitem", (), Engine.NONE),
]


@pytest.mark.parametrize(("op", "dtypes", "engine"), LEGAL)
def test_legal(op: str, dtypes: tuple[torch.dtype, ...], engine: Engine, gaudi3: Target) -> None:
    verdict = gaudi3.lookup(op, dtypes)
    assert (verdict.support, verdict.engine) == (Support.EVIDENCED, engine), verdict.reason


REFUSED = [
    ("aten.histc.default", (F32,), "only the host has a kernel"),
    ("aten.cudnn_convolution.default", (F32, F32), "neither a device nor a host kernel"),
    ("aten.layer_norm.default", (F32,), "legal once decomposed"),
    ("aten.nonzero.default", (BOOL,), "depends on data"),
    ("aten.item.default", (F32,), "composite"),
    ("aten.index.Tensor", (F32, BOOL), "becomes nonzero"),
    ("aten.where.self", (torch.uint8, F32, F32), "a mask must be bool"),
    ("aten.gather.default", (F32, F32), "an index must be int32 or int64"),
    ("aten.sub.Tensor", (torch.int8, torch.int8), "i8 is not among the listed"),
    ("aten.polar.default", (F32, F32), "its result is complex"),
    ("aten.mul.Tensor", (torch.complex64,), "no complex tensor"),
    ("aten.mul.Tensor", (torch.uint16,), "can live on the device"),
    ("aten.no_such_op.default", (F32,), "no source knows"),
    ("gaudicc.attention.default", (F32,), "must be lowered"),
    ("hpu::cast", (F32,), "Python cannot call"),
]


@pytest.mark.parametrize(("op", "dtypes", "reason"), REFUSED)
def test_refused_with_a_reason(op: str, dtypes: tuple[torch.dtype, ...], reason: str, gaudi3: Target) -> None:
    verdict = gaudi3.lookup(op, dtypes)
    assert verdict.support is Support.NO
    assert reason in verdict.reason or verdict.dynamic


def test_an_op_newer_than_the_tables_may_still_decompose(gaudi3: Target) -> None:
    class Newer:
        def __str__(self) -> str:
            return "aten.newer.default"

        def _can_decompose(self) -> bool:
            return True

    assert gaudi3.lookup(Newer()).composite
    assert not gaudi3.lookup("aten.newer.default").composite


def test_functions_that_are_no_ops(gaudi3: Target) -> None:
    functions: tuple[object, ...] = (operator.mul, operator.getitem, math.ceil, torch.sym_max, max)
    for function in functions:
        assert gaudi3.lookup(function).legal, function
    others: tuple[object, ...] = (torch.ops.higher_order.cond, torch.relu)
    for op in others:
        assert gaudi3.lookup(op).support is Support.NO, op


def test_reported_bad_is_not_legal(gaudi3: Target) -> None:
    for op in ("aten.triu_indices.default", "aten.tril_indices.default"):
        assert gaudi3.lookup(op, (I64,)).support is Support.REPORTED_BAD
    for step, support in ((1, Support.EVIDENCED), (2, Support.REPORTED_BAD), (-1, Support.REPORTED_BAD)):
        assert gaudi3.lookup("aten.slice.Tensor", (F32,), arguments={"step": step}).support is support


def test_presumed_without_dtype_evidence(gaudi3: Target) -> None:
    verdict = gaudi3.lookup("aten.index.Tensor", (F32, I64))
    assert verdict.support is Support.PRESUMED
    assert not verdict.legal


def test_int64_follows_the_mode(gaudi3: Target) -> None:
    lazy = gaudi3.lookup("aten.le.Tensor", (I64, I64), Mode.LAZY)
    kept = gaudi3.lookup("aten.le.Tensor", (I64, I64), Mode.COMPILE)
    assert (lazy.support, lazy.narrowed) == (Support.EVIDENCED, ("i64",))
    assert "narrowed" in lazy.reason
    assert (kept.support, kept.narrowed) == (Support.PRESUMED, ())
    index = gaudi3.lookup("aten.gather.default", (F32, I64), Mode.COMPILE)
    assert index.legal, "an index argument may be int64 in either mode"


def test_compile_mode_judges_variants_by_their_functional_form(gaudi3: Target) -> None:
    for variant, functional in (("aten.add_.Tensor", "aten.add.Tensor"), ("aten.mm.out", "aten.mm.default")):
        here, there = (gaudi3.lookup(op, (F32, F32), Mode.COMPILE) for op in (variant, functional))
        assert here == there
        assert here.legal


def test_conditions_need_sizes_or_arguments(gaudi3: Target) -> None:
    wide = gaudi3.lookup("aten.index_select.default", (F32, I64), sizes=((1,) * 6, (2,)))
    assert (wide.support, wide.dynamic) == (Support.NO, False)
    assert gaudi3.lookup("aten.index_select.default", (F32, I64), sizes=((1,) * 5, (2,))).legal
    for size, dim, legal in ((37, -1, True), (38, -1, False), (38, 0, False), (3, 0, False)):
        arguments = {"stable": True, "dim": dim}
        verdict = gaudi3.lookup("aten.sort.stable", (F32,), sizes=((4, size),), arguments=arguments)
        assert verdict.legal is legal, (size, dim)
    classes = gaudi3.lookup("aten.one_hot.default", (I64,), arguments={"num_classes": -1})
    assert (classes.support, classes.dynamic) == (Support.NO, True)
    assert gaudi3.lookup("aten.one_hot.default", (I64,), arguments={"num_classes": 5}).legal
    for rounding, legal in ((None, False), ("floor", True)):
        verdict = gaudi3.lookup("aten.div.Tensor_mode", (I32, I32), arguments={"rounding_mode": rounding})
        assert verdict.legal is legal


def test_fused_ops(gaudi3: Target) -> None:
    for op, kernel in FUSED.items():
        found = fused_op(gaudi3, op)
        assert found is not None
        assert found[0] == kernel
        assert found[1].support is Support.PRESUMED, "without dtypes nothing is evidenced"
    for op, dtypes, support in (
        ("gaudicc::moe", (BF16, I64, BF16, BF16), Support.EVIDENCED),
        ("gaudicc::moe", (F32, I64, F32, F32), Support.EVIDENCED),
        ("gaudicc::attention", (F32, F32, F32, BOOL), Support.EVIDENCED),
        ("gaudicc::attention", (F16, F16, F16), Support.PRESUMED),
        ("gaudicc::rotary", (BF16, BF16, BF16), Support.EVIDENCED),
        ("gaudicc::rms_norm", (F32, F32), Support.EVIDENCED),
    ):
        found = fused_op(gaudi3, op, dtypes=dtypes)
        assert found is not None
        assert found[1].support is support
    assert fused_op(gaudi3, "gaudicc::if") is None
    symbolic = fused_op(gaudi3, "gaudicc.attention.default", Mode.COMPILE, symbolic=True)
    assert symbolic is not None
    assert symbolic[1].support is Support.NO
    compiled = fused_op(gaudi3, "gaudicc.attention.default", Mode.COMPILE, dtypes=(F32, F32, F32), symbolic=True)
    assert compiled is not None
    assert compiled[1].support is Support.NO, "what is known of sizes outweighs what is known of dtypes"


@given(st.sampled_from(OVERLOADS), st.sampled_from(list(Support)), st.sampled_from([F32, BF16, I64]))
def test_overlay_wins(op: str, support: Support, dtype: torch.dtype) -> None:
    name = op_name(op)
    row = OverlayRow(name, support, (), tuple(Mode), None, Engine.TPC, False, "tried", "me", "1.24.0")
    mine = replace(TARGET, overlays={name: (row, *TARGET.overlays.get(name, ()))})
    verdict = mine.lookup(op, (dtype,))
    if name not in HOST:
        assert (verdict.support, verdict.source, verdict.release) == (support, "me", "1.24.0")


def test_the_users_overlay_is_above_the_shipped_ones(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    row = {"op": "aten::triu_indices", "support": "evidenced", "reason": "mended", "source": "me", "release": "1.24.0"}
    file.write_text(json.dumps({"format": 1, "rows": [row]}))
    assert load_target("gaudi3", file).lookup("aten.triu_indices.default", (I64,)).legal


def test_overlay_speaks_only_of_its_dtypes_and_modes(tmp_path: Path, gaudi3: Target) -> None:
    file = tmp_path / "mine.json"
    row = {"op": "aten::histc", "support": "evidenced", "dtypes": "f32|bf16", "modes": "lazy", "reason": "a TPC kernel"}
    file.write_text(json.dumps({"format": 1, "rows": [row | {"source": "me", "release": "1.24.0"}]}))
    mine = load_target("gaudi3", file)
    assert mine.lookup("aten.histc.default", (F32,)).legal
    for dtypes, mode in (((I32,), Mode.LAZY), ((F32,), Mode.COMPILE)):
        assert mine.lookup("aten.histc.default", dtypes, mode) == gaudi3.lookup("aten.histc.default", dtypes, mode)
