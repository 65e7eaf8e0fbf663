"""Vision towers of transformers: pictures of different sizes in one batch, equal to eager, without a patch."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor
from torch.export import Dim
from torch.utils import _pytree as pytree

import gaudicc

TOWERS = {
    "qwen2_vl": ("Qwen2VLVisionConfig", "Qwen2VisionTransformerPretrainedModel"),
    "qwen2_5_vl": ("Qwen2_5_VLVisionConfig", "Qwen2_5_VisionTransformerPretrainedModel"),
    "qwen3_vl": ("Qwen3VLVisionConfig", "Qwen3VLVisionModel"),
    "qwen3_vl_moe": ("Qwen3VLMoeVisionConfig", "Qwen3VLMoeVisionModel"),
    "qwen3_5": ("Qwen3_5VisionConfig", "Qwen3_5VisionModel"),
    "glm_ocr": ("GlmOcrVisionConfig", "GlmOcrVisionModel"),
    "ernie4_5_vl_moe": ("Ernie4_5_VLMoeVisionConfig", "Ernie4_5_VLMoeVisionTransformerPretrainedModel"),
}
SMALL = {
    "depth": 2, "embed_dim": 64, "hidden_size": 64, "num_heads": 4, "intermediate_size": 128, "out_hidden_size": 64,
    "deepstack_visual_indexes": [0], "fullatt_block_indexes": [1], "image_size": 56,
}  # fmt: skip


def tower(name: str) -> tuple[torch.nn.Module, int]:
    """A small tower, and how many numbers a patch has."""
    config_name, model_name = TOWERS[name]
    kind = getattr(importlib.import_module(f"transformers.models.{name}.configuration_{name}"), config_name)
    config = kind(**{key: value for key, value in SMALL.items() if key in kind().to_dict()})
    torch.manual_seed(0)
    model = getattr(importlib.import_module(f"transformers.models.{name}.modeling_{name}"), model_name)(config).eval()
    channels = getattr(config, "in_channels", getattr(config, "in_chans", 3))
    return model, channels * getattr(config, "temporal_patch_size", 1) * config.patch_size**2


def pictures(grid: list[list[int]], width: int) -> tuple[Tensor, Tensor]:
    sizes = torch.tensor(grid)
    return torch.randn(int(sizes.prod(1).sum()), width), sizes


@pytest.mark.sweep
@pytest.mark.parametrize("name", TOWERS)
def test_pictures_of_different_sizes_in_one_batch(name: str) -> None:
    model, width = tower(name)
    example = pictures([[1, 4, 4], [1, 8, 4]], width)
    fast = gaudicc.compile(model, example, dynamic_shapes=({0: Dim("patches", min=4, max=256)}, None))
    for grid in ([[1, 4, 4], [1, 8, 4]], [[1, 8, 8], [1, 4, 4]], [[2, 6, 4], [1, 4, 8]], [[1, 2, 2], [1, 14, 14]]):
        given = pictures(grid, width)
        with torch.no_grad():
            expected = model(*given)
        for ours, theirs in zip(*map(pytree.tree_leaves, (fast(*given), expected)), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
