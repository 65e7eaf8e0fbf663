"""What programs read of a compilation: the logger of `compile_backend`, its list of eager ops, and `FxGraphAnalyzer`.

Source of names and forms: HabanaAI/gaudi-pytorch-bridge 1.19.0, `dynamo/debug_utils/logger.py`, `utils/debug/dynamo_utils.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from gaudicc.emulator.placement import FALLBACK_OPS as hpu_fallback_op_list
from gaudicc.emulator.surface.logs import Logger
from gaudicc.emulator.tensor import DEVICE
from gaudicc.targets.calls import tensors_in

__all__ = ["FxGraphAnalyzer", "get_compile_backend_logger", "hpu_fallback_op_list", "logger"]


logger = Logger("PT_COMPILE")


def get_compile_backend_logger() -> Logger:
    """The logger."""
    return logger


@dataclass
class _OpCount:
    """How often an op is in clusters, and how often outside them."""

    graph_count: int = 0
    eager_count: int = 0


class FxGraphAnalyzer:
    """Counts the ops of every graph that is compiled inside the block.

    Args:
        reset_dynamo: forget compiled graphs first.
        capture_non_hpu_output: count nodes whose results are on the host too.
    """

    OpCount = _OpCount
    _open: list[FxGraphAnalyzer] = []  # noqa: RUF012

    def __init__(self, reset_dynamo: bool = False, capture_non_hpu_output: bool = False) -> None:
        self.reset_dynamo, self.capture_non_hpu_output = reset_dynamo, capture_non_hpu_output
        self._graphs: list[dict[str, _OpCount]] = []
        self._partitions = 0

    def __enter__(self) -> FxGraphAnalyzer:
        if self.reset_dynamo:
            torch._dynamo.reset()
        self._open.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.remove(self)

    def get_ops_summary(self) -> list[dict[str, _OpCount]]:
        """One dict for each graph: `torch.ops.aten.add.Tensor` -> counts."""
        return self._graphs

    def get_partition_num(self) -> int:
        """Clusters in all graphs."""
        return self._partitions

    @classmethod
    def see(cls, graph: fx.GraphModule) -> None:
        """A graph has been partitioned into submodules with an `inner` graph each."""
        for analyzer in cls._open:
            counts: dict[str, _OpCount] = {}
            for node in graph.graph.nodes:
                if node.op == "call_module":
                    analyzer._partitions += 1
                    inner: Any = graph.get_submodule(str(node.target))
                    for each in analyzer._counted(inner.inner.graph.nodes):
                        counts.setdefault(each, _OpCount()).graph_count += 1
            for each in analyzer._counted(graph.graph.nodes):
                counts.setdefault(each, _OpCount()).eager_count += 1
            analyzer._graphs.append(counts)

    def _counted(self, nodes: Iterable[fx.Node]) -> list[str]:
        functions = [node for node in nodes if node.op == "call_function"]
        return [node._pretty_print_target(node.target) for node in functions if self._wanted(node)]

    def _wanted(self, node: fx.Node) -> bool:
        tensors = list(tensors_in(node.meta.get("val")))
        if not tensors:
            return False
        return self.capture_non_hpu_output or all(tensor.device.type == DEVICE for tensor in tensors)
