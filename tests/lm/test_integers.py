"""int64 in the steps of a language model: proved to fit 32 bits from what the scheduler keeps; what a model adds is checked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gaudicc
from gaudicc.lm import CompiledLM
from gaudicc.lm.state import CacheShape
from gaudicc.program import OutputKind, Program


def flags(program: Program) -> int:
    return sum(len(program.calling.raises) for spec in program.outputs if spec.kind is OutputKind.FLAG)


@pytest.mark.parametrize("kind", ["prefill", "extend", "decode"])
@pytest.mark.parametrize("sampled", [False, True])
def test_a_step_is_proved(compiled: CompiledLM, kind: str, sampled: bool) -> None:
    assert not flags(compiled._graphs.entry(kind, sampled).program)


class Hashing(nn.Module):
    """A model that computes with its ids: their fourth power leaves 32 bits from 216 on, and is divided."""

    shapes, dtype, vocabulary, context = (CacheShape(1, 2, 2),), torch.float32, 500, None

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(64, 500)

    def forward(self, ids: Tensor, cache: Any, last: Tensor | None) -> Tensor:
        rows: Tensor = self.table(ids * ids * ids * ids // 3 % 64)
        return rows[:, 0] if last is None else rows[torch.arange(rows.shape[0]), last]


def test_what_a_model_computes_with_its_ids_is_checked() -> None:
    torch.manual_seed(0)
    model = Hashing().eval()
    lm = gaudicc.compile_lm(model, max_batch=2, max_context=16, device="cpu")
    assert flags(lm._graphs.entry("decode", False).program)
    ids = [499, 3]
    for _ in range(4):
        ids.append(int(model(torch.tensor([ids[-1:]]), None, None).argmax()))
    found = lm.generate(torch.tensor([[499, 3]]), max_new_tokens=4)
    assert isinstance(found, Tensor)
    assert found[0].tolist() == ids
