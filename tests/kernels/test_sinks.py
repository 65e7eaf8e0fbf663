"""Attention with sinks: every way to write it is recognised, what only looks like it is not, and slices of it are the whole."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import gaudicc
from gaudicc.capture import capture
from gaudicc.kernels import sink_attention, softmax_tile
from gaudicc.kernels.attention import plain_sink_attention
from gaudicc.machine.attention import Split
from gaudicc.models import transformers_models
from gaudicc.nodes import val
from gaudicc.passes import DEFAULT_PIPELINE
from gaudicc.passes.lower_semantic_ops import LowerSemanticOps
from gaudicc.passes.recognize_attention import RecognizeAttention
from gaudicc.passes.split_attention import SplitAttention
from gaudicc.pipeline import CAPTURED, Pass, Pipeline
from gaudicc.program import Program
from gaudicc.targets import load_target
from gaudicc.trace import PassRecord
from gaudicc.verify import Level

Attention = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
HEADS, QUERIES, KEYS = 4, 3, 5


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def operands(dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """Queries, keys, values, what is let through (nothing in the second row), sinks."""
    seen = random(1, 1, QUERIES, KEYS, seed=4) > -0.5
    seen[..., 1, :] = False
    sizes = ((2, HEADS, QUERIES, 8), (2, HEADS, KEYS, 8), (2, HEADS, KEYS, 8), (HEADS,))
    q, k, v, sink = (random(*size, seed=i, dtype=dtype) for i, size in enumerate(sizes))
    return q, k, v, seen, sink


def sinks(program: Program) -> list[Any]:
    return [n for _, module in program.graphs() for n in module.graph.nodes if n.target is sink_attention]


def program_of(model: Callable[..., Any], *inputs: Tensor) -> Program:
    class Module(nn.Module):
        def forward(self, *given: Tensor) -> Any:
            return model(*given)

    program = capture(Module().eval(), inputs)
    program.target = load_target("gaudi3")
    return program


def alone(step: Pass, program: Program) -> tuple[Program, PassRecord]:
    """One pass, its promises checked, numerics included."""
    after, (record,) = Pipeline((step,), initial=CAPTURED | step.requires).run(program, level=Level.NUMERICS)
    return after, record


def column(sink: Tensor, scores: Tensor) -> Tensor:
    return sink.reshape(1, -1, 1, 1).expand(scores.shape[0], -1, scores.shape[2], -1)


def added(seen: Tensor, like: Tensor) -> Tensor:
    return torch.zeros_like(seen, dtype=like.dtype).masked_fill(~seen, torch.finfo(like.dtype).min)


def as_transformers(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, sink: Tensor) -> Tensor:
    scores = torch.matmul(q, k.transpose(2, 3)) * 0.3 + added(seen, q)
    logits = torch.cat([scores, column(sink, scores)], dim=-1)
    logits = logits - logits.max(dim=-1, keepdim=True).values
    weights = torch.softmax(logits, dim=-1, dtype=logits.dtype)[..., :-1]
    return nn.functional.dropout(weights, p=0.0, training=False).to(v.dtype) @ v


def without_shift(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, sink: Tensor) -> Tensor:
    scores = q @ k.mT * 0.3 + added(seen, q)
    return torch.softmax(torch.cat([scores, column(sink, scores)], -1), -1)[..., : k.shape[2]] @ v


def sink_in_front(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, sink: Tensor) -> Tensor:
    scores = q @ k.mT * 0.3 + added(seen, q)
    return torch.softmax(torch.cat([column(sink, scores), scores], -1), -1)[..., 1:] @ v


def chosen_by_where(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, sink: Tensor) -> Tensor:
    scores = q @ k.mT * 0.3
    scores = torch.where(seen, scores, torch.full_like(scores, torch.finfo(scores.dtype).min))
    logits = torch.cat([scores, sink.view(1, -1, 1, 1).repeat(scores.shape[0], 1, scores.shape[2], 1)], -1)
    return torch.softmax(logits, dim=-1, dtype=torch.float32).to(q.dtype)[..., :-1] @ v


def filled(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, sink: Tensor) -> Tensor:
    scores = (q @ k.mT * 0.3).masked_fill(~seen, float("-inf"))
    logits = torch.cat([scores, column(sink.float(), scores)], -1)
    return torch.softmax(logits - logits.amax(-1, keepdim=True), -1)[..., :-1].to(v.dtype) @ v


def in_float32(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, sink: Tensor) -> Tensor:
    scores = (q @ k.mT * 0.3).float() + added(seen, q)
    return torch.softmax(torch.cat([scores, column(sink, scores).float()], -1), -1)[..., :-1].to(v.dtype) @ v


WAYS = [as_transformers, without_shift, sink_in_front, chosen_by_where, filled, in_float32]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("way", WAYS)
def test_ways_to_write_it(way: Attention, dtype: torch.dtype) -> None:
    after, record = alone(RecognizeAttention(), program_of(way, *operands(dtype)))  # compares the results as well
    (node,) = sinks(after)
    assert node.args[3] is not None
    assert node.args[4:6] == (False, pytest.approx(0.3))
    assert "aten.cat" not in after.count_ops()
    assert not record.notes


def beside(cut: slice, make: Callable[[Tensor, Tensor], Tensor] = column) -> Attention:
    def model(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, sink: Tensor) -> Tensor:
        scores = q @ k.mT
        return torch.softmax(torch.cat([scores, make(sink, scores)], -1), -1)[..., cut] @ v[:, :, :5]

    return model


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (beside(slice(1, None)), "not those of a sink"),
        (beside(slice(0, -1), lambda sink, scores: scores[..., :1] * 2), "not those of a sink"),
        (lambda q, k, v, seen, sink: torch.softmax(q @ k.mT, -1)[..., :-1] @ v[:, :, 1:], "not those of a sink"),
    ],
)  # fmt: skip
def test_near_misses_stay_and_are_noted(model: Attention, reason: str) -> None:
    result = RecognizeAttention().run(program_of(model, *operands()))
    assert not sinks(result.program)
    (note,) = result.notes
    assert re.search(reason, note), note


def test_without_a_sink_the_lowest_number_is_added() -> None:
    """A row without any key is the mean of all values then, which a mask of bools would make zero."""

    def model(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, sink: Tensor) -> Tensor:
        return torch.softmax((q @ k.mT).masked_fill(~seen, torch.finfo(q.dtype).min), -1) @ v

    (mask,) = [
        node.args[3]
        for node in RecognizeAttention().run(program_of(model, *operands())).program.root.graph.nodes
        if "attention" in str(node.target)
    ]
    assert val(mask).dtype == torch.float32


@given(data=st.data(), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_the_op_is_its_formula(data: st.DataObject, dtype: torch.dtype) -> None:
    kv_heads, groups = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 3))
    queries, keys, causal = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5)), data.draw(st.booleans())
    q, k, v = (
        random(2, kv_heads * n, rows, 4, seed=n, dtype=dtype) for n, rows in ((groups, queries), (1, keys), (1, keys))
    )
    mask = (
        random(queries, keys, seed=7) > data.draw(st.sampled_from([-9.0, 0.0, 9.0]))
        if data.draw(st.booleans())
        else None
    )
    sink = random(kv_heads * groups, seed=8) * data.draw(st.sampled_from([1.0, 5.0, 0.0]))
    scores = (q.double() @ k.repeat_interleave(groups, 1).double().mT) * 0.5
    seen = torch.ones(queries, keys, dtype=torch.bool) if mask is None else mask
    scores = scores.masked_fill(~(seen.tril() if causal else seen), float("-inf"))
    least = torch.maximum(scores.amax(-1, keepdim=True), sink.double().view(1, -1, 1, 1))
    top = torch.exp(scores - least)
    weights = top / (top.sum(-1, keepdim=True) + torch.exp(sink.double().view(1, -1, 1, 1) - least))
    expected = (weights @ v.repeat_interleave(groups, 1).double()).to(dtype)
    tolerance = 1e-5 if dtype is torch.float32 else 3e-2
    for op in (sink_attention, plain_sink_attention):
        torch.testing.assert_close(op(q, k, v, mask, causal, 0.5, sink), expected, rtol=tolerance, atol=tolerance)


def test_a_sink_of_nothing_is_attention() -> None:
    q, k, v, seen, sink = operands()
    plain = gaudicc.kernels.attention(q, k, v, seen, False, 0.5)
    none = torch.full_like(sink, float("-inf"))
    torch.testing.assert_close(sink_attention(q, k, v, seen, False, 0.5, none), plain)


def test_torch_takes_the_op() -> None:
    q, k, v, seen, sink = operands()
    torch.library.opcheck(
        sink_attention, (q, k, v, seen, True, 0.5, sink), test_utils=("test_schema", "test_faketensor")
    )


def attend(q: Tensor, k: Tensor, v: Tensor, sink: Tensor) -> Tensor:
    out: Tensor = sink_attention(q, k, v, None, True, 0.25, sink)
    return out


def masked(q: Tensor, k: Tensor, v: Tensor, sink: Tensor, seen: Tensor) -> Tensor:
    out: Tensor = sink_attention(q, k, v, seen, False, 0.25, sink)
    return out


def long(dtype: torch.dtype, heads: int = 4) -> tuple[Tensor, ...]:
    q, k, v = (random(2, count, 256, 16, seed=i, dtype=dtype) for i, count in enumerate((heads, 2, 2)))
    return q, k, v, random(heads, seed=5) * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("body_slices", [600, 3])
@pytest.mark.parametrize("force", [Split(2, 128), Split(8, 128, 128), Split(1, 256), Split(4, 256, 128)])
def test_slices_are_the_whole(force: Split, body_slices: int, dtype: torch.dtype) -> None:
    """With and without rows that see no key; `alone` compares what the program gives before and after."""
    step = SplitAttention(force=force, body_slices=body_slices)
    seen = random(2, 1, 256, 256, seed=6) > 0
    seen[..., 7:140, :] = False
    for model, arguments in ((attend, long(dtype)), (masked, (*long(dtype), seen))):
        program = program_of(model, *arguments)
        after, record = alone(step, program)
        assert record.modified
        assert not sinks(after)
        inputs = dict(zip((spec.name for spec in program.user_inputs()), arguments, strict=True))
        (result,), (expected,) = (each.run(inputs) for each in (after, program))
        largest = float(arguments[2].abs().max())
        limit = 1e-6 if dtype is torch.float32 else torch.finfo(dtype).eps
        assert float((result.double() - expected.double()).abs().max()) <= limit * largest


@pytest.mark.parametrize("target", ["gaudi2", "gaudi3"])
def test_no_kernel_takes_a_sink(target: str) -> None:
    program = program_of(attend, *long(torch.bfloat16))
    program.target = load_target(target)
    after, _ = alone(LowerSemanticOps(), program)
    assert not [op for op in after.count_ops() if op.startswith("gaudicc.")]


@pytest.mark.parametrize("target", [pytest.param("gaudi2", marks=pytest.mark.sweep), "gaudi3"])
def test_gpt_oss_as_transformers_writes_it(target: str) -> None:
    """Both layers' attention is cut, in buckets too, and the model gives what it gives eagerly."""
    model = transformers_models.build("gpt_oss", layers=2, task="causal").eval()
    ids = torch.arange(24).reshape(2, 12)
    passes = [SplitAttention(force=Split(2, 4, 4)) if isinstance(p, SplitAttention) else p for p in DEFAULT_PIPELINE]
    length = torch.export.Dim("length", min=2, max=16)
    compiled = gaudicc.compile(
        model, {"input_ids": ids, "use_cache": False}, dynamic_shapes={"input_ids": {1: length}}, target=target,
        passes=passes, device="cpu", buckets="pad",
    )  # fmt: skip
    split = next(record for record in compiled.trace if record.name == "split-attention")
    assert "gaudicc.sink_attention" in split.before.count_ops()
    assert "gaudicc.sink_attention" not in split.after.count_ops()
    for rows in (12, 7):
        got = compiled(input_ids=ids[:, :rows], use_cache=False).logits
        torch.testing.assert_close(got, model(input_ids=ids[:, :rows], use_cache=False).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keys_that_the_lowest_number_hides_are_not_computed(dtype: torch.dtype) -> None:
    """As transformers' eager masks have it; in the rows that see no key, a sink leaves nothing either way."""

    def model(q: Tensor, k: Tensor, v: Tensor, sink: Tensor) -> Tensor:
        rows = torch.arange(256)
        seen = (rows[None, :] <= rows[:, None]) & (rows[None, :] > rows[:, None] - 100) & (rows[:, None] > 20)
        mask = torch.where(seen, 0.0, torch.finfo(dtype).min).to(dtype)
        out: Tensor = sink_attention(q, k, v, mask, False, 0.25, sink)
        return out

    after, _ = alone(SplitAttention(force=Split(8, 128)), program_of(model, *long(dtype)))
    sizes = [n.meta["val"].shape[-1] for n in after.root.graph.nodes if n.target is softmax_tile]
    assert sizes == [256, 128], "the last rows first, and none of the keys behind them"
