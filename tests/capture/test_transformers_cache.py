"""transformers' caches as arguments and results: the natural call, `model(input_ids)`, and a decode step after it."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

import gaudicc
from gaudicc.capture.transformers_cache import register_cache
from gaudicc.errors import UnsupportedInputError
from gaudicc.models import load


def tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def natural(family: str, **options: Any) -> tuple[Any, dict[str, Any]]:
    model, inputs = load(family, layers=1, **options)
    del inputs["use_cache"]
    return model, inputs


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text", "gpt2", "mixtral", "t5"])
def test_prefill_and_decode_with_a_cache(family: str) -> None:
    model, inputs = natural(family)
    with torch.no_grad():
        first = model(**inputs)
    compiled = gaudicc.compile(model, inputs)
    got = compiled(**inputs)
    assert type(got.past_key_values) is type(first.past_key_values)
    assert got.past_key_values.get_seq_length() == first.past_key_values.get_seq_length()
    torch.testing.assert_close(tensors(got), tensors(first), rtol=1e-5, atol=1e-5)

    ids = "decoder_input_ids" if family == "t5" else "input_ids"
    step = {name: value for name, value in inputs.items() if name != "attention_mask"} | {ids: inputs[ids][:, :1]}
    cache = lambda: copy.deepcopy(first.past_key_values)  # noqa: E731
    decode = gaudicc.compile(model, {**step, "past_key_values": cache()})
    with torch.no_grad():
        second = model(**step, past_key_values=cache())
    got = decode(**step, past_key_values=cache())
    assert got.past_key_values.get_seq_length() == second.past_key_values.get_seq_length()
    torch.testing.assert_close(tensors(got), tensors(second), rtol=1e-5, atol=1e-5)


def test_a_window_that_has_slid_keeps_its_positions() -> None:
    model, inputs = natural("mistral", sequence=24)
    assert model.config.sliding_window < 24
    with torch.no_grad():
        first = model(**inputs)
    step = {"input_ids": inputs["input_ids"][:, :1]}
    decode = gaudicc.compile(model, {**step, "past_key_values": copy.deepcopy(first.past_key_values)})
    got = decode(**step, past_key_values=copy.deepcopy(first.past_key_values))
    with torch.no_grad():
        expected = model(**step, past_key_values=first.past_key_values)
    torch.testing.assert_close(got.logits, expected.logits, rtol=1e-5, atol=1e-5)
    assert got.past_key_values.get_seq_length() == 25


def test_a_bundle_keeps_the_cache(tmp_path: Path) -> None:
    model, inputs = natural("llama")
    compiled = gaudicc.compile(model, inputs)
    compiled.save(tmp_path / "bundle.zip")
    got, expected = gaudicc.load(tmp_path / "bundle.zip")(**inputs), compiled(**inputs)
    torch.testing.assert_close(tensors(got), tensors(expected), rtol=0, atol=0)


def test_a_foreign_registration_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import DynamicCache

    register_cache(DynamicCache)
    foreign = pytree.NodeDef(DynamicCache, lambda cache: ([], None), lambda values, context: None, None)
    monkeypatch.setitem(pytree.SUPPORTED_NODES, DynamicCache, foreign)
    with pytest.raises(UnsupportedInputError, match="registered as a pytree node by someone else"):
        register_cache(DynamicCache)


def test_a_sliding_window_of_dynamic_size_is_refused() -> None:
    model, inputs = natural("mistral")
    shapes = {"input_ids": {1: torch.export.Dim("tokens", min=2, max=64)}}
    with pytest.raises(UnsupportedInputError, match="counts tokens of a dynamic size"):
        gaudicc.compile(model, {"input_ids": inputs["input_ids"]}, dynamic_shapes=shapes)
