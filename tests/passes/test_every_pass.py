"""A pass is four things: a file, a line in `passes/__init__.py`, a test file and an entry in docs/passes.md. They agree."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from gaudicc import docs
from gaudicc.passes import DEFAULT_PIPELINE
from gaudicc.pipeline import Numerics, Pass

ROOT = Path(__file__).resolve().parents[2]
FILES = {path.stem for path in (ROOT / "passes").glob("*.py")} - {"__init__"}
TESTS = {path.stem.removeprefix("test_") for path in (ROOT / "tests" / "passes").glob("test_*.py")} - {"every_pass"}
PAGE = (ROOT / "docs" / "passes.md").read_text()


def kebab(stem: str) -> str:
    return stem.replace("_", "-")


def camel(stem: str) -> str:
    return "".join(word.capitalize() for word in stem.split("_"))


def disagreements(files: Iterable[str], pipeline: Iterable[Pass], tests: Iterable[str], page: str) -> list[str]:
    """What one of the four has and another lacks."""
    stems = {step.name.replace("-", "_") for step in pipeline}
    entries = {name.replace("-", "_") for name in re.findall(r"^## ([a-z-]+)$", page, re.MULTILINE)}
    found = [f"passes/{stem}.py is missing" for stem in {*stems, *tests} - set(files)]
    for stem in files:
        found += [f"{stem} has no line in passes/__init__.py"] if stem not in stems else []
        found += [f"tests/passes/test_{stem}.py is missing"] if stem not in tests else []
        found += [f"docs/passes.md has no entry {kebab(stem)}: run `make docs`"] if stem not in entries else []
    return found


def test_the_four_agree() -> None:
    assert disagreements(FILES, DEFAULT_PIPELINE, TESTS, PAGE) == []


def test_what_is_missing_is_named() -> None:
    files = {step.name.replace("-", "_") for step in DEFAULT_PIPELINE}
    page = docs.passes_page()
    lacking = [step for step in DEFAULT_PIPELINE if step.name != "pad"]
    assert disagreements(files, DEFAULT_PIPELINE, files, page) == []
    assert disagreements(files, lacking, files, page) == ["pad has no line in passes/__init__.py"]
    assert disagreements(files, DEFAULT_PIPELINE, files - {"pad"}, page) == ["tests/passes/test_pad.py is missing"]
    assert disagreements(files - {"pad"}, DEFAULT_PIPELINE, files, page) == ["passes/pad.py is missing"]
    without = page.replace("## pad\n", "")
    assert disagreements(files, DEFAULT_PIPELINE, files, without) == [
        "docs/passes.md has no entry pad: run `make docs`"
    ]


@pytest.mark.parametrize("stem", sorted(FILES))
def test_file_class_and_name_are_one_word(stem: str) -> None:
    module = import_module(f"gaudicc.passes.{stem}")
    kind: Any = getattr(module, camel(stem))
    assert kind.name == kebab(stem)
    assert isinstance(kind(), Pass), "all options have defaults"
    assert isinstance(kind.numerics, Numerics)
    assert (module.__doc__ or "").startswith(f"{kind.name}: ")
    assert dataclasses.is_dataclass(kind)
    public = [
        node.name for node in ast.parse(inspect.getsource(module)).body
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_")
    ]  # fmt: skip
    assert public == [camel(stem)], "one pass a file"
    assert f'"{camel(stem)}"' in (ROOT / "passes" / "__init__.py").read_text(), "it is exported"


@pytest.mark.parametrize("stem", sorted(FILES))
def test_the_docstring_says_what_why_how_and_what_not(stem: str) -> None:
    kind = getattr(import_module(f"gaudicc.passes.{stem}"), camel(stem))
    what, why, change, refuses, *rest = inspect.cleandoc(kind.__doc__).split("\n\n")
    assert re.fullmatch(r"[A-Z]\w+s\b.*\.", what, re.DOTALL), "one sentence that begins with a verb"
    assert "\n" not in what
    assert re.search(r"Gaudi|gaudi\d|MME|TPC|hpu::", why), "why Gaudi needs it"
    assert "->" in change
    assert all(line.startswith("    ") for line in change.splitlines()), "before -> after, as code"
    assert refuses.startswith("Refuses ")
    options = [entry.name for entry in dataclasses.fields(kind)]
    documented = re.findall(r"^    (\w+): ", rest[0], re.MULTILINE) if rest else []
    assert documented == options
    assert len(rest) == bool(options)


@pytest.mark.parametrize("name", docs.pages())
def test_generated_pages_are_not_stale(name: str) -> None:
    assert (docs.FOLDER / name).read_text() == docs.pages()[name], "run `make docs`"


def test_main_writes_the_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docs, "FOLDER", tmp_path)
    docs.main()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == docs.pages()


def test_the_errors_page_has_every_error_with_its_hint() -> None:
    from gaudicc import errors

    page = docs.errors_page()
    kinds = [kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, errors.GaudiccError)]
    assert len(kinds) > 20
    for kind in kinds:
        assert f"| `{kind.__name__}` |" in page
        assert kind.hint in page
