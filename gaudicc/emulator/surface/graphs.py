"""`habana_frameworks.torch.hpu.graphs`; `habana_frameworks.torch.hpu` shows it in lazy mode only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gaudicc.emulator.cacher import ModuleCacher
from gaudicc.emulator.callables import TensorPacker, make_graphed_callables
from gaudicc.emulator.graph import HPUGraph, graph, is_current_stream_capturing
from gaudicc.emulator.wrapping import copy_to, input_hash, wrap_in_hpu_graph, wrap_in_hpu_graph_func

__all__ = [
    "CachedParams",
    "HPUGraph",
    "ModuleCacher",
    "TensorPacker",
    "copy_to",
    "graph",
    "input_hash",
    "is_current_stream_capturing",
    "make_graphed_callables",
    "wrap_in_hpu_graph",
    "wrap_in_hpu_graph_func",
]


@dataclass(eq=False)
class CachedParams:
    """What a program keeps of a graph that it recorded by hand.

    Attributes:
        graph_inputs: what to copy new values into.
        graph_outputs: where a replay leaves its results.
        graph: what to replay.
        out_tinfo_list: unused here.
        asynchronous: unused here.
    """

    graph_inputs: Any
    graph_outputs: Any
    graph: HPUGraph
    out_tinfo_list: Any = None
    asynchronous: bool = False
