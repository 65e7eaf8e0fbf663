"""A timeline as SVG: runs below each other on one time axis, a row per lane."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path

from gaudicc.profile.activity import KINDS, Activity

_WIDTH, _LEFT, _ROW, _HEAD = 1200, 110, 26, 30
_COLOURS = {"MME": "#3465a4", "TPC": "#e07b00", "DMA": "#5a9e1a", "NETWORK": "#8a5fb0", "HOST": "#777777"}
# Narrower boxes cannot be seen, and a model has tens of thousands of nodes.
_NARROWEST = 0.15


def write_svg(path: Path, runs: Iterable[tuple[str, Iterable[Activity]]]) -> None:
    """Writes the drawing.

    Args:
        path: the file.
        runs: (title, what ran), the first on top.
    """
    shown = [(title, list(activities)) for title, activities in runs]
    span = max((entry.end for _, run in shown for entry in run), default=0.0) or 1.0
    parts: list[str] = []
    top = 0
    for title, run in shown:
        lanes = sorted({(KINDS.index(entry.kind), entry.lane) for entry in run})
        rows = {lane: top + _HEAD + index * _ROW for index, (_, lane) in enumerate(lanes)}
        parts.append(f'<text x="4" y="{top + 20}" font-weight="bold">{escape(title)}</text>')
        parts += [f'<text x="4" y="{y + 17}">{escape(lane)}</text>' for lane, y in rows.items()]
        parts += [_box(entry, rows[entry.lane], (_WIDTH - _LEFT) / span) for entry in run]
        top += _HEAD + len(rows) * _ROW + 10
    ruler = (
        f'<text x="{_LEFT}" y="{top + 14}">0</text><text x="{_WIDTH - 90}" y="{top + 14}">{span * 1e6:,.1f} us</text>'
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top + 20}" font-family="sans-serif" font-size="12">'
    path.write_text("\n".join([head, *filter(None, parts), ruler, "</svg>"]) + "\n")


def _box(entry: Activity, y: int, scale: float) -> str:
    width = (entry.end - entry.start) * scale
    if width < _NARROWEST:
        return ""
    x = _LEFT + entry.start * scale
    tip = f"{escape(entry.name)}: {(entry.end - entry.start) * 1e6:,.2f} us"
    place = f'x="{x:.2f}" y="{y}" width="{width:.2f}" height="{_ROW - 4}"'
    return f'<rect {place} fill="{_COLOURS[entry.kind]}"><title>{tip}</title></rect>'
