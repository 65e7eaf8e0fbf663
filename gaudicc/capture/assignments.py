"""Capture: buffers that forward assigns anew, as `self.count = self.count + 1`.

torch.export turns such an assignment into an update of the buffer if it is one of the root module's own; in a submodule
it drops it without a word, and every call would start from the first value. Those are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.nn.modules.module import register_module_buffer_registration_hook

from gaudicc.capture.source_lines import running_line
from gaudicc.errors import UnsupportedInputError, Where

Assigned = dict[str, str | None]
"""Path of a submodule's buffer -> the line that assigned it last."""


@contextmanager
def assigned_buffers(model: nn.Module) -> Iterator[Assigned]:
    """Notes which buffers of submodules are assigned anew while a model is being exported."""
    paths = {id(module): path for path, module in model.named_modules() if path}
    assigned: Assigned = {}

    def note(module: nn.Module, name: str, buffer: Any) -> None:
        # A `.to()` that has nothing to do gives the buffer itself.
        if id(module) in paths and name in module._buffers and module._buffers[name] is not buffer:
            assigned[f"{paths[id(module)]}.{name}"] = running_line()

    handle = register_module_buffer_registration_hook(note)
    try:
        yield assigned
    finally:
        handle.remove()


def refuse_lost(exported: ExportedProgram, assigned: Assigned) -> None:
    """Refuses a program that reads what an earlier call would have assigned.

    A buffer that is always assigned before it is read is no state: nothing is lost then.

    Raises:
        UnsupportedInputError: names the buffer, and the line that assigns it.
    """
    used = {node.name for node in exported.graph.nodes if node.op == "placeholder" and node.users}
    for spec in exported.graph_signature.input_specs:
        if spec.kind is InputKind.BUFFER and spec.target in assigned and spec.arg.name in used:
            raise UnsupportedInputError(
                f"the buffer {spec.target} is assigned anew in a submodule, and torch.export would lose the new value",
                where=Where(source=assigned[spec.target], stage="capture"),
                hint=f"write into it: self.{spec.target.rpartition('.')[2]}.copy_(...)",
            )
