"""Mixtures of experts: every implementation of transformers becomes one product a projection; work follows the routing."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

import gaudicc
from gaudicc.capture.experts import dispatched_experts
from gaudicc.errors import InputError
from gaudicc.kernels import grouped_linear
from gaudicc.models.transformers_models import build
from gaudicc.passes import DEFAULT_PIPELINE, LowerSemanticOps

_SHAPES = ((1, 2), (2, 7), (1, 8))


def experts_block(family: str, implementation: str) -> tuple[nn.Module, int]:
    """One block with its router, and the width of what it reads."""
    model: Any = build(family, experts_implementation=implementation)
    return model.model.layers[-1].mlp, model.config.hidden_size


def first(result: Any) -> torch.Tensor:
    """gpt-oss returns its routing besides."""
    found: torch.Tensor = result[0] if isinstance(result, tuple) else result
    return found


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
@pytest.mark.parametrize("family", ["mixtral", pytest.param("gpt_oss", marks=pytest.mark.sweep)])
def test_every_implementation_is_dispatched(family: str, implementation: str) -> None:
    """gpt-oss has biases, transposed weights and a gate of its own."""
    block, width = experts_block(family, implementation)
    sizes = {0: Dim("batch", min=1, max=2), 1: Dim("sequence", min=2, max=8)}
    compiled = gaudicc.compile(block, (torch.randn(2, 5, width),), dynamic_shapes=(sizes,), verify="poison")
    calls = [
        node for _, module in compiled.program.graphs() for node in module.graph.nodes if node.target is grouped_linear
    ]
    assert len(calls) == 2
    for shape in _SHAPES:
        x = torch.randn(*shape, width)
        with torch.no_grad():
            torch.testing.assert_close(first(compiled(x)), first(block(x)), atol=1e-5, rtol=1e-5)


def test_work_follows_the_routing() -> None:
    """4 experts, 2 a token: 64 tokens give 128 rows in blocks of 32, and no more than 4 * 32 rows that are filled up."""
    block, width = experts_block("mixtral", "eager")
    plain = LowerSemanticOps(fused=False)
    passes = [plain if isinstance(step, LowerSemanticOps) else step for step in DEFAULT_PIPELINE]
    compiled = gaudicc.compile(block, (torch.randn(1, 64, width),), passes=passes)
    graph: Any = compiled.graph()
    products = [node for node in graph.graph.nodes if node.target is torch.ops.aten.bmm.default]
    shapes = [node.args[0].meta["val"].shape for node in products]
    assert [rows for _, rows, _ in shapes] == [32] * 4
    assert [blocks for blocks, _, _ in shapes] == [4, 3, 4, 3], (
        "one block an expert where its weight lies, 3 with copied weights"
    )


def test_experts_as_they_are_written() -> None:
    block, width = experts_block("mixtral", "eager")
    x = torch.randn(1, 4, width)
    compiled = gaudicc.compile(block, (x,), experts="as-written")
    assert not [
        node for _, module in compiled.program.graphs() for node in module.graph.nodes if node.target is grouped_linear
    ]
    assert any("rewritten" in note or "forward" in note for note in compiled.notes), compiled.notes
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), block(x), atol=1e-6, rtol=1e-6)
    with pytest.raises(InputError, match="dispatch"):
        gaudicc.compile(block, (x,), experts="some")


def test_other_threads_and_spread_experts_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    block, width = experts_block("mixtral", "batched_mm")
    x = torch.randn(1, 3, width)
    seen: list[bool] = []

    def watched(*args: Any) -> torch.Tensor:
        seen.append(True)
        result: torch.Tensor = grouped_linear(*args)
        return result

    monkeypatch.setattr("gaudicc.capture.experts.grouped_linear", watched)
    with dispatched_experts(), torch.no_grad():
        other = threading.Thread(target=lambda: block(x))
        other.start()
        other.join()
        assert not seen
        monkeypatch.setattr(block.experts, "_is_expert_parallel", True)
        block(x)
        assert not seen
        monkeypatch.setattr(block.experts, "_is_expert_parallel", False)
        block(x)
        assert len(seen) == 2
    block(x)
    assert len(seen) == 2
