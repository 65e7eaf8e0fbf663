"""Which way to run one attention: unsplit, the fused kernel, or slices; chosen under the graph compiler's own policy.

Every split is bounded from below first; only those whose bound beats what has been found are simulated, so the result
is that of exhaustive search over the family. All times are modelled.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import inf

from gaudicc.machine.attention import (
    AttentionShape,
    Split,
    block_slices,
    body_heads,
    count_slices,
    splits,
    with_heads,
)
from gaudicc.machine.attention_cost import Costs, split_tasks
from gaudicc.machine.chip import Chip
from gaudicc.machine.cost import ELEMENT_BYTES, Engine, OpClass, OpWork, op_cost
from gaudicc.machine.gemm import Gemm
from gaudicc.machine.schedule import vendor_schedule
from gaudicc.machine.simulate import Limits
from gaudicc.machine.timeline import Timeline

# Slices of one attention at most. Each is four nodes, and a node costs about 1 ms of graph compile time: 40 s, once for all
# layers alike. (The graph compiler's own slicer makes 128 of one bundle at most; a slice of ours is a bundle by itself.)
MOST_SLICES = 10_000
# Slices that are written down at most; where there are more, one graph is called for every so many heads.
BODY_SLICES = 600
# Slices that are simulated at most; where there are more, some heads stand for all.
_SIMULATED = 1200
# Of ways this close to each other, whatever the unpublished constants are, the one with the fewest slices is taken: each slice
# costs compile time and memory. What gains less is not worth a rewrite.
LEAST_GAIN = 0.03
# Ways slower than this beside the fastest are not considered, however robust.
CLOSE = 0.05
# Constants without a published source on which the order of ways depends, and how far each is moved to see whether it does.
_UNSURE = ("mme.sustained", "tpc.flops_per_element.softmax", "memory.sram_usable", "host.node_seconds")
MOVED = 0.3
# Keys that the fused kernel takes at once: PT_HPU_SDPA_BC_FACTOR, HabanaAI/gaudi-pytorch-bridge 1.19.0.
_FUSED_BLOCK = 1024


@dataclass(frozen=True, slots=True)
class Option:
    """One way to run an attention.

    Attributes:
        name: `unsplit`, `fused`, or the split in words.
        split: the split; None for the fused kernel.
        seconds: modelled time under the vendor's policy.
        slices: number of slices.
    """

    name: str
    split: Split | None
    seconds: float
    slices: int


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen, and among what.

    Attributes:
        best: the one taken.
        options: all that were timed, the fastest first.
        bound: seconds that no split considered beats, whatever its schedule.
        considered: splits of the family.
    """

    best: Option
    options: tuple[Option, ...]
    bound: float
    considered: int


def choose_split(
    shape: AttentionShape,
    chip: Chip,
    *,
    fused: bool = True,
    most_slices: int | None = MOST_SLICES,
) -> Choice:
    """The fastest way to run an attention.

    Args:
        shape: the attention, static.
        chip: the machine.
        fused: the target has a fused kernel.
        most_slices: splits into more slices are not considered, nor those with more than `BODY_SLICES` for one block of heads;
            None for all.

    Returns:
        The choice. Of the ways within `CLOSE` of the fastest, and no slower than unsplit or fused, those that stay within
        `LEAST_GAIN` of each other's best when any of the unpublished constants is moved by 30 %, else the one that loses the
        least then; of these the one with the fewest slices, the fused kernel first.
    """
    options, bounds = timed_options(shape, chip, fused=fused, most_slices=most_slices)
    given = min(option.seconds for option in options if option.name in ("unsplit", "fused"))
    enough = min(options[0].seconds * (1 + CLOSE), given)
    losses = _worst_losses([option for option in options if option.seconds <= enough], shape, chip)
    bearable = max(1 + LEAST_GAIN, min(losses.values()))
    sound = [option for option, loss in losses.items() if loss <= bearable]
    best = min(sound, key=lambda option: (option.slices, option.name != "fused", losses[option]))
    return Choice(best, options, bounds[0][0] if bounds else best.seconds, len(bounds))


def timed_options(
    shape: AttentionShape, chip: Chip, *, fused: bool = True, most_slices: int | None = MOST_SLICES
) -> tuple[tuple[Option, ...], list[tuple[float, Split]]]:
    """(Ways to run an attention, the fastest first; bounds of the splits considered); arguments as for `choose_split`."""
    costs = Costs(shape, chip)
    whole = Split(shape.batch * shape.heads, shape.queries)
    options = [Option("unsplit", whole, unsplit_seconds(shape, chip), 1)]
    if fused:
        options.append(Option("fused", None, fused_seconds(costs), 1))
    bounds = bounded_splits(costs, most_slices)
    options += timed_splits(costs, bounds, min(option.seconds for option in options))
    return tuple(sorted(options, key=lambda option: (option.seconds, option.slices))), bounds


def moved_chips(chip: Chip, names: Iterable[str] = _UNSURE) -> Iterator[Chip]:
    """The chip with each of these numbers moved down and up by `MOVED`; a share of something is 1 at most."""
    for name in names:
        for factor in (1 - MOVED, 1 + MOVED):
            number = chip.value(name) * factor
            share = chip.sources[name].unit.startswith("of ")
            yield chip.with_value(name, min(number, 1.0) if share else number)


def option_seconds(option: Option, shape: AttentionShape, chip: Chip) -> float:
    """What a way takes on a chip, which need not be the one that it was timed on."""
    if option.name == "unsplit":
        return unsplit_seconds(shape, chip)
    costs = Costs(shape, chip)
    return fused_seconds(costs) if option.split is None else split_seconds(costs, option.split)


def _worst_losses(options: Sequence[Option], shape: AttentionShape, chip: Chip) -> dict[Option, float]:
    """Way -> its time over that of the best of these, where that is worst: on the chip as it is, or with a number moved."""
    losses = {option: option.seconds / options[0].seconds for option in options}
    for moved in moved_chips(chip) if len(options) > 1 else ():
        seconds = {option: option_seconds(option, shape, moved) for option in options}
        best = min(seconds.values())
        losses = {option: max(loss, seconds[option] / best) for option, loss in losses.items()}
    return losses


def bounded_splits(costs: Costs, most_slices: int | None = None) -> list[tuple[float, Split]]:
    """(Seconds that no schedule beats, split) of every split of the family, the least first.

    The family: slices that fit in on-chip memory, at most `most_slices` of them, and `BODY_SLICES` for one block of heads.
    """
    fitting = costs.chip.memory.buffer_bytes / (2 * ELEMENT_BYTES[costs.shape.dtype])
    family = splits(costs.shape, most_slices=most_slices, most_scores=fitting)
    limit = inf if most_slices is None else BODY_SLICES
    return sorted((split_bound(costs, split), split) for split in family if block_slices(costs.shape, split) <= limit)


def timed_splits(costs: Costs, bounds: list[tuple[float, Split]], to_beat: float = inf) -> list[Option]:
    """Splits as the graph compiler's policy runs them, until no bound that is left beats what was found.

    Args:
        costs: of the attention.
        bounds: as `bounded_splits` gives them.
        to_beat: seconds of the fastest other way.

    Returns:
        All that were timed; those of the family that are as fast as `to_beat`, and within `CLOSE` of the fastest, are among
        them.
    """
    timed: list[Option] = []
    enough = to_beat
    for bound, split in bounds:
        if bound > enough:
            break
        seconds = split_seconds(costs, split)
        timed.append(Option(str(split), split, seconds, count_slices(costs.shape, split)))
        enough = min(enough, seconds * (1 + CLOSE))
    return timed


def split_seconds(costs: Costs, split: Split) -> float:
    """What a split takes under the graph compiler's policy; of more than 1,200 slices, those of some heads stand for all.

    The engines are then taken to run empty from these heads to the next.
    """
    shape = costs.shape
    heads = body_heads(shape, split, _SIMULATED)
    calls = shape.batch * shape.heads // heads
    body = costs if calls == 1 else Costs(with_heads(shape, heads), costs.chip)
    return calls * schedule_split(body, split).makespan


def schedule_split(costs: Costs, split: Split, live_slices: int | None = None) -> Timeline:
    """A split as the graph compiler's policy runs it, within on-chip memory."""
    return vendor_schedule(split_tasks(costs, split), limits_of(costs.chip), live_slices=live_slices)


def limits_of(chip: Chip) -> Limits:
    """What a schedule is bound by on a chip."""
    return Limits(chip.memory.buffer_bytes, chip.memory.stream)


def split_bound(costs: Costs, split: Split) -> float:
    """Seconds that no schedule of a split beats.

    Each engine's work with the shortest way in and out, and the residence of scores in on-chip memory: a slice holds
    its memory while its three nodes run, and of slices that do not fit beside each other one has to end, or to go to HBM,
    before the next one starts.
    """
    chip = costs.chip
    mme = tpc = held = apart = 0.0
    fill = drain = inf
    for cost, count in costs.counted(split):
        mme, tpc = mme + cost.mme * count, tpc + cost.tpc * count
        half, ends = cost.score_bytes / 2, cost.scores.seconds + cost.values.seconds
        held += (cost.score_bytes * cost.scores.seconds + half * (cost.softmax.seconds + cost.values.seconds)) * count
        if cost.score_bytes + half > chip.memory.buffer_bytes and cost.scores.engine is cost.values.engine:
            apart += (ends + min(cost.softmax.seconds, cost.score_bytes / chip.memory.stream)) * count
        fill = min(fill, cost.scores.seconds if cost.scores.engine is Engine.MME else 0.0)
        # A merge is the last of its slice, so that no product need follow the vector work.
        drain = min(drain, cost.values.seconds if cost.values.engine is Engine.MME and cost.merge is None else 0.0)
    return max(mme, tpc + fill + drain, held / chip.memory.buffer_bytes, apart)


def family_bound(shape: AttentionShape, chip: Chip, most_slices: int | None = None) -> float:
    """Seconds that no schedule of any split of the family beats; it does not depend on the split chosen."""
    return min((bound for bound, _ in bounded_splits(Costs(shape, chip), most_slices)), default=0.0)


def fused_seconds(costs: Costs) -> float:
    """The vendor's fused kernel: of the shorter engine's work the published `host.engine_overlap` is hidden."""
    mme, tpc = fused_work(costs)
    host = costs.chip.host
    return max(mme, tpc) + (1 - host.engine_overlap) * min(mme, tpc) + host.node_seconds


def fused_work(costs: Costs) -> tuple[float, float]:
    """(MME, TPC) seconds of the vendor's fused kernel, in its favour: what it does inside is not published.

    Taken to be one node that holds all heads at once, goes over blocks of `PT_HPU_SDPA_BC_FACTOR` keys with a running
    rescale that costs nothing, skips blocks that the causal structure masks, and keeps scores on chip.
    """
    shape = costs.shape
    costs = Costs(shape, costs.chip.with_value("host.node_seconds", 0.0))
    split = Split(shape.batch * shape.heads, min(_FUSED_BLOCK, shape.queries), _FUSED_BLOCK)
    mme = tpc = 0.0
    for cost, count in costs.counted(split):
        mme += cost.mme * count
        tpc += (cost.tpc - (cost.merge.seconds if cost.merge else 0.0)) * count
    return mme, tpc


def unsplit_seconds(shape: AttentionShape, chip: Chip) -> float:
    """Three nodes over all heads, rows and keys; scores go to HBM if they do not fit on chip."""
    costs = [op_cost(work, chip, on_chip=_fits(shape, chip)) for work in unsplit_works(shape)]
    mme = sum(cost.seconds for cost in costs if cost.engine is Engine.MME)
    tpc = sum(cost.seconds for cost in costs) - mme
    return max(mme, tpc) + (1 - chip.host.engine_overlap) * min(mme, tpc)


def _fits(shape: AttentionShape, chip: Chip) -> bool:
    scores = shape.batch * shape.heads * shape.queries * shape.keys
    return 2 * scores * ELEMENT_BYTES[shape.dtype] <= chip.memory.buffer_bytes


def unsplit_works(shape: AttentionShape) -> Iterator[OpWork]:
    """Product, softmax and product of the whole attention, no block of it skipped."""
    width, group = ELEMENT_BYTES[shape.dtype], shape.heads // shape.kv_heads
    rest = shape.batch * shape.kv_heads
    batch = tuple(size for size in (group, rest) if size > 1)
    scores = group * rest * shape.queries * shape.keys
    read = width * (group * rest * shape.queries + rest * shape.keys) * shape.dim
    value = width * rest * shape.keys * shape.value_dim
    out = width * group * rest * shape.queries * shape.value_dim
    left = Gemm(shape.queries, shape.keys, shape.dim, batch, shape.dtype, trans_b=True, shared_b=group > 1)
    right = Gemm(shape.queries, shape.value_dim, shape.keys, batch, shape.dtype, shared_b=group > 1)
    yield OpWork("scores", OpClass.GEMM, shape.dtype, left, 0, read, width * scores, read)
    yield OpWork(
        "softmax", OpClass.SOFTMAX, shape.dtype, None, scores, (width + shape.mask_bytes) * scores, width * scores
    )
    yield OpWork("values", OpClass.GEMM, shape.dtype, right, 0, width * scores + value, out, value + out)
