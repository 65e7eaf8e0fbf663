"""The list of public symbols as Markdown: `docs/emulator_symbols.md` is what this module prints, and a test compares them."""

from __future__ import annotations

import importlib

from gaudicc.emulator.ops import OPS
from gaudicc.emulator.surface import compile_config
from gaudicc.emulator.surface.marks import Status, status_of
from gaudicc.emulator.tree import ABSENT, MODULES, TORCH, symbols

UNHEEDED = frozenset(compile_config.SWITCHES) - {"use_eager_fallback"}
HEAD = """# Symbols of the emulated device

Made by `python -m gaudicc.emulator -m gaudicc.emulator.symbols`. *emulated*: does what it does on a Gaudi, as far as
[emulator.md](emulator.md) says; *no-op*: accepted, with the reason why nothing is changed; *refused*: raises, with the
reason. A name that is missing here raises ImportError or AttributeError. Names in lazy mode only: `hpu.graphs` within `hpu`.

Source of all names: HabanaAI/gaudi-pytorch-bridge 1.19.0, `python_packages/habana_frameworks/torch/`, the file of the
module's name; of the ops, `habana_eager/eager_custom_op_register.cpp` and `scripts/hpu_op.yaml`.
"""


def render() -> str:
    """The page."""
    lines = [HEAD, "| module | symbol | status | reason |", "|---|---|---|---|"]
    for module in sorted(MODULES):
        for name, symbol in sorted(symbols(module).items()):
            status, why = status_of(symbol)
            if module.endswith("compile_backend.config") and name in UNHEEDED:
                status, why = Status.NO_OP, "the value is kept and given back; no pass here asks for it"
            lines.append(f"| {module} | `{name}` | {status.value} | {why} |")
    lines += ["", "Modules that raise ModuleNotFoundError with the reason:", ""]
    lines += [f"- `{name}`: {why}" for name, why in sorted(ABSENT.items())]
    lines += ["", f"Everything else is below `{TORCH}`. Ops of inference with a CPU reference, `torch.ops.hpu`:", ""]
    lines += [f"- `{schema}`" for schema in sorted(OPS)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    importlib.import_module(TORCH)
    print(render(), end="")
