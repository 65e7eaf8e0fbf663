"""The fused kernels of semantic ops on the emulated device: what they compute is what the ops mean."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

import gaudicc
from gaudicc.kernels import grouped_linear, moe, rotary


def check(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-4)


def there(args: tuple[Any, ...]) -> Any:
    return [each.to("hpu") if isinstance(each, Tensor) else each for each in args]


@pytest.mark.parametrize("sizes", [(2, 1, 5, 6), (1, 1, 5, 6), (2, 3, 1, 6), (5, 6), (2, 1, 1, 6)])
@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_of_heads_before_and_after_positions(mode: str, sizes: tuple[int, ...], interleaved: bool) -> None:
    from gaudicc.runtime.hpu_kernels import fits, fused_rotary

    x, angles = torch.randn(2, 3, 5, 6), torch.randn(sizes)
    x = x.transpose(1, 2).contiguous().transpose(1, 2) if len(sizes) == 2 else x
    args: tuple[Any, ...] = (x, angles.cos(), angles.sin(), interleaved)
    assert fits(rotary, args)
    check(fused_rotary(*there(args)), rotary(*args))


def test_rotary_of_positions_first_moves_nothing(mode: str) -> None:
    from gaudicc.runtime.hpu_kernels import fused_rotary

    called = []

    class Listed(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            called.append(func)
            return func(*args, **(kwargs or {}))

    x, angles = torch.randn(1, 5, 3, 6), torch.randn(1, 5, 1, 6)
    args: tuple[Any, ...] = (x, angles.cos(), angles.sin(), True)
    given = there(args)
    with Listed():
        turned = fused_rotary(*given)
    check(turned, rotary(*args))
    aten = torch.ops.aten
    assert set(called) == {aten.view.default, torch.ops.hpu.rotary_pos_embedding.default}


def test_rotary_without_an_angle_for_all_heads_has_no_kernel(mode: str) -> None:
    from gaudicc.runtime.hpu_kernels import fits

    x, angles = torch.randn(2, 3, 5, 6), torch.randn(2, 3, 5, 6)
    assert not fits(rotary, (x, angles, angles, False))
    assert not fits(rotary, (x[0], angles[0], angles[0], False))
    assert not fits(rotary, (x, angles[:, :1].double(), angles[:, :1].double(), False))


@pytest.mark.parametrize("experts", [1, 3, 130])
@pytest.mark.parametrize("activation", ["silu", "gelu", "relu"])
def test_a_mixture_of_any_number_of_experts(mode: str, experts: int, activation: str) -> None:
    from gaudicc.runtime.hpu_kernels import fused_moe

    x, table, weights = torch.randn(7, 4), torch.randint(0, experts, (7, 2)), torch.rand(7, 2)
    args: tuple[Any, ...] = (x, table, weights, torch.randn(experts, 6, 4), torch.randn(experts, 4, 3), activation)
    check(fused_moe(*there(args)), moe(*args))


class Block(nn.Module):
    """Queries that are turned, and a mixture as capture writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up, self.down = (nn.Parameter(torch.randn(3, *size)) for size in ((8, 6), (6, 4)))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, table: Tensor, weights: Tensor) -> Tensor:
        x = x * cos + torch.cat((-x[..., 3:], x[..., :3]), -1) * sin
        x, group = x.reshape(-1, 6), table.reshape(-1)
        rows = x.unsqueeze(1).expand(-1, 2, -1).reshape(-1, 6)
        gate, up = grouped_linear(rows, self.gate_up, group).chunk(2, -1)
        result = grouped_linear(functional.silu(gate) * up, self.down, group)
        total: Tensor = (result * weights.reshape(-1, 1)).view(-1, 2, 6).sum(1)
        return total


def test_compiled_programs_use_them(mode: str) -> None:
    torch.manual_seed(0)
    model: Any = Block().eval()
    x, angles = torch.randn(2, 3, 4, 6), torch.randn(2, 1, 4, 6)
    given = (x, angles.cos(), angles.sin(), torch.randint(0, 3, (24, 2)), torch.rand(24, 2))
    compiled = gaudicc.compile(model, given, device="hpu")
    assert {"gaudicc.rotary", "gaudicc.moe"} <= set(compiled.static_program().count_ops())
    check(compiled(*given), model(*given).detach())
