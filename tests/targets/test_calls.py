from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from gaudicc.targets import Engine, Mode, Support, Target, load_target, op_name
from gaudicc.targets.calls import OpCall, example_size, judge_call, map_values, parts_of, reads_host

aten = torch.ops.aten
X = torch.randn(2, 3, 4)
HALF = X.half()

COMPOSITES = [
    (aten.layer_norm.default, (X, [4]), ["aten::native_layer_norm"], Engine.TPC),
    (aten.stack.default, ([HALF, HALF],), ["aten::cat", "aten::view"], Engine.NONE),
    (aten.diagonal.default, (X,), ["aten::as_strided"], Engine.NONE),
    (aten.to.dtype, (X, torch.float32), [], Engine.NONE),
    (aten.to.dtype, (X, torch.bfloat16), ["aten::_to_copy"], Engine.TPC),
    (aten.matmul.default, (X, X.mT), None, Engine.MME),
]


@pytest.mark.parametrize(("op", "args", "names", "engine"), COMPOSITES)
def test_composites_resolve_to_their_parts(
    op: OpOverload, args: tuple[object, ...], names: list[str] | None, engine: Engine, gaudi3: Target
) -> None:
    call = OpCall(op, args)
    if names is not None:
        parts = parts_of(call)
        assert parts is not None
        assert [op_name(part.op) for part in parts] == names
    verdict = judge_call(gaudi3, call)
    assert (verdict.support, verdict.engine) == (Support.EVIDENCED, engine), verdict.reason


def test_attention_is_judged_as_matmul_softmax_matmul(gaudi3: Target) -> None:
    call = OpCall(aten.scaled_dot_product_attention.default, (X, X, X))
    parts = parts_of(call)
    assert parts is not None
    names = [op_name(part.op) for part in parts]
    assert names.count("aten::bmm") == 2
    assert not any("flash" in name for name in names), "the host's own fused kernel must not be taken"
    verdict = judge_call(gaudi3, call)
    assert (verdict.support, verdict.engine, verdict.composite) == (Support.EVIDENCED, Engine.MME_TPC, True)


def test_a_composite_is_as_bad_as_its_worst_part(gaudi3: Target) -> None:
    call = OpCall(aten.diff.default, (torch.arange(5, dtype=torch.int8),))
    verdict = judge_call(gaudi3, call)
    assert verdict.support is Support.NO
    assert "aten::sub.Tensor" in verdict.reason


def test_parts_compute_nothing_and_leave_inputs_alone() -> None:
    x = torch.ones(3)
    parts = parts_of(OpCall(aten.layer_norm.default, (x, [3])))
    assert parts
    assert all(tensor.is_meta for part in parts for tensor in part.tensors())
    assert torch.equal(x, torch.ones(3))


FACTORIES = [
    (aten.arange.default, (5,), {}, torch.int64),
    (aten.arange.default, (5.0,), {}, torch.float32),
    (aten.full.default, ([2], True), {}, torch.bool),
    (aten.full.default, ([2], 3), {}, torch.int64),
    (aten.zeros.default, ([2],), {}, torch.float32),
    (aten.ones.default, ([2],), {"dtype": torch.bfloat16}, torch.bfloat16),
    (aten.scalar_tensor.default, (3,), {}, torch.float32),
    (aten.triu_indices.default, (3, 3), {}, torch.int64),
    (aten.randint.default, (9, [2]), {}, torch.int64),
]


@pytest.mark.parametrize(("op", "args", "kwargs", "dtype"), FACTORIES)
def test_factories_are_judged_by_the_dtype_they_make(
    op: OpOverload, args: tuple[object, ...], kwargs: dict[str, object], dtype: torch.dtype
) -> None:
    call = OpCall(op, args, kwargs)
    result = call.run()
    assert isinstance(result, torch.Tensor)
    assert call.dtypes() == (result.dtype,) == (dtype,)


def test_bool_values_are_no_bool_index(gaudi3: Target) -> None:
    mask, index = torch.zeros(4, dtype=torch.bool), torch.tensor([1])
    put = judge_call(gaudi3, OpCall(aten.index_put.default, (mask, [index], mask[:1])))
    assert not put.dynamic
    assert judge_call(gaudi3, OpCall(aten.index_put.default, (X[0, 0], [mask], X[0, 0, 0]))).dynamic


def test_semantic_ops_are_judged_as_their_fused_kernel(gaudi3: Target) -> None:
    from gaudicc.kernels.norm import rms_norm

    verdict = judge_call(gaudi3, OpCall(rms_norm, (X, torch.ones(4), 1e-6, True)))
    assert (verdict.support, verdict.engine) == (Support.EVIDENCED, Engine.TPC)
    assert "hpu::rms_norm" in verdict.reason
    wide = judge_call(gaudi3, OpCall(rms_norm, (X.to(torch.complex64), torch.ones(4), 1e-6, True)))
    assert wide.support is Support.NO


def test_training_flags_of_embedding_fall_back(gaudi3: Target) -> None:
    weight, index = torch.ones(4, 2), torch.tensor([1])
    assert judge_call(gaudi3, OpCall(aten.embedding.default, (weight, index))).legal
    for flag in ("scale_grad_by_freq", "sparse"):
        verdict = judge_call(gaudi3, OpCall(aten.embedding.default, (weight, index), {flag: True}))
        assert (verdict.support, verdict.dynamic) == (Support.NO, False)


def test_randperm_is_clustered_for_int64_only(gaudi3: Target) -> None:
    for dtype, mode, legal in (
        (torch.int64, Mode.COMPILE, True),
        (torch.int32, Mode.COMPILE, False),
        (torch.int32, Mode.LAZY, True),
    ):
        verdict = judge_call(gaudi3, OpCall(aten.randperm.default, (5,), {"dtype": dtype}), mode)
        assert verdict.legal is legal, (dtype, mode)


def test_views_decompose_into_views_in_compile_mode(gaudi3: Target) -> None:
    for op, args in ((aten.t.default, (X[0],)), (aten.squeeze.dim, (X, 0)), (aten.unbind.int, (X,))):
        assert judge_call(gaudi3, OpCall(op, args), Mode.COMPILE).legal


def test_none_index_matters_in_compile_mode_only(gaudi3: Target) -> None:
    call = OpCall(aten.index.Tensor, (X, [None, torch.tensor([0])]))
    assert judge_call(gaudi3, call, Mode.LAZY).support is Support.PRESUMED
    assert judge_call(gaudi3, call, Mode.COMPILE).support is Support.NO


@pytest.mark.parametrize(
    ("op", "reads"),
    [
        (aten.item.default, True),
        (aten._local_scalar_dense.default, True),
        (aten.is_nonzero.default, True),
        (aten.equal.default, True),
        (aten.allclose.default, True),
        (aten.sym_size.int, False),
        (aten.is_floating_point.default, False),
        (aten.add.Tensor, False),
        (aten.sum.default, False),
    ],
)
def test_reads_host(op: OpOverload, reads: bool) -> None:
    assert reads_host(op) is reads


def test_map_values_keeps_forms() -> None:
    values = ([1, (2, 3)], {"a": 4}, torch.return_types.max((X, X)))
    assert map_values(values[:2], lambda leaf: leaf) == values[:2]
    assert map_values(values[2], lambda leaf: 0) == (0, 0)


def test_example_size_of_a_symbol_adds_no_guard() -> None:
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    env = ShapeEnv()
    fake = torch._subclasses.FakeTensorMode(shape_env=env)
    tensor = fake.from_tensor(
        torch.empty(7, 2),
        symbolic_context=torch.fx.experimental.symbolic_shapes.StatelessSymbolicContext(
            dynamic_sizes=[torch.fx.experimental.symbolic_shapes.DimDynamic.DYNAMIC] * 2
        ),
    )
    guards = len(env.guards)
    assert [example_size(size) for size in tensor.shape] == [7, 2]
    assert parts_of(OpCall(aten.layer_norm.default, (tensor, [tensor.shape[1]])))
    assert len(env.guards) == guards
    assert example_size(env.create_unbacked_symint()) is None


ARGUMENTS = st.sampled_from([0, 1, 1.0, True, 2, -1, None, torch.int64, torch.bool])


@given(st.lists(st.tuples(ARGUMENTS, st.sampled_from([X, X.mT, HALF, X.int(), X.long()])), min_size=1, max_size=8))
def test_a_verdict_that_is_remembered_is_the_one_that_would_be_given(calls: list[tuple[object, torch.Tensor]]) -> None:
    remembering = load_target("gaudi3", shipped=True)
    for argument, tensor in calls * 2:
        for op, args in ((aten.sum.dim_IntList, (tensor, [0], argument)), (aten.clamp.default, (tensor, argument))):
            call = OpCall(op, args)
            assert judge_call(remembering, call) == judge_call(replace(remembering), call)


def test_a_call_with_symbolic_sizes_is_judged_anew(gaudi3: Target) -> None:
    gaudi3 = replace(gaudi3)
    mode = FakeTensorMode(shape_env=ShapeEnv())
    fake = mode.from_tensor(X, symbolic_context=StatelessSymbolicContext([DimDynamic.DYNAMIC] * 3))
    judge_call(gaudi3, OpCall(aten.relu.default, (fake,)))
    assert not gaudi3.verdicts
    judge_call(gaudi3, OpCall(aten.relu.default, (X,)))
    assert len(gaudi3.verdicts) == 1
