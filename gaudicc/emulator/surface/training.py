"""Modules of training that suites import beside what they need: every name in them is there, and refuses when called."""

from __future__ import annotations

from typing import Any

from gaudicc.emulator.surface.marks import refused

__all__: list[str] = []


def refused_name(name: str) -> Any:
    """A function that refuses.

    Raises:
        AttributeError: for names that Python itself asks for.
    """
    if name.startswith("__"):
        raise AttributeError(name)
    return refused(f"hpex.experimental.transformer_engine.{name}", "it serves training")
