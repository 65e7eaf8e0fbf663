"""Rules 6, 7, 9: `ModuleCacher`, `make_graphed_callables` and `TensorPacker`."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

th: Any = torch
"""torch as a child process has it: with `torch.hpu`."""


def counts(kind: str) -> int:
    import gaudicc.emulator
    from gaudicc.emulator.ledger import Kind

    return gaudicc.emulator.account().count(Kind[kind])


class Net(nn.Module):
    """Dict outputs with something that is no tensor, a buffer that counts, and noise drawn in place."""

    def __init__(self, *, noise: bool = False) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.BatchNorm1d(8), nn.Linear(8, 2))
        self.noise = noise

    def forward(self, x: Tensor, scale: float = 1.0) -> dict[str, Any]:
        if self.noise:
            x = x + torch.empty_like(x).normal_()
        out = self.layers(x) * scale
        return {"out": out, "name": "net", "pair": (out.sum(), [out.mean()])}


def train(model: nn.Module, inputs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    torch.manual_seed(3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    losses, grads = [], []
    for x in inputs:
        given = x.to("hpu").requires_grad_()
        result = model(given)
        assert result["name"] == "net"
        loss = result["out"].pow(2).sum() + result["pair"][1][0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert given.grad is not None
        losses.append(loss.detach().cpu())
        grads.append(given.grad.cpu())
    return losses, grads


# rules 6 and 9
@pytest.mark.parametrize("disable_tensor_cache", [False, True])
@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("noise", [False, True])
def test_module_cacher_trains_bit_for_bit_like_the_module(
    disable_tensor_cache: bool, dry_run: bool, noise: bool
) -> None:
    torch.manual_seed(0)
    plain = Net(noise=noise).to("hpu")
    cached = th.hpu.ModuleCacher(max_graphs=2)(
        copy.deepcopy(plain), disable_tensor_cache=disable_tensor_cache, dry_run=dry_run
    )
    inputs = [torch.randn(size, 4) for size in (3, 3, 5, 3, 5, 7)]
    expected, found = train(plain, inputs), train(cached, inputs)
    for left, right in zip(expected, found, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))
    for (name, left_state), right_state in zip(plain.state_dict().items(), cached.state_dict().values(), strict=True):
        assert torch.equal(left_state.cpu(), right_state.cpu()), name
    assert counts("CAPTURE") == 4, "forward and backward of two sizes; the third runs without a graph"


def test_module_cacher_passes_through_for_inference() -> None:
    model = th.hpu.ModuleCacher()(Net().to("hpu"))
    with torch.no_grad():
        model(torch.ones(2, 4, device="hpu"))
    model.eval()
    model(torch.ones(2, 4, device="hpu"))
    assert counts("CAPTURE") == 0


def test_module_cacher_keeps_what_it_saw_most() -> None:
    cacher = th.hpu.ModuleCacher(max_graphs=1)
    model: Any = cacher(Net().to("hpu"), use_lfu=True)
    model.capture_start()
    for size in (2, 3, 3):
        model(torch.ones(size, 4, device="hpu"))
    model.capture_end()
    for size in (2, 3, 3):
        model(torch.ones(size, 4, device="hpu"))
    assert (len(cacher.model_dict), sum(cacher.cached_hits_dict.values()), cacher.uncached_train_hits) == (1, 2, 4)


def test_graphed_function_has_gradients() -> None:
    x, w = torch.ones(3, device="hpu"), torch.full((3,), 2.0, device="hpu", requires_grad=True)
    function = th.hpu.make_graphed_callables(
        lambda a, b: (a * b * b).sum(), (x.clone(), w.detach().clone().requires_grad_())
    )
    for factor in (1.0, 3.0):
        w.grad = None
        result = function(x * factor, w)
        result.backward()
        assert w.grad is not None
        assert result.item() == 12 * factor
        assert w.grad.tolist() == [4 * factor] * 3


# rule 7
def test_tensor_packer_prints_places_inside_the_nesting() -> None:
    packer, x, y = th.hpu.TensorPacker(), torch.ones(1), torch.zeros(2)
    value = {"a": [x, 1], "b": (y, {"c": x}), "d": None}
    tensors, metadata = packer.pack(value)
    assert str(metadata) == "{'a': [#0, 1], 'b': (#1, {'c': #2}), 'd': None}"
    assert tensors == (x, y, x)
    assert packer.unpack(tensors, metadata) == value
