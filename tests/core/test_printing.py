"""The printed program, kept as journals: `EXPECTTEST_ACCEPT=1 pytest tests/core/test_printing.py` rewrites them."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from expecttest import assert_expected_inline
from torch import Tensor, nn
from torch.export import Dim

import gaudicc
from gaudicc.capture import capture
from gaudicc.printing import program_text
from gaudicc.rewriter import Rewriter


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4, dtype=torch.bfloat16)
        self.step: Tensor
        self.register_buffer("step", torch.zeros(1, dtype=torch.int64))

    def forward(self, x: Tensor, scale: float = 0.5) -> tuple[Tensor, Tensor]:
        self.step.add_(1)
        low, high = self.inner(x).chunk(2, -1)
        return torch.sigmoid(low) * high * scale, x.reshape(x.shape[0] * 4)[1:]


DIMS = {"x": {0: Dim("batch", min=2, max=16)}}


def test_a_program_reads_like_its_source() -> None:
    program = capture(Gate().eval(), (torch.zeros(3, 4, dtype=torch.bfloat16),), dynamic_shapes=DIMS)
    assert_expected_inline(
        program_text(program),
        """\
# batch: 2 .. 16

graph root:
  %p_inner_weight: bf16[4, 4] = weight inner.weight
  %p_inner_bias: bf16[4] = weight inner.bias
  %b_step: i64[1] = state step
  %x: bf16[batch, 4] = input x
  %0: int = aten.sym_size.int(%x, 0)
  %1: int = mul(%0, 4)  # core/test_printing.py:32
  %2: i64[1] = aten.add.Tensor(%b_step, 1)  # core/test_printing.py:30
  %3: bf16[batch, 4] = aten.linear(%x, %p_inner_weight, %p_inner_bias)  # inner  core/test_printing.py:31
  %4: (bf16[batch, 2], bf16[batch, 2]) = aten.split.Tensor(%3, 2, -1)  # core/test_printing.py:31
  %5: bf16[batch, 2] = getitem(%4, 0)  # core/test_printing.py:31
  %6: bf16[batch, 2] = getitem(%4, 1)  # core/test_printing.py:31
  %7: bf16[batch, 2] = aten.sigmoid(%5)  # core/test_printing.py:32
  %8: bf16[batch, 2] = aten.mul.Tensor(%7, %6)  # core/test_printing.py:32
  %9: bf16[batch, 2] = aten.mul.Tensor(%8, 0.5)  # core/test_printing.py:32
  %10: bf16[4*batch] = aten.view(%x, [%1])  # core/test_printing.py:32
  %11: bf16[4*batch - 1] = aten.slice.Tensor(%10, 0, 1, 9223372036854775807)  # core/test_printing.py:32
  return (%2, %9, %11)
""",
    )


def test_a_compiled_program_says_which_engine_runs_each_op() -> None:
    compiled = gaudicc.compile(Gate().eval(), (torch.zeros(3, 4, dtype=torch.bfloat16),))
    assert_expected_inline(
        program_text(compiled.static_program()),
        """\
graph root:
  %p_inner_weight: bf16[4, 4] = weight inner.weight
  %p_inner_bias: bf16[4] = weight inner.bias
  %b_step: i64[1] = state step
  %x: bf16[3, 4] = input x
  %0: i64[1] = aten.add.Tensor(%b_step, 1)  # TPC  core/test_printing.py:30
  %1: f32[1] = aten._to_copy(%b_step, dtype=float32)  # TPC  core/test_printing.py:30
  %2: f32[1] = aten.add.Tensor(%1, 1)  # TPC  core/test_printing.py:30
  %3: f32[1] = aten.abs(%1)  # TPC  core/test_printing.py:30
  %4: f32[1] = aten.add.Scalar(%3, 1)  # TPC  core/test_printing.py:30
  %5: f32[1] = aten._to_copy(%0, dtype=float32)  # TPC  core/test_printing.py:30
  %6: f32[1] = aten.sub.Tensor(%2, %5)  # TPC  core/test_printing.py:30
  %7: f32[1] = aten.abs(%6)  # TPC  core/test_printing.py:30
  %8: f32[1] = aten.mul.Scalar(%4, 1.52587890625e-05)  # TPC  core/test_printing.py:30
  %9: f32[1] = aten.clamp(%8, 2147483648.0)  # TPC  core/test_printing.py:30
  %10: bool[1] = aten.ge.Tensor(%7, %9)  # TPC  core/test_printing.py:30
  %11: bool[] = aten.any(%10)  # TPC  core/test_printing.py:30
  %12: bf16[3, 4] = aten.linear(%x, %p_inner_weight, %p_inner_bias)  # MME+TPC  inner  core/test_printing.py:31
  %13: (bf16[3, 2], bf16[3, 2]) = aten.split.Tensor(%12, 2, -1)  # none  core/test_printing.py:31
  %14: bf16[3, 2] = getitem(%13, 0)  # core/test_printing.py:31
  %15: bf16[3, 2] = getitem(%13, 1)  # core/test_printing.py:31
  %16: bf16[3, 2] = aten.sigmoid(%14)  # TPC  core/test_printing.py:32
  %17: bf16[3, 2] = aten.mul.Tensor(%16, %15)  # TPC  core/test_printing.py:32
  %18: bf16[3, 2] = aten.mul.Tensor(%17, 0.5)  # TPC  core/test_printing.py:32
  %19: bf16[12] = aten.view(%x, [12])  # none  core/test_printing.py:32
  %20: bf16[11] = aten.slice.Tensor(%19, 0, 1, 9223372036854775807)  # none  core/test_printing.py:32
  %21: bool[1] = aten.stack([%11])  # none
  return (%0, %18, %20, %21)
""",
    )


def test_layers_are_folded(make_stack: Callable[..., nn.Module]) -> None:
    program = capture(make_stack(5), (torch.zeros(2, 8),))
    text = program_text(program)
    root = text[text.index("graph root:") :]
    lines = [re.sub(r"(, %p_\w+)+", ", ...", line.split("  #")[0]) for line in root.splitlines()]
    assert_expected_inline(
        "\n".join(lines),
        """\
graph root:
  %p_layers_0_norm_weight: f32[8] = weight layers.*.norm.weight  x5
  %p_layers_0_norm_bias: f32[8] = weight layers.*.norm.bias  x5
  %p_layers_0_a_weight: f32[16, 8] = weight layers.*.a.weight  x5
  %p_layers_0_a_bias: f32[16] = weight layers.*.a.bias  x5
  %p_layers_0_b_weight: f32[8, 16] = weight layers.*.b.weight  x5
  %p_layers_0_b_bias: f32[8] = weight layers.*.b.bias  x5
  %p_head_weight: f32[4, 8] = weight head.weight
  %p_head_bias: f32[4] = weight head.bias
  %x: f32[2, 8] = input x
  %0: (f32[2, 8]) = block(%x, ...)
  %1: f32[2, 8] = getitem(%0, 0)
  ... 3 more calls of block, each with its own weights
  %8: (f32[2, 8]) = block(%7, ...)
  %9: f32[2, 8] = getitem(%8, 0)
  %10: f32[2, 4] = aten.linear(%9, ...)
  return (%10)""",
    )


def test_two_calls_are_not_folded(make_stack: Callable[..., nn.Module]) -> None:
    text = program_text(capture(make_stack(2), (torch.zeros(2, 8),)))
    assert "more calls" not in text
    assert text.count("= block(") == 2


def test_unnumbered_names_survive_an_insertion(make_stack: Callable[..., nn.Module]) -> None:
    """What a diff needs: one node more is one line more."""
    program = capture(make_stack(1), (torch.zeros(2, 8),))
    changed = program.copy()
    node = next(n for n in changed.root.graph.nodes if n.op == "call_function")
    Rewriter(changed.root).emit(torch.ops.aten.neg.default, node.args[0], like=node)
    old, new = (program_text(p, numbered=False).splitlines() for p in (program, changed))
    assert len(set(new) - set(old)) == 1
    assert not set(old) - set(new)


def test_literals_are_printed_as_python_writes_them() -> None:
    def function(x: Tensor) -> Tensor:
        gelu = torch.nn.functional.gelu(x, approximate="tanh")
        return torch.cat([gelu, x.to(torch.float16).float()], 0).clamp(max=2.5)

    text = program_text(capture(function, (torch.zeros(2),)))
    assert "aten.gelu(%x, approximate='tanh')" in text.replace("args_0", "x")
    assert "aten.to.dtype(%x, float16)" in text.replace("args_0", "x")
    assert "aten.cat([%0, %2])" in text
    assert "aten.clamp(%3, None, 2.5)" in text


PRINT = """
import sys
sys.path.insert(0, {folder!r})
from test_printing import everything_printed
print(everything_printed(), end="")
"""


def everything_printed() -> str:
    compiled = gaudicc.compile(Gate().eval(), (torch.zeros(3, 4, dtype=torch.bfloat16),))
    texts = [program_text(compiled.program), program_text(compiled.static_program()), compiled.plan(), compiled.guards]
    return "\n".join(map(str, texts))


def test_the_text_is_the_same_in_every_process() -> None:
    script = PRINT.format(folder=str(Path(__file__).parent))
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=True,
        capture_output=True,
        text=True,
        env={"PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.stdout == everything_printed()
