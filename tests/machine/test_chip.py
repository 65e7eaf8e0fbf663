"""The chips' data files: every number has a source, and a doctored file is refused by name."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import pytest

from gaudicc.errors import TargetError
from gaudicc.machine import CHIPS, Chip, Evidence, load_chip, parse_chip


@pytest.fixture(params=CHIPS)
def chip(request: pytest.FixtureRequest) -> Chip:
    return load_chip(request.param)


def chip_data(name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(resources.files("gaudicc.machine").joinpath(f"{name}.json").read_text())
    return data


def test_every_number_has_a_source_and_a_name(chip: Chip) -> None:
    assert all(source.text for source in chip.sources.values())
    for name in chip.sources:
        assert isinstance(chip.value(name), float)


def test_published_figures() -> None:
    gaudi2, gaudi3 = load_chip("gaudi2"), load_chip("gaudi3")
    assert gaudi2.mme.peak_flops("bf16") == pytest.approx(432.5e12, rel=1e-3)
    assert gaudi2.mme.peak_flops("fp8") == pytest.approx(865e12, rel=1e-3)
    assert gaudi3.mme.peak_flops("fp8") == gaudi3.mme.peak_flops("bf16") == pytest.approx(1678e12, rel=1e-3)
    assert gaudi2.tpc.peak_flops(2) == pytest.approx(11.06e12, rel=1e-2)
    assert gaudi2.dma is not None
    assert gaudi3.dma is None


def test_what_nobody_published_is_marked(chip: Chip) -> None:
    uncertain = chip.uncertain()
    assert "host.node_seconds" in uncertain
    assert "mme.sustained" in uncertain
    assert "mme.engines" not in uncertain
    assert {chip.sources[name].evidence for name in uncertain} == {Evidence.ASSUMED, Evidence.FITTED}


def test_scaling_moves_one_number_only(chip: Chip) -> None:
    for name in chip.uncertain():
        moved = chip.scaled(name, 1.3)
        assert moved.value(name) == pytest.approx(1.3 * chip.value(name))
        others = [other for other in chip.sources if other != name]
        assert [moved.value(other) for other in others] == [chip.value(other) for other in others]


def test_unknown_names_are_refused(chip: Chip) -> None:
    with pytest.raises(TargetError, match="no number called"):
        chip.with_value("host.speed_of_light", 1.0)
    with pytest.raises(TargetError, match="no chip called 'gaudi9'"):
        load_chip("gaudi9")


def without_source(data: dict[str, Any]) -> None:
    data["mme"]["engines"]["source"] = ""


def with_text(data: dict[str, Any]) -> None:
    data["mme"]["engines"]["value"] = "two"


def without_field(data: dict[str, Any]) -> None:
    del data["host"]["node_seconds"]


def with_invented_field(data: dict[str, Any]) -> None:
    data["host"]["luck"] = data["host"]["node_seconds"]


def without_section(data: dict[str, Any]) -> None:
    del data["memory"]


@pytest.mark.parametrize(
    "spoil", [without_source, with_text, without_field, with_invented_field, without_section], ids=lambda f: f.__name__
)
def test_a_doctored_file_is_refused(spoil: Any) -> None:
    data = chip_data("gaudi2")
    spoil(data)
    with pytest.raises(TargetError, match="malformed"):
        parse_chip(json.dumps(data), where="doctored.json")


def test_broken_json_is_refused() -> None:
    with pytest.raises(TargetError, match="malformed"):
        parse_chip("{", where="broken.json")
