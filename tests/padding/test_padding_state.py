"""State buffers: true at the start, kept by every bucket, over growing and shrinking lengths."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.export import Dim
from torch.nn import functional as F

import gaudicc
from gaudicc.capture import capture
from gaudicc.padding import certificate_of
from gaudicc.padding.poison import check
from gaudicc.passes import CleanUp, Decompose, RecognizeAttention
from gaudicc.passes.pad import Pad
from gaudicc.pipeline import Pipeline
from gaudicc.program import OutputKind
from gaudicc.targets import load_target


class Cache(nn.Module):
    """A static KV cache: writes by position, attends to what was written."""

    keys: torch.Tensor
    values: torch.Tensor
    seen: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(1, 2, 32, 4))
        self.register_buffer("values", torch.zeros(1, 2, 32, 4))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        length = x.shape[1]
        heads = x.view(1, length, 2, 4).transpose(1, 2)
        place = torch.arange(length) + self.seen
        self.keys.index_copy_(2, place, heads.cos())
        self.values.index_copy_(2, place, heads.exp())
        mask = torch.arange(32)[None, :] <= place[:, None]
        self.seen.add_(length)
        return F.scaled_dot_product_attention(heads, self.keys, self.values, mask)


class Mean(nn.Module):
    """A running sum and count: the count is a size used as a value."""

    total: torch.Tensor
    count: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(4))
        self.register_buffer("count", torch.zeros(()))
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.total.add_(x.exp().sum(0))
        self.count.add_(x.shape[0])
        return x - self.total / self.count


LENGTHS = ((5, 8), (1, 1), (2, 8), (7, 8), (3, 4))


def test_a_cache_is_never_written_by_pads() -> None:
    program = capture(Cache(), (torch.randn(1, 6, 8),), dynamic_shapes={"x": {1: Dim("n", min=1, max=8)}})
    program.target = load_target("gaudi3")
    program, _ = Pipeline((RecognizeAttention(), Decompose(), CleanUp())).run(program)
    padded = Pad().run(program.copy()).program
    proofs = certificate_of(padded).outputs
    kinds = [spec.kind for spec in padded.outputs]
    assert kinds.count(OutputKind.STATE) == 3
    assert sum("dropped" in proof.proved for proof in proofs) == 3
    name = program.user_inputs()[0].name
    check(padded, program, [({name: torch.randn(1, n, 8)}, {"n": bucket}) for n, bucket in LENGTHS])


def test_running_statistics_count_valid_rows() -> None:
    program = capture(Mean(), (torch.randn(6, 4),), dynamic_shapes={"x": {0: Dim("n", min=1, max=8)}})
    padded = Pad().run(program.copy()).program
    name = program.user_inputs()[0].name
    check(padded, program, [({name: torch.randn(n, 4)}, {"n": bucket}) for n, bucket in LENGTHS])


def test_state_is_never_touched_by_pads() -> None:
    model = Mean()
    reference = copy.deepcopy(model)
    compiled = gaudicc.compile(
        model, (torch.randn(6, 4),), dynamic_shapes={"x": {0: Dim("n", min=0, max=8)}}, buckets=[{"n": 4}, {"n": 8}],
        verify="poison",
    )  # fmt: skip
    for n in (5, 1, 8, 3, 0, 2, 7):
        x = torch.randn(n, 4)
        torch.testing.assert_close(compiled(x), reference(x))
    x = torch.randn(3, 4)
    torch.testing.assert_close(compiled.session()(x), Mean()(x))
    assert sum("none after it" in line for line in compiled.certificate.padding) == 2
