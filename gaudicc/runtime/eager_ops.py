"""A count of the torch ops that touch what a device holds outside of its recordings.

Between two host reads everything should happen in recorded graphs. Whoever doubts it runs a stretch under `EagerOps`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

_watching: ContextVar[EagerOps | None] = ContextVar("who counts eager ops", default=None)


class EagerOps(TorchDispatchMode):
    """While entered, counts ops of this thread on weights, state and outputs of recordings, and on what they give.

    Args:
        is_held: whether a tensor's memory is bound to a recording.

    Attributes:
        ops: op name -> how often it ran outside of a replay.
        replays: how many replays there were.
    """

    def __init__(self, is_held: Callable[[torch.Tensor], bool]) -> None:
        super().__init__()
        self.ops: Counter[str] = Counter()
        self.replays = 0
        self._is_held = is_held
        self._given: dict[int, torch.Tensor] = {}
        self._inside = False

    def __enter__(self) -> EagerOps:
        self._token = _watching.set(self)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        _watching.reset(self._token)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self._inside and any(map(self._touches, pytree.tree_leaves((args, kwargs)))):
            self.ops[str(func).removesuffix(".default")] += 1
            self._give(result)
        return result

    def _touches(self, leaf: Any) -> bool:
        if type(leaf) not in (torch.Tensor, torch.nn.Parameter):  # fake tensors have no memory
            return False
        return leaf.untyped_storage().data_ptr() in self._given or self._is_held(leaf)

    def _give(self, result: Any) -> None:
        for leaf in pytree.tree_leaves(result):
            if type(leaf) is torch.Tensor:  # held, so that its memory is not given to another tensor
                self._given[leaf.untyped_storage().data_ptr()] = leaf

    def replay(self, run: Callable[..., tuple[Any, ...]], inputs: tuple[torch.Tensor, ...]) -> tuple[Any, ...]:
        """Runs a recording, whose ops are not counted."""
        self._inside = True
        self.replays += 1
        try:
            outputs = run(*inputs)
        finally:
            self._inside = False
        self._give(outputs)
        return outputs


def replayed(run: Callable[..., tuple[Any, ...]], inputs: tuple[torch.Tensor, ...]) -> tuple[Any, ...]:
    """Runs a recording, watched if somebody does."""
    watch = _watching.get()
    return run(*inputs) if watch is None else watch.replay(run, inputs)
