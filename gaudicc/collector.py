"""Python's garbage collector while programs are compiled."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """Collects no cycles in here.

    Compiling makes objects by the hundred thousand, so that full collections come often, and in a process with torch and
    transformers each takes 45 ms: a quarter of the time that a bucket took (measured).
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
