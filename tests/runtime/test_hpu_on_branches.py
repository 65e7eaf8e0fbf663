"""An `if` that the host decides, on a Gaudi: one flag is read between two recorded graphs, nothing falls back."""

from __future__ import annotations


def test_as_in_eager(mode: str) -> None:
    import copy

    import torch

    import gaudicc
    import gaudicc.emulator
    from gaudicc.emulator.ledger import Kind
    from tests.passes.test_choose_branches import EarlyExit, made, outcome

    model = made(EarlyExit)
    compiled = gaudicc.compile(copy.deepcopy(model), (-torch.ones(2, 4),), device="hpu", branches="host")
    compiled.warm_up()
    gaudicc.emulator.account().clear()
    records, reads = compiled.stats.records, set()
    for seed in range(12):
        x = torch.randn(2, 4, generator=torch.Generator().manual_seed(seed)) * 2
        before = compiled.stats.host_reads
        for given, wanted in zip(outcome(compiled, x), outcome(model, x), strict=True):
            torch.testing.assert_close(given, wanted)
        reads.add(compiled.stats.host_reads - before)
    for name, state in model.named_buffers():
        torch.testing.assert_close(compiled._device.fetch(compiled._state[name]), state)
    assert reads == {1, 2, 4}
    assert compiled.stats.records == records
    count = gaudicc.emulator.account().count
    assert not any(count(Kind[kind]) for kind in ("FALLBACK", "MIXED", "SPLIT", "HAZARD", "OVERFLOW"))
    assert count(Kind.HOST_READ) == compiled.stats.host_reads  # what one graph hands to the next stays on the device
