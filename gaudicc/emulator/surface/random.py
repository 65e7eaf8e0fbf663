"""`habana_frameworks.torch.hpu.random`. Source: HabanaAI/gaudi-pytorch-bridge 1.19.0, `hpu/random.py`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gaudicc.emulator.generator import hpu_generator
from gaudicc.emulator.surface.device import Device, _get_device_index

__all__ = [
    "default_generators", "get_rng_state", "get_rng_state_all", "initial_seed", "manual_seed", "manual_seed_all", "seed",
    "seed_all", "set_rng_state", "set_rng_state_all",
]  # fmt: skip

default_generators = [hpu_generator()]


def _only_first(device: Device) -> None:
    if _get_device_index(device) != 0:
        raise RuntimeError("hpu rng state supports only device 0")


def get_rng_state(device: Device = "hpu") -> Tensor:
    """The state of the device's generator, a CPU tensor of bytes."""
    _only_first(device)
    return hpu_generator().get_state()


def set_rng_state(new_state: Tensor, device: Device = "hpu") -> None:
    """Sets the state of the device's generator."""
    _only_first(device)
    hpu_generator().set_state(new_state)


def get_rng_state_all() -> list[Tensor]:
    """The states of all devices, of which there is one."""
    return [get_rng_state()]


def set_rng_state_all(new_states: Sequence[Tensor]) -> None:
    """Sets the states of all devices."""
    if len(new_states) != 1:
        raise RuntimeError("hpu set_rng_state_all supports only states len of 1")
    set_rng_state(new_states[0])


def manual_seed(seed: int) -> torch.Generator:
    """Seeds the device's generator and leaves the CPU's alone."""
    return hpu_generator().manual_seed(int(seed))


def manual_seed_all(seed: int) -> None:
    """Seeds the generators of all devices; `torch.manual_seed` calls it too."""
    manual_seed(seed)


def seed() -> int:
    """Seeds the device's generator by chance and says with what."""
    return hpu_generator().seed()


def seed_all() -> None:
    """Seeds the generators of all devices by chance."""
    seed()


def initial_seed() -> int:
    """What the device's generator was last seeded with."""
    return hpu_generator().initial_seed()
