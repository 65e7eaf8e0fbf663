"""Lowering of loops for devices that record none."""

from __future__ import annotations

import torch
from torch import fx, nn

from gaudicc.lower_loops import _attribute


def test_bodies_of_the_same_name_get_names_of_their_own() -> None:
    """Loops of several layers are named alike where they stood."""
    root, graph = nn.Module(), fx.Graph()
    bodies = [fx.GraphModule(nn.Module(), graph) for _ in range(3)]
    module = fx.GraphModule(root, torch.fx.Graph())
    names = [_attribute(module, "loop", body) for body in [*bodies, bodies[1]]]
    assert names == ["loop", "loop_2", "loop_3", "loop_2"]
    assert [getattr(module, name) for name in names[:3]] == bodies
