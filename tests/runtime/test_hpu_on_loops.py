"""A loop over a dynamic size on a Gaudi: the host replays one recorded trip, nothing falls back."""

from __future__ import annotations

import pytest

BROKEN = ("FALLBACK", "HOST_READ", "MIXED", "SPLIT", "HAZARD", "OVERFLOW")


@pytest.mark.parametrize("name", ["recurrent_cell", "writes_rows", "state_in_a_buffer"])
def test_as_in_eager(name: str, mode: str) -> None:
    import torch
    from torch.export import Dim
    from torch.utils import _pytree as pytree

    import gaudicc
    import gaudicc.emulator
    from gaudicc.emulator.ledger import Kind
    from gaudicc.plan import HostTrips
    from tests.capture.looped import Looped
    from tests.capture.looped_steps import CASES

    shapes = ({0: Dim("batch", min=1, max=4), 1: Dim("steps", min=1, max=8)},)
    eager, model = Looped(CASES[name]), Looped(CASES[name])
    compiled = gaudicc.compile(
        model, (torch.randn(2, 5, 4),), dynamic_shapes=shapes, device="hpu", buckets=[{"batch": 4, "steps": 8}]
    )
    (bucket,) = compiled.buckets
    assert sum(isinstance(step, HostTrips) for step in compiled.plan(bucket).steps) == 1
    compiled.warm_up()
    gaudicc.emulator.account().clear()
    for batch, steps in ((2, 5), (1, 1), (4, 8)):
        x = torch.randn(batch, steps, 4)
        for given, wanted in zip(pytree.tree_leaves(compiled(x)), pytree.tree_leaves(eager(x)), strict=True):
            torch.testing.assert_close(given, wanted)
    assert not any(gaudicc.emulator.account().count(Kind[kind]) for kind in BROKEN)


def test_a_loop_in_a_loop_is_refused(mode: str) -> None:
    import torch
    from torch.export import Dim

    import gaudicc
    from gaudicc.errors import LoweringError
    from tests.capture.looped import Looped
    from tests.capture.looped_steps import CASES

    shapes = ({0: Dim("batch", min=1, max=4), 1: Dim("steps", min=1, max=8)},)
    with pytest.raises(LoweringError, match="stands in another one"):
        gaudicc.compile(
            Looped(CASES["loop_in_a_loop"]),
            (torch.randn(2, 5, 4),),
            dynamic_shapes=shapes,
            device="hpu",
            buckets=[{"batch": 4, "steps": 8}],
        )
