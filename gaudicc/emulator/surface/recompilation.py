"""`habana_frameworks.torch.utils.experimental.detect_recompilation`: which module's forward compiles a graph, and why.

Source: HabanaAI/gaudi-pytorch-bridge 1.19.0, `utils/experimental/detect_recompilation.py`. Each wrapped module flushes before
and after its forward, so that what it computes is a graph of its own. Tables are plain; nothing waits, for counts are exact.
"""

from __future__ import annotations

import csv
import inspect
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader

from gaudicc.emulator.emulation import current
from gaudicc.emulator.ledger import Kind
from gaudicc.emulator.surface.core import mark_step
from gaudicc.emulator.wrapping import input_hash

__all__ = ["const_shape_dataloader", "data_dynamicity", "detect_recompilation_auto_model", "get_shape"]

_TAG = "[DETECT_RECOMPILE_AUTO]"
_NEW_INPUT = "Recompiled due to new input shape"
_SEEN_INPUT = "Already processed input shape still recompiled"
_CHILD = ". Could be due to dynamic child"


@dataclass
class _Call:
    """One call of a module in which graphs were compiled."""

    module: str
    new_input: bool
    new_output: bool

    def comment(self, calls: Iterable[_Call]) -> str:
        """Why, as far as signatures tell; `calls` are those of the same step."""
        if self.new_input:
            return _NEW_INPUT
        inner = any(not call.new_input and call.module.startswith(f"{self.module}/") for call in calls)
        shape = " and has new output shape" if self.new_output else ""
        return f"{_SEEN_INPUT}{shape}. Maybe dyn ops{_CHILD if inner else ''}"


@dataclass
class _Watch:
    """What the wrapped modules of one model have seen."""

    lines: list[str] = field(default_factory=list)
    kinds: dict[str, type[nn.Module]] = field(default_factory=dict)
    steps: list[list[_Call]] = field(default_factory=lambda: [[]])

    def wrap(self, module: nn.Module, name: str) -> None:
        """Puts the counting in front of a module's forward, and of its children's."""
        if module.__dict__.get("_dynshape_info") is self:
            return  # one module under two names is watched under the first
        self.kinds[name] = type(module)
        self.lines.append(
            f"{_TAG} Registering hooks for {name} of type {type(module)} defined in {_place(type(module))}"
        )
        module.__dict__["_dynshape_info"] = self
        module.forward = self._counting(module.forward, name, top="/" not in name)
        for child, inner in module.named_children():
            self.wrap(inner, f"{name}/{child}")

    def _counting(self, original: Callable[..., Any], name: str, *, top: bool) -> Callable[..., Any]:
        seen: tuple[set[int], set[int]] = (set(), set())

        def forward(*args: Any, **kwargs: Any) -> Any:
            mark_step()
            before = current().ledger.count(Kind.COMPILE)
            result = original(*args, **kwargs)
            mark_step()
            graphs = current().ledger.count(Kind.COMPILE) - before
            new = [
                key not in known
                for key, known in zip((input_hash((args, kwargs)), input_hash(result)), seen, strict=True)
            ]
            seen[0].add(input_hash((args, kwargs)))
            seen[1].add(input_hash(result))
            self._note(name, graphs, new)
            if top:
                self.steps.append([])
            return result

        return forward

    def _note(self, name: str, graphs: int, new: list[bool]) -> None:
        signature = "".join(
            f"Found new {which} signature " for which, is_new in zip(("input", "output"), new, strict=True) if is_new
        )
        self.lines.append(f"{_TAG}[{name}] {signature}num_graphs:{graphs} {'Recompilation!' if graphs else ''}")
        if graphs:
            self.steps[-1].append(_Call(name, *new))

    def report(self, file: str) -> None:
        """Prints two tables and writes them to `<file>_1.csv` and `<file>_2.csv`."""
        rows = [
            (
                step,
                call.module,
                call.new_input,
                call.new_output,
                self.kinds[call.module].__name__,
                _place(self.kinds[call.module]),
                call.comment(calls),
            )
            for step, calls in enumerate(self.steps)
            for call in calls
        ]
        _show(
            ("Step", "Recompiling modules", "New in", "New out", "Class", "Location", "Comment"), rows, f"{file}_1.csv"
        )
        counts = Counter(call.module for calls in self.steps for call in calls)
        _show(("Module name", "Recompile count"), counts.most_common(), f"{file}_2.csv")


def detect_recompilation_auto_model(
    model: nn.Module, mdlname: str = "Net", waittime: float = 1, csv_out: str = "out"
) -> nn.Module:
    """Watches a model for compilations.

    Args:
        model: changed in place; gets `analyse_dynamicity()`, which prints what compiled at which call of the model and why,
            and `raw_logs()`.
        mdlname: name of the model in the report.
        waittime: accepted; counts need no waiting here.
        csv_out: beginning of the names of the files that the report is written to.

    Returns:
        The model.
    """
    watch = _Watch()
    watch.wrap(model, mdlname)
    changed: Any = model
    changed.raw_logs = lambda: watch.lines
    changed.analyse_dynamicity = lambda: watch.report(csv_out)
    return model


def data_dynamicity(dl: Iterable[Any]) -> dict[Any, int]:
    """Prints how many different shapes a data loader gives.

    Returns:
        Shape, as nested tuples -> how often.
    """
    found = Counter(get_shape(batch) for batch in dl)
    _show(("Shape", "Count"), found.most_common(), None)
    print("Number of unique shapes: ", len(found))
    return dict(found)


def const_shape_dataloader(dl: Iterable[Any], maxlen: int) -> DataLoader[Any]:
    """A loader of at most `maxlen` batches of one shape: the first of which there are that many, else the most frequent."""
    by_shape: dict[Any, list[Any]] = {}
    for batch in dl:
        group = by_shape.setdefault(get_shape(batch), [])
        if len(group) == maxlen:
            break
        group.append(batch)
    else:
        group = max(by_shape.values(), key=len)
    batches: Any = group
    return DataLoader(batches, batch_size=None, collate_fn=None)


def get_shape(value: object) -> Any:
    """The shapes of the tensors in nested containers, as nested tuples; any other value as its hash."""
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, (list, tuple)):
        return tuple(get_shape(item) for item in value)
    if isinstance(value, dict):
        return tuple((get_shape(key), get_shape(item)) for key, item in value.items())
    return hash(value)


def _place(kind: type) -> str:
    module = inspect.getmodule(kind)
    return getattr(module, "__file__", None) or kind.__module__


def _show(head: tuple[str, ...], rows: Iterable[tuple[Any, ...]], file: str | None) -> None:
    table = [head, *rows]
    widths = [max(len(str(row[column])) for row in table) for column in range(len(head))]
    for row in table:
        print(" | ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if file is not None:
        with open(file, "w", encoding="utf-8", newline="") as into:
            csv.writer(into).writerows(table)
