"""`gaudicc doctor`: what is installed here, what answers, and whether the checkout is whole."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from importlib import metadata
from typing import Any

from gaudicc.cli.links import NAMES, broken_links
from gaudicc.cli.options import DoctorOptions
from gaudicc.cli.output import print_json, say
from gaudicc.errors import DeviceError, InputError
from gaudicc.own_tables import VARIABLE, own_table
from gaudicc.runtime.hpu_software import FLAGS, describe, flags, installed, start
from gaudicc.runtime.select import NAMES as DEVICES
from gaudicc.runtime.select import open_device
from gaudicc.targets import Mode, load_target
from gaudicc.targets.target import RELEASE, TABLES


def run(options: DoctorOptions) -> int:
    """Runs the command.

    Returns:
        The exit code: 0, or 1 if the checkout is broken.

    Raises:
        GaudiccError: no Gaudi answers, or a kit is refused.
    """
    if options.collect is not None and options.apply is not None:
        raise InputError("--collect and --apply are two steps", hint="collect where the Gaudi is, apply here")
    facts = _facts if options.collect is None and options.apply is None else partial(_of_kit, options)
    found = facts()
    if options.json:
        print_json(found)
    else:
        _print(found)
    return 1 if broken_links() else 0


def _print(facts: Mapping[str, Any]) -> None:
    for name, value in facts.items():
        lines = [f"{key}: {entry}" for key, entry in value.items()] if isinstance(value, dict) else [str(value)]
        print(f"{name:20}{lines[0] if lines else 'none'}")
        for line in lines[1:]:
            print(f"{'':20}{line}")


def _of_kit(options: DoctorOptions) -> dict[str, Any]:
    """Collects or applies, and says what came of it."""
    if options.collect is not None:
        from gaudicc.handover.collect import collect

        kit = collect(options.collect, _facts, say, options.ops)
        outcomes = Counter(each.outcome for each in kit.probed)
        return {
            "kit": str(options.collect),
            **asdict(kit.origin),
            "ops": dict(outcomes),
            "timed runs": len(kit.timings),
        }
    from gaudicc.handover.apply import apply

    assert options.apply is not None, "one of the two"
    applied = apply(options.apply, options.into, allow_emulated=options.allow_emulated)
    constants = {name: f"{before:.4g} -> {after:.4g}" for name, (before, after) in applied.constants.items()}
    return {
        **asdict(applied.origin),
        "ops": f"{applied.probed} probed, {applied.agreed} as the tables say, {applied.rows} rows written",
        "constants": constants,
        "error of timed runs": f"{applied.error[0]:.1%} -> {applied.error[1]:.1%}",
        "written": {path.name: str(path.parent) for path in applied.files},
        "to use it": f"{VARIABLE}={options.into.resolve()}",
    }


def _facts() -> dict[str, Any]:
    broken = broken_links()
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in ("gaudicc", "torch", "transformers")},
        "habana_frameworks": describe(),
        **_gaudi(),
        "devices": {name: _answers(name) for name in DEVICES},
        "targets": {path.stem: _table(path.stem) for path in sorted(TABLES.glob("gaudi*.json"))},
        "links": {f"gaudicc/{name}": "broken: no folder with a package" if name in broken else "ok" for name in NAMES},
    }


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def _gaudi() -> dict[str, Any]:
    """Mode and flags, where there is Gaudi software or a flag is set for it."""
    lazy = os.environ.get("PT_HPU_LAZY_MODE", "1") != "0"
    found: dict[str, Any] = {}
    if installed():
        try:
            software = start()
        except DeviceError as error:
            found["hpu mode"] = error.what
        else:
            lazy = software.mode is Mode.LAZY
            found["hpu mode"] = software.why
    if installed() or any(name in os.environ for name in FLAGS):
        found["hpu flags"] = flags(os.environ, lazy=lazy)
    return found


def _answers(device: str) -> str:
    try:
        return f"yes ({open_device(device)[1]})"
    except DeviceError as error:
        return f"no ({error.what})"


def _table(target: str) -> str:
    own = own_table(f"{target}.overlay.json")
    return f"{len(load_target(target).rows)} ops, Gaudi software {RELEASE}; " + (
        f"with your rows of {own}" if own else "never run on a Gaudi"
    )
