"""Bundle: the texts that the host computes with at each call (guards, sizes of padded outputs), checked at reading.

Who checks a guard or slices an output may evaluate its text, so what is not arithmetic on sizes stops here.
"""

from __future__ import annotations

import ast

from gaudicc.bundle.item import Item

MAX_LENGTH = 4096

_SIZE_NODES = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.Name, ast.Constant, ast.Load, ast.Call,
    ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Mod, ast.USub,
)  # fmt: skip
_GUARD_NODES = (*_SIZE_NODES, ast.Compare, ast.BoolOp, ast.Attribute, ast.Subscript, ast.cmpop, ast.boolop, ast.Not)


def guard_text(item: Item) -> str:
    """A comparison of sizes such as `x.shape[0] <= 16`.

    Raises:
        BundleError: it is more than that.
    """
    return _checked(item, _GUARD_NODES, "guard")


def size_text(item: Item) -> str:
    """Arithmetic on names of dimensions such as `2 * sequence + 1`.

    Raises:
        BundleError: it is more than that.
    """
    return _checked(item, _SIZE_NODES, "size")


def _checked(item: Item, allowed: tuple[type[ast.AST], ...], what: str) -> str:
    text = item.text()
    if len(text) > MAX_LENGTH:
        item.fail(f"the {what} is too long")
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as problem:
        item.fail(f"{text[:80]!r} is no {what}: {problem}")
    if not all(isinstance(node, allowed) and _harmless(node) for node in nodes):
        item.fail(f"{text[:80]!r} is no {what}: it holds more than arithmetic on sizes")
    return text


def _harmless(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in ("min", "max") and not node.keywords
    if isinstance(node, ast.Attribute):
        return node.attr == "shape"
    return not isinstance(node, ast.Constant) or isinstance(node.value, (int, str))
