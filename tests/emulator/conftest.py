"""Runs each test of this folder in a process of its own, in which the `hpu` device is emulated.

An emulated device cannot be taken back, so no other test may share its process. A fork server has torch imported, which
makes a new process cheap. The argument `environment`, where a test has one, holds variables that are set before the device
starts; a module's `ENVIRONMENT` holds those of all its tests; without either, lazy mode.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import sys
import traceback
import warnings
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
CONTEXT = multiprocessing.get_context("forkserver")
TIMEOUT = 120


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if pyfuncitem.path.parent != HERE or getattr(pyfuncitem.module, "IN_THIS_PROCESS", False):
        return None
    CONTEXT.set_forkserver_preload(
        [
            "torch",
            "hypothesis",
            "pytest",
            "torch.distributed.tensor",
            "torch._functorch.aot_autograd",
            "gaudicc.emulator.warm",
        ]
    )
    names = pyfuncitem._fixtureinfo.argnames
    arguments: dict[str, Any] = {name: pyfuncitem.funcargs[name] for name in names}
    environment: dict[str, str] = {**getattr(pyfuncitem.module, "ENVIRONMENT", {})}
    environment.update(arguments.get("environment", {}))
    run_in_child(pyfuncitem, arguments, environment)
    return True


def run_in_child(pyfuncitem: pytest.Function, arguments: Mapping[str, Any], environment: Mapping[str, str]) -> None:
    """Runs a test in a process in which the device is emulated, and fails as it fails there."""
    receive, send = CONTEXT.Pipe(duplex=False)
    name = getattr(pyfuncitem, "originalname", pyfuncitem.name)
    process = CONTEXT.Process(target=_run, args=(send, str(pyfuncitem.path), name, arguments, environment))
    process.start()
    send.close()
    try:
        failure = receive.recv() if receive.poll(TIMEOUT) else f"no answer within {TIMEOUT} s"
    except EOFError:
        process.join()
        failure = f"the process died with exit code {process.exitcode}"
    process.kill() if failure.startswith("no answer") else process.join()
    if failure:
        pytest.fail(failure, pytrace=False)


def _run(send: Connection, path: str, name: str, arguments: Mapping[str, Any], environment: Mapping[str, str]) -> None:
    try:
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        os.environ.update(environment)
        import torch

        import gaudicc.emulator

        torch.set_num_threads(1)
        gaudicc.emulator.install()
        importlib.import_module("habana_frameworks.torch")
        spec = importlib.util.spec_from_file_location(Path(path).stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        getattr(module, name)(**arguments)
    except BaseException:
        send.send(traceback.format_exc())
        return
    send.send("")
