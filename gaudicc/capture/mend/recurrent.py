"""Capture, mending: torch's recurrent layers over a dynamic length, as a loop over that size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from torch.overrides import TorchFunctionMode

from gaudicc.capture.mend.internals import is_fixed
from gaudicc.capture.mend.outcomes import here
from gaudicc.errors import DynamicControlFlowError, Where
from gaudicc.kernels.recurrence import STEPS, recurrence


def by_steps(name: str, args: Any) -> Callable[[], Any] | None:
    """A recurrent layer over a length that is no number as a function of no arguments; None: the call is nothing of the kind.

    Raises:
        DynamicControlFlowError: its sequences are packed.
    """
    if name == "_pack_padded_sequence":
        _refuse()
    if name not in STEPS or not isinstance(args[-1], bool):
        return None
    x, batch_first = args[0], args[-1]
    if is_fixed(x.shape[1 if batch_first else 0]):
        return None
    return lambda: recurrence(name, *args)


class Recurrences(TorchFunctionMode):
    """Takes recurrent layers over a dynamic length apart, so that their loop is found."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs one operation."""
        run = by_steps(getattr(func, "__name__", ""), args)
        return func(*args, **(kwargs or {})) if run is None else run()


def _refuse() -> NoReturn:
    raise DynamicControlFlowError(
        "sequences are packed by their lengths, which are data",
        where=Where(source=here(), op="pack_padded_sequence"),
        hint="run the recurrent layer on the padded rows, and mask or select the valid ones: x[arange(batch), lengths - 1]",
    )
