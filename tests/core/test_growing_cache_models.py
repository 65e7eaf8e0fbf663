"""Caches held as state in models of several kinds: sides, exact sizes, a CUDA team's stack, transformers' DynamicCache."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.export import Dim

import gaudicc
from gaudicc.errors import BucketMissError, StateError
from gaudicc.models import cuda_style_llm, load
from gaudicc.passes import DEFAULT_PIPELINE, Pad


def test_compiled_under_inference_mode() -> None:
    past = Dim("past", min=0, max=8)
    with torch.inference_mode():
        made = gaudicc.compile(
            lambda past, x: (torch.cat([past, x]), x.sum()), (torch.ones(3, 2), torch.ones(1, 2)),
            dynamic_shapes={"past": {0: past}, "x": None}, static_state=True,
        )  # fmt: skip
    grown, _ = made(torch.ones(2, 2), torch.zeros(1, 2))
    grown, _ = made(grown, torch.zeros(1, 2))
    assert grown.sum() == 4
    assert grown.shape == (4, 2)


class Decides(nn.Module):
    """Python decides on the number of new rows, so that there is a program for each side."""

    def forward(self, past: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        grown = torch.cat([past, x])
        return (grown.sum(0) if x.shape[0] > 4 else grown.cumsum(0).mean(0)), grown


def test_sides_of_a_model_share_its_caches() -> None:
    past, new = Dim("past", min=0, max=16), Dim("new", min=2, max=8)
    sided = gaudicc.compile(
        Decides().eval(), (torch.ones(3, 2), torch.ones(6, 2)), dynamic_shapes={"past": {0: past}, "x": {0: new}},
        buckets=[{"past": 16, "new": 8}], static_state=True,
    )  # fmt: skip
    assert len(sided.sides) == 2  # type: ignore[attr-defined]
    for one in (sided, sided.session()):
        expected = grown = torch.randn(2, 2)
        for rows in (2, 6, 3, 5):
            x = torch.randn(rows, 2)
            y, expected = Decides()(expected, x)
            got, grown = one(grown, x)
            torch.testing.assert_close((got, grown), (y, expected))
    assert sided.stats.copied_caches == 1


def test_sides_with_buffers_of_other_sizes_hand_them_over() -> None:
    past, new = Dim("past", min=0, max=16), Dim("new", min=1, max=8)

    class One(nn.Module):
        def forward(self, past: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            if x.shape[0] == 1:
                return past.sum(0), torch.cat([past, x.expand(1, 2)])
            return past.exp().sum(0), torch.cat([past, x])

    model = One().eval()
    sided = gaudicc.compile(
        model, (torch.ones(3, 2), torch.ones(6, 2)), dynamic_shapes={"past": {0: past}, "x": {0: new}},
        buckets=[{"past": 16, "new": 8}], static_state=True,
    )  # fmt: skip
    expected = grown = torch.randn(2, 2)
    for rows in (2, 1, 1, 5, 1):
        x = torch.randn(rows, 2)
        y, expected = model(expected, x)
        got, grown = sided(grown, x)
        torch.testing.assert_close((got, grown), (y, expected))
    assert sided.stats.copied_caches == 4, "at the start, and wherever the side changes"
    with pytest.raises(StateError, match="may have been overwritten"):
        sided(grown[:1], torch.ones(2, 2))


def test_a_program_that_is_not_padded_serves_its_exact_sizes() -> None:
    model = lambda past, x: (torch.cat([past, x]), past.sum(0))  # noqa: E731
    compiled = gaudicc.compile(
        model, (torch.ones(3, 2), torch.ones(1, 2)), dynamic_shapes={"past": {0: Dim("past", min=2, max=8)}, "x": None},
        buckets=[{"past": 4}, {"past": 5}], static_state=True, verify="numerics",
        passes=[step for step in DEFAULT_PIPELINE if not isinstance(step, Pad)],
    )  # fmt: skip
    given = torch.randn(4, 2)
    grown, total = compiled(given, torch.ones(1, 2))
    torch.testing.assert_close((grown, total), model(given, torch.ones(1, 2)))
    expected = model(grown.clone(), torch.zeros(1, 2))
    torch.testing.assert_close(compiled(grown, torch.zeros(1, 2)), expected)
    assert compiled.stats.copied_caches == 1
    with pytest.raises(BucketMissError, match="no bucket is exactly past=3"):
        compiled(given[:3], torch.ones(1, 2))


def test_the_cache_of_a_stack_as_a_cuda_team_writes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its mask is written with `triu_indices`, which fixes every length; here it is written by comparison."""

    def causal_bias(new: int, total: int, start: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        columns = torch.arange(total)
        hidden = columns > torch.arange(total - new, total)[:, None]
        return torch.zeros(new, total, dtype=dtype).masked_fill(hidden, torch.finfo(dtype).min)[None, None]

    monkeypatch.setattr(cuda_style_llm, "causal_bias", causal_bias)
    model = cuda_style_llm.build("tiny", n_layer=3)
    past, new = Dim("past", min=0, max=32), Dim("new", min=1, max=8)
    cache = [(torch.randn(2, 5, 2, 16), torch.randn(2, 5, 2, 16)) for _ in range(3)]
    compiled = gaudicc.compile(
        model, (torch.ones(2, 3, dtype=torch.int64), cache),
        dynamic_shapes={"tokens": {1: new}, "cache": [({1: past}, {1: past})] * 3, "start": None},
        buckets=[{"new": 2, "past": 32}, {"new": 8, "past": 32}], static_state=True,
    )  # fmt: skip
    got = expected = [(torch.zeros(2, 0, 2, 16), torch.zeros(2, 0, 2, 16)) for _ in range(3)]
    for rows in (6, 1, 1, 3, 1):
        tokens = torch.randint(model.args.vocab_size, (2, rows))
        with torch.no_grad():
            wanted, expected = model(tokens, expected)
        logits, got = compiled(tokens, got)
        torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert compiled.stats.copied_caches == 6


@pytest.mark.parametrize("family", ["llama", pytest.param("gpt2", marks=pytest.mark.sweep)])
def test_the_dynamic_cache_of_transformers(family: str) -> None:
    from transformers import DynamicCache

    model, inputs = load(family, layers=2)
    past, new = Dim("past", min=0, max=24), Dim("new", min=1, max=8)
    ids = inputs["input_ids"]
    with torch.no_grad():
        cache = model(input_ids=ids[:, :5], use_cache=True).past_key_values
    compiled = gaudicc.compile(
        model, {"input_ids": ids[:, :3], "past_key_values": cache, "use_cache": True},
        dynamic_shapes={"input_ids": {1: new}, "past_key_values": [[{2: past}, {2: past}]] * 2, "use_cache": None},
        buckets="pad", static_state=True,
    )  # fmt: skip
    assert len(compiled.program.calling.caches) == 4
    with torch.no_grad():
        expected, got = (model(input_ids=ids[:, :4], use_cache=True).past_key_values for _ in range(2))
    for rows in (3, 1, 1, 5, 1):
        call = {"input_ids": ids[:, :rows], "use_cache": True}
        with torch.no_grad():
            wanted = model(**call, past_key_values=expected)
        found = compiled(**call, past_key_values=got)
        torch.testing.assert_close(found.logits, wanted.logits, rtol=1e-4, atol=1e-4)
        expected, got = wanted.past_key_values, found.past_key_values
        assert isinstance(got, DynamicCache)
        assert got.get_seq_length() == expected.get_seq_length()
    assert compiled.stats.copied_caches == 4


def test_buckets_may_be_larger_than_the_sizes() -> None:
    past, new = Dim("past", min=0, max=5), Dim("new", min=1, max=3)
    model = lambda past, x: (torch.cat([past, x]), (past.sum(0) + x.sum(0)))  # noqa: E731
    compiled = gaudicc.compile(
        model, (torch.ones(3, 2), torch.ones(2, 2)), dynamic_shapes={"past": {0: past}, "x": {0: new}},
        buckets=[{"past": 8, "new": 32}], static_state=True, verify="poison",
    )  # fmt: skip
    expected = grown = torch.randn(0, 2)
    for rows in (1, 2, 1, 3):
        x = torch.randn(rows, 2)
        expected, total = model(expected, x)
        grown, found = compiled(grown, x)
        torch.testing.assert_close((grown, found), (expected, total))
