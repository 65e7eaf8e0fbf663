"""Capture, mending: compiling a rewritten function and putting its code in place of the original, until undone."""

from __future__ import annotations

import ast
import copy
import gc
from collections.abc import Iterator
from itertools import pairwise
from types import CodeType, FunctionType
from typing import Any

from gaudicc.capture.mend import runtime
from gaudicc.capture.mend.expressions import MARK, arguments, at, load
from gaudicc.capture.mend.source import FunctionNode, function_node, nested_codes
from gaudicc.capture.mend.statements import PREFIX, lower_function


def rewritten_code(code: CodeType, qualified_name: str) -> CodeType | None:
    """The code of a function after rewriting, or None where the source is missing.

    It has the parameters, name, positions and free variables of the original, so that it fits every function object
    that the original belongs to.

    Raises:
        DynamicControlFlowError: the function is of a kind that cannot be rewritten.
    """
    node = function_node(code)
    if node is None:
        return None
    lowered = lower_function(_as_definition(copy.deepcopy(node), code.co_freevars), code.co_filename)
    lowered.name = PREFIX + "function"  # under its own name, a call of itself would not mean the global any more
    module = ast.Module([_surroundings(lowered, code, qualified_name)], [])
    compiled = compile(ast.fix_missing_locations(module), code.co_filename, "exec", dont_inherit=True)
    found = [item for item in nested_codes(compiled) if item.co_name == lowered.name and _fits(item, code)]
    return _finish(found[0], code) if found else None


def _as_definition(node: FunctionNode, free: tuple[str, ...]) -> ast.FunctionDef:
    """The function alone: defaults, decorators and annotations live on the function object, which stays."""
    if isinstance(node, ast.Lambda):
        body: list[ast.stmt] = [at(node.body, ast.Return(node.body))]
        node = at(node, ast.FunctionDef("lambda_", node.args, body, []))
    assert isinstance(node, ast.FunctionDef)
    node.decorator_list, node.returns = [], None
    node.args.defaults = [ast.copy_location(ast.Constant(None), item) for item in node.args.defaults]
    node.args.kw_defaults = [item and ast.copy_location(ast.Constant(None), item) for item in node.args.kw_defaults]
    for argument in ast.walk(node.args):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    if free:  # keep every free variable free, also those that rewriting made unused
        keep = ast.If(ast.Constant(False), [ast.Expr(load(name)) for name in free], [])
        node.body = [at(node.body[0], keep), *node.body]
    return node


def _surroundings(node: ast.FunctionDef, code: CodeType, qualified_name: str) -> ast.stmt:
    """Definitions around the function that give it its free variables and its class, as its source has them."""
    body: list[ast.stmt] = [node]
    class_name = _class_of(qualified_name)
    if class_name:
        body = [ast.ClassDef(class_name, [], [], body, [])]
        if class_name not in code.co_freevars:
            body.insert(0, ast.Global([class_name]))
    free = [name for name in code.co_freevars if name != "__class__"]
    return at(node, ast.FunctionDef(PREFIX + "around", arguments(*free), body, []))


def _class_of(qualified_name: str) -> str | None:
    parts = qualified_name.split(".")
    owners = [a for a, b in pairwise(parts) if a != "<locals>" and b != "<locals>"]
    return owners[-1] if owners else None


def _fits(new: CodeType, old: CodeType) -> bool:
    return new.co_freevars == old.co_freevars and new.co_argcount == old.co_argcount


def _finish(code: CodeType, original: CodeType) -> CodeType:
    """Put the runtime into the constants, and the user's name on the blocks for tracebacks."""

    def constant(value: Any) -> Any:
        if isinstance(value, CodeType):
            name = original.co_name if value.co_name.startswith(PREFIX) else value.co_name
            return value.replace(co_name=name, co_consts=tuple(constant(item) for item in value.co_consts))
        return runtime if isinstance(value, str) and value == MARK else value

    finished: CodeType = constant(code)
    return finished.replace(co_name=original.co_name, co_firstlineno=original.co_firstlineno)


def _with_constant(code: CodeType, old: CodeType, new: CodeType) -> CodeType:
    """`code` with a function defined in it replaced; the same object if it does not define it."""
    if code is old or code == old:
        return new
    consts = tuple(_with_constant(item, old, new) if isinstance(item, CodeType) else item for item in code.co_consts)
    changed = any(a is not b for a, b in zip(consts, code.co_consts, strict=True))
    return code.replace(co_consts=consts) if changed else code


def _functions() -> Iterator[FunctionType]:
    return (item for item in gc.get_objects() if type(item) is FunctionType)


class Swaps:
    """The functions whose code is replaced during one capture."""

    def __init__(self) -> None:
        self._originals: list[tuple[FunctionType, CodeType]] = []
        self._new: set[CodeType] = set()

    def is_rewritten(self, code: CodeType) -> bool:
        """Whether code that runs is already the result of a rewrite."""
        return code in self._new

    def replace(self, old: CodeType, new: CodeType) -> None:
        """Swap the code of every function that has `old`, or that defines a function that has it."""
        self._new.update(nested_codes(new))
        for function in _functions():
            code = function.__code__
            if code.co_filename == old.co_filename and (patched := _with_constant(code, old, new)) is not code:
                self._originals.append((function, code))
                function.__code__ = patched

    def undo(self) -> None:
        """Give every function its own code back."""
        while self._originals:
            function, code = self._originals.pop()
            function.__code__ = code
