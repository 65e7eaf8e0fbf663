"""Runs a test suite written for a Gaudi on the emulated device: `pytest -p gaudicc.emulator.pytest_plugin`.

The device is there before the suite's own conftest is read; the account of what a Gaudi would have done ends the output.
With pytest-xdist each worker has a device of its own, and no account is printed.
"""

from __future__ import annotations

import pytest

from gaudicc.emulator import install
from gaudicc.emulator.autoload import catch_up
from gaudicc.emulator.children import serve_children

install()
serve_children()
catch_up()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the account."""
    from gaudicc.emulator import report

    terminalreporter.section("emulated Gaudi")
    terminalreporter.write_line(report.render())
