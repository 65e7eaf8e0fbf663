"""Work of ATen nodes, read from fake tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from gaudicc.errors import InputError
from gaudicc.kernels import moe
from gaudicc.machine import Engine, Gemm, OpClass, load_chip, program_schedule, run_cost
from gaudicc.machine.fx import op_name, work_of, workload_of, works_of
from gaudicc.machine.fx_tasks import tasks_of


def graph_of(
    function: Callable[..., Any], *inputs: torch.Tensor, mode: Literal["fake", "symbolic"] = "fake"
) -> fx.Graph:
    module: fx.GraphModule = make_fx(function, tracing_mode=mode)(*inputs)
    return module.graph


def node_called(graph: fx.Graph, name: str) -> fx.Node:
    found: list[fx.Node] = [node for node in graph.nodes if node.op == "call_function" and op_name(node) == name]
    assert len(found) == 1
    return found[0]


def test_mm_reads_shapes_dtype_and_storage_order() -> None:
    graph = graph_of(lambda x, w: x @ w.t(), torch.randn(48, 64).bfloat16(), torch.randn(32, 64).bfloat16())
    work = work_of(node_called(graph, "mm"))
    assert work.op_class is OpClass.GEMM
    assert work.gemm is not None
    assert (work.gemm.m, work.gemm.n, work.gemm.k, work.gemm.dtype) == (48, 32, 64, "bf16")
    assert (work.gemm.trans_a, work.gemm.trans_b) == (False, True)
    assert work.read_bytes == 2 * (48 * 64 + 32 * 64)
    assert work.written_bytes == 2 * 48 * 32
    assert work_of(node_called(graph, "t")).op_class is OpClass.VIEW


def test_a_weight_is_told_through_views() -> None:
    graph = graph_of(lambda x, w: x.exp() @ w.t(), torch.randn(8, 16), torch.randn(4, 16))
    assert work_of(node_called(graph, "mm")).weight_bytes == 4 * 4 * 16


def test_bmm_and_addmm() -> None:
    batched = work_of(node_called(graph_of(torch.bmm, torch.randn(6, 5, 7), torch.randn(6, 7, 3)), "bmm")).gemm
    assert batched is not None
    assert (batched.batch, batched.m, batched.n, batched.k) == ((6,), 5, 3, 7)
    graph = graph_of(torch.addmm, torch.randn(3), torch.randn(5, 7), torch.randn(7, 3))
    added = work_of(node_called(graph, "addmm")).gemm
    assert added is not None
    assert (added.m, added.n, added.k) == (5, 3, 7)


def test_a_bias_costs_a_vector_op() -> None:
    graph = graph_of(torch.addmm, torch.randn(3), torch.randn(5, 7), torch.randn(7, 3))
    ops = workload_of(graph.nodes).parts[0][0]
    assert [op.op_class for op in ops] == [OpClass.GEMM, OpClass.ELEMENTWISE]
    assert ops[1].elements == 15


def test_convolution_is_the_gemm_of_its_unfolded_input() -> None:
    graph = graph_of(lambda x, w: torch.conv2d(x, w, stride=2), torch.randn(2, 8, 16, 16), torch.randn(12, 8, 3, 3))
    gemm = work_of(node_called(graph, "convolution")).gemm
    assert gemm is not None
    assert (gemm.m, gemm.n, gemm.k, gemm.batch) == (2 * 7 * 7, 12, 8 * 9, ())
    assert gemm.macs == 2 * 7 * 7 * 12 * 72


@pytest.mark.parametrize(
    ("function", "name", "op_class"),
    [
        (torch.exp, "exp", OpClass.TRANSCENDENTAL),
        (lambda x: torch.softmax(x, -1), "_softmax", OpClass.SOFTMAX),
        (lambda x: x.sum(-1), "sum", OpClass.REDUCTION),
        (lambda x: x + 1, "add", OpClass.ELEMENTWISE),
        (lambda x: x.clone(), "clone", OpClass.COPY),
        (lambda x: x.sort(-1)[0], "sort", OpClass.SORT),
        (lambda x: nn.functional.layer_norm(x, (8,)), "native_layer_norm", OpClass.NORM),
    ],
)
def test_vector_classes(function: Callable[..., Any], name: str, op_class: OpClass) -> None:
    work = work_of(node_called(graph_of(function, torch.randn(4, 8)), name))
    assert work.op_class is op_class
    assert work.elements >= 32 or op_class is OpClass.VIEW
    assert work.read_bytes == 4 * 32


def test_a_gather_reads_only_the_rows_it_picks() -> None:
    graph = graph_of(lambda w, i: nn.functional.embedding(i, w), torch.randn(1000, 64), torch.arange(5))
    work = work_of(node_called(graph, "embedding"))
    assert work.op_class is OpClass.GATHER
    assert work.read_bytes == 4 * 5 * 64
    assert work.row_bytes == 256


def test_numpy_style_indexing_reads_what_follows_the_last_index() -> None:
    x, at = torch.ones(4, 196, 8), torch.zeros(50, 50, dtype=torch.int64)
    rows = graph_of(lambda x, at: x[:, at], x, at)
    entries = graph_of(lambda x, at: x[..., at % 8], x, at)
    assert work_of(node_called(rows, "index")).row_bytes == 8 * 4
    assert work_of(node_called(entries, "index")).row_bytes == 4


def test_a_mixture_is_two_products_around_a_gate() -> None:
    x, table, weights = torch.ones(16, 8), torch.zeros(16, 2, dtype=torch.int64), torch.ones(16, 2)
    gate_up, down = torch.ones(4, 12, 8), torch.ones(4, 8, 6)
    graph = graph_of(lambda *args: moe(*args, "silu"), x, table, weights, gate_up, down)
    first, gate, second = works_of(node_called(graph, "moe"))
    assert (first.gemm, first.weight_bytes) == (Gemm(8, 12, 8, (4,), "fp32"), 4 * gate_up.numel())
    assert (gate.op_class, gate.elements) == (OpClass.TRANSCENDENTAL, 4 * 8 * 12)
    assert (second.gemm, second.weight_bytes) == (Gemm(8, 8, 6, (4,), "fp32"), 4 * down.numel())


def test_symbolic_shapes_are_refused() -> None:
    graph = graph_of(torch.exp, torch.randn(4, 8), mode="symbolic")
    with pytest.raises(InputError, match="symbolic shape"):
        work_of(node_called(graph, "exp"))


def test_a_node_without_value_is_refused() -> None:
    graph = graph_of(torch.exp, torch.randn(4, 8))
    node = node_called(graph, "exp")
    node.meta.clear()
    with pytest.raises(InputError, match="no fake tensor"):
        work_of(node)


def test_a_layer_becomes_a_workload_and_tasks() -> None:
    layer = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)).eval().requires_grad_(False)

    def residual(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        inner = torch.addmm(weights[1], x, weights[0].t())
        return x + torch.addmm(weights[3], nn.functional.gelu(inner), weights[2].t())

    graph = graph_of(residual, torch.randn(16, 64), *layer.parameters())
    chip = load_chip("gaudi3")
    cost = run_cost(workload_of(graph.nodes), chip)
    assert cost.busy[Engine.MME] > 0
    assert cost.busy[Engine.TPC] > 0
    tasks = tasks_of(graph.nodes, chip)
    assert [task.engine for task in tasks] == [Engine.MME, Engine.TPC, Engine.TPC, Engine.MME, Engine.TPC, Engine.TPC]
    assert all(task.after for task in tasks[1:])
    timeline = program_schedule(tasks)
    assert timeline.makespan == pytest.approx(sum(task.seconds for task in tasks))
