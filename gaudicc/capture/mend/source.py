"""Capture, mending: the syntax tree of a running function."""

from __future__ import annotations

import ast
import functools
import linecache
import sys
from collections.abc import Iterator
from types import CodeType
from typing import Any

FunctionNode = ast.FunctionDef | ast.Lambda


@functools.lru_cache(maxsize=64)
def _parse(filename: str, text: str) -> ast.Module | None:
    try:
        return ast.parse(text, filename)
    except SyntaxError:
        return None


def parsed_file(filename: str) -> ast.Module | None:
    """The syntax tree of a source file, or None where there is no source."""
    text = "".join(linecache.getlines(filename))
    return _parse(filename, text) if text else None


def _first_line(node: ast.AST) -> int:
    places: list[Any] = [node, *getattr(node, "decorator_list", [])]
    return min(int(place.lineno) for place in places)


def function_node(code: CodeType) -> FunctionNode | None:
    """The definition that `code` was compiled from, or None where its source is missing or ambiguous."""
    tree = parsed_file(code.co_filename)
    found = [node for node in ast.walk(tree) if _matches(node, code)] if tree else []
    if len(found) > 1 and sys.version_info >= (3, 11):
        found = [node for node in found if _spans(node, code)]
    return found[0] if len(found) == 1 else None  # type: ignore[return-value]


def _matches(node: ast.AST, code: CodeType) -> bool:
    if isinstance(node, ast.Lambda):
        return code.co_name == "<lambda>" and node.lineno == code.co_firstlineno
    # A plain function that is captured as a model bears the name `forward`, so the name says nothing.
    is_function = isinstance(node, ast.FunctionDef) and not code.co_name.startswith("<")
    return is_function and _first_line(node) == code.co_firstlineno


def _spans(node: ast.AST, code: CodeType) -> bool:
    """Whether the body of a lambda is exactly where the instructions of `code` are."""
    positions: Any = getattr(code, "co_positions", tuple)()  # since Python 3.11
    columns = [(line, column) for line, _, column, _ in positions if line is not None and column is not None]
    body = node.body if isinstance(node, ast.Lambda) else node
    start = (body.lineno, body.col_offset)  # type: ignore[attr-defined]
    return bool(columns) and min(position for position in columns if position[1] > 0 or position == start) == start


def nested_codes(code: CodeType) -> Iterator[CodeType]:
    """`code` and the code of every function defined in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from nested_codes(constant)
