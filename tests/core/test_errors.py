"""Errors: three lines each, every class has a use and a test, and nothing else is raised at the user."""

from __future__ import annotations

import ast
import inspect
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from gaudicc import errors
from gaudicc.errors import GaudiccError, InputError, ShapeError, Where

TOP = Path(__file__).parents[2]
CLASSES = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, GaudiccError)]


def sources(*folders: str) -> Iterator[tuple[Path, ast.Module]]:
    """Every Python file under the folders once; the links inside the package are left out."""
    for folder in folders:
        for path in sorted((TOP / folder).rglob("*.py")):
            if not any(parent.is_symlink() for parent in path.parents):
                yield path, ast.parse(path.read_text())


def caught_or_imported(tree: ast.Module) -> set[int]:
    """The ids of names that stand in `except` clauses and annotations, where an error is not raised."""
    skipped: set[int] = set()
    for node in ast.walk(tree):
        parts: list[ast.AST | None] = []
        if isinstance(node, ast.ExceptHandler):
            parts = [node.type]
        elif isinstance(node, ast.FunctionDef):
            parts = [node.returns, *(arg.annotation for arg in node.args.args)]
        elif isinstance(node, ast.ClassDef):
            parts = list(node.bases)
        skipped |= {id(name) for part in parts if part is not None for name in ast.walk(part)}
    return skipped


@pytest.fixture(scope="module")
def used() -> set[str]:
    """Names of error classes that the program raises, or hands to something that does."""
    names: set[str] = set()
    for path, tree in sources("gaudicc", "passes", "models"):
        if path.name != "errors.py":
            skipped = caught_or_imported(tree)
            names |= {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and id(n) not in skipped}
    return names


@pytest.fixture(scope="module")
def tested() -> set[str]:
    """Words that a test uses in code or looks for in a text, this file aside."""
    words: set[str] = set()
    for path, tree in sources("tests"):
        if path != Path(__file__):
            for node in ast.walk(tree):
                if isinstance(node, ast.Name):
                    words.add(node.id)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    words.update(re.findall(r"\w+Error", node.value))
    return words


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_class_is_raised_somewhere_and_tested(kind: type[GaudiccError], used: set[str], tested: set[str]) -> None:
    assert kind.__doc__
    if kind is not GaudiccError:
        assert kind.__name__ in used, f"nothing raises {kind.__name__}"
    assert kind.__name__ in tested, f"no test names {kind.__name__}"


def test_an_error_is_what_where_and_what_to_do() -> None:
    place = Where(source="model.py:3", op="aten.svd", module="layers.0", stage="legalize-ops")
    error = InputError("it is wrong", where=place, hint="mend it")
    assert str(error).splitlines() == [
        "it is wrong",
        "  where: model.py:3, aten.svd, in layers.0, during legalize-ops",
        "  to do: mend it",
    ]
    assert (error.what, error.where, error.todo) == ("it is wrong", place, "mend it")


def test_lines_without_content_are_left_out() -> None:
    assert str(ShapeError("too long")) == "too long"
    assert str(errors.GradError("x requires grad")).splitlines()[1].startswith("  to do: ")
    assert str(errors.GradError("x requires grad", hint="")) == "x requires grad"
    assert str(Where()) == ""
    assert str(Where(stage="capture")) == "during capture"


def test_the_tree_of_classes_lets_callers_catch_by_kind() -> None:
    assert issubclass(errors.BucketMissError, ShapeError)
    assert issubclass(errors.TrainingModeError, errors.CaptureError)
    assert issubclass(errors.NumericsError, errors.PipelineError)
    assert not issubclass(errors.InternalError, errors.CaptureError)


def test_errors_cross_processes() -> None:
    error = InputError("it is wrong", where=Where(source="model.py:3"), hint="mend it")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)
