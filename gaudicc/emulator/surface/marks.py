"""Marks of public symbols: emulated unless marked as a no-op or as refused; `docs/emulator_symbols.md` lists them."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, TypeVar

from gaudicc.errors import DeviceError

F = TypeVar("F", bound=Callable[..., Any])


class Status(Enum):
    """What became of a symbol."""

    EMULATED = "emulated"
    NO_OP = "no-op"
    REFUSED = "refused"


def no_op(why: str) -> Callable[[F], F]:
    """Marks a function that accepts its arguments and changes nothing, and says why that is right."""

    def mark(function: F) -> F:
        function.__dict__["gaudicc_status"] = (Status.NO_OP, why)
        return function

    return mark


def refused(name: str, why: str) -> Any:
    """A function that raises: the symbol exists on a Gaudi, and is not emulated.

    Args:
        name: as programs write it.
        why: the reason, a clause.
    """

    def refuse(*_: Any, **__: Any) -> Any:
        raise DeviceError(f"{name} is not emulated: {why}", hint="run this part on a Gaudi, or leave it out here")

    refuse.__name__ = name.rsplit(".", 1)[-1]
    refuse.__dict__.update(gaudicc_status=(Status.REFUSED, why), apply=refuse)  # kernels are called through `apply`
    return refuse


def status_of(symbol: object) -> tuple[Status, str]:
    """What became of a symbol, and why."""
    marked: tuple[Status, str] = getattr(symbol, "gaudicc_status", (Status.EMULATED, ""))
    return marked
