"""lower-semantic-ops: kept where the target has a fused kernel, plain ATen where not; the values stay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from expecttest import assert_expected_inline
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import gaudicc
from gaudicc.invariants import LOWERED, verdict_of
from gaudicc.kernels import attention, rms_norm
from gaudicc.nodes import is_op
from gaudicc.passes import DEFAULT_PIPELINE
from gaudicc.passes.lower_semantic_ops import LowerSemanticOps
from gaudicc.program import Program
from gaudicc.targets import Support

PLAIN = LowerSemanticOps(fused=False)


def norm(x: Tensor, weight: Tensor) -> Any:
    return rms_norm(x, weight, 1e-6, False)


def namespaces(program: Program) -> set[str]:
    nodes = [node for _, module in program.graphs() for node in module.graph.nodes if is_op(node)]
    return {str(node.target).split(".")[0] for node in nodes}


def test_before_and_after(capture_of: Any, alone: Any, text_of: Any) -> None:
    after, record = alone(PLAIN, capture_of(norm, torch.randn(2, 4), weight=torch.randn(4)))
    assert record.notes == ("gaudicc.rms_norm lowered to plain ATen, 1 times",)
    assert_expected_inline(
        text_of(after),
        """\
graph root:
  %p_weight: f32[4] = weight weight
  %x: f32[2, 4] = input x
  %0: f32[2, 4] = aten.pow.Tensor_Scalar(%x, 2)
  %1: f32[2, 1] = aten.mean.dim(%0, [-1], True)
  %2: f32[2, 1] = aten.add.Tensor(%1, 1e-06)
  %3: f32[2, 1] = aten.rsqrt(%2)
  %4: f32[2, 4] = aten.mul.Tensor(%x, %3)
  %5: f32[2, 4] = aten.mul.Tensor(%p_weight, %4)
  return (%5)
""",
    )


def test_what_the_target_has_a_kernel_for_is_kept(capture_of: Any, alone: Any) -> None:
    after, record = alone(LowerSemanticOps(), capture_of(norm, torch.randn(2, 4), weight=torch.randn(4)))
    assert not record.modified
    assert record.notes == ("gaudicc.rms_norm kept for the fused kernel, 1 times",)
    assert namespaces(after) == {"gaudicc"}
    assert not list(LOWERED.violations(after, after.root))


def test_without_a_target_nothing_is_kept(capture_of: Any) -> None:
    program = capture_of(norm, torch.randn(2, 4), weight=torch.randn(4))
    program.target = None
    assert list(LOWERED.violations(program, program.root))
    after = LowerSemanticOps().run(program).program
    assert namespaces(after) == {"aten"}
    assert not list(LOWERED.violations(after, after.root))


@settings(max_examples=12)
@given(data=st.data(), scale_first=st.booleans(), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_norms_keep_their_values(
    data: st.DataObject, scale_first: bool, dtype: torch.dtype, capture_of: Any, alone: Any
) -> None:
    shape = [*data.draw(st.lists(st.integers(0, 3), max_size=2)), data.draw(st.integers(1, 5))]
    program = capture_of(
        lambda x, weight: rms_norm(x, weight, 1e-6, scale_first),
        torch.randn(shape).to(dtype),
        weight=torch.randn(shape[-1]),
    )
    after, _ = alone(PLAIN, program)
    assert namespaces(after) == {"aten"}
    assert not alone(PLAIN, after)[1].modified


@settings(max_examples=12)
@given(data=st.data(), causal=st.booleans(), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_attention_keeps_its_values(
    data: st.DataObject, causal: bool, dtype: torch.dtype, capture_of: Any, alone: Any
) -> None:
    size = st.integers(1, 4)
    groups, kv_heads, queries, keys = (data.draw(size) for _ in range(4))
    kind = "none" if causal else data.draw(st.sampled_from(["none", "bool", "float"]))

    def model(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Any:
        chosen = {"none": None, "bool": mask > 0.1, "float": mask}[kind]
        return attention(q, k, v, chosen, causal, 0.5)

    q = torch.randn(data.draw(st.integers(0, 2)), groups * kv_heads, queries, 4)
    k, v = torch.randn(q.shape[0], kv_heads, keys, 4), torch.randn(q.shape[0], kv_heads, keys, 3)
    mask = torch.rand(queries, keys)
    mask[:, 0] = 1.0  # every query attends a key: what a row without any is, differs by kernel
    after, _ = alone(PLAIN, capture_of(model, *(x.to(dtype) for x in (q, k, v, mask))))
    assert namespaces(after) == {"aten"}


class Grouped(nn.Module):
    """Grouped heads, rotated, as the whole pipeline lowers them: nothing of it may be a composite again."""

    def forward(self, q: Tensor, k: Tensor, cos: Tensor) -> Tensor:
        q = q * cos + torch.cat((-q[..., 4:], q[..., :4]), -1) * cos
        return nn.functional.scaled_dot_product_attention(q, k, k, enable_gqa=True)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 48)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(2, 5, 3, 2, 8).permute(2, 0, 3, 1, 4)
        return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(2, 5, 16)


CASES = {
    Small: (torch.randn(2, 5, 16),),
    Grouped: (torch.randn(1, 4, 3, 8), torch.randn(1, 2, 3, 8), torch.randn(1, 1, 3, 8)),
}


@pytest.mark.parametrize("chip", ["gaudi2", "gaudi3"])
@pytest.mark.parametrize("kind", CASES)
def test_plain_forms_are_legal_and_equal_to_eager(chip: str, kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model, inputs = kind().eval(), CASES[kind]
    steps = [PLAIN if step.name == PLAIN.name else step for step in DEFAULT_PIPELINE]
    compiled = gaudicc.compile(model, inputs, passes=steps, target=chip, verify="numerics")
    program = compiled.static_program()
    assert namespaces(program) == {"aten"}
    kinds = {verdict_of(node, program).support for node in program.root.graph.nodes if is_op(node)}
    assert kinds <= {Support.EVIDENCED, Support.PRESUMED}
    torch.testing.assert_close(compiled(*inputs), model(*inputs), rtol=1e-5, atol=1e-5)
