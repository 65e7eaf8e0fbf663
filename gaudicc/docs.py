"""`python -m gaudicc.docs` writes docs/passes.md and docs/errors.md from the docstrings of passes, rules and errors."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gaudicc import errors
from gaudicc.invariants import CATALOGUE, Invariant
from gaudicc.passes import STATIC, SYMBOLIC
from gaudicc.passes.legalize_ops import ALL_RULES
from gaudicc.pipeline import Pass
from gaudicc.rules.complex_pairs import RULES as COMPLEX_RULES

FOLDER = Path(__file__).resolve().parent.parent / "docs"
_WRITTEN = "<!-- written by `make docs` from docstrings; do not edit -->"


def pages() -> dict[str, str]:
    """File name in docs/ -> what it must hold."""
    return {"passes.md": passes_page(), "errors.md": errors_page()}


def passes_page() -> str:
    """Every pass of the default pipeline, the invariants they speak of, and the rules of legalisation."""
    parts = [
        "# The passes",
        _WRITTEN,
        "In the order in which they run. Each refuses what it cannot prove; none changes values beyond what it declares.",
        *_table(("", "pass", "runs", "numerics"), _order()),
    ]
    unique = {step.name: step for step in (*SYMBOLIC, *STATIC)}
    parts += [text for step in unique.values() for text in pass_entry(step)]
    parts += ["## Invariants", "What passes require, ensure and break; each is checked after every pass."]
    parts += _table(("invariant", "what holds"), ((f"`{entry.name}`", entry.summary) for entry in CATALOGUE))
    parts += ["## Rules of legalize-ops", "Tried in order; after them PyTorch's own decompositions."]
    parts += _table(("rule", "ops", "numerics", "cost"), map(_rule, ALL_RULES))
    parts += ["## Complex ops with a form on pairs of reals", ", ".join(f"`{_op(op)}`" for op in COMPLEX_RULES)]
    return _joined(parts)


def pass_entry(step: Pass) -> Iterator[str]:
    """The section of one pass: its docstring, then its declarations."""
    yield f"## {step.name}"
    for paragraph in inspect.cleandoc(type(step).__doc__ or "").split("\n\n"):
        yield from _paragraph(paragraph)
    declared = {"requires": step.requires, "ensures": step.ensures, "breaks": step.breaks}
    yield "\n".join(f"- {relation}: {_names(found)}" for relation, found in declared.items() if found)


def errors_page() -> str:
    """Every error a user can meet, by family."""
    found = [kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, errors.GaudiccError)]
    rows = ((f"`{kind.__name__}`", _kinds(kind), _summary(kind), kind.hint or "said by each message") for kind in found)
    return _joined(
        [
            "# Errors",
            _WRITTEN,
            "All are raised with three lines: what went wrong, where (the user's source line, the op, the pass), and what to do. "
            "The command line exits with 1 for them, and with 3 for an `InternalError`, which is a fault of gaudicc.",
            *_table(("error", "is a", "when", "what to do"), rows),
        ]
    )


def _order() -> Iterator[tuple[str, ...]]:
    phases = (("once, symbolic sizes", SYMBOLIC), ("per bucket, static sizes", STATIC))
    steps = [(step, phase) for phase, passes in phases for step in passes]
    for number, (step, phase) in enumerate(steps, 1):
        yield str(number), f"[{step.name}](#{step.name})", phase, step.numerics.value


def _paragraph(text: str) -> Iterator[str]:
    lines = text.splitlines()
    if all(line.startswith("    ") for line in lines):
        yield "\n".join(["```", *(line[4:] for line in lines), "```"])
    elif lines[0] == "Attributes:":
        options = re.split(r"\n(?=\w+:)", inspect.cleandoc("\n".join(lines[1:])))
        yield "Options:"
        yield "\n".join(f"- `{name}`: {_flat(said)}" for name, said in (option.split(": ", 1) for option in options))
    else:
        yield text


def _rule(rule: Any) -> tuple[str, ...]:
    return rule.name, ", ".join(f"`{_op(op)}`" for op in rule.ops), rule.numerics.value, rule.cost


def _op(op: Any) -> str:
    return str(op).removesuffix(".default")


def _names(found: Iterable[Invariant]) -> str:
    return ", ".join(sorted(f"`{invariant.name}`" for invariant in found))


def _kinds(kind: type) -> str:
    return "" if kind is errors.GaudiccError else f"`{kind.__bases__[0].__name__}`"


def _summary(kind: type) -> str:
    return _flat(inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0])


def _flat(text: str) -> str:
    return " ".join(text.split())


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    lines = [head, ("---",) * len(head), *rows]
    return ["\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)]


def _joined(parts: Iterable[str]) -> str:
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Writes the pages."""
    for name, text in pages().items():
        (FOLDER / name).write_text(text)


if __name__ == "__main__":
    main()
