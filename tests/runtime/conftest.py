"""Runs the tests of `test_hpu_on_*.py` in processes of their own, in which the `hpu` device is emulated.

A test that takes the argument `mode` runs once in lazy and once in compile mode. Fixtures are made in this process, where
there is no such device; what they give must be picklable.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.emulator.conftest import CONTEXT, run_in_child

MODES = {"lazy": "1", "compile": "0"}


def _on_device(path: Path) -> bool:
    return path.name.startswith("test_hpu_on_")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "mode" in metafunc.fixturenames and _on_device(metafunc.definition.path):
        metafunc.parametrize("mode", MODES)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not _on_device(pyfuncitem.path):
        return None
    CONTEXT.set_forkserver_preload(
        ["torch", "gaudicc.compiler", "transformers.modeling_outputs", "gaudicc.emulator.warm"]
    )
    arguments: dict[str, Any] = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    environment = {"PT_HPU_LAZY_MODE": MODES[arguments.get("mode", "lazy")], "GAUDICC_EMULATOR_TARGET": "gaudi3"}
    environment |= getattr(pyfuncitem.obj, "environment", {})
    run_in_child(pyfuncitem, arguments, environment)
    return True
