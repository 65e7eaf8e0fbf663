"""Capture: what the model does in eager PyTorch on the example, to tell its own errors from those of capture."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree


def eager_error(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Exception | None:
    """What the model raises in eager PyTorch on the same inputs, if it does; buffers and inputs are left as they were.

    Weights without values say nothing.
    """
    if any(weight.is_meta for weight in module.parameters()):
        return None
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    copied = pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, (args, kwargs))
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            module(*copied[0], **copied[1])
    except Exception as error:
        return error
    finally:
        with torch.no_grad():
            for name, buffer in module.named_buffers():
                buffer.copy_(buffers[name])
    return None
