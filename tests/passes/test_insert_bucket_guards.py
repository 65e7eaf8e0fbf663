"""insert-bucket-guards: one guard per size of every input, and one per pair that must agree; each is true Python."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import Dim

from gaudicc.capture import capture
from gaudicc.invariants import SHAPES_GUARDED
from gaudicc.passes.insert_bucket_guards import InsertBucketGuards
from gaudicc.program import Program

BATCH, LENGTH = Dim("batch", min=1, max=4), Dim("length", min=2, max=16)


class Pooled(nn.Module):
    def forward(self, ids: Tensor, mask: Tensor, scale: Tensor) -> Tensor:
        return (ids * mask).sum(1) * scale


def pooled(dynamic: bool) -> Program:
    shapes = {"ids": {0: BATCH, 1: LENGTH}, "mask": {0: BATCH, 1: LENGTH}, "scale": None} if dynamic else None
    return capture(Pooled().eval(), (torch.randn(2, 5), torch.ones(2, 5), torch.randn(())), dynamic_shapes=shapes)


def holds(program: Program, shapes: dict[str, tuple[int, ...]]) -> bool:
    names = {name: SimpleNamespace(shape=shape) for name, shape in shapes.items()}
    return all(eval(guard.text, {}, names) for guard in program.guards)


def test_static_sizes_are_equalities(alone: Any) -> None:
    after, record = alone(InsertBucketGuards(), pooled(dynamic=False))
    assert [guard.text for guard in after.guards] == [
        "ids.shape[0] == 2", "ids.shape[1] == 5", "mask.shape[0] == 2", "mask.shape[1] == 5",
    ]  # fmt: skip
    assert after.guards[0].reason == "captured with this size of ids"
    assert record.notes == ("4 guards",)


def test_dynamic_sizes_are_ranges_and_agreements(alone: Any) -> None:
    after, _ = alone(InsertBucketGuards(), pooled(dynamic=True))
    assert [(guard.text, guard.reason) for guard in after.guards] == [
        ("1 <= ids.shape[0] <= 4", "the range of batch"),
        ("2 <= ids.shape[1] <= 16", "the range of length"),
        ("mask.shape[0] == ids.shape[0]", "both are batch"),
        ("mask.shape[1] == ids.shape[1]", "both are length"),
    ]


def test_without_it_the_invariant_does_not_hold() -> None:
    program = pooled(dynamic=True)
    reasons = [violation.reason for violation in SHAPES_GUARDED.violations(program, program.root)]
    assert reasons == [
        "no guard on ids.shape[0] (batch)", "no guard on mask.shape[0] (batch)",
        "no guard on ids.shape[1] (length)", "no guard on mask.shape[1] (length)",
    ]  # fmt: skip
    after = InsertBucketGuards().run(program).program
    assert not list(SHAPES_GUARDED.violations(after, after.root))


@settings(max_examples=12)
@given(data=st.data())
def test_guards_admit_exactly_the_shapes_that_fit(data: st.DataObject) -> None:
    program = InsertBucketGuards().run(pooled(dynamic=True)).program
    size = st.integers(0, 20)
    ids = data.draw(st.tuples(size, size))
    mask = data.draw(st.one_of(st.just(ids), st.tuples(size, size)))
    fits = 1 <= ids[0] <= 4 and 2 <= ids[1] <= 16 and mask == ids
    assert holds(program, {"ids": ids, "mask": mask, "scale": ()}) == fits


def test_only_the_inputs_of_a_call_are_guarded(make_stack: Any, alone: Any) -> None:
    after, _ = alone(InsertBucketGuards(), capture(make_stack(2, state=True), (torch.randn(2, 8),)))
    assert [guard.text for guard in after.guards] == ["x.shape[0] == 2", "x.shape[1] == 8"]


def test_sizes_inside_containers_are_guarded_by_their_placeholder(alone: Any) -> None:
    class Model(nn.Module):
        def forward(self, pair: dict[str, list[Tensor]]) -> Tensor:
            return pair["a"][0] + pair["a"][1]

    after, _ = alone(InsertBucketGuards(), capture(Model().eval(), ({"a": [torch.zeros(3), torch.zeros(3)]},)))
    assert [guard.reason for guard in after.guards] == [
        "captured with this size of pair['a'][0]", "captured with this size of pair['a'][1]",
    ]  # fmt: skip
    names = [spec.name for spec in after.user_inputs()]
    assert holds(after, dict.fromkeys(names, (3,)))
    assert not holds(after, dict.fromkeys(names, (4,)))


def test_the_graph_is_left_alone(alone: Any) -> None:
    program = pooled(dynamic=True)
    after, record = alone(InsertBucketGuards(), program)
    assert record.before.root is record.after.root
    assert after.root is program.root


def test_a_size_without_a_bound_has_none_in_its_guard(alone: Any) -> None:
    program = capture(lambda x: x.relu(), (torch.randn(3, 4),), dynamic_shapes="auto")
    after, _ = alone(InsertBucketGuards(), program)
    assert [guard.text.replace(after.user_inputs()[0].name, "x") for guard in after.guards] == [
        "1 <= x.shape[0]", "1 <= x.shape[1]",
    ]  # fmt: skip
