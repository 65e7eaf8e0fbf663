"""A plan as an SVG picture: what was asked for as dots, the buckets' corners as squares, one panel a phase."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from gaudicc.buckets.planner import Plan
from gaudicc.buckets.space import Floats, Sample, waste
from gaudicc.errors import InputError

WIDTH, HEIGHT, MARGIN = 560, 420, 60
DOT = 9.0
"""Radius of the heaviest shape's dot, pixels; areas follow the weights."""
TICKS = 5


def draw(plans: Mapping[str, tuple[Plan, Sample]], path: Path) -> None:
    """Writes the picture. The last dim runs to the right, the one before it upwards; others are not shown.

    Args:
        plans: per phase, its plan and the shapes seen, in aligned sizes.
        path: the file, which must end in `.svg`.

    Raises:
        InputError: the file is of another kind or cannot be written.
    """
    if path.suffix != ".svg":
        raise InputError(f"the picture {path} is not an .svg file", hint="write --plot FILE.svg")
    panels = [
        f'<g transform="translate({i * WIDTH} 0)">{"".join(_panel(name, plan, sample))}</g>'
        for i, (name, (plan, sample)) in enumerate(plans.items())
    ]
    size = f'width="{WIDTH * len(panels)}" height="{HEIGHT}"'
    style = 'font-family="sans-serif" font-size="12" style="background: white"'
    text = "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>', *panels, "</svg>\n"])
    try:
        path.write_text(text)
    except OSError as error:
        raise InputError(f"cannot write the picture {path}: {error.strerror}") from error


def _panel(name: str, plan: Plan, sample: Sample) -> Iterator[str]:
    space = plan.space
    limit = np.array([1, *space.limit])[-2:].astype(np.float64)
    title = f"{name}: {len(plan.boxes)} buckets, padding costs {waste(space, plan.boxes, sample):.2f} %"
    yield f'<text x="{WIDTH / 2}" y="24" text-anchor="middle" font-size="14">{title}</text>'
    yield from _axes(("", *space.dims)[-2:], limit)
    radius = DOT * np.sqrt(sample.weights / sample.weights.max())
    for (x, y), r in zip(_pixels(sample.shapes, limit), radius, strict=True):
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{max(r, 0.6):.2f}" fill="steelblue" fill-opacity="0.35"/>'
    for x, y in _pixels(plan.boxes, limit):
        yield f'<rect x="{x - 3:.1f}" y="{y - 3:.1f}" width="6" height="6" fill="none" stroke="firebrick"/>'


def _pixels(rows: np.ndarray, limit: Floats) -> Floats:
    """Sizes [n, dims] -> pixel positions (x, y) [n, 2] by the last two dims; one dim alone lies on a line."""
    padded = np.concatenate([np.ones((len(rows), 1)), rows], axis=1)[:, -2:] / limit
    x = MARGIN + padded[:, 1] * (WIDTH - 2 * MARGIN)
    y = HEIGHT - MARGIN - padded[:, 0] * (HEIGHT - 2 * MARGIN)
    return np.stack([x, y], axis=1)


def _axes(names: tuple[str, ...], limit: Floats) -> Iterator[str]:
    left, right, top, bottom = MARGIN, WIDTH - MARGIN, MARGIN, HEIGHT - MARGIN
    yield f'<path d="M{left} {top}V{bottom}H{right}" fill="none" stroke="black"/>'
    yield f'<text x="{(left + right) / 2}" y="{HEIGHT - 16}" text-anchor="middle">{names[1]}</text>'
    turn = f"rotate(-90 16 {HEIGHT / 2})"
    yield f'<text x="16" y="{HEIGHT / 2}" text-anchor="middle" transform="{turn}">{names[0]}</text>'
    for share in np.linspace(0.0, 1.0, TICKS):
        x, y = left + share * (right - left), bottom - share * (bottom - top)
        yield f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{share * limit[1]:.0f}</text>'
        if names[0]:
            yield f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{share * limit[0]:.0f}</text>'
