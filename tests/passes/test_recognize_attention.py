"""recognize-attention: every usual way to write it, and what only looks like it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from expecttest import assert_expected_inline
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx
from torch.nn.functional import dropout, scaled_dot_product_attention, softmax

from gaudicc.capture import capture
from gaudicc.fake_values import fakes
from gaudicc.nodes import op_name
from gaudicc.passes.recognize_attention import RecognizeAttention
from gaudicc.program import Program

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def attention_in(module: fx.GraphModule) -> list[fx.Node]:
    return [node for node in module.graph.nodes if op_name(node) == "gaudicc.attention"]


def attentions(program: Program) -> list[tuple[Any, ...]]:
    """Whether each attention op has a mask, its causal flag and its scale."""
    nodes = [node for _, module in program.graphs() for node in attention_in(module)]
    return [(node.args[3] is not None, *node.args[4:]) for node in nodes]


def qkv(
    batch: int = 2,
    heads: int = 4,
    queries: int = 3,
    keys: int = 5,
    dim: int = 8,
    *,
    groups: int = 1,
    value_dim: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    kv_heads = heads // groups
    return (
        torch.randn(batch, heads, queries, dim),
        torch.randn(batch, kv_heads, keys, dim),
        torch.randn(batch, kv_heads, keys, value_dim or dim),
    )


def repeated(x: Tensor, groups: int) -> Tensor:
    """Transformers' `repeat_kv`."""
    batch, heads, keys, dim = x.shape
    return x[:, :, None].expand(batch, heads, groups, keys, dim).reshape(batch, heads * groups, keys, dim)


def written_out(q: Tensor, k: Tensor, v: Tensor, scale: float = 0.5) -> Tensor:
    return torch.softmax(q @ k.transpose(-2, -1) * scale, dim=-1) @ v


def test_before_and_after(capture_of: Any, alone: Any, text_of: Any) -> None:
    def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return scaled_dot_product_attention(q, repeated(k, 2), repeated(v, 2), is_causal=True)

    after, _ = alone(RecognizeAttention(), capture_of(model, *qkv(groups=2, keys=3)))
    assert_expected_inline(
        text_of(after),
        """\
graph root:
  %x: f32[2, 4, 3, 8] = input x
  %rest_0: f32[2, 2, 3, 8] = input args[0]
  %rest_1: f32[2, 2, 3, 8] = input args[1]
  %0: f32[2, 4, 3, 8] = gaudicc.attention(%x, %rest_0, %rest_1, None, True, 0.35355339059327373)
  %1: f32[2, 4, 3, 8] = aten.permute(%0, [0, 1, 2, 3])
  %2: f32[2, 4, 3, 8] = aten.clone(%1, memory_format=contiguous_format)
  %3: f32[2, 4, 3, 8] = aten.permute(%2, [0, 1, 2, 3])
  return (%3)
""",
    )


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda q, k, v: scaled_dot_product_attention(q, k, v), (False, False, 8**-0.5)),
        (lambda q, k, v: scaled_dot_product_attention(q, k, v, scale=2.0), (False, False, 2.0)),
        (lambda q, k, v: scaled_dot_product_attention(q, k, v, is_causal=True), (False, True, 8**-0.5)),
        (lambda q, k, v: scaled_dot_product_attention(q, k, v, torch.ones(3, 5) > 0), (True, False, 8**-0.5)),
        (lambda q, k, v: scaled_dot_product_attention(q, k, v, torch.full((2, 1, 3, 5), 0.5)), (True, False, 8**-0.5)),
        (written_out, (False, False, 0.5)),
        (lambda q, k, v: torch.softmax((q @ k.transpose(2, 3)) / 2, -1) @ v, (False, False, 0.5)),
        (lambda q, k, v: torch.softmax(q @ k.transpose(-1, -2), 3) @ v, (False, False, 1.0)),
        (lambda q, k, v: torch.softmax(q @ k.permute(0, 1, 3, 2), -1) @ v, (False, False, 1.0)),
        (lambda q, k, v: torch.softmax(q @ k.mT, -1) @ v, (False, False, 1.0)),
        (lambda q, k, v: torch.softmax(q @ k.transpose(2, 3) * 0.5 + v.sum(-1)[:, :, None], -1) @ v, (True, False, 0.5)),
        (lambda q, k, v: torch.softmax(v.sum(-1)[:, :, None] + q @ k.transpose(2, 3), -1) @ v, (True, False, 1.0)),
        (lambda q, k, v: dropout(torch.softmax(q @ k.transpose(2, 3), -1), 0.5, training=False) @ v, (False, False, 1.0)),
        (lambda q, k, v: torch.softmax(q @ k.transpose(2, 3), -1).clone() @ v, (False, False, 1.0)),
    ],
)  # fmt: skip
def test_ways_to_write_it(function: Attention, expected: tuple[Any, ...], capture_of: Any, alone: Any) -> None:
    after, record = alone(RecognizeAttention(), capture_of(function, *qkv()))
    assert attentions(after) == [pytest.approx(expected)]
    assert not record.notes


LOWEST = torch.finfo(torch.float32).min
SEEN = torch.ones(3, 5).tril(1) > 0
NONE_SEEN = SEEN & (torch.arange(3)[:, None] != 1)


def hidden(scores: Tensor, fill: float, seen: Tensor = SEEN) -> Tensor:
    return scores.masked_fill(~seen, fill)


def by_hand(scores: Tensor) -> Tensor:
    power = torch.exp(scores - scores.amax(-1, keepdim=True))
    return power / power.sum(-1, keepdim=True)


def by_einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("bqhd,bhkd->bhqk", q.transpose(1, 2), k) * 0.5
    return torch.einsum("bhqk, bkhd -> bqhd", scores.softmax(-1), v.transpose(1, 2))


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda q, k, v: torch.softmax(q @ (k.transpose(2, 3) * 0.5), -1) @ v, (False, False, 0.5)),
        (lambda q, k, v: torch.softmax(q @ k.transpose(2, 3) / torch.full([], 2.0), -1) @ v, (False, False, 0.5)),
        (lambda q, k, v: torch.softmax(q @ k.swapaxes(-1, -2), -1) @ v, (False, False, 1.0)),
        (lambda q, k, v: torch.softmax(hidden(q @ k.mT, -torch.inf), -1) @ v, (True, False, 1.0)),
        (lambda q, k, v: torch.softmax((q @ k.mT).masked_fill(SEEN == 0, LOWEST), -1) @ v, (True, False, 1.0)),
        (lambda q, k, v: torch.softmax(hidden(q @ k.mT + v.sum(-1)[:, :, None], LOWEST, NONE_SEEN), -1) @ v, (True, False, 1.0)),
        (lambda q, k, v: torch.softmax(hidden(q @ k.mT, LOWEST) + v.sum(-1)[:, :, None], -1) @ v, (True, False, 1.0)),
        (lambda q, k, v: torch.softmax(torch.where(SEEN, q @ k.mT, torch.full([], LOWEST)), -1) @ v, (True, False, 1.0)),
        (lambda q, k, v: torch.softmax(q @ k.mT + torch.arange(5.0) + v.sum(-1)[:, :, None], -1) @ v, (True, False, 1.0)),
        (lambda q, k, v: by_hand(q @ k.mT * 0.5 + v.sum(-1)[:, :, None]) @ v, (True, False, 0.5)),
        (lambda q, k, v: softmax((s := q @ k.mT) - s.max(-1, keepdim=True).values, -1) @ v, (False, False, 1.0)),
        (by_einsum, (False, False, 0.5)),
        (lambda q, k, v: torch.softmax(q[0] @ k[0].mT + v[0].sum(-1)[:, None], -1) @ v[0], (True, False, 1.0)),
        (lambda q, k, v: scaled_dot_product_attention(q[0], k[0], v[0], SEEN[None]), (True, False, 8**-0.5)),
    ],
)  # fmt: skip
def test_more_ways_to_write_it(function: Attention, expected: tuple[Any, ...], capture_of: Any, alone: Any) -> None:
    after, record = alone(RecognizeAttention(), capture_of(lambda q, k, v: function(q, k, v), *qkv()))
    assert attentions(after) == [pytest.approx(expected)]
    assert not record.notes


def test_the_lowest_float32_hides_rounded_scores_too(capture_of: Any, alone: Any) -> None:
    def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return softmax(hidden((q @ k.mT).float(), LOWEST, NONE_SEEN), -1).to(q.dtype) @ v

    after, _ = alone(RecognizeAttention(), capture_of(model, *(x.to(torch.bfloat16) for x in qkv())))
    assert attentions(after) == [(True, False, 1.0)]


@pytest.mark.parametrize("equation", ["bhid,bhjd->bhji", "bhid,bhjd->ijbh", "bhid,bhje->bhij"])
def test_other_einsums_stay(equation: str, capture_of: Any) -> None:
    program = capture_of(lambda q, k: torch.einsum(equation, q, k), *qkv()[:2])
    assert "aten.einsum" in RecognizeAttention().run(program).program.count_ops()


def test_statistics_in_float32_around_bfloat16_scores(capture_of: Any, alone: Any) -> None:
    def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return softmax(q @ k.transpose(2, 3) * 0.5, dim=-1, dtype=torch.float32).to(q.dtype) @ v

    after, _ = alone(RecognizeAttention(), capture_of(model, *(x.to(torch.bfloat16) for x in qkv())))
    assert attentions(after) == [(False, False, 0.5)]


@pytest.mark.parametrize("written", [True, False])
def test_repeated_heads_are_read_in_groups(written: bool, capture_of: Any, alone: Any) -> None:
    def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = repeated(k, 2), repeated(v, 2)
        return written_out(q, k, v) if written else scaled_dot_product_attention(q, k, v)

    after, _ = alone(RecognizeAttention(), capture_of(model, *qkv(groups=2)))
    assert len(attentions(after)) == 1
    assert not {"aten.expand", "aten.reshape"} & after.count_ops().keys()


def test_heads_repeated_unequally_are_left_repeated(capture_of: Any, alone: Any) -> None:
    q, k, v = qkv(groups=2)
    after, _ = alone(
        RecognizeAttention(), capture_of(lambda q, k, v: written_out(q, repeated(k, 2), v), q, k, repeated(v, 2))
    )
    (node,) = attention_in(after.root)
    assert tuple(fakes(node.args[1]).shape) == (2, 4, 5, 8)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda q, k, v: scaled_dot_product_attention(q, k, v, dropout_p=0.1), "drops out"),
        (lambda q, k, v: scaled_dot_product_attention(q[0, 0], k[0, 0], v[0, 0]), "ranks 2, 2 and 2"),
        (lambda q, k, v: torch.softmax(q @ k.transpose(2, 3), 2) @ v, "softmax is over dim 2"),
        (lambda q, k, v: torch.softmax(q[None] @ k[None].mT, -1) @ v[None], "of rank 5"),
        (lambda q, k, v: torch.softmax(hidden(q @ k.mT, -1e4), -1) @ v, "become -10000: a row that sees no key"),
        (lambda q, k, v: torch.softmax(q @ k[0, 0].mT, -1) @ v, "ranks 4, 2 and 4"),
        (lambda q, k, v: torch.softmax(q @ k.transpose(2, 3), -1) @ v[0], "ranks 4, 4 and 3"),
        (lambda q, k, v: torch.softmax(5 * torch.tanh(q @ k.mT / 5) + SEEN.float(), -1) @ v, "capped by a tanh"),
        (lambda q, k, v: torch.softmax((q @ k.transpose(2, 3) + v.sum(-1)[:, :, None]) * 2, -1) @ v, "come from aten.add"),
        (lambda q, k, v: torch.softmax(q @ k.permute(1, 0, 3, 2).transpose(0, 1), -1) @ v, "not transposed"),
        (lambda q, k, v: torch.softmax(q @ k.transpose(2, 3) + (q @ k.transpose(2, 3) > 0), -1) @ v, "mask is torch.bool"),
        (lambda q, k, v: torch.softmax(q @ k.transpose(2, 3) + torch.arange(5), -1) @ v, "mask is torch.int64"),
        (lambda q, k, v: torch.softmax(q[:1] @ k[:1].mT + torch.zeros(2, 1, 3, 5), -1) @ v, "differ in batch|widens"),
        (lambda q, k, v: torch.softmax(q @ k[:1].transpose(2, 3), -1) @ v[:1], "differ in batch"),
        (lambda q, k, v: torch.softmax(q @ k.transpose(2, 3), -1) @ v[:, :1], "differ in batch"),
        (lambda q, k, v: torch.softmax(q[:, :1] @ k.transpose(2, 3), -1) @ v, "1 query heads read 4"),
        (lambda q, k, v: torch.softmax((q @ k.transpose(2, 3)).long().float(), -1) @ v, "come from aten.to"),
        (lambda q, k, v: torch.softmax(q @ k.transpose(2, 3) / 0.0, -1) @ v, "come from aten.div"),
    ],
)  # fmt: skip
def test_near_misses_stay_and_are_noted(function: Attention, reason: str, capture_of: Any, text_of: Any) -> None:
    program = capture_of(function, *qkv())
    before = text_of(program)
    result = RecognizeAttention().run(program)
    assert not attentions(result.program)
    assert text_of(result.program) == before
    (note,) = result.notes
    assert re.search(reason, note), note


@pytest.mark.parametrize(
    "function",
    [
        lambda q, k, v: dropout(torch.softmax(q @ k.transpose(2, 3), -1), 0.5, training=True) @ v,
        lambda q, k, v: v.transpose(2, 3) @ torch.softmax(q @ k.transpose(2, 3), -1).transpose(2, 3),
        lambda q, k, v: torch.softmax(q @ k.transpose(2, 3), -1).square() @ v,
        lambda q, k, v: torch.sigmoid(q @ k.transpose(2, 3)) @ v,
    ],
    ids=["dropout", "other side", "squared", "sigmoid"],
)
def test_what_is_no_attention_at_all_stays(function: Attention, capture_of: Any) -> None:
    result = RecognizeAttention().run(capture_of(function, *qkv()))
    assert not result.modified
    assert not attentions(result.program)


def test_weights_that_the_model_returns_are_computed_too(capture_of: Any, alone: Any) -> None:
    def model(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        weights = torch.softmax(q @ k.transpose(2, 3), -1)
        return weights @ v, weights

    after, record = alone(RecognizeAttention(), capture_of(model, *qkv()))
    assert "aten.softmax.int" in after.count_ops()
    assert record.notes == ("softmax is no attention: its weights are read elsewhere too",)


@given(data=st.data())
def test_values_are_kept_within_rounding(data: st.DataObject, capture_of: Any, alone: Any) -> None:
    size = st.integers(1, 4)
    groups = data.draw(st.integers(1, 3), label="groups")
    q, k, v = qkv(
        data.draw(st.integers(0, 2), label="batch"), groups * data.draw(size, label="kv heads"), queries := data.draw(size),
        keys := data.draw(size, label="keys"), data.draw(size, label="dim"), groups=groups, value_dim=data.draw(size),
    )  # fmt: skip
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    form = data.draw(st.sampled_from(["fused", "causal", "written", "bool mask", "float mask"]))

    def model(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        k, v = repeated(k, groups), repeated(v, groups)
        if form == "written":
            return torch.softmax((q @ k.transpose(2, 3)) * 0.3 + mask, -1, dtype=torch.float32).to(q.dtype) @ v
        if form == "causal":
            return scaled_dot_product_attention(q, k, v, is_causal=True)
        seen = {"fused": None, "bool mask": mask > -1, "float mask": mask}[form]
        return scaled_dot_product_attention(q, k, v, seen)

    mask = torch.rand(queries, keys)  # no row is masked as a whole: what it gives differs between PyTorch's own kernels
    program = capture_of(model, *(x.to(dtype) for x in (q, k, v, mask)))
    after, _ = alone(RecognizeAttention(), program)
    assert len(attentions(after)) == 1
    _, record = alone(RecognizeAttention(), after)
    assert not record.modified


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "gemma3_text"])
def test_the_forms_of_transformers(family: str, implementation: str, alone: Any) -> None:
    pytest.importorskip("transformers", reason="needs gaudicc[models]")
    from gaudicc.models.transformers_models import build, example_inputs

    model: Any = build(family)
    model.set_attn_implementation(implementation)
    after, record = alone(RecognizeAttention(), capture(model, example_inputs(model)))
    (masked, causal, scale), *more = attentions(after)
    assert not more, "one in the body that all layers share"
    assert masked
    assert not causal
    assert scale == getattr(model.config, "query_pre_attn_scalar", 16) ** -0.5
    (body,) = (module for module in after.bodies.values() if attention_in(module))
    left = {op_name(node) for node in body.graph.nodes}
    assert not {"aten.softmax.int", "aten.matmul", "aten.expand"} & left, "repeated heads are read in groups"
    assert not record.notes
