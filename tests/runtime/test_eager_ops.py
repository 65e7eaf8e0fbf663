"""The count of eager ops: what touches the device's tensors outside of replays is counted, and nothing else."""

from __future__ import annotations

import torch
from torch import nn

from gaudicc.buckets import Bucket
from gaudicc.capture import capture
from gaudicc.lower import lower
from gaudicc.runtime.cpu import CpuDevice
from gaudicc.runtime.runner import Counters, Runner


def test_only_ops_on_what_the_device_holds_are_counted() -> None:
    model, x = nn.Linear(4, 4), torch.randn(2, 4)
    program = capture(model.eval(), (x,))
    device = CpuDevice()
    runner = Runner(lower(program, Bucket((), ())), program.bound(), device, Counters())
    with torch.no_grad(), device.eager_ops() as counted:
        runner.run([x + 1])
        assert counted.replays == 1
        assert not counted.ops
        (y,) = runner.run([x])
        y.neg().exp()
        model.weight.sum()
        x.cos()
    assert counted.ops == {"aten.neg": 1, "aten.exp": 1, "aten.sum": 1}
    assert counted.replays == 2


def test_nothing_is_counted_before_and_after() -> None:
    device = CpuDevice()
    counted = device.eager_ops()
    torch.ones(2).sum()
    with counted:
        pass
    torch.ones(2).sum()
    assert not counted.ops
