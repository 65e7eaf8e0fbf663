"""Capture, mending: which names a function binds, and where each lives."""

from __future__ import annotations

import ast
import builtins
from dataclasses import dataclass, field

from gaudicc.capture import source_lines
from gaudicc.errors import DynamicControlFlowError, Where

_NEW_SCOPE = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
_BUILTIN_NAMES = frozenset(vars(builtins))
_COMPREHENSION = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


@dataclass(slots=True)
class Names:
    """The names of one function scope, in order of appearance."""

    params: list[str]
    stored: dict[str, None] = field(default_factory=dict)
    nonlocals: dict[str, None] = field(default_factory=dict)
    globals: dict[str, None] = field(default_factory=dict)
    loaded: dict[str, None] = field(default_factory=dict)

    @property
    def used(self) -> list[str]:
        """Names of outer scopes that are only read, here or in functions defined here."""
        return [name for name in self.loaded if name not in (*self.locals, *self.outer)]

    @property
    def outer(self) -> list[str]:
        """Names bound here that outlive the call."""
        return [*self.nonlocals, *self.globals]

    @property
    def locals(self) -> list[str]:
        """Parameters and local variables."""
        stored = [name for name in self.stored if name not in (*self.params, *self.outer)]
        return [*self.params, *stored]


def maybe_unbound(function: ast.FunctionDef, names: Names) -> set[str]:
    """Local variables that a statement inside a branch or loop binds first: reading one may have to raise."""
    surely = set(names.params)
    for statement in function.body:
        if isinstance(statement, (ast.If, ast.While, ast.For, ast.Try, ast.Match)):
            continue
        for child in ast.walk(statement):
            if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
                surely.add(child.id)
            elif isinstance(child, (ast.FunctionDef, ast.ClassDef)):
                surely.add(child.name)
            elif isinstance(child, ast.alias):
                surely.add(child.asname or child.name.split(".")[0])
    deleted = {
        child.id for child in ast.walk(function) if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Del)
    }
    return {name for name in names.locals if name not in surely or name in deleted}


def names_of(function: ast.FunctionDef, filename: str) -> Names:
    """The names that a function binds in its own scope.

    Args:
        function: its definition.
        filename: the file that it stands in, for errors.

    Raises:
        DynamicControlFlowError: the function is a generator or a coroutine.
    """
    arguments = function.args
    params = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    params += [extra for extra in (arguments.vararg, arguments.kwarg) if extra is not None]
    names = Names([param.arg for param in params])
    for statement in function.body:
        _collect(statement, names, filename, inside_comprehension=False)
        loaded = (
            child for child in ast.walk(statement) if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Load)
        )
        names.loaded.update(dict.fromkeys(name.id for name in loaded if name.id not in _BUILTIN_NAMES))
    return names


def _collect(node: ast.AST, names: Names, filename: str, *, inside_comprehension: bool) -> None:
    if isinstance(node, (ast.Yield, ast.YieldFrom, ast.Await, ast.AsyncFor, ast.AsyncWith)):
        raise DynamicControlFlowError(
            "a generator or coroutine decides on a tensor",
            where=Where(source=source_lines.place(filename, node.lineno)),
            hint="return a list in place of yielding",
        )
    if isinstance(node, ast.Name) and isinstance(node.ctx, (ast.Store, ast.Del)) and not inside_comprehension:
        names.stored.setdefault(node.id)
    elif isinstance(node, ast.NamedExpr):
        names.stored.setdefault(node.target.id)
    elif isinstance(node, (ast.Global, ast.Nonlocal)):
        into = names.globals if isinstance(node, ast.Global) else names.nonlocals
        into.update(dict.fromkeys(node.names))
    else:
        _collect_binding(node, names)
    if isinstance(node, _NEW_SCOPE):
        outside = [*getattr(node, "decorator_list", []), *getattr(node, "bases", [])]
        arguments = getattr(node, "args", None)
        if arguments is not None:
            outside += [*arguments.defaults, *(default for default in arguments.kw_defaults if default)]
    else:
        outside = list(ast.iter_child_nodes(node))
    inside = inside_comprehension or isinstance(node, _COMPREHENSION)
    for child in outside:
        _collect(child, names, filename, inside_comprehension=inside)


def _collect_binding(node: ast.AST, names: Names) -> None:
    """Names that statements bind without a Name node."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        names.stored.setdefault(node.name)
    elif isinstance(node, (ast.Import, ast.ImportFrom)):
        for alias in node.names:
            names.stored.setdefault(alias.asname or alias.name.split(".")[0])
    elif isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) and node.name:
        names.stored.setdefault(node.name)
    elif isinstance(node, ast.MatchMapping) and node.rest:
        names.stored.setdefault(node.rest)
