"""How good the split of attention is under the model: prefill of four models, both chips, three node costs, moved constants.

    python -m gaudicc.machine.split_table > docs/tables/split_attention.md

All times are of the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from gaudicc.machine.attention import AttentionShape, Split
from gaudicc.machine.attention_cost import Costs
from gaudicc.machine.chip import Chip, load_chip
from gaudicc.machine.cost import Engine
from gaudicc.machine.split import (
    CLOSE,
    LEAST_GAIN,
    MOST_SLICES,
    MOVED,
    Choice,
    Option,
    bounded_splits,
    choose_split,
    fused_seconds,
    limits_of,
    moved_chips,
    option_seconds,
    schedule_split,
    timed_options,
    timed_splits,
    unsplit_seconds,
)

LENGTHS = (512, 1024, 2048, 4096, 8192, 16384, 32768)
# Thousands of slices each beyond this: minutes a row.
_TIMED = 5
# The most sensitive number that nobody has published.
NODE_MICROSECONDS = (0.1, 0.5, 2.0)
Model = tuple[str, int, int, int, int | None]
Case = tuple[str, Model, int]
# (name, query heads, key/value heads, head size, window); 70B and Qwen3-32B have the same attention.
MODELS: tuple[Model, ...] = (
    ("Llama-3-8B", 32, 8, 128, None),
    ("Llama-3-70B, Qwen3-32B", 64, 8, 128, None),
    ("gpt-oss, full", 64, 8, 64, None),
    ("gpt-oss, window 128", 64, 8, 64, 128),
)
CHIPS = (("gaudi2", 256), ("gaudi3", 512), ("gaudi3", 256))
# Slices of a split that is timed here at most; more than any compiled graph has, to see what the machine could do.
_REACH = 9000
_MOVED_LENGTHS = (1024, 2048, 4096)


@dataclass(frozen=True, slots=True)
class Cell:
    """One prefill attention.

    Attributes:
        split: the fastest split of the family under the vendor's policy.
        bound: seconds that no split of the family beats.
        overlap: MME and TPC at once, of the shorter.
        exposed: TPC seconds that nothing hides.
        fused: the fused kernel over the split.
        unsplit: the unsplit graph over the split.
    """

    split: Option
    bound: float
    overlap: float
    exposed: float
    fused: float
    unsplit: float


def chip_of(name: str, floor: int, node_us: float) -> Chip:
    """A chip with this drain floor and node cost."""
    chip = load_chip(name).with_value("host.node_seconds", node_us * 1e-6)
    return chip.with_value("mme.drain_floor", floor)


def shape_of(model: Model, length: int) -> AttentionShape:
    """Prefill of one prompt."""
    _, heads, kv_heads, dim, window = model
    return AttentionShape(1, heads, kv_heads, length, length, dim, dim, ahead=0, window=window)


def cell(shape: AttentionShape, chip: Chip) -> Cell:
    """Times one attention every way."""
    costs = Costs(shape, chip)
    bounds = bounded_splits(costs, _REACH)
    best = min(timed_splits(costs, bounds), key=lambda option: option.seconds)
    if best.split is None:
        raise ValueError("a timed split has none")
    timeline = schedule_split(costs, best.split)
    return Cell(
        best,
        bounds[0][0],
        timeline.overlap_efficiency(),
        timeline.exposed(Engine.TPC),
        fused_seconds(costs) / best.seconds,
        unsplit_seconds(shape, chip) / best.seconds,
    )


@cache
def choice_of(shape: AttentionShape, name: str) -> Choice:
    """What compile takes on a chip as it is."""
    return choose_split(shape, load_chip(name))


def report() -> Iterator[str]:
    """The page as Markdown, line by line."""
    yield "# Split of prefill attention"
    yield ""
    yield "Made by `python -m gaudicc.machine.split_table`. One prompt, bf16, causal. Every figure is *modelled*."
    yield ""
    worst: dict[float, float] = {}
    for name, floor in CHIPS:
        for node_us in NODE_MICROSECONDS:
            yield from _cells(name, floor, node_us, worst)
    yield "## Against the family bound, from 1,024 tokens on"
    yield ""
    for node_us, ratio in worst.items():
        yield f"* node cost {node_us} us: worst makespan / family bound {ratio:.3f}"
    yield ""
    yield from _choices()
    yield from _robustness()


def _cells(name: str, floor: int, node_us: float, worst: dict[float, float]) -> Iterator[str]:
    yield f"## {name}, drain floor {floor}, node cost {node_us} us"
    yield ""
    yield "Overlap of the shorter engine (62 % is what was published for Synapse) / exposed TPC us / makespan over family bound /"
    yield f"faster than fused / than unsplit; then the split. At most {_REACH:,} slices."
    yield ""
    yield f"| model | {' | '.join(f'{length:,}' for length in LENGTHS[:_TIMED])} |"
    yield f"|---|{'---|' * _TIMED}"
    chip = chip_of(name, floor, node_us)
    for model in MODELS:
        texts = []
        for length in LENGTHS[:_TIMED]:
            found = cell(shape_of(model, length), chip)
            ratio = found.split.seconds / found.bound
            if length >= 1024:
                worst[node_us] = max(worst.get(node_us, 0.0), ratio)
            split = found.split.split
            sizes = f"{split.heads}x{split.rows}x{split.keys or 'all'}" if split else ""
            texts.append(
                f"{found.overlap:.0%} / {found.exposed * 1e6:.0f} / {ratio:.2f} / {found.fused:.2f} / {found.unsplit:.1f}"
                f"<br>{sizes}"
            )
        yield f"| {model[0]} | {' | '.join(texts)} |"
    yield ""


def _choices() -> Iterator[str]:
    yield f"## What compile takes: at most {MOST_SLICES:,} slices, or the fused kernel"
    yield ""
    yield "Chosen (slices) us; over the fastest way that exhaustive search finds; over fused; over unsplit."
    yield ""
    yield f"| chip | model | {' | '.join(f'{length:,}' for length in LENGTHS)} |"
    yield f"|---|---|{'---|' * len(LENGTHS)}"
    for name in ("gaudi2", "gaudi3"):
        for model in MODELS:
            texts = []
            for length in LENGTHS:
                choice = choice_of(shape_of(model, length), name)
                best = choice.best
                sizes = f"{best.split.heads}x{best.split.rows}x{best.split.keys or 'all'}" if best.split else best.name
                seconds = {option.name: option.seconds for option in choice.options}
                others = (choice.options[0].seconds, seconds["fused"], seconds["unsplit"])
                over = "; ".join(f"{best.seconds / other:.2f}" for other in others)
                texts.append(f"{sizes} ({best.slices}) {best.seconds * 1e6:,.0f}; {over}")
            yield f"| {name} | {model[0]} | {' | '.join(texts)} |"
    yield ""


def _robustness() -> Iterator[str]:
    yield f"## Constants without a published source moved by {MOVED:.0%}"
    yield ""
    lengths = ", ".join(f"{length:,}" for length in _MOVED_LENGTHS)
    yield f"The choice made with the constant as it is, over the best choice with it moved, for prompts of {lengths} tokens."
    yield "A share of something is moved to 1 at most."
    yield ""
    yield "| chip | constant | worst, down | worst, up | above 1.03 |"
    yield "|---|---|---|---|---|"
    above: dict[Case, float] = {}
    for name in ("gaudi2", "gaudi3"):
        chip = load_chip(name)
        still = _moved(name, chip, above)
        count = sum(ratio > 1 + LEAST_GAIN for ratio in still)
        yield f"| {name} | none moved | {max(still):.3f} | {max(still):.3f} | {count} of {len(still)} |"
        for constant in chip.uncertain():
            moved = list(moved_chips(chip, (constant,)))
            if any(_seen(other) != _seen(chip) for other in moved):
                down, up = (_moved(name, other, above) for other in moved)
                count = sum(ratio > 1 + LEAST_GAIN for ratio in (*down, *up))
                yield f"| {name} | `{constant}` | {max(down):.3f} | {max(up):.3f} | {count} of {len(down) + len(up)} |"
        yield f"| {name} | each other | as if none | as if none | |"
    yield ""
    yield f"Above {1 + LEAST_GAIN} somewhere. The least is over all ways of the family: what any choice loses somewhere."
    yield ""
    yield "| chip | model | tokens | choice | worst | least of all ways |"
    yield "|---|---|---|---|---|---|"
    for (name, model, length), ratio in above.items():
        shape = shape_of(model, length)
        way, least = least_worst(shape, load_chip(name))
        cells = (name, model[0], f"{length:,}", choice_of(shape, name).best.name, f"{ratio:.3f}")
        yield f"| {' | '.join(cells)} | {way.name} {least:.3f} |"
    yield ""


def _seen(chip: Chip) -> object:
    """All that a chip says of an attention, by an example."""
    shape = shape_of(MODELS[0], 2048)
    costs = Costs(shape, chip)
    return costs.counted(Split(8, 256, 512)), fused_seconds(costs), unsplit_seconds(shape, chip), limits_of(chip)


def least_worst(shape: AttentionShape, chip: Chip) -> tuple[Option, float]:
    """(The way that loses least where it loses most, how much): over the best there, on the chip and with numbers moved.

    A way that is nowhere within `CLOSE` of the best loses more than that everywhere, so the others need not be looked at.
    """
    chips = [chip, *moved_chips(chip)]
    found = [timed_options(shape, there)[0] for there in chips]
    ways = {way.name: way for options in found for way in options if way.seconds <= options[0].seconds * (1 + CLOSE)}
    worst = {
        way: max(
            option_seconds(way, shape, there) / options[0].seconds for there, options in zip(chips, found, strict=True)
        )
        for way in ways.values()
    }
    best = min(worst, key=worst.__getitem__)
    return best, worst[best]


def _moved(name: str, chip: Chip, above: dict[Case, float]) -> list[float]:
    """The choice made on the chip as it is, run on one with a constant moved, over the best there; those above 1.03 by name."""
    ratios = []
    for model in MODELS:
        for length in _MOVED_LENGTHS:
            shape = shape_of(model, length)
            chosen, (ways, _) = choice_of(shape, name).best, timed_options(shape, chip)
            ratios.append(option_seconds(chosen, shape, chip) / ways[0].seconds)
            if ratios[-1] > 1 + LEAST_GAIN:
                case = (name, model, length)
                above[case] = max(above.get(case, 0.0), ratios[-1])
    return ratios


if __name__ == "__main__":
    for line in report():
        print(line, flush=True)
