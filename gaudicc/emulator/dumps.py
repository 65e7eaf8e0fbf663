"""Writes metrics to a file, at the triggers and in the form that the environment asks for.

Source of names and forms: HabanaAI/gaudi-pytorch-bridge 1.19.0, `hpu/metrics/saver.py`.
"""

from __future__ import annotations

import itertools
import json
import os
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import IO, Any

Stats = list[tuple[str, Any]]


class MetricDumpFormat(str, Enum):
    """The form of the file."""

    json = "json"
    text = "text"


class MetricDumpTrigger(str, Enum):
    """What makes an entry."""

    process_exit = "process_exit"
    mark_step = "mark_step"
    metric_change = "metric_change"
    user = "user"


class MetricSaver:
    """Writes entries to a file that it makes at the first one, never over another file.

    Args:
        file_name: the file, or "" for none; the rank of the process is put before its extension.
        triggers: what makes an entry.
        format: json or text.
    """

    def __init__(self, file_name: str, triggers: list[MetricDumpTrigger], format: MetricDumpFormat) -> None:
        self._name, self._triggers, self._format = file_name, triggers, format
        self._file: IO[str] | None = None
        self._enabled = False

    @classmethod
    def from_environment(cls) -> MetricSaver:
        """With `PT_HPU_METRICS_FILE`, `PT_HPU_METRICS_FILE_FORMAT` and `PT_HPU_METRICS_DUMP_TRIGGERS`."""
        triggers = os.environ.get("PT_HPU_METRICS_DUMP_TRIGGERS", "process_exit").split(",")
        return cls(
            os.environ.get("PT_HPU_METRICS_FILE", ""),
            [MetricDumpTrigger[trigger] for trigger in triggers],
            MetricDumpFormat[os.environ.get("PT_HPU_METRICS_FILE_FORMAT", "json")],
        )

    def enable(self) -> None:
        """Entries are written from now on: a process that never uses the device leaves no file."""
        self._enabled = True

    def changed(self, timestamp: datetime, name: str, stats: Stats) -> None:
        """A metric has changed."""
        self._write(MetricDumpTrigger.metric_change, name, stats, timestamp)

    def dump(self, trigger: MetricDumpTrigger, metrics: list[tuple[str, Stats]]) -> None:
        """Write all metrics, if the trigger is one of ours."""
        for name, stats in metrics:
            self._write(trigger, name, stats, datetime.now())

    def close(self) -> None:
        """End the file."""
        if self._file is not None:
            if self._format is MetricDumpFormat.json:
                self._file.write("]\n")
            self._file.close()
            self._file = None

    def _write(self, trigger: MetricDumpTrigger, name: str, stats: Stats, timestamp: datetime) -> None:
        if not (self._name and self._enabled and trigger in self._triggers):
            return
        new = self._file is None
        file = self._file = self._file or _unused(_with_rank(self._name))
        if self._format is MetricDumpFormat.json:
            entry = {
                "metric_name": name,
                "triggered_by": trigger.value,
                "generated_on": timestamp.isoformat(),
                "statistics": dict(stats),
            }
            file.write(("[" if new else ",\n") + json.dumps(entry))
        else:
            file.write(f"Metric name: {name}\nTriggered by: {trigger.value}\nGenerated on: {timestamp}\nStatistics:\n")
            file.writelines(f"\t{key}: {value}\n" for key, value in stats)
            file.write("\n")
        file.flush()


def _with_rank(name: str) -> str:
    rank = next((os.environ[key] for key in ("RANK", "OMPI_COMM_WORLD_RANK") if key in os.environ), None)
    path = Path(name)
    return name if rank is None else str(path.with_name(f"{path.stem}-rank{rank}{path.suffix}"))


def _unused(name: str) -> IO[str]:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count():
        try:
            return open(f"{name}.{number}" if number else name, "x", encoding="utf-8")
        except FileExistsError:
            continue
    raise AssertionError
