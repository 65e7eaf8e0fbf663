"""What compiling did: one record per pass, printable, diffable, dumpable.

Programs of different stages share every graph that a pass left alone, so keeping all stages costs their differences.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gaudicc.printing import program_text
from gaudicc.program import Program


@dataclass(frozen=True)
class PassRecord:
    """What one pass did.

    Attributes:
        name: the pass.
        phase: `symbolic`, or the bucket it ran for.
        milliseconds: time of the pass itself, checks excluded.
        check_milliseconds: time of the checks after it.
        before: the program it was given.
        after: the program it returned.
        checks: the names of what was checked after it.
        notes: what the pass says it did, or why it did not.
    """

    name: str
    phase: str
    milliseconds: float
    check_milliseconds: float
    before: Program = field(repr=False)
    after: Program = field(repr=False)
    checks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def modified(self) -> bool:
        """Whether any graph was changed."""
        return self.before.root is not self.after.root

    def nodes(self) -> tuple[int, int]:
        """Number of nodes in the unique graphs, before and after."""
        return _nodes(self.before), _nodes(self.after)

    def ops(self) -> dict[str, tuple[int, int]]:
        """Ops whose count changed: name -> (before, after)."""
        old, new = self.before.count_ops(), self.after.count_ops()
        return {op: (old.get(op, 0), new.get(op, 0)) for op in sorted({*old, *new}) if old.get(op) != new.get(op)}

    def diff(self, *, colour: bool = False, context: int = 2) -> str:
        """Unified diff of the printed program; empty if the pass changed nothing."""
        old = program_text(self.before, numbered=False).splitlines()
        new = program_text(self.after, numbered=False).splitlines()
        lines = difflib.unified_diff(old, new, f"before {self.name}", f"after {self.name}", lineterm="", n=context)
        return "\n".join(_paint(line) if colour else line for line in lines)

    def as_json(self) -> dict[str, Any]:
        """The record without its programs."""
        before, after = self.nodes()
        return {
            "name": self.name,
            "phase": self.phase,
            "milliseconds": round(self.milliseconds, 3),
            "check_milliseconds": round(self.check_milliseconds, 3),
            "nodes": [before, after],
            "ops": {op: list(counts) for op, counts in self.ops().items()},
            "checks": list(self.checks),
            "notes": list(self.notes),
        }


def _nodes(program: Program) -> int:
    return sum(len(graph.graph.nodes) for _, graph in program.graphs())


def _paint(line: str) -> str:
    codes = {"+": "32", "-": "31", "@": "36"}
    return f"\x1b[{codes[line[0]]}m{line}\x1b[0m" if line[:1] in codes else line


@dataclass
class CompileTrace:
    """The records of one compile, in order. Indexed by position or by the name of a pass."""

    records: list[PassRecord] = field(default_factory=list)

    def __getitem__(self, key: int | str) -> PassRecord:
        if isinstance(key, int):
            return self.records[key]
        for record in self.records:
            if record.name == key:
                return record
        raise KeyError(f"no pass {key!r} in this trace; it holds {', '.join(self.names())}")

    def __iter__(self) -> Iterator[PassRecord]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)

    def names(self) -> list[str]:
        """The distinct pass names, in order of first run."""
        return list(dict.fromkeys(record.name for record in self.records))

    def __str__(self) -> str:
        head = ("pass", "phase", "ms", "checks ms", "nodes", "change", "what")
        rows = [head, *(_row(record) for record in self.records)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(head) - 1)]
        return "\n".join(
            "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip()
            for row in rows
        )

    def dump(self, folder: Path) -> list[Path]:
        """Writes one numbered text file per stage and `trace.jsonl`.

        Args:
            folder: made if it is not there.

        Returns:
            The files written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        written = []
        stages = [("capture", self.records[0].before)] if self.records else []
        stages += [
            (f"{record.phase}.{record.name}" if record.phase != "symbolic" else record.name, record.after)
            for record in self.records
        ]
        for number, (name, program) in enumerate(stages):
            path = folder / f"{number:02d}_{name.replace('/', '-').replace(' ', '')}.txt"
            path.write_text(program_text(program))
            written.append(path)
        lines = folder / "trace.jsonl"
        lines.write_text("".join(json.dumps(record.as_json()) + "\n" for record in self.records))
        return [*written, lines]


def _row(record: PassRecord) -> tuple[str, ...]:
    before, after = record.nodes()
    change = f"{after - before:+d}" if record.modified else "-"
    what = ", ".join(f"{op} {old}->{new}" for op, (old, new) in list(record.ops().items())[:4])
    more = f" and {len(record.ops()) - 4} more" if len(record.ops()) > 4 else ""
    note = record.notes[0] if record.notes and not what else ""
    return (
        record.name,
        record.phase,
        f"{record.milliseconds:.1f}",
        f"{record.check_milliseconds:.1f}",
        str(after),
        change,
        what + more or note,
    )
