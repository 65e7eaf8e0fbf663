"""Language models that carry a recurrence, on a Gaudi: tokens as on the CPU, nothing recorded once warm."""

from __future__ import annotations

from typing import Any

import pytest
import torch

MODELS: dict[str, dict[str, Any]] = {
    "lfm2": {"layer_types": ["conv", "full_attention"], "layers": 2},
    "gpt_oss": {},
    "mamba": {},  # its time steps are trips of one recorded graph
}


@pytest.mark.parametrize("family", ["lfm2", "gpt_oss", pytest.param("mamba", marks=pytest.mark.sweep)])
def test_tokens_are_those_of_eager(family: str, mode: str) -> None:
    import gaudicc
    from gaudicc.models.transformers_models import build

    model: Any = build(family, task="causal", **MODELS[family])
    model.generation_config.eos_token_id = None
    ids = torch.tensor([[5, 17, 9, 3, 21], [0, 0, 8, 4, 33]])
    mask = (ids > 0).long()
    with torch.no_grad():
        wanted = model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False, pad_token_id=0)
    lm = gaudicc.compile_lm(model, max_batch=2, max_context=16, device="hpu")
    assert ("lazy mode" if mode == "lazy" else "compile mode") in lm.notes[0]
    assert torch.equal(torch.as_tensor(lm.generate(ids, mask, max_new_tokens=6)).cpu(), wanted)
    records = lm.stats.records
    assert torch.equal(torch.as_tensor(lm.generate(ids, mask, max_new_tokens=6)).cpu(), wanted)
    assert lm.stats.records == records
    assert lm.stats.host_ops == 0
