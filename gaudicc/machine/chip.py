"""Where the machine model gets its figures: one JSON file per chip, every number with unit, evidence and source.

`mme*` read the matrix engines, `cost` everything else. What nobody has published is marked `assumed`, and what `fit`
computes `fitted`, so that a choice can be tried again with each of those moved (`Chip.uncertain`, `Chip.scaled`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

from gaudicc.errors import TargetError, Where
from gaudicc.machine.specs import DmaSpec, HostSpec, MemorySpec, MmeSpec, NetworkSpec, TpcSpec
from gaudicc.own_tables import own_table

CHIPS = ("gaudi2", "gaudi3")


class Evidence(Enum):
    """Why a number is believed."""

    PUBLISHED = "published"
    DERIVED = "derived"  # computed from published numbers, the source says how
    FITTED = "fitted"  # by `python -m gaudicc.machine.fit`, from calibration rows
    ASSUMED = "assumed"


@dataclass(frozen=True, slots=True)
class Source:
    """Where one number comes from.

    Attributes:
        unit: its unit.
        evidence: why it is believed.
        text: the citation.
    """

    unit: str
    evidence: Evidence
    text: str


@dataclass(frozen=True, slots=True)
class Chip:
    """One chip and the software around it.

    Attributes:
        name: `gaudi2` or `gaudi3`.
        mme: matrix engines.
        tpc: vector engines.
        memory: off-chip and on-chip memory.
        dma: copy engines; None where the graph compiler has none, so that copies cost TPC time.
        network: links to other chips.
        host: the host and the software.
        sources: `section.field` (or `section.field.key`) -> where the number comes from.
    """

    name: str
    mme: MmeSpec
    tpc: TpcSpec
    memory: MemorySpec
    dma: DmaSpec | None
    network: NetworkSpec
    host: HostSpec
    sources: Mapping[str, Source] = field(hash=False, compare=False, repr=False)

    def uncertain(self) -> tuple[str, ...]:
        """Names of the numbers that nobody has published: assumed or fitted."""
        return tuple(
            name for name, source in self.sources.items() if source.evidence in (Evidence.ASSUMED, Evidence.FITTED)
        )

    def value(self, name: str) -> float:
        """The number called `section.field` or `section.field.key`."""
        section, attribute, *key = name.split(".")
        number = getattr(getattr(self, section), attribute)
        return float(number[key[0]] if key else number)

    def with_value(self, name: str, value: float) -> Chip:
        """A chip with one number replaced.

        Args:
            name: `section.field`, or `section.field.key` for a number kept per dtype or op class.
            value: the new number, in the unit of the old one.

        Returns:
            The new chip; `sources` still tells where the old number came from.

        Raises:
            TargetError: there is no such number.
        """
        if name not in self.sources:
            raise TargetError(
                f"{self.name} has no number called {name!r}", hint=f"one of: {', '.join(sorted(self.sources))}"
            )
        section, attribute, *key = name.split(".")
        spec = getattr(self, section)
        new = {**getattr(spec, attribute), key[0]: value} if key else value
        return replace(self, **{section: replace(spec, **{attribute: new})})

    def scaled(self, name: str, factor: float) -> Chip:
        """A chip with one number multiplied, to see whether a choice depends on it; `name` as in `with_value`."""
        return self.with_value(name, self.value(name) * factor)


_SECTIONS: Mapping[str, Any] = {
    "mme": MmeSpec,
    "tpc": TpcSpec,
    "memory": MemorySpec,
    "dma": DmaSpec,
    "network": NetworkSpec,
    "host": HostSpec,
}


def parse_chip(text: str, *, where: str) -> Chip:
    """Reads a chip from JSON.

    Args:
        text: the JSON.
        where: what to call it in errors.

    Returns:
        The chip.

    Raises:
        TargetError: the JSON is malformed, or a number is missing, unknown or without a source.
    """
    try:
        data = json.loads(text)
        sources: dict[str, Source] = {}
        sections: dict[str, Any] = {
            name: None if data[name] is None else _parse_section(name, kind, data[name], sources)
            for name, kind in _SECTIONS.items()
        }
        return Chip(name=data["name"], sources=sources, **sections)
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise TargetError(
            f"the chip file is malformed: {type(error).__name__}: {error}",
            where=Where(source=where),
            hint="compare with gaudicc/machine/gaudi2.json",
        ) from error


def _parse_section(name: str, kind: Any, section: Mapping[str, Any], sources: dict[str, Source]) -> Any:
    if set(section) != {item.name for item in fields(kind)}:
        raise ValueError(f"{name} must have exactly the fields of {kind.__name__}")
    values: dict[str, Any] = {}
    for attribute, entry in section.items():
        if "value" in entry:
            values[attribute] = _number(f"{name}.{attribute}", entry, sources)
        else:
            values[attribute] = {key: _number(f"{name}.{attribute}.{key}", one, sources) for key, one in entry.items()}
    return kind(**values)


def _number(name: str, entry: Mapping[str, Any], sources: dict[str, Source]) -> float:
    value = entry["value"]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} is not a number")
    if not entry["source"]:
        raise ValueError(f"{name} has no source")
    sources[name] = Source(entry["unit"], Evidence(entry["evidence"]), entry["source"])
    return value


def load_chip(name: str) -> Chip:
    """The chip of this name: of the folder `GAUDICC_TABLES` if it has one (`gaudicc doctor --apply`), else as shipped.

    Args:
        name: `gaudi2` or `gaudi3`.

    Returns:
        The chip.

    Raises:
        TargetError: there is no such chip, or the folder's file is malformed.
    """
    if name not in CHIPS:
        raise TargetError(f"no chip called {name!r}", hint=f"one of: {', '.join(CHIPS)}")
    return _read_chip(own_table(f"{name}.chip.json") or Path(__file__).with_name(f"{name}.json"))


@cache
def _read_chip(path: Path) -> Chip:
    return parse_chip(path.read_text(), where=path.name)
