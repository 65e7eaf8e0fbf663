"""Renders the report: one HTML file without scripts or links to elsewhere. Reads traces and text only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from gaudicc.trace import CompileTrace, PassRecord

_HERE = Path(__file__).parent
_KINDS = {"+": "added", "-": "removed", "@": "hunk"}


@dataclass(frozen=True, slots=True)
class Section:
    """One pass on the page.

    Attributes:
        anchor: its id in the page.
        record: what the pass did.
        lines: (kind, text) of the unified diff; kind is `added`, `removed`, `hunk` or `same`.
    """

    anchor: str
    record: PassRecord
    lines: tuple[tuple[str, str], ...]


def write_report(folder: Path, trace: CompileTrace, *, guards: str, certificate: str, plans: Iterable[str]) -> Path:
    """Writes `index.html`.

    Args:
        folder: made if it is not there.
        trace: the passes; empty for a model that was loaded from a bundle.
        guards: the prologue as Python.
        certificate: what is proved, as text.
        plans: the plan of every bucket, as text.

    Returns:
        The page.
    """
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    sections = [Section(f"pass-{number}", record, _diff_lines(record)) for number, record in enumerate(trace)]
    page = environment.get_template("page.jinja").render(
        style=(_HERE / "page.css").read_text(encoding="utf-8"),
        phases=[(phase, list(group)) for phase, group in groupby(sections, key=lambda section: section.record.phase)],
        milliseconds=sum(record.milliseconds for record in trace),
        check_milliseconds=sum(record.check_milliseconds for record in trace),
        guards=guards,
        certificate=certificate,
        plans=list(plans),
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "index.html"
    path.write_text(page, encoding="utf-8")
    return path


def _diff_lines(record: PassRecord) -> tuple[tuple[str, str], ...]:
    if not record.modified:
        return ()  # printing both programs to find no difference is what costs time
    lines = record.diff().splitlines()[2:]  # the first two name the pass once more
    return tuple((_KINDS.get(line[:1], "same"), line) for line in lines)
