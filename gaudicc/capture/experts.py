"""Capture: transformers' experts hand their rows to `gaudicc::grouped_linear`, whatever implementation the config names.

transformers dispatches the forward of its experts by name (`eager`, `batched_mm`, `grouped_mm`, ...): loops over the experts that
were hit, copies one weight a row, or calls kernels that only GPUs have. All compute the same sums.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

from torch import Tensor

from gaudicc.errors import InputError
from gaudicc.kernels import grouped_linear

_REPLACED = ("eager", "batched_mm", "grouped_mm")


def experts_of(form: str) -> AbstractContextManager[None]:
    """What surrounds a capture that takes experts in this form, `dispatch` or `as-written`.

    Raises:
        InputError: no such form.
    """
    if form not in ("dispatch", "as-written"):
        raise InputError(f"experts is {form!r}", hint="pass 'dispatch' or 'as-written'")
    return dispatched_experts() if form == "dispatch" else nullcontext()


@contextmanager
def dispatched_experts() -> Iterator[None]:
    """While entered, transformers' experts are `dispatched` in this thread; those spread over devices stay as they are."""
    library = sys.modules.get("transformers.integrations.moe")
    if library is None:
        yield
        return
    plain, thread = library.ExpertsInterface.get_interface, threading.get_ident()

    def choose(interface: Any, name: str, default: Callable[..., Any]) -> Callable[..., Any]:
        own: Callable[..., Any] = plain(interface, name, default)
        if name not in _REPLACED or threading.get_ident() != thread:
            return own

        def forward(experts: Any, *args: Any, **kwargs: Any) -> Tensor:
            kind = own if experts._is_expert_parallel else dispatched
            result: Tensor = kind(experts, *args, **kwargs)
            return result

        return forward

    with patch.object(library.ExpertsInterface, "get_interface", choose):
        yield


def dispatched(experts: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """The sum of every token's experts.

    Args:
        experts: a module whose class transformers' `use_experts_implementation` decorates.
        hidden_states: `[tokens, width]`.
        top_k_index: int64 `[tokens, k]`.
        top_k_weights: `[tokens, k]`.

    Returns:
        `[tokens, width]`, of the tokens' dtype.
    """
    tokens, chosen = top_k_index.shape
    group = top_k_index.reshape(-1)
    rows = hidden_states.unsqueeze(1).expand(-1, chosen, -1).reshape(-1, hidden_states.shape[-1])
    first = "gate_up_proj" if experts.has_gate else "up_proj"
    inner = _linear(experts, first, rows, group)
    inner = experts._apply_gate(inner) if experts.has_gate else experts.act_fn(inner)
    result = _linear(experts, "down_proj", inner, group)
    if experts.has_post_expert_norm:
        result = experts.post_expert_norm(result)
    weighted = (result * top_k_weights.reshape(-1, 1)).view(tokens, chosen, -1)
    return weighted.sum(dim=1).to(hidden_states.dtype)


def _linear(experts: Any, name: str, rows: Tensor, group: Tensor) -> Tensor:
    weight = getattr(experts, name)
    result: Tensor = grouped_linear(rows, weight.transpose(1, 2) if experts.is_transposed else weight, group)
    return result + getattr(experts, f"{name}_bias")[group] if experts.has_bias else result
