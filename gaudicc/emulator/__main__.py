"""Runs a program written for a Gaudi on the emulated device: `python -m gaudicc.emulator script.py arguments`.

What the program prints is its own; the account of what a Gaudi would have done goes to standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from gaudicc.emulator import install
from gaudicc.emulator.autoload import catch_up
from gaudicc.emulator.children import serve_children


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program and print the account, also when it fails; its exit status stays its own."""
    options = _parser().parse_args(arguments)
    if options.target:
        os.environ["GAUDICC_EMULATOR_TARGET"] = options.target
    if options.mode:
        os.environ["PT_HPU_LAZY_MODE"] = "1" if options.mode == "lazy" else "0"
    install()
    serve_children()
    catch_up()
    sys.argv = [options.program, *options.arguments]
    try:
        if options.module:
            sys.path.insert(0, os.getcwd())
            runpy.run_module(options.program, run_name="__main__", alter_sys=True)
        else:
            sys.path.insert(0, str(Path(options.program).resolve().parent))
            runpy.run_path(options.program, run_name="__main__")
    finally:
        _report(options.report)


def _report(file: str | None) -> None:
    from gaudicc.emulator import report

    print(report.render(), file=sys.stderr)
    if file:
        Path(file).write_text(json.dumps(report.as_json(), indent=1), encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m gaudicc.emulator", description=__doc__)
    parser.add_argument("--target", choices=("gaudi2", "gaudi3"), help="the chip; gaudi2 if not given")
    parser.add_argument("--mode", choices=("lazy", "eager"), help="sets PT_HPU_LAZY_MODE; else the environment decides")
    parser.add_argument("--report", metavar="FILE", help="write the account as JSON too")
    parser.add_argument("-m", dest="module", action="store_true", help="the program is a module, not a file")
    parser.add_argument("program", help="a Python file, or with -m the name of a module")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="given to the program")
    return parser


if __name__ == "__main__":
    main()
