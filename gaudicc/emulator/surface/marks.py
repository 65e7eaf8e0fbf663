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


class _AbsentAttribute(DeviceError, AttributeError):
    """An attribute of a refused name; `hasattr` says no."""


class _Refused(type):
    """The type of refused names: classes, so that `isinstance` can be asked and they can be derived from; none is ever made."""

    gaudicc_status: tuple[Status, str]
    gaudicc_name: str

    def __call__(cls, *_: Any, **__: Any) -> Any:
        raise DeviceError(_reason(cls.gaudicc_name, cls.gaudicc_status[1]), hint=_HINT)

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):  # Python itself asks
            raise AttributeError(name)
        raise _AbsentAttribute(_reason(f"{cls.gaudicc_name}.{name}", cls.gaudicc_status[1]), hint=_HINT)

    @property
    def apply(cls) -> Any:
        """Kernels are called through it."""
        return cls


_HINT = "run this part on a Gaudi, or leave it out here"


def _reason(name: str, why: str) -> str:
    return f"{name} is not emulated: {why}"


def refused(name: str, why: str) -> Any:
    """A name that raises when called: the symbol exists on a Gaudi, and is not emulated.

    Args:
        name: as programs write it.
        why: the reason, a clause.
    """
    return _Refused(name.rsplit(".", 1)[-1], (), {"gaudicc_status": (Status.REFUSED, why), "gaudicc_name": name})


def status_of(symbol: object) -> tuple[Status, str]:
    """What became of a symbol, and why."""
    marked: tuple[Status, str] = getattr(symbol, "gaudicc_status", (Status.EMULATED, ""))
    return marked
