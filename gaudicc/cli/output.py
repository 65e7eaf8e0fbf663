"""Command line: where text goes. Data to stdout, messages to stderr; colour and live tables only on a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

if TYPE_CHECKING:
    from gaudicc.pipeline import Observer
    from gaudicc.trace import PassRecord


def print_json(data: Any) -> None:
    """Data as indented JSON on stdout."""
    print(json.dumps(data, indent=2))


def say(message: str) -> None:
    """A message on stderr."""
    print(message, file=sys.stderr)


@contextmanager
def live_passes() -> Iterator[Observer | None]:
    """A table on stderr that grows by one row a pass; None where stderr is no terminal."""
    console = Console(stderr=True)  # rich honours NO_COLOR
    if not console.is_terminal:
        yield None
        return
    table = Table("pass", "phase", "ms", "checks ms", "nodes", box=None)
    with Live(table, console=console, transient=True, refresh_per_second=8):

        def add(record: PassRecord) -> None:
            before, after = record.nodes()
            spent = (f"{record.milliseconds:.1f}", f"{record.check_milliseconds:.1f}")
            table.add_row(record.name, record.phase, *spent, f"{before} -> {after}")

        yield add
