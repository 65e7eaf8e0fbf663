"""`habana_frameworks.torch.utils.internal`. Source: HabanaAI/gaudi-pytorch-bridge 1.19.0, `utils/internal.py`."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from time import perf_counter
from typing import Any

from gaudicc.emulator.emulation import current

__all__ = ["Timer", "is_lazy", "lazy_only"]


def is_lazy() -> bool:
    """Whether lazy mode is on, as read when the device started."""
    return current().settings.lazy


is_lazy.__dict__["_dynamo_marked_constant"] = True  # torch.compile takes the answer for a constant


class Timer:
    """Real seconds that a block took, in `elapsed`."""

    def __enter__(self) -> Timer:
        self._start = perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.elapsed = perf_counter() - self._start


def lazy_only(func: Callable[..., Any]) -> Callable[..., None]:
    """A function that does nothing in the other modes, and gives nothing in any."""
    lazy = is_lazy()

    @wraps(func)
    def only(*args: Any, **kwargs: Any) -> None:
        if lazy:
            func(*args, **kwargs)

    return only
