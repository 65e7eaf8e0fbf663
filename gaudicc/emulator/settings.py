"""What the environment says, read once when the emulated device starts.

Names and defaults: HabanaAI/gaudi-pytorch-bridge 1.19.0, `scripts/env_flags.yaml`; the `GAUDICC_EMULATOR_*` names are ours.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from gaudicc.errors import InputError

GIB = 2**30
MEMORY = {"gaudi2": 96 * GIB, "gaudi3": 128 * GIB}
_TRUE = frozenset({"1", "true", "yes", "on", "y", "t"})


def flag(name: str, default: bool, environment: Mapping[str, str] = os.environ) -> bool:
    """A yes/no variable; an empty one counts as unset."""
    value = environment.get(name, "")
    return value.lower() in _TRUE if value else default


@dataclass(frozen=True, slots=True)
class Settings:
    """How the emulated device behaves.

    Attributes:
        target: `gaudi2` or `gaudi3`; `GAUDICC_EMULATOR_TARGET`, gaudi2 if unset.
        overlay: a JSON file of table rows that win over the shipped ones; `GAUDICC_EMULATOR_OVERLAY`.
        lazy: lazy mode; `PT_HPU_LAZY_MODE`, on if unset as in release 1.19 (later releases turned it off).
        int64: int64 keeps 64 bits; `PT_ENABLE_INT64_SUPPORT`, which only eager and compile mode heed, on there if unset.
        fallback_ops: ops that may run on the host, None for all; `PT_HPU_PLACE_ON_CPU`, where `none` forbids all.
        eager_fallback: `hpu_backend` may leave nodes outside its clusters; `PT_HPU_USE_EAGER_FALLBACK`.
        strict_devices: a CPU tensor that meets an hpu op raises in lazy mode too, where the device copies it silently;
            `GAUDICC_EMULATOR_STRICT_DEVICES`.
        max_ops: ops that lazy mode gathers before it flushes by itself; `PT_HPU_MAX_COMPOUND_OP_SIZE`.
        memory: bytes of device memory; `GAUDICC_EMULATOR_MEMORY`, else the chip's.
    """

    target: str = "gaudi2"
    overlay: str | None = None
    lazy: bool = True
    int64: bool = False
    fallback_ops: frozenset[str] | None = None
    eager_fallback: bool = True
    strict_devices: bool = False
    max_ops: int = 2**63 - 1
    memory: int = 96 * GIB


def read_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings.

    Args:
        environment: variables by name.

    Raises:
        InputError: a variable does not hold what it must, or asks for what is not emulated.
    """
    if flag("PT_HPU_GPU_MIGRATION", False, environment):
        raise InputError(
            "PT_HPU_GPU_MIGRATION is not emulated: it turns calls of torch.cuda into calls of the device",
            hint="unset it, and name hpu in the program instead of cuda",
        )
    target = environment.get("GAUDICC_EMULATOR_TARGET", "gaudi2")
    if target not in MEMORY:
        raise InputError(f"GAUDICC_EMULATOR_TARGET={target} is no chip", hint=f"choose one of {', '.join(MEMORY)}")
    lazy = environment.get("PT_HPU_LAZY_MODE", "1") != "0"
    return Settings(
        target=target,
        overlay=environment.get("GAUDICC_EMULATOR_OVERLAY") or None,
        lazy=lazy,
        int64=not lazy and flag("PT_ENABLE_INT64_SUPPORT", True, environment),
        fallback_ops=_fallback_ops(environment.get("PT_HPU_PLACE_ON_CPU", "")),
        eager_fallback=flag("PT_HPU_USE_EAGER_FALLBACK", True, environment),
        strict_devices=flag("GAUDICC_EMULATOR_STRICT_DEVICES", False, environment),
        max_ops=_number("PT_HPU_MAX_COMPOUND_OP_SIZE", environment, 2**63 - 1),
        memory=_number("GAUDICC_EMULATOR_MEMORY", environment, MEMORY[target]),
    )


def _fallback_ops(value: str) -> frozenset[str] | None:
    names = [name.strip() for name in value.split(",") if name.strip()]
    if not names:
        return None
    return frozenset() if names == ["none"] else frozenset(names)


def _number(name: str, environment: Mapping[str, str], default: int) -> int:
    value = environment.get(name, "")
    if not value:
        return default
    if not value.isdigit() or int(value) == 0:
        raise InputError(f"{name}={value} is no positive number", hint=f"unset {name}, or give a number")
    return int(value)
