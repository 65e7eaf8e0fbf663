"""How many layers one recorded sub-graph holds: launches and lost overlap against compile time and memory.

Layers that follow one another are cut into sub-graphs of `n` calls each. Few long ones are launched less often, hand on
less, and let the graph compiler run the end of one layer under the start of the next; but equal sub-graphs share a recipe,
so short ones compile sooner. All times are modelled.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from gaudicc.errors import InputError
from gaudicc.machine.chip import Chip
from gaudicc.machine.workload import record_cost

# Calls over which compile time is paid back: some minutes of serving.
CALLS = 10_000


@dataclass(frozen=True, slots=True)
class Layer:
    """One region body, as the machine runs it.

    Attributes:
        nodes: device nodes.
        seconds: time alone in a sub-graph.
        handed_bytes: what it hands on to the next one.
    """

    nodes: int
    seconds: float
    handed_bytes: int = 0


@dataclass(frozen=True)
class Stretch:
    """Layers that follow one another.

    Attributes:
        order: the body of each call.
        layers: body -> what it costs.
        gains: (body, body that follows) -> seconds less than both alone, if they share a sub-graph.
    """

    order: Sequence[Hashable]
    layers: Mapping[Hashable, Layer]
    gains: Mapping[tuple[Hashable, Hashable], float] = field(default_factory=dict)

    def chunks(self, size: int) -> Iterator[tuple[Hashable, ...]]:
        """The sub-graphs: `size` calls each, the last one what is left."""
        for start in range(0, len(self.order), size):
            yield tuple(self.order[start : start + size])


@dataclass(frozen=True, slots=True)
class Partition:
    """One way of cutting a stretch.

    Attributes:
        size: layers in a sub-graph.
        launches: sub-graphs.
        recipes: different ones among them.
        step_seconds: of one run: the first launch, then the device or the host, whichever takes longer.
        compile_seconds: of all recipes.
        held_bytes: recipes, and what sub-graphs hand on.
    """

    size: int
    launches: int
    recipes: int
    step_seconds: float
    compile_seconds: float
    held_bytes: float

    def cost(self, calls: int) -> float:
        """Seconds for compiling and so many runs."""
        return self.compile_seconds + calls * self.step_seconds


@dataclass(frozen=True, slots=True)
class PartitionChoice:
    """What was chosen, and among what.

    Attributes:
        best: of those that fit the one of least cost, then the shortest; if none fits, the one that holds least.
        options: all, by size.
        calls: over which compile time is paid back.
    """

    best: Partition
    options: tuple[Partition, ...]
    calls: int


def choose_partition(
    stretch: Stretch, chip: Chip, *, room: float = float("inf"), calls: int = CALLS, size: int | None = None
) -> PartitionChoice:
    """The cheapest way of cutting a stretch: every size is priced.

    Args:
        stretch: the layers.
        chip: the machine.
        room: bytes that one recorded graph may hold.
        calls: over which compile time is paid back.
        size: this one whatever it costs; at most the whole stretch.

    Returns:
        The choice.

    Raises:
        InputError: the stretch is empty, or the size is less than 1.
    """
    if not stretch.order:
        raise InputError("there are no layers to cut")
    if size is not None and size < 1:
        raise InputError(f"a sub-graph cannot hold {size} layers", hint="give 1 or more")
    options = tuple(priced(stretch, chip, each) for each in range(1, len(stretch.order) + 1))
    if size is not None:
        return PartitionChoice(options[min(size, len(options)) - 1], options, calls)
    fitting = [option for option in options if option.held_bytes <= room]
    if not fitting:
        return PartitionChoice(min(options, key=lambda option: (option.held_bytes, option.size)), options, calls)
    return PartitionChoice(min(fitting, key=lambda option: (option.cost(calls), option.size)), options, calls)


def priced(stretch: Stretch, chip: Chip, size: int) -> Partition:
    """What sub-graphs of so many layers cost.

    For `L` equal layers: `replay + max(L interval + ceil(L / n) fill, ceil(L / n) replay)` seconds a run, where a layer
    adds `interval` in the midst of a sub-graph and `fill` more at the start of one.
    """
    chunks = list(stretch.chunks(size))
    nodes = sum(stretch.layers[name].nodes for chunk in set(chunks) for name in chunk)
    device = sum(stretch.layers[name].seconds for name in stretch.order)
    for chunk in chunks:
        device -= sum(stretch.gains.get(pair, 0.0) for pair in pairwise(chunk))
    recorded, replay = record_cost(nodes, chip), chip.host.replay_seconds
    return Partition(
        size,
        len(chunks),
        len(set(chunks)),
        replay + max(device, len(chunks) * replay),
        recorded.compile_seconds,
        recorded.graph_bytes + sum(stretch.layers[chunk[-1]].handed_bytes for chunk in chunks),
    )
