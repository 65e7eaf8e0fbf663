"""torch's recurrent layers over lengths that vary: one region a layer, not one group of ops a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.utils import _pytree as pytree

import gaudicc

LAYERS: dict[str, tuple[Callable[..., nn.Module], dict[str, Any]]] = {
    "lstm": (nn.LSTM, {}),
    "two_layers_both_ways": (nn.LSTM, {"num_layers": 2, "bidirectional": True, "batch_first": True}),
    "projected": (nn.LSTM, {"proj_size": 3, "bias": False}),
    "gru": (nn.GRU, {"bidirectional": True}),
    "rnn": (nn.RNN, {"nonlinearity": "relu", "batch_first": True}),
}


class Tagger(nn.Module):
    def __init__(self, kind: Callable[..., nn.Module], options: dict[str, Any]) -> None:
        super().__init__()
        self.layer = kind(4, 6, **options)

    def forward(self, x: Tensor) -> Any:
        return self.layer(x)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("name", LAYERS)
def test_one_program_for_all_lengths(name: str) -> None:
    kind, options = LAYERS[name]
    torch.manual_seed(0)
    model = Tagger(kind, options).eval()
    time = 1 if options.get("batch_first") else 0
    dims = {time: Dim("time", min=1, max=16), 1 - time: Dim("batch", min=1, max=4)}
    compiled = gaudicc.compile(
        model,
        (torch.randn(3, 3, 4),),
        dynamic_shapes=(dims,),
        buckets=[{"time": 4, "batch": 2}, {"time": 16, "batch": 4}],
    )
    assert sum(len(graph.graph.nodes) for _, graph in compiled.program.graphs()) < 150
    compiled.warm_up()
    for length, batch in ((1, 1), (3, 2), (4, 4), (16, 3)):
        x = torch.randn(*((batch, length) if time else (length, batch)), 4)
        with torch.no_grad():
            wanted = pytree.tree_leaves(model(x))
        for ours, theirs in zip(pytree.tree_leaves(compiled(x)), wanted, strict=True):
            torch.testing.assert_close(ours, theirs)
