"""`habana_frameworks.torch.hpex.optimizers`, `.movingavrg` and `FusedClipNorm`: what a training step does beside the model.

Source of names, arguments and formulas: HabanaAI/gaudi-pytorch-bridge 1.19.0, `hpex/optimizers/`, `hpex/movingavrg/`,
`hpex/normalization/FusedClipNorm.py`, `hpu_ops/backend/fused_clip_norm_gen.cpp`. The device has one kernel for each step;
here the same formulas run as plain ops, between the same two flushes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from gaudicc.emulator.surface.core import mark_step
from gaudicc.emulator.surface.marks import refused

__all__ = [
    "Adam", "AdamW", "FusedAdagrad", "FusedAdamW", "FusedLamb", "FusedLars", "FusedResourceApplyMomentum", "FusedSGD",
]  # fmt: skip

Closure = Callable[[], Any] | None
_TRAINING = "it serves training, and runs in kernels of its own"

FusedLamb = refused("hpex.optimizers.FusedLamb", _TRAINING)
FusedLars = refused("hpex.optimizers.FusedLars", _TRAINING)
FusedResourceApplyMomentum = refused("hpex.optimizers.FusedResourceApplyMomentum", _TRAINING)


class _Flushing(torch.optim.Optimizer):
    """An optimiser of torch whose step is a graph of its own in lazy mode."""

    def step(self, closure: Closure = None) -> Any:
        """One step.

        Args:
            closure: computes the loss and the gradients first.

        Returns:
            What the closure gives.
        """
        mark_step()
        inner: Any = super()
        loss = inner.step(closure)
        mark_step()
        return loss


class Adam(_Flushing, torch.optim.Adam):
    """torch's, with a flush before and after it."""


class AdamW(_Flushing, torch.optim.AdamW):
    """torch's, with a flush before and after it."""


class FusedSGD(_Flushing, torch.optim.SGD):
    """torch's; the arguments are in another order."""

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0,
        weight_decay: float = 0,
        dampening: float = 0,
        nesterov: bool = False,
    ) -> None:
        super().__init__(
            params, lr, momentum=momentum, weight_decay=weight_decay, dampening=dampening, nesterov=nesterov
        )


class FusedAdagrad(_Flushing, torch.optim.Adagrad):
    """torch's."""


class FusedAdamW(torch.optim.Optimizer):
    """Adam with decoupled weight decay; `eps` is added to the root that is not corrected for bias.

    Args:
        params: what it changes.
        lr: step size.
        betas: how much of the two moments is kept.
        eps: keeps the divisor from 0.
        weight_decay: how much of a weight a step of size 1 takes away.
        bias_correction: whether moments that began at 0 are scaled up.
        moments_dtype: dtype of both moments or of each; that of the parameter if not given.

    Raises:
        ValueError: `lr`, `betas` or `eps` out of range.
        DeviceError: moments in fp8, whose scales are not public.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        bias_correction: bool = True,
        moments_dtype: torch.dtype | tuple[torch.dtype, torch.dtype] | None = None,
    ) -> None:
        if lr < 0 or eps < 0 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"lr {lr}, betas {betas}, eps {eps}: lr and eps may not be negative, betas lie in [0, 1)")
        both = moments_dtype if isinstance(moments_dtype, tuple) else (moments_dtype, moments_dtype)
        if any(dtype is not None and dtype.itemsize == 1 for dtype in both):
            refused("FusedAdamW with moments in fp8", "the scales inside the kernel have no public reference")()
        self.moments_dtype = moments_dtype
        self._dtypes = both
        defaults = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, bias_correction=bias_correction)
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Closure = None) -> Any:
        """One step.

        Args:
            closure: computes the loss and the gradients first.

        Returns:
            What the closure gives.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            mark_step()
            changed = [param for param in group["params"] if param.grad is not None]
            if changed:
                group["step"] = group.get("step", 0) + 1
            for param in changed:
                self._change(param, group)
        mark_step()
        return loss

    def _change(self, param: Tensor, group: dict[str, Any]) -> None:
        state, grad = self.state[param], param.grad
        assert grad is not None
        if not state:
            first, second = (dtype or param.dtype for dtype in self._dtypes)
            state.update(step=0, exp_avg=torch.zeros_like(param, dtype=first))
            state["exp_avg_sq"] = torch.zeros_like(param, dtype=second)
        beta1, beta2 = group["betas"]
        state["exp_avg"].mul_(beta1).add_(grad.to(state["exp_avg"].dtype), alpha=1 - beta1)
        squared = (grad * grad).to(state["exp_avg_sq"].dtype)
        state["exp_avg_sq"].mul_(beta2).add_(squared, alpha=1 - beta2)
        size = group["lr"]
        if group.get("bias_correction", group.get("correct_bias", True)):
            size *= math.sqrt(1 - beta2 ** group["step"]) / (1 - beta1 ** group["step"])
        param.mul_(1 - group["weight_decay"] * group["lr"])
        divisor = state["exp_avg_sq"].to(param.dtype).sqrt().add_(group["eps"])
        param.addcdiv_(state["exp_avg"].to(param.dtype), divisor, value=-size)


class FusedClipNorm:
    """Scales gradients down where their common norm is too large.

    Args:
        parameters: what will be trained; the first one says the dtype.
        max_norm: the largest norm, of order 2.
    """

    norm_type = 2.0

    def __init__(self, parameters: Iterable[Tensor], max_norm: float) -> None:
        self.dtype = next((each.dtype for each in parameters), torch.float32)
        self.max_norm_t = torch.full((1,), float(max_norm), dtype=self.dtype).to("hpu")

    @torch.no_grad()
    def clip_norm(self, parameters: Tensor | Iterable[Tensor]) -> Tensor:
        """Changes the gradients in place.

        Args:
            parameters: whose gradients.

        Returns:
            Their norm before, `[1]`; 0 on the host if there is none.
        """
        mark_step()
        them = [parameters] if isinstance(parameters, Tensor) else parameters
        grads = [each.grad for each in them if each.grad is not None]
        if not grads:
            return torch.tensor(0.0)
        total: Tensor = torch.stack([grad.norm() for grad in grads]).norm().reshape(1).to(self.dtype)
        factor = (self.max_norm_t / (total + 1e-6)).clamp(max=1.0)
        for grad in grads:
            grad.mul_(factor.to(grad.dtype))
        mark_step()
        return total


class FusedEMA:
    """A copy of a model that follows it, ever more slowly.

    Args:
        model: what to follow.
        decay: how much of the copy an update keeps in the end.
        updates: how many there were before.
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999, updates: float = 0) -> None:
        if decay < 0:
            raise ValueError(f"decay {decay} is negative")
        inner = getattr(model, "module", model) if isinstance(model, nn.parallel.DataParallel) else model
        self.ema = deepcopy(inner).eval()
        self.decay = lambda count: decay * (1 - math.exp(-count / 2000))
        self.updates = updates
        self.updated_ema = list(self.ema.state_dict().values())

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Moves every floating-point value of the copy towards the model's."""
        mark_step()
        self.updates += 1
        kept = self.decay(self.updates)
        for mine, new in zip(self.updated_ema, model.state_dict().values(), strict=True):
            if mine.is_floating_point():
                mine.mul_(kept).add_(new, alpha=1 - kept)
        mark_step()

    def update_attr(
        self, model: object, include: tuple[str, ...] = (), exclude: tuple[str, ...] = ("process_group", "reducer")
    ) -> None:
        """Copies public attributes of the model to the copy."""
        for name, value in vars(model).items():
            if not name.startswith("_") and name not in exclude and (not include or name in include):
                setattr(self.ema, name, value)
