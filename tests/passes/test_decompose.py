"""decompose: composites fall apart, what the target registers stays whole, values are bitwise those of the composite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from expecttest import assert_expected_inline
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.export import Dim

from gaudicc.capture import capture
from gaudicc.errors import UnsupportedOpError
from gaudicc.invariants import needs_decomposition
from gaudicc.nodes import is_op, module_of, op_name, source_of
from gaudicc.passes.decompose import Decompose
from gaudicc.program import Program
from gaudicc.targets import load_target
from gaudicc.verify import numerics

# Composites of every shape of result: a view, a list, a pair, a reduction; each of one [4, 6] tensor.
COMPOSITES: dict[str, Callable[[Tensor], Any]] = {
    "aten.diff": lambda x: torch.diff(x, prepend=x[:, :1]),
    "aten.chunk": lambda x: torch.ops.aten.chunk(x, 3, 1),
    "aten.layer_norm": lambda x: torch.nn.functional.layer_norm(x, (6,)),
    "aten.meshgrid.indexing": lambda x: torch.meshgrid(x[0], x[1], indexing="ij"),
    "aten.reshape": lambda x: x.t().reshape(3, 8),
    "aten.flatten.using_ints": lambda x: x.flatten(),
    "aten.type_as": lambda x: x.type_as(x.bfloat16()),
    "aten.repeat_interleave.self_int": lambda x: x.repeat_interleave(2, 1),
    "aten.std.dim": lambda x: torch.std(x, 1),
    "aten.where.ScalarOther": lambda x: torch.where(x > 0, x, 0.5),
    "aten.scaled_dot_product_attention": lambda x: torch.nn.functional.scaled_dot_product_attention(x[None], x[None], x[None]),
}  # fmt: skip


def composites(program: Program) -> list[str]:
    nodes = [node for _, module in program.graphs() for node in module.graph.nodes if is_op(node)]
    return [op_name(node) for node in nodes if needs_decomposition(node, program)]


def test_before_and_after(capture_of: Any, alone: Any, text_of: Any) -> None:
    after, record = alone(Decompose(), capture_of(lambda x, p: torch.diff(x, 1, -1, p), torch.randn(4), torch.randn(1)))
    assert record.notes == ("aten.diff decomposed 1 times",)
    assert_expected_inline(
        text_of(after),
        """\
graph root:
  %x: f32[4] = input x
  %rest_0: f32[1] = input args[0]
  %0: f32[5] = aten.cat([%rest_0, %x], -1)
  %1: f32[4] = aten.slice.Tensor(%0, -1, 0, 4)
  %2: f32[4] = aten.slice.Tensor(%0, -1, 1, 5)
  %3: f32[4] = aten.sub.Tensor(%2, %1)
  return (%3)
""",
    )


@pytest.mark.parametrize("name", COMPOSITES)
def test_composites_fall_apart_bitwise(name: str, capture_of: Any, alone: Any) -> None:
    program = capture_of(COMPOSITES[name], torch.randn(4, 6))
    assert name in program.count_ops()
    program.target = None  # then nothing is registered
    after, _ = alone(Decompose(), program)
    numerics(program, after, "decompose", bitwise=name != "aten.scaled_dot_product_attention")
    assert name not in after.count_ops()
    assert not composites(after)
    _, record = alone(Decompose(), after)
    assert not record.modified


def test_what_the_target_registers_stays_whole(capture_of: Any, alone: Any) -> None:
    program = capture_of(
        lambda x, weight: torch.nn.functional.linear(x, weight) @ x, torch.randn(4, 4), weight=torch.randn(4, 4)
    )
    after, record = alone(Decompose(), program)
    assert not record.modified
    assert set(after.count_ops()) == {"aten.linear", "aten.matmul"}
    program.target = None
    after, _ = alone(Decompose(), program)
    assert not {"aten.linear", "aten.matmul"} & after.count_ops().keys()


def test_attention_left_whole_becomes_matmul_softmax_matmul(capture_of: Any, alone: Any) -> None:
    x = torch.randn(1, 2, 3, 4)
    program = capture_of(lambda q: torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True), x)
    after, _ = alone(Decompose(), program)
    assert not [name for name in after.count_ops() if "scaled_dot_product" in name]
    assert {"aten.bmm", "aten._safe_softmax"} <= after.count_ops().keys()


def test_parts_carry_the_line_and_the_path_of_the_whole(make_stack: Callable[..., Any], alone: Any) -> None:
    program = capture(make_stack(3), (torch.randn(2, 8),))
    program.target = load_target("gaudi3")
    after, _ = alone(Decompose(), program)
    parts = [node for node in after.bodies["block"].graph.nodes if op_name(node) == "aten.native_layer_norm"]
    assert [module_of(node) for node in parts] == ["layers.0.norm"]
    assert "conftest.py" in str(source_of(parts[0]))


def test_symbolic_sizes_stay_symbolic(alone: Any) -> None:
    class Model(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.nn.functional.layer_norm(x.flatten(1), (6,)).reshape(-1)

    program = capture(Model().eval(), (torch.randn(4, 2, 3),), dynamic_shapes={"x": {0: Dim("n", min=2, max=9)}})
    program.target = load_target("gaudi3")
    after, _ = alone(Decompose(), program)
    for size in (2, 3, 9):
        x = torch.randn(size, 2, 3)
        assert torch.equal(after.run({"x": x})[0], Model()(x))


@pytest.mark.parametrize("name", ["aten.diff", "aten.layer_norm", "aten.std.dim"])
@given(shape=st.tuples(st.integers(0, 4), st.integers(1, 5)))
def test_any_shape(shape: tuple[int, int], name: str, capture_of: Any, alone: Any) -> None:
    calls: dict[str, Callable[[Tensor], Tensor]] = {
        "aten.diff": lambda x: torch.diff(x, dim=1),
        "aten.layer_norm": lambda x: torch.nn.functional.layer_norm(x, x.shape[1:]),
        "aten.std.dim": lambda x: torch.std(x, 1, correction=0),
    }
    program = capture_of(calls[name], torch.randn(shape))
    after, _ = alone(Decompose(), program)
    numerics(program, after, "decompose", bitwise=True)
    assert not composites(after)


@pytest.mark.parametrize("kind", [torch.nn.LSTM, torch.nn.GRU, torch.nn.RNN])
@pytest.mark.parametrize(
    "options", [{}, {"bidirectional": True}, {"num_layers": 2, "batch_first": True}, {"bias": False}]
)
def test_a_recurrent_layer_falls_apart_into_products_not_into_a_kernel_of_the_cpu(
    kind: Any, options: dict[str, Any], alone: Any
) -> None:
    captured = capture(kind(3, 2, **options).eval(), (torch.randn(3, 2, 3),))
    captured.target = load_target("gaudi3")
    program, _ = alone(Decompose(), captured)
    used = {op_name(node) for _, module in program.graphs() for node in module.graph.nodes if is_op(node)}
    assert not any("rnn" in op or "lstm" in op or "gru" in op for op in used)
    assert used & {"aten.linear", "aten.addmm", "aten.mm"}


def test_a_dropout_of_a_repeated_row_that_drops_nothing_is_the_copy_that_its_fake_value_promises(
    capture_of: Any, alone: Any
) -> None:
    def function(x: Tensor) -> Tensor:
        rows = torch.nn.functional.dropout(x.expand(3, 2, 4), 0.1, training=False)
        return torch.einsum("ibh,hd->ibd", rows, torch.ones(4, 2))

    program, _ = alone(Decompose(), capture_of(function, torch.randn(3, 1, 4)))
    (ours,) = program.run(dict(program.example))
    assert torch.equal(ours, function(*program.example.values()))


def test_contiguous_is_a_copy_where_only_some_sizes_need_none(capture_of: Any, alone: Any) -> None:
    """A transposed tensor of one row is contiguous: what the op is would depend on the size."""
    rows = Dim("rows", min=1, max=8)
    program = capture_of(lambda x: x.transpose(0, 1).contiguous().sin(), torch.randn(3, 5), dynamic={"x": {0: rows}})
    after, _ = alone(Decompose(), program)
    assert "aten.clone" in after.count_ops()
    for n in (1, 3):
        x = torch.randn(n, 5)
        assert torch.equal(after.run({"x": x})[0], x.transpose(0, 1).contiguous().sin())


@pytest.mark.parametrize("eps", [None, 1e-5])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_rms_norm_has_the_same_parts_at_all_sizes(
    capture_of: Any, alone: Any, dtype: torch.dtype, weighted: bool, eps: float | None
) -> None:
    """PyTorch's own parts ask whether channels are last, which may depend on whether there is one row."""
    batch, rows = Dim("batch", min=1, max=8), Dim("rows", min=1, max=8)
    weight = torch.rand(6, dtype=dtype) if weighted else None

    def norm(x: Tensor) -> Tensor:
        x = x @ x.transpose(2, 3) @ x
        left, right = torch.cat([x, x.exp()], 2).chunk(2, 2)
        return torch.nn.functional.rms_norm(left - right, (6,), weight, eps)

    x = torch.randn(3, 5, 2, 6, dtype=dtype)
    after, _ = alone(Decompose(), capture_of(norm, x, dynamic={"x": {0: batch, 1: rows}}))
    assert "aten.rsqrt" in after.count_ops()
    for shape in ((1, 1), (3, 2)):
        x = torch.randn(*shape, 2, 6, dtype=dtype)
        assert torch.equal(after.run({"x": x})[0], norm(x))


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("antialias", [False, True])
def test_bytes_are_not_resized_in_floats(mode: str, antialias: bool, capture_of: Any) -> None:
    program = capture_of(
        lambda x: torch.nn.functional.interpolate(x, (7, 9), mode=mode, antialias=antialias),
        torch.arange(35, dtype=torch.uint8).view(1, 1, 5, 7),
    )
    with pytest.raises(UnsupportedOpError, match=r"eager resizes bytes in fixed point(.|\n)*cast to float32 before it"):
        Decompose().run(program)
