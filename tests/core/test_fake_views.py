"""Views of fake tensors are laid out as those of real ones, whatever steps lead over dims of one element."""

from __future__ import annotations

import math
from typing import Any

import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim

from gaudicc.capture import capture
from gaudicc.fake_views import views_as_laid_out

FACTORS = st.lists(st.sampled_from([1, 1, 2, 3]), min_size=1, max_size=4)


@given(sizes=FACTORS, merged=st.integers(0, 4), data=st.data())
def test_a_view_is_laid_out_as_a_real_one(sizes: list[int], merged: int, data: st.DataObject) -> None:
    x = torch.empty(sizes).permute(data.draw(st.permutations(range(len(sizes)))))
    steps = [step if size > 1 else data.draw(st.integers(1, 9)) for size, step in zip(x.shape, x.stride(), strict=True)]
    x = x.as_strided(x.shape, steps)
    shape = list(x.shape)
    shape = [math.prod(shape[: merged + 1]), *shape[merged + 1 :]]
    for place in data.draw(st.lists(st.integers(0, len(shape)), max_size=2)):
        shape.insert(place, 1)
    try:
        real = x.view(shape)
    except RuntimeError:
        assume(False)
    with views_as_laid_out(), FakeTensorMode() as mode:
        assert mode.from_tensor(x).view(shape).stride() == real.stride()


class Heads(nn.Module):
    """Heads of one token, cut from what lies transposed, as state-space models have them."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        x[:, 0] += 1  # what writes is traced once more after its export
        return x[..., :1].transpose(1, 2)[..., :32].view(x.shape[0], 1, 4, 8) * 2


def test_capture_knows_how_its_views_are_laid_out() -> None:
    x = torch.randn(3, 40, 3)
    program = capture(Heads().eval(), (x,), dynamic_shapes={"x": {0: Dim("batch", max=8)}})
    laid_out = {}

    class Run(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            if isinstance(result, Tensor):
                laid_out[n] = result.stride()
            return result

    Run(program.root).run(x)
    assert laid_out == {node: node.meta["val"].stride() for node in laid_out}
    assert (120, 96, 24, 3) in laid_out.values()
