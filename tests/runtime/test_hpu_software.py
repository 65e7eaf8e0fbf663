"""Which software there is, which mode it runs, which flags are wrong; a stand-in plays the part of the real package."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import gaudicc
from gaudicc.errors import DeviceError
from gaudicc.runtime import hpu_software
from gaudicc.runtime.hpu_software import describe, flags, start
from gaudicc.runtime.select import open_device
from gaudicc.targets import Mode


def test_without_the_software_the_emulator_is_named() -> None:
    with pytest.raises(DeviceError, match="habana_frameworks is not installed") as caught:
        gaudicc.compile(nn.ReLU().eval(), (torch.ones(2),), device="hpu")
    assert "python -m gaudicc.emulator" in str(caught.value)
    assert open_device("auto")[1] == "device cpu: habana_frameworks is not installed"
    assert describe() == "not installed"


class Real:
    """A package that says what it is told to say."""

    def __init__(self) -> None:
        self.available, self.card, self.lazy, self.graphs = True, "GAUDI3", True, True

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        hpu = SimpleNamespace(is_available=lambda: self.available, get_device_name=lambda: self.card)
        if self.graphs:
            hpu.HPUGraph = object
        names = ("habana_frameworks", "habana_frameworks.torch", "habana_frameworks.torch.utils.internal")
        modules: list[Any] = [ModuleType(name) for name in names]
        package, module, internal = modules
        package.__spec__ = ModuleSpec("habana_frameworks", loader=None, is_package=True)
        package.torch, module.hpu, internal.is_lazy = module, hpu, lambda: self.lazy
        for name, each in zip(names, modules, strict=True):
            monkeypatch.setitem(sys.modules, name, each)
        monkeypatch.setitem(sys.modules, "habana_frameworks.torch.utils", ModuleType("habana_frameworks.torch.utils"))


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> Real:
    package = Real()
    monkeypatch.setattr(hpu_software, "_release", lambda: "1.23.0")
    monkeypatch.delenv("PT_HPU_LAZY_MODE", raising=False)
    package.install(monkeypatch)
    return package


def test_the_mode_is_the_softwares_own(real: Real, monkeypatch: pytest.MonkeyPatch) -> None:
    software = start()
    assert (software.mode, software.chip, software.emulated, software.int64) == (Mode.LAZY, "gaudi3", False, False)
    assert software.why == "lazy mode with HPU graphs: PT_HPU_LAZY_MODE is not set and this is its default"
    real.lazy, real.card = False, "GAUDI2"
    monkeypatch.setenv("PT_HPU_LAZY_MODE", "0")
    software = start()
    assert (software.mode, software.chip, software.int64) == (Mode.COMPILE, "gaudi2", True)
    assert software.why == "eager and compile mode with hpu_backend: PT_HPU_LAZY_MODE=0"
    monkeypatch.setenv("PT_ENABLE_INT64_SUPPORT", "0")
    assert not start().int64


def test_what_does_not_answer_is_refused_and_auto_goes_on_without(real: Real, monkeypatch: pytest.MonkeyPatch) -> None:
    real.available = False
    with pytest.raises(DeviceError, match="no Gaudi answers"):
        start()
    assert open_device("auto")[1] == "device cpu: no Gaudi answers"
    real.available, real.card = True, "GAUDI"
    with pytest.raises(DeviceError, match="the card is a GAUDI"):
        start()
    real.card, real.graphs = "GAUDI2", False
    real.install(monkeypatch)
    with pytest.raises(DeviceError, match="no HPUGraph"):
        start()
    monkeypatch.setitem(sys.modules, "habana_frameworks.torch", None)
    with pytest.raises(DeviceError, match="cannot be imported"):
        start()


@pytest.mark.parametrize(
    ("release", "version", "wrong"),
    [
        ("1.22.1", "2.7.1", ""), ("1.24.1", "2.11.0", ""), ("1.23.0", "2.10.0", "wrong, it pairs with torch 2.9"),
        ("1.24.0", "2.1.0", "wrong"), ("9.9", "2.9.0", "not known"),
    ],
)  # fmt: skip
def test_versions_are_paired(
    real: Real, monkeypatch: pytest.MonkeyPatch, release: str, version: str, wrong: str
) -> None:
    monkeypatch.setattr(hpu_software, "_release", lambda: release)
    monkeypatch.setattr(torch, "__version__", version)
    assert wrong in describe()
    assert ("wrong" in describe() or "not known" in describe()) is bool(wrong)


@pytest.mark.parametrize(
    ("name", "good", "bad", "reason"),
    [
        ("PT_HPU_LAZY_MODE", "1", "", "set it"),
        ("PT_HPU_RECIPE_CACHE_CONFIG", "/r,false,1024", "/r,true,1024", "deleted at every start"),
        ("PT_HPU_RECIPE_CACHE_CONFIG", "/r,false,1024,false", "/r", "three or four fields"),
        ("PT_HPU_PLACE_ON_CPU", "none", "", "silent"),
        ("PT_ENABLE_INT64_SUPPORT", "", "1", "lazy mode does not heed it"),
        ("PT_HPU_MAX_COMPOUND_OP_SIZE", "", "10", "split"),
        ("PT_HPU_ENABLE_REFINE_DYNAMIC_SHAPES", "0", "1", "static"),
        ("PT_COMPILE_ONLY_MODE", "0", "1", "garbage"),
        ("PT_HPU_COMPILE_GRAPH_FREEZE", "", "true", "layers share none"),
        ("PT_HPU_ENABLE_LAZY_COLLECTIVES", "true", "", "several cards"),
    ],
)
def test_flags_are_judged(name: str, good: str, bad: str, reason: str) -> None:
    assert flags({name: good}, lazy=True)[name] == f"{good or 'not set'}: ok"
    assert reason in flags({name: bad}, lazy=True)[name]


def test_some_flags_matter_in_one_mode_only() -> None:
    assert flags({"PT_HPU_MAX_COMPOUND_OP_SIZE": "10"}, lazy=False)["PT_HPU_MAX_COMPOUND_OP_SIZE"].endswith("ok")
    assert "narrowed" in flags({"PT_ENABLE_INT64_SUPPORT": "0"}, lazy=False)["PT_ENABLE_INT64_SUPPORT"]
    assert flags({}, lazy=False)["PT_HPU_ENABLE_LAZY_COLLECTIVES"].endswith("ok")
