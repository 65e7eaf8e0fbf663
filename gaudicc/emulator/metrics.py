"""The counters of `habana_frameworks.torch.hpu.metrics`, fed by the event dispatcher.

Source of names and forms: HabanaAI/gaudi-pytorch-bridge 1.19.0, `hpu/metrics/`.
"""

from __future__ import annotations

import atexit
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from gaudicc.emulator.dumps import MetricDumpFormat, MetricDumpTrigger, MetricSaver
from gaudicc.emulator.events import EventDispatcher, EventDispatcherHandle, EventId, EventParameters
from gaudicc.emulator.settings import flag

Stats = list[tuple[str, Any]]
OnChange = Callable[[datetime, str, Stats], None]


class MetricNotFound(Exception):
    """No metric has this name."""


class Metric:
    """Counts events from its creation until it is stopped.

    Args:
        on_change: told after every event.
    """

    label = ""
    events: tuple[EventId, ...] = ()

    def __init__(self, on_change: OnChange | None = None) -> None:
        self._on_change = on_change
        self._handles: list[EventDispatcherHandle] = []
        self.reset()
        self.start()

    def name(self) -> str:
        """Its name."""
        return self.label

    def start(self) -> None:
        """Counts from now on."""
        if not self._handles:
            dispatcher = EventDispatcher.instance()
            self._handles = [dispatcher.subscribe(event, self._handler(event)) for event in self.events]

    def stop(self) -> None:
        """Counts no more; the figures stay."""
        for handle in self._handles:
            EventDispatcher.instance().unsubscribe(handle)
        self._handles = []

    def reset(self) -> None:
        """Sets all figures to zero."""
        raise NotImplementedError

    def stats(self) -> Stats:
        """The figures by name."""
        raise NotImplementedError

    def count(self, event: EventId, parameters: dict[str, str]) -> None:
        """Takes in one event."""
        raise NotImplementedError

    def _handler(self, event: EventId) -> Callable[[datetime, EventParameters], None]:
        def handle(timestamp: datetime, parameters: EventParameters) -> None:
            self.count(event, dict(parameters))
            if self._on_change is not None:
                self._on_change(timestamp, self.label, self.stats())

        return handle


class GraphCompilation(Metric):
    """Recipes compiled. Times are microseconds, as on the device, and modelled."""

    label = "graph_compilation"
    events = (EventId.GRAPH_COMPILATION,)

    def reset(self) -> None:
        """Sets all figures to zero."""
        self._recipes: list[tuple[str, int]] = []

    def count(self, event: EventId, parameters: dict[str, str]) -> None:
        """Takes in one event."""
        self._recipes.append((parameters["recipe"], int(parameters["duration"])))

    def stats(self) -> Stats:
        """The figures by name; with `PT_HPU_METRICS_GC_DETAILS` also each recipe."""
        total = sum(duration for _, duration in self._recipes)
        number = len(self._recipes)
        stats: Stats = [("TotalNumber", number), ("TotalTime", total), ("AvgTime", total / number if number else 0)]
        details = flag("PT_HPU_METRICS_GC_DETAILS", False)
        return [*stats, ("recipe", list(self._recipes))] if details else stats


class CpuFallback(Metric):
    """Ops that ran on the host."""

    label = "cpu_fallback"
    events = (EventId.CPU_FALLBACK,)

    def reset(self) -> None:
        """Sets all figures to zero."""
        self._ops: Counter[str] = Counter()

    def count(self, event: EventId, parameters: dict[str, str]) -> None:
        """Takes in one event."""
        self._ops[parameters["op_name"]] += 1

    def stats(self) -> Stats:
        """The figures by name."""
        return [("TotalNumber", self._ops.total()), ("FallbackOps", dict(self._ops))]


class MemoryDefragmentation(Metric):
    """Defragmentations, which the emulated device never does."""

    label = "memory_defragmentation"
    events = (EventId.MEMORY_DEFRAGMENTATION,)

    def reset(self) -> None:
        """Sets all figures to zero."""
        self._total = 0
        self._times: list[int] = []

    def count(self, event: EventId, parameters: dict[str, str]) -> None:
        """Takes in one event."""
        self._total += 1
        if parameters["success"].lower() in ("1", "true", "yes"):
            self._times.append(int(parameters["milliseconds"]))

    def stats(self) -> Stats:
        """The figures by name."""
        times = self._times
        average = sum(times) / len(times) if times else 0
        return [
            ("TotalNumber", self._total),
            ("TotalSuccessful", len(times)),
            ("AvgTime", average),
            ("MaxTime", max(times, default=0)),
        ]


class RecipeCache(Metric):
    """Looks into the recipe cache."""

    label = "recipe_cache"
    events = (EventId.CACHE_HIT, EventId.CACHE_MISS)

    def reset(self) -> None:
        """Sets all figures to zero."""
        self._looks: dict[EventId, Counter[str]] = {event: Counter() for event in self.events}

    def count(self, event: EventId, parameters: dict[str, str]) -> None:
        """Takes in one event."""
        self._looks[event][parameters["recipe_id"]] += 1

    def stats(self) -> Stats:
        """The figures by name."""
        hits, misses = self._looks[EventId.CACHE_HIT], self._looks[EventId.CACHE_MISS]
        return [
            ("TotalHit", hits.total()),
            ("RecipeHit", dict(hits)),
            ("TotalMiss", misses.total()),
            ("RecipeMiss", dict(misses)),
        ]


class _Manager:
    """The metrics of the process and the file they are dumped to."""

    def __init__(self) -> None:
        self.saver = MetricSaver.from_environment()
        self.kinds: dict[str, type[Metric]] = {
            kind.label: kind for kind in (GraphCompilation, CpuFallback, MemoryDefragmentation)
        }
        if flag("PT_HPU_ENABLE_CACHE_METRICS", False):
            self.kinds[RecipeCache.label] = RecipeCache
        self.metrics = {name: kind(self.saver.changed) for name, kind in self.kinds.items()}
        dispatcher = EventDispatcher.instance()
        dispatcher.subscribe(EventId.DEVICE_ACQUIRED, lambda *_: self.saver.enable())
        dispatcher.subscribe(EventId.MARK_STEP, lambda *_: self.dump(MetricDumpTrigger.mark_step))
        atexit.register(self._at_exit)

    def dump(self, trigger: MetricDumpTrigger, saver: MetricSaver | None = None) -> None:
        (saver or self.saver).dump(trigger, [(metric.name(), metric.stats()) for metric in self.metrics.values()])

    def _at_exit(self) -> None:
        self.dump(MetricDumpTrigger.process_exit)
        self.saver.close()


_MANAGER: list[_Manager] = []


def start_metrics() -> None:
    """Start the process's metrics with what the environment says, once."""
    if not _MANAGER:
        _MANAGER.append(_Manager())


def metric_global(name: str) -> Metric | None:
    """The process's metric of a name, or None."""
    start_metrics()
    return _MANAGER[0].metrics.get(name)


@contextmanager
def metric_localcontext(name: str) -> Iterator[Metric]:
    """A metric that counts inside the block only.

    Raises:
        MetricNotFound: no metric has this name.
    """
    start_metrics()
    kind = _MANAGER[0].kinds.get(name)
    if kind is None:
        raise MetricNotFound(f"Metric with given name ({name}) doesn't exist.")
    metric = kind()
    try:
        yield metric
    finally:
        metric.stop()


def metrics_dump(file_name: str, format: MetricDumpFormat = MetricDumpFormat.json) -> None:
    """Writes all metrics to a file of its own."""
    start_metrics()
    saver = MetricSaver(file_name, [MetricDumpTrigger.user], format)
    saver.enable()
    _MANAGER[0].dump(MetricDumpTrigger.user, saver)
    saver.close()
