"""`gaudicc doctor`: what is installed here, what answers, and whether the checkout is whole."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

from gaudicc.cli.links import NAMES, broken_links
from gaudicc.cli.options import DoctorOptions
from gaudicc.cli.output import print_json
from gaudicc.errors import DeviceError
from gaudicc.runtime.select import NAMES as DEVICES
from gaudicc.runtime.select import gaudi_software, open_device
from gaudicc.targets import load_target
from gaudicc.targets.target import RELEASE, TABLES


def run(options: DoctorOptions) -> int:
    """Runs the command.

    Returns:
        The exit code: 0, or 1 if the checkout is broken.
    """
    facts = _facts()
    if options.json:
        print_json(facts)
    else:
        for name, value in facts.items():
            lines = [f"{key}: {entry}" for key, entry in value.items()] if isinstance(value, dict) else [str(value)]
            print(f"{name:20}{lines[0]}")
            for line in lines[1:]:
                print(f"{'':20}{line}")
    return 1 if broken_links() else 0


def _facts() -> dict[str, Any]:
    broken = broken_links()
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in ("gaudicc", "torch", "transformers")},
        "habana_frameworks": "installed" if gaudi_software() else "not installed",
        "devices": {name: _answers(name) for name in DEVICES},
        "targets": {path.stem: _table(path.stem) for path in sorted(TABLES.glob("gaudi*.json"))},
        "links": {f"gaudicc/{name}": "broken: no folder with a package" if name in broken else "ok" for name in NAMES},
    }


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def _answers(device: str) -> str:
    try:
        return f"yes ({open_device(device)[1]})"
    except DeviceError as error:
        return f"no ({error.what})"


def _table(target: str) -> str:
    return f"{len(load_target(target).rows)} ops, Gaudi software {RELEASE}; never run on a Gaudi"
