"""`habana_frameworks.torch.hpu.graphs`; `habana_frameworks.torch.hpu` shows it in lazy mode only."""

from gaudicc.emulator.cacher import ModuleCacher
from gaudicc.emulator.callables import TensorPacker, make_graphed_callables
from gaudicc.emulator.graph import HPUGraph, graph, is_current_stream_capturing
from gaudicc.emulator.wrapping import copy_to, input_hash, wrap_in_hpu_graph, wrap_in_hpu_graph_func

__all__ = [
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
