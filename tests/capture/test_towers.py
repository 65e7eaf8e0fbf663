"""Vision and audio towers of transformers: inputs of different sizes in one batch, equal to eager, without a patch."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.export import Dim
from torch.utils import _pytree as pytree

import gaudicc

TOWERS = {
    "qwen2_vl": ("Qwen2VLVisionConfig", "Qwen2VisionTransformerPretrainedModel"),
    "qwen2_5_vl": ("Qwen2_5_VLVisionConfig", "Qwen2_5_VisionTransformerPretrainedModel"),
    "qwen2_5_omni": ("Qwen2_5OmniVisionEncoderConfig", "Qwen2_5OmniVisionEncoder"),
    "qwen3_vl": ("Qwen3VLVisionConfig", "Qwen3VLVisionModel"),
    "qwen3_vl_moe": ("Qwen3VLMoeVisionConfig", "Qwen3VLMoeVisionModel"),
    "qwen3_omni_moe": ("Qwen3OmniMoeVisionEncoderConfig", "Qwen3OmniMoeVisionEncoder"),
    "qwen3_5": ("Qwen3_5VisionConfig", "Qwen3_5VisionModel"),
    "qwen3_5_moe": ("Qwen3_5MoeVisionConfig", "Qwen3_5MoeVisionModel"),
    "qwen4_exp": ("Qwen4ExpVisionConfig", "Qwen4ExpVisionModel"),
    "glm4v": ("Glm4vVisionConfig", "Glm4vVisionModel"),
    "glm4v_moe": ("Glm4vMoeVisionConfig", "Glm4vMoeVisionModel"),
    "glm5_next": ("Glm5NextVisionConfig", "Glm5NextVisionModel"),
    "glm_image": ("GlmImageVisionConfig", "GlmImageVisionModel"),
    "glm_ocr": ("GlmOcrVisionConfig", "GlmOcrVisionModel"),
    "ernie4_5_vl_moe": ("Ernie4_5_VLMoeVisionConfig", "Ernie4_5_VLMoeVisionTransformerPretrainedModel"),
    "exaone4_5": ("Exaone4_5_VisionConfig", "Exaone4_5_VisionModel"),
    "cohere_compass": ("CohereCompassVisionConfig", "CohereCompassVisionModel"),
    "minimax_m3_vl": ("MiniMaxM3VLVisionConfig", "MiniMaxM3VLVisionModel"),
    "paddleocr_vl": ("PaddleOCRVisionConfig", "PaddleOCRVisionModel"),
}
SMALL = {
    "depth": 2, "num_hidden_layers": 2, "embed_dim": 64, "hidden_size": 64, "num_heads": 4, "num_attention_heads": 4,
    "num_key_value_heads": 4, "intermediate_size": 128, "out_hidden_size": 64, "deepstack_visual_indexes": [0],
    "fullatt_block_indexes": [1], "image_size": 56, "head_dim": 16, "mlp_dim": 128, "text_hidden_size": 64,
    "num_position_embeddings": 64,
}  # fmt: skip
LISTENERS = {
    "qwen2_5_omni": ("Qwen2_5OmniAudioEncoderConfig", "Qwen2_5OmniAudioEncoder", {"n_window": 8}),
    "qwen3_omni_moe": (
        "Qwen3OmniMoeAudioEncoderConfig",
        "Qwen3OmniMoeAudioEncoder",
        {"n_window": 50, "n_window_infer": 400, "downsample_hidden_size": 16},
    ),
}
SMALL_LISTENER = {
    "num_mel_bins": 16, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 64, "d_model": 32,
    "output_dim": 32, "max_source_positions": 64,
}  # fmt: skip


def made(name: str, config_name: str, model_name: str, options: dict[str, Any]) -> tuple[torch.nn.Module, Any]:
    """A small model of transformers, and its config."""
    kind = getattr(importlib.import_module(f"transformers.models.{name}.configuration_{name}"), config_name)
    config = kind(**{key: value for key, value in options.items() if key in kind().to_dict()})
    torch.manual_seed(0)
    model = getattr(importlib.import_module(f"transformers.models.{name}.modeling_{name}"), model_name)(config)
    return model.eval(), config


def patch_shape(name: str, config: Any) -> tuple[int, ...]:
    """The shape of a patch: most towers take it as one row."""
    channels = next(getattr(config, key) for key in ("in_channels", "in_chans", "num_channels") if hasattr(config, key))
    if name in ("glm_image", "paddleocr_vl"):
        return channels, config.patch_size, config.patch_size
    frames = getattr(config, "temporal_patch_size", 1)
    return (channels * frames * config.patch_size**2,)


def pictures(name: str, config: Any, grid: list[list[int]]) -> tuple[Tensor, Tensor]:
    sizes = torch.tensor(grid)
    pixels = torch.randn(int(sizes.prod(1).sum()), *patch_shape(name, config))
    return (pixels.unsqueeze(0) if name == "paddleocr_vl" else pixels), sizes


def check(fast: Any, model: torch.nn.Module, given: dict[str, Tensor]) -> None:
    with torch.no_grad():
        expected = model(**given)
    for ours, theirs in zip(*map(pytree.tree_leaves, (fast(**given), expected)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.sweep
@pytest.mark.parametrize("name", TOWERS)
def test_pictures_of_different_sizes_in_one_batch(name: str) -> None:
    model, config = made(name, *TOWERS[name], SMALL)
    entry = next(iter(inspect.signature(model.forward).parameters))
    example = dict(zip((entry, "grid_thw"), pictures(name, config, [[1, 4, 4], [1, 8, 4]]), strict=True))
    patches = {int(name == "paddleocr_vl"): Dim("patches", min=4, max=256)}
    fast = gaudicc.compile(model, example, dynamic_shapes={entry: patches, "grid_thw": None})
    frames = 1 if name in ("glm_image", "glm4v", "glm4v_moe") else 2  # they take pictures only
    for grid in ([[1, 4, 4], [1, 8, 4]], [[1, 8, 8], [1, 4, 4]], [[frames, 6, 4], [1, 4, 8]], [[1, 2, 2], [1, 14, 14]]):
        check(fast, model, dict(zip(example, pictures(name, config, grid), strict=True)))


@pytest.mark.sweep
@pytest.mark.parametrize("name", LISTENERS)
def test_recordings_of_different_lengths_in_one_batch(name: str) -> None:
    config_name, model_name, options = LISTENERS[name]
    model, config = made(name, config_name, model_name, {**SMALL_LISTENER, **options})
    window = 2 * config.n_window

    def recordings(lengths: list[int]) -> dict[str, Tensor]:
        return {
            "input_features": torch.randn(config.num_mel_bins, sum(lengths)),
            "feature_lens": torch.tensor(lengths),
        }

    shapes = {"input_features": {1: Dim("frames", min=2, max=512)}, "feature_lens": {0: Dim("recordings", max=5)}}
    fast = gaudicc.compile(model, recordings([window + 5, 20]), dynamic_shapes=shapes)
    for lengths in ([37, 20], [window, 9], [2 * window], [window + 1, 5 * window // 2], [window, window, 7]):
        check(fast, model, recordings(lengths))
