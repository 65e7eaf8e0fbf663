"""Capture, mending: the test that a mended program does what eager PyTorch does, bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from gaudicc.capture.mend.export import MendedExport


@dataclass(frozen=True, slots=True)
class Observation:
    """Everything that one call of a model shows: what it returned or raised, and what it left behind."""

    outputs: list[Any]
    error: tuple[type, str] | None
    inputs: list[Any]
    buffers: dict[str, torch.Tensor]


def observe(call: Any, module: nn.Module, args: tuple[Any, ...]) -> Observation:
    """Call with copies of `args` and note everything."""
    args = copy.deepcopy(args)
    outputs, error = [], None
    try:
        with torch.no_grad():
            outputs = pytree.tree_leaves(call(*args))
    except Exception as raised:
        error = (type(raised), str(raised))
    buffers = {name: value.clone() for name, value in module.named_buffers()}
    return Observation(copy.deepcopy(outputs), error, pytree.tree_leaves(args), buffers)


def same_bits(left: Any, right: Any) -> bool:
    """Equality in which NaN equals NaN and 0.0 differs from -0.0."""
    if isinstance(left, torch.Tensor):
        if not isinstance(right, torch.Tensor) or left.dtype != right.dtype or left.shape != right.shape:
            return False
        if left.is_floating_point():
            signs = torch.equal(left.signbit() | left.isnan(), right.signbit() | right.isnan())
            return (
                signs
                and torch.equal(left.isnan(), right.isnan())
                and torch.equal(left.nan_to_num(), right.nan_to_num())
            )
        return torch.equal(left, right)
    if isinstance(left, float) and isinstance(right, float):
        return left.hex() == right.hex()
    return type(left) is type(right) and bool(left == right)


def differences(model: nn.Module, mended: MendedExport, calls: Iterable[tuple[Any, ...]]) -> list[str]:
    """Run a model and its mended program on the same inputs and describe each call on which they differ.

    State is carried from call to call on both sides.
    """
    eager, program = copy.deepcopy(model), mended.exported.module()
    found = []
    for index, args in enumerate(calls):
        wanted = observe(eager, eager, args)
        got = observe(lambda *inputs: mended.outputs(program(*inputs)), program, args)
        found += [f"call {index}: {text}" for text in _compare(wanted, got)]
    return found


def _compare(wanted: Observation, got: Observation) -> list[str]:
    if wanted.error != got.error:
        return [f"raised {got.error}, eager {wanted.error}"]
    texts = []
    for what in ("outputs", "inputs"):
        left, right = getattr(wanted, what), getattr(got, what)
        if len(left) != len(right) or not all(same_bits(a, b) for a, b in zip(left, right, strict=False)):
            texts.append(f"{what} {right}, eager {left}")
    for name, value in wanted.buffers.items():
        if not same_bits(value, got.buffers.get(name)):
            texts.append(f"buffer {name} is {got.buffers.get(name)}, eager {value}")
    return texts
