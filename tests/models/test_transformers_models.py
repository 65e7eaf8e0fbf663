"""The transformers adapter: every family builds, runs, repeats, and refuses clearly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

pytest.importorskip("transformers", reason="needs gaudicc[models]")

from gaudicc.errors import InputError, ModelFileError
from gaudicc.models import transformers_models
from gaudicc.models.reference_configs import REFERENCE_CONFIGS
from gaudicc.models.transformers_models import example_inputs, families, model_types

# Any: the tests reach into attributes that only the concrete model class has.
build = cast(Callable[..., Any], transformers_models.build)


def run(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        output = model(**example_inputs(model))
    return cast(torch.Tensor, output["logits"] if "logits" in output else output["last_hidden_state"])


@pytest.mark.parametrize("name", families())
def test_families_build_run_and_repeat(name: str) -> None:
    model, again = build(name), build(name)
    assert not model.training
    output = run(model)
    assert torch.isfinite(output).all()
    assert torch.equal(output, run(again))
    assert sum(weight.numel() for weight in model.parameters()) < 1_000_000
    assert not torch.equal(output, run(build(name, seed=1)))


@pytest.mark.parametrize("name", families())
def test_families_in_bfloat16_are_near_float32(name: str) -> None:
    output = run(build(name, dtype=torch.bfloat16))
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), run(build(name)), rtol=5e-2, atol=5e-2)


def test_families_are_what_the_names_say() -> None:
    classes = {name: type(build(name, device="meta")).__name__ for name in families()}
    assert classes == {
        "llama": "LlamaForCausalLM",
        "mistral": "MistralForCausalLM",
        "qwen3": "Qwen3ForCausalLM",
        "gemma3_text": "Gemma3ForCausalLM",
        "gpt2": "GPT2LMHeadModel",
        "bert": "BertModel",
        "t5": "T5ForConditionalGeneration",
        "mixtral": "MixtralForCausalLM",
    }
    assert type(build("bert", task="causal", device="meta")).__name__ == "BertLMHeadModel"
    assert type(build("llama", task="encoder", device="meta")).__name__ == "LlamaModel"


def test_building_leaves_the_global_generator() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    build("llama")
    assert torch.equal(torch.rand(1), expected)


def test_layers_and_overrides() -> None:
    assert build("llama").config.num_hidden_layers == 2
    assert len(build("llama", layers=5).model.layers) == 5
    assert len(build("gpt2", layers=3, n_embd=32).transformer.h) == 3
    assert build("gpt2", n_embd=32).config.hidden_size == 32
    assert set(build("gemma3_text", layers=1).config.layer_types) == {"sliding_attention", "full_attention"}
    with pytest.raises(InputError, match="hidden_sise"):
        build("llama", hidden_sise=32)


def test_experts_run_in_static_shapes() -> None:
    mixtral = build("mixtral")
    assert mixtral.config._experts_implementation == "batched_mm"
    exported = torch.export.export(mixtral, (), example_inputs(mixtral), strict=False)
    assert not [node for node in exported.graph.nodes if "grouped_mm" in str(node.target)]
    eager = build("mixtral", experts_implementation="eager")
    torch.testing.assert_close(run(eager), run(mixtral), rtol=0, atol=1e-5)


def test_example_inputs_by_kind_of_model() -> None:
    causal = example_inputs(build("llama"), batch=3, sequence=5)
    assert causal["input_ids"].shape == (3, 5)
    assert causal["attention_mask"].tolist() == [[0, 0, 1, 1, 1], [1] * 5, [1] * 5]
    assert causal["use_cache"] is False
    encoder = example_inputs(build("bert"), batch=1, sequence=5)
    assert encoder["attention_mask"].tolist() == [[1, 1, 1, 0, 0]]
    seq2seq = example_inputs(build("t5"), batch=2, sequence=8)
    assert seq2seq["decoder_input_ids"].shape == (2, 4)
    assert example_inputs(build("llama"), batch=1, sequence=1)["attention_mask"].tolist() == [[1]]
    with pytest.raises(InputError, match="pixel_values"):
        example_inputs(build("vit", task="encoder", device="meta"))


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        # parameter counts as published with the checkpoints
        ("llama-3-8b", 8_030_261_248),
        ("llama-3-70b", 70_553_706_496),
        ("llama-405b", 405_853_388_800),
    ],
)
def test_real_shapes_have_the_published_number_of_weights(name: str, weights: int) -> None:
    model = build(name)
    assert {weight.device.type for weight in model.parameters()} == {"meta"}
    assert sum(weight.numel() for weight in model.parameters()) == weights
    assert len(build(name, layers=1).model.layers) == 1


def test_reference_workload() -> None:
    model = build("llama-512x8")
    assert round(sum(weight.numel() for weight in model.parameters()) / 1e6, 1) == 58.5
    assert run(model).shape == (2, 16, 32000)
    assert all(config.source for config in REFERENCE_CONFIGS.values())


@pytest.mark.parametrize("name", ["llama", "bert", "t5"])
def test_a_saved_folder_is_the_same_model(name: str, tmp_path: Path) -> None:
    model = build(name, seed=5)
    model.save_pretrained(tmp_path)
    loaded = build(tmp_path)
    assert type(loaded) is type(model)
    assert torch.equal(run(loaded), run(model))
    assert build(str(tmp_path), dtype=torch.bfloat16).dtype == torch.bfloat16


def test_folders_that_cannot_be_loaded(tmp_path: Path) -> None:
    build("bert").save_pretrained(tmp_path)
    with pytest.raises(ModelFileError, match="not in the folder"):
        build(tmp_path, task="causal")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelFileError, match="no model can be loaded"):
        build(tmp_path)
    weights.unlink()
    with pytest.raises(ModelFileError, match="no model can be loaded"):
        build(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelFileError, match="no model can be loaded"):
        build(tmp_path)
    code = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    (tmp_path / "evil.py").write_text("raise AssertionError('code in the folder was run')")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no-such-family", "auto_map": code}))
    with pytest.raises(ModelFileError, match="no model can be loaded"):
        build(tmp_path)


def test_names_that_are_nothing(tmp_path: Path) -> None:
    for name in ("no-such-family", tmp_path):
        with pytest.raises(InputError, match="no transformers model type"):
            build(name)
    with pytest.raises(InputError, match="for task seq2seq"):
        build("llama", task="seq2seq")
    with pytest.raises(InputError, match="no tiny config of Gemma4AssistantForCausalLM"):
        build("gemma4_assistant")
    assert "llama" in model_types("causal")
    assert "t5" in model_types("seq2seq")
    assert "bert" in model_types("encoder")
