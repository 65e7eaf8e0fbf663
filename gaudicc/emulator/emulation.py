"""The one emulated device of the process: its rules, memory, gathered graph, recipes and account."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from gaudicc.emulator.clock import Clock
from gaudicc.emulator.constants import ConstantSections
from gaudicc.emulator.events import EventDispatcher, EventId
from gaudicc.emulator.judge import DeviceJudge
from gaudicc.emulator.ledger import Kind, Ledger
from gaudicc.emulator.memory import Memory
from gaudicc.emulator.pricing import GatheredOp, Price, price_of
from gaudicc.emulator.recipes import Recipes
from gaudicc.emulator.settings import Settings, flag, read_settings
from gaudicc.errors import DeviceError
from gaudicc.machine import load_chip
from gaudicc.targets import Target, load_target
from gaudicc.targets.table import read_overlay
from gaudicc.targets.target import TABLES

if TYPE_CHECKING:
    from gaudicc.emulator.capture import Capture


class Emulation:
    """An emulated device.

    Args:
        settings: how it behaves.

    Attributes:
        ledger: what happened so far.
        memory: what tensors hold.
        clock: modelled time.
        constants: where marked constants are written.
        recipes: the graph being gathered, and those compiled.
        judge: the rules.
        capture: the HPU graph being captured, if any.
        acquired: whether a program has used the device.
        clustered: whether a compiled cluster is running.
        dynamic_shapes: what `enable_dynamic_shape` turned on; nothing here depends on it.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.ledger = Ledger()
        self.memory = Memory(settings.memory)
        self.constants = ConstantSections()
        self.clock = Clock(load_chip(settings.target), lazy=settings.lazy)
        self.recipes = Recipes(self.ledger, settings.max_ops, self._price, self._compiled, self._launch)
        target = read_target(settings.target, settings.overlay)
        self.judge = DeviceJudge(
            target, settings, self.ledger, self.clock, self.flush, lambda: self.capture is not None, self._is_dry
        )
        self.capture: Capture | None = None
        self.acquired = False
        self.clustered = False
        self.dynamic_shapes = flag("PT_HPU_ENABLE_REFINE_DYNAMIC_SHAPES", False)

    def _is_dry(self) -> bool:
        return self.capture is not None and self.capture.dry_run

    def _price(self, ops: Sequence[GatheredOp]) -> Price:
        return price_of(ops, self.clock.chip, int64=self.settings.int64)

    def _compiled(self, price: Price) -> float:
        self.constants.compiled()
        return self.clock.compile(price.nodes)

    def _launch(self, price: Price) -> None:
        """The host sends a recipe; in a dry run and when only compiling, the chip does not run it."""
        self.clock.issue(price.nodes)
        if self.capture is not None:
            self.capture.prices.append(price)
        if not self._is_dry() and not flag("PT_COMPILE_ONLY_MODE", False):
            self.run(price)

    def run(self, price: Price) -> None:
        """The chip runs a recipe: modelled time passes, and its ops are counted."""
        self.clock.run(price.seconds)
        self.ledger.run(price, here=not self.settings.lazy and not self.clustered)

    def acquire(self) -> None:
        """Open the device, once."""
        if not self.acquired:
            self.acquired = True
            EventDispatcher.instance().publish(EventId.DEVICE_ACQUIRED, [])

    def cluster(self) -> _Cluster:
        """A block whose ops are one recipe: judged when they were placed, looked up together at its end."""
        return _Cluster(self)

    def synchronize(self, reason: str) -> None:
        """Flush, and wait for the chip."""
        self.flush(reason)
        self.clock.wait()

    def flush(self, reason: str = "") -> None:
        """Run what lazy mode has gathered; inside a capture this ends one recorded graph and begins the next.

        Args:
            reason: what forced it, if that splits a capture in a way the program did not ask for.
        """
        ran = self.recipes.flush()
        if self.capture is not None:
            self.capture.split()
            if reason:
                self.ledger.add(Kind.SPLIT, reason)
        elif ran and self.settings.lazy:
            EventDispatcher.instance().publish(EventId.MARK_STEP, [])


class _Cluster:
    """No generator: dynamo would compile one that an error leaves, and hide the error behind its own."""

    def __init__(self, emulation: Emulation) -> None:
        self._emulation = emulation

    def __enter__(self) -> None:
        self._emulation.recipes.flush()
        self._before, self._emulation.clustered = self._emulation.clustered, True

    def __exit__(self, *_: object) -> None:
        self._emulation.clustered = self._before
        if not self._before:
            self._emulation.recipes.flush()


@cache
def read_target(name: str, overlay: str | None = None) -> Target:
    """The tables of a chip, read once: processes forked from one that has read them share them.

    Below all overlays lies what the vendor's own tests run with CPU fallback forbidden although its list of dtypes omits it.
    """
    target = load_target(name, overlay)
    overlays = dict(target.overlays)
    for row in read_overlay(TABLES / "vendor_tests.json"):
        overlays[row.op] = (*overlays.get(row.op, ()), row)
    return replace(target, overlays=overlays)


_CURRENT: list[Emulation] = []


def current() -> Emulation:
    """The emulated device.

    Raises:
        DeviceError: none has been started.
    """
    if not _CURRENT:
        raise DeviceError("no emulated device was started", hint="call gaudicc.emulator.install() first")
    return _CURRENT[0]


def start() -> Emulation:
    """Start the emulated device with what the environment says, once per process; it cannot be stopped."""
    if not _CURRENT:
        _CURRENT.append(Emulation(read_settings()))
    return _CURRENT[0]


def started() -> bool:
    """Whether there is an emulated device in this process."""
    return bool(_CURRENT)
