"""`habana_frameworks.torch.hpu.graphs`; `habana_frameworks.torch.hpu` shows it in lazy mode only."""

from gaudicc.emulator.graph import HPUGraph, graph, is_current_stream_capturing
from gaudicc.emulator.wrapping import wrap_in_hpu_graph, wrap_in_hpu_graph_func

__all__ = ["HPUGraph", "graph", "is_current_stream_capturing", "wrap_in_hpu_graph", "wrap_in_hpu_graph_func"]
