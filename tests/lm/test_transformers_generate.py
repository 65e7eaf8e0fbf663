"""transformers' own `generate` with its static cache, its decode step compiled by gaudicc."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.lm.conftest import Reference


@pytest.mark.sweep
def test_generate_with_the_static_cache(llama: Any, reference: Reference, prompts: list[list[int]]) -> None:
    from transformers import CompileConfig

    config: Any = CompileConfig(backend="gaudicc", fullgraph=True, mode=None)
    config._compile_all_devices = True  # transformers compiles on accelerators only unless it is told to
    torch._dynamo.reset()
    tokens = llama.generate(
        torch.tensor([prompts[0]]), max_new_tokens=8, do_sample=False, pad_token_id=0,
        cache_implementation="static", compile_config=config,
    )  # fmt: skip
    assert tokens[0, len(prompts[0]) :].tolist() == reference(prompts[0], 8)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
