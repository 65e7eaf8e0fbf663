"""legalize-ops: rules to a fixpoint, values kept, and what has no rule refused by name or left on the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from expecttest import assert_expected_inline
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import gaudicc
from gaudicc.errors import UnsupportedOpError
from gaudicc.invariants import verdict_of
from gaudicc.nodes import is_op, module_of, op_name, source_of
from gaudicc.passes.legalize_ops import LegalizeOps
from gaudicc.pipeline import Numerics
from gaudicc.plan import HostOp, Record
from gaudicc.program import Program
from gaudicc.rules.rule import Rule
from gaudicc.targets import Engine, Support
from gaudicc.verify import numerics

aten = torch.ops.aten
LARGE = 4096  # a strided slice is reported bad on large tensors only


def supports(program: Program) -> dict[str, Support]:
    nodes = [node for _, module in program.graphs() for node in module.graph.nodes if is_op(node)]
    return {op_name(node): verdict_of(node, program).support for node in nodes}


def legal(program: Program) -> bool:
    return set(supports(program).values()) <= {Support.EVIDENCED, Support.PRESUMED}


def test_before_and_after(capture_of: Any, alone: Any, text_of: Any) -> None:
    after, record = alone(LegalizeOps(), capture_of(lambda x: -x[:, 1::2], torch.arange(8 * LARGE).view(4, -1)))
    assert record.notes == (
        "aten.neg: rule integer-neg applied 1 times",
        "aten.slice.Tensor: rule strided-slice applied 1 times",
    )
    assert_expected_inline(
        text_of(after),
        """\
graph root:
  %x: i64[4, 8192] = input x
  %0: i64[4, 4096, 2] = aten.view(%x, [4, 4096, 2])
  %1: i64[4, 4096] = aten.select.int(%0, 2, 1)
  %2: i64[4, 4096] = aten.mul.Tensor(%1, -1)
  return (%2)
""",
    )


@pytest.mark.parametrize("name", ["tril_indices", "triu_indices"])
@given(row=st.integers(0, 6), col=st.integers(0, 6), offset=st.integers(-7, 7))
def test_triangle_indices_index_as_before(
    name: str, row: int, col: int, offset: int, capture_of: Any, alone: Any
) -> None:
    indices = getattr(torch, name)

    def model(x: Tensor) -> Tensor:
        rows, columns = indices(row, col, offset)
        return x[rows, columns]

    program = capture_of(model, torch.randn(max(row, 1), max(col, 1)))
    after, _ = alone(LegalizeOps(), program)
    assert legal(after)
    assert f"aten.{name}" not in after.count_ops()
    numerics(program, after, "legalize-ops", bitwise=True)


# Each takes every second or third entry of a row of LARGE in one of Python's spellings.
SLICES: dict[str, Callable[[Tensor], Tensor]] = {
    "[..., ::2]": lambda x: x[..., ::2],
    "[..., 1::2]": lambda x: x[..., 1::2],
    "[:, -7::3]": lambda x: x[:, -7::3],
    "[:, 5:-5:3]": lambda x: x[:, 5:-5:3],
    "[:, -9999:9999:7]": lambda x: x[:, -9999:9999:7],
    "[::2, ::2]": lambda x: x[::2, ::2],
    "[:, 4000:4000:2]": lambda x: x[:, 4000:4000:2],
    "narrowed and strided": lambda x: x[1:, 1:][:, ::2],
}


@pytest.mark.parametrize("spelling", SLICES)
def test_numpy_style_slices_are_rewritten_bitwise(spelling: str, capture_of: Any, alone: Any) -> None:
    x = torch.randn(4, LARGE)
    x[0, :8] = float("nan")
    program = capture_of(lambda x: SLICES[spelling](x) + 1, x)
    after, _ = alone(LegalizeOps(), program)
    assert legal(after)
    assert all(node.args[4:] in ((), (1,)) for node in after.root.graph.nodes if op_name(node) == "aten.slice.Tensor")
    numerics(program, after, "legalize-ops", bitwise=True)


def test_what_is_legal_is_left_alone_and_twice_is_once(capture_of: Any, alone: Any) -> None:
    program = capture_of(lambda x: torch.relu(x[:, 1:]), torch.randn(3, 4))
    assert not alone(LegalizeOps(), program)[1].modified
    after, record = alone(LegalizeOps(), capture_of(lambda x: -x, torch.arange(4)))
    assert record.modified
    assert not alone(LegalizeOps(), after)[1].modified


@torch.library.custom_op("gaudicc_tests::swirl", mutates_args=(), device_types="cpu", schema="(Tensor x) -> Tensor")
def swirl(x: Tensor) -> Tensor:
    """A kernel of the user's own: no table knows it, no rule replaces it."""
    return x.flip(0) * 2


@torch.library.custom_op(
    "gaudicc_tests::swirl_back", mutates_args=(), device_types="cpu", schema="(Tensor x) -> Tensor"
)
def swirl_back(x: Tensor) -> Tensor:
    return x.flip(0) / 2


swirl.register_fake(torch.empty_like)
swirl_back.register_fake(torch.empty_like)
SWIRL, BACK = torch.ops.gaudicc_tests.swirl.default, torch.ops.gaudicc_tests.swirl_back.default


def rule(name: str, op: Any, rewrite: Callable[..., Any]) -> Rule:
    return Rule(name, (op,), rewrite, cost="none", numerics=Numerics.ROUNDING)


def swirled(x: Tensor) -> Tensor:
    return torch.relu(swirl(x)) @ x


def test_what_a_rule_emits_is_legalised_too(capture_of: Any) -> None:
    def to_integers(x: Tensor) -> Any:
        whole = x.to(torch.int32)
        return aten.to.dtype(aten.neg.default(whole), x.dtype)

    rules = (rule("first", SWIRL, to_integers), *LegalizeOps().rules)
    result = LegalizeOps(rules=rules).run(capture_of(swirled, torch.randn(2, 2)))
    assert legal(result.program)
    assert [note.split(" applied")[0] for note in result.notes] == [
        "aten.neg: rule integer-neg", "gaudicc_tests.swirl: rule first",
    ]  # fmt: skip


def test_rules_that_undo_each_other_are_named(capture_of: Any) -> None:
    rules = (rule("there", SWIRL, lambda x: BACK(x) * 4), rule("back", BACK, lambda x: SWIRL(x) / 4))
    with pytest.raises(UnsupportedOpError, match="5 rounds"):
        LegalizeOps(rules=rules, rounds=5).run(capture_of(swirled, torch.randn(2, 2)))


def test_the_first_rule_whose_check_passes_is_applied(capture_of: Any) -> None:
    never = Rule("never", (SWIRL,), lambda x: x, cost="none", check=lambda x: "it is Tuesday")
    picked, later = rule("picked", SWIRL, aten.neg), rule("later", SWIRL, aten.abs)
    result = LegalizeOps(rules=(never, picked, later)).run(capture_of(swirled, torch.randn(2, 2)))
    assert result.notes == ("gaudicc_tests.swirl: rule picked applied 1 times",)
    with pytest.raises(UnsupportedOpError, match="rule never does not fit: it is Tuesday"):
        LegalizeOps(rules=(never,)).run(capture_of(swirled, torch.randn(2, 2)))


def test_a_refusal_names_op_line_module_and_pass(capture_of: Any) -> None:
    with pytest.raises(UnsupportedOpError) as caught:
        LegalizeOps().run(capture_of(swirled, torch.randn(2, 2)))
    assert caught.value.where.op == "gaudicc_tests.swirl"
    assert "test_legalize_ops.py" in str(caught.value.where.source)
    assert caught.value.where.stage == "legalize-ops"
    assert "on_unsupported='host'" in str(caught.value)


def test_new_nodes_stand_where_the_old_one_stood(capture_of: Any, alone: Any) -> None:
    program = capture_of(lambda x: x - 3, torch.arange(4))
    (old,) = [node for node in program.root.graph.nodes if is_op(node)]
    after, _ = alone(LegalizeOps(), program)
    nodes = [node for node in after.root.graph.nodes if is_op(node)]
    assert {(source_of(node), module_of(node)) for node in nodes} == {(source_of(old), module_of(old))}


class Swirled(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return swirl(torch.relu(x)) @ x


def test_on_the_host_it_is_a_step_between_recorded_graphs() -> None:
    model, x = Swirled().eval(), torch.randn(3, 3)
    with pytest.raises(UnsupportedOpError, match="swirl"):
        gaudicc.compile(model, (x,))
    compiled = gaudicc.compile(model, (x,), on_unsupported="host")
    assert [type(step) for step in compiled.plan().all_steps()] == [Record, HostOp, Record]
    torch.testing.assert_close(compiled(x), model(x))
    assert any("left on the host" in note for record in compiled.trace.records for note in record.notes)


def test_what_stays_on_the_host_is_not_asked_again(capture_of: Any) -> None:
    after = LegalizeOps(host=True).run(capture_of(swirl, torch.randn(2, 2))).program
    assert [node.meta["engine"] for node in after.root.graph.nodes if is_op(node)] == [Engine.HOST]
    assert not LegalizeOps(host=True).run(after).modified
