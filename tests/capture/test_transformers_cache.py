"""transformers' caches as arguments and results: the natural call, `model(input_ids)`, and a decode step after it."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
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


SMALL = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2}
HEADS = {"intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
HYBRIDS: dict[str, dict[str, Any]] = {
    "Mamba": {**SMALL, "num_hidden_layers": 1, "state_size": 4},
    "Lfm2": {**SMALL, **HEADS, "layer_types": ["conv", "full_attention"]},
    "FalconH1": {
        **SMALL, **HEADS, "num_hidden_layers": 1, "head_dim": 8, "mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8,
        "mamba_n_groups": 1, "mamba_d_state": 8,
    },
}  # fmt: skip


@pytest.mark.parametrize("family", HYBRIDS)
def test_states_of_linear_attention(family: str) -> None:
    """Prefill, and a decode step that starts from states, keys and values, or both in one layer."""
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(
        getattr(transformers, f"{family}Config")(**HYBRIDS[family])
    ).eval()
    ids, step = torch.randint(3, 50, (2, 8)), torch.randint(3, 50, (2, 1))
    with torch.no_grad():
        first = model(input_ids=ids, use_cache=True)
    name = "cache_params" if family == "Mamba" else "past_key_values"
    got = gaudicc.compile(model, {"input_ids": ids, "use_cache": True})(input_ids=ids, use_cache=True)
    torch.testing.assert_close(tensors(got), tensors(first), rtol=1e-5, atol=1e-5)
    cache = lambda: {name: copy.deepcopy(getattr(first, name))}  # noqa: E731
    decode = gaudicc.compile(model, {"input_ids": step, "use_cache": True, **cache()})
    with torch.no_grad():
        second = model(input_ids=step, use_cache=True, **cache())
    got = decode(input_ids=step, use_cache=True, **cache())
    torch.testing.assert_close(tensors(got), tensors(second), rtol=1e-5, atol=1e-5)


def test_a_cache_of_dynamic_length() -> None:
    """Its sizes are declared as lists: a list per layer, of keys and values."""
    model, inputs = natural("llama")
    step = inputs["input_ids"][:, :1]

    def cache(tokens: int) -> Any:
        with torch.no_grad():
            return model(torch.randint(3, 50, (step.shape[0], tokens)), use_cache=True).past_key_values

    past = torch.export.Dim("past", min=1, max=32)
    compiled = gaudicc.compile(
        model,
        {"input_ids": step, "past_key_values": cache(8)},
        dynamic_shapes={"past_key_values": [[{2: past}, {2: past}]]},
    )
    for tokens in (8, 3, 31):
        held = cache(tokens)
        with torch.no_grad():
            expected = model(step, past_key_values=copy.deepcopy(held))
        torch.testing.assert_close(
            tensors(compiled(step, past_key_values=held)), tensors(expected), rtol=1e-5, atol=1e-5
        )


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
