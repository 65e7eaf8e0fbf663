"""Capture, mending: rewriting expressions so that operators and builtins dispatch on tensor or plain value."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any, TypeVar

MARK = "\0gaudicc.runtime"
"""A constant that compilation replaces by the module `gaudicc.capture.mend.runtime`."""
ACCESS = "_gaudicc_access"
_BUILTINS = frozenset((
    "int", "float", "bool", "len", "range", "enumerate", "list", "zip", "map", "sum", "any", "all", "min", "max", "abs", "round",
    "isinstance", "type", "hasattr", "getattr", "divmod",
))  # fmt: skip
_EAGER_CONSUMERS = frozenset(["list", "tuple", "set", "sum", "any", "all", "min", "max", "sorted"])
_COMPARISONS = {ast.Is: "is_", ast.IsNot: "is_not", ast.In: "contains", ast.NotIn: "contains_not"}
_OPERATORS = {
    ast.Eq: "eq", ast.NotEq: "ne", ast.Lt: "lt", ast.LtE: "le", ast.Gt: "gt", ast.GtE: "ge",
    ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "truediv", ast.FloorDiv: "floordiv", ast.Mod: "mod",
    ast.Pow: "pow", ast.MatMult: "matmul", ast.BitAnd: "and_", ast.BitOr: "or_", ast.BitXor: "xor",
    ast.LShift: "lshift", ast.RShift: "rshift",
}  # fmt: skip
_ARITHMETIC = (
    ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.BitAnd, ast.BitOr, ast.BitXor, ast.LShift, ast.RShift,
)  # fmt: skip


def load(name: str) -> ast.expr:
    """A name that is read."""
    return ast.Name(name, ast.Load())


def runtime(name: str) -> ast.expr:
    """A helper of the runtime module."""
    return ast.Attribute(ast.Constant(MARK), name, ast.Load())


Node = TypeVar("Node", bound=ast.AST)


def helper(name: str, *args: ast.expr) -> ast.Call:
    """A call of a helper of the runtime module."""
    return ast.Call(runtime(name), list(args), [])


def operator_of(node: ast.operator | ast.cmpop, prefix: str = "") -> ast.expr:
    """The function of the `operator` module for an operator node."""
    name = _OPERATORS[type(node)].rstrip("_") if prefix else _OPERATORS[type(node)]
    return ast.Attribute(runtime("operator"), prefix + name, ast.Load())


def arguments(*names: str) -> ast.arguments:
    """Plain positional parameters."""
    return ast.arguments(
        posonlyargs=[], args=[ast.arg(name) for name in names], kwonlyargs=[], kw_defaults=[], defaults=[]
    )


def at(node: ast.AST, new: Node) -> Node:
    """Give new nodes the position of the one they replace, so that errors still point at the user's line."""
    for child in ast.walk(new):
        if "lineno" in child._attributes and not hasattr(child, "lineno"):
            ast.copy_location(child, node)
    return new


class ExpressionLowering(ast.NodeTransformer):
    """Rewrites expressions; definitions that an expression needs are put into `hoisted`, before its statement."""

    def __init__(self, first_argument: str | None, access: str | None, unique: Callable[[str], str]) -> None:
        self.first_argument = first_argument
        self.access = access
        self.unique = unique
        self.hoisted: list[ast.stmt] = []
        self.unsure: set[str] = set()  # variables whose reading may have to raise

    def visit_Name(self, node: ast.Name) -> ast.expr:  # noqa: D102
        if isinstance(node.ctx, ast.Load) and node.id in self.unsure:
            return at(node, helper("bound", node))
        return node

    def define(self, function: ast.FunctionDef) -> ast.FunctionDef:
        """Rewrite a nested function; the statement lowering knows how."""
        raise NotImplementedError

    def declared(self) -> list[ast.stmt]:
        """The declarations with which a nested block shares the variables of the function."""
        raise NotImplementedError

    def _access(self) -> ast.expr:
        return load(self.access) if self.access else ast.Constant(None)

    def thunk(self, node: ast.expr, lowered: ast.expr) -> ast.expr:
        """A parameterless function that evaluates an expression later."""
        if not any(isinstance(child, ast.NamedExpr) for child in ast.walk(node)):
            return at(node, ast.Lambda(arguments(), lowered))
        name = self.unique("thunk")
        body = [*self.declared(), ast.Return(lowered)]
        self.hoisted.append(at(node, ast.FunctionDef(name, arguments(), body, [])))
        return at(node, load(name))

    def test(self, node: ast.expr) -> ast.expr:
        """Rewrite an expression whose value only decides."""
        if isinstance(node, ast.BoolOp):
            name = "all_of" if isinstance(node.op, ast.And) else "any_of"
            thunks = [self.thunk(value, self.test(value)) for value in node.values]
            return at(node, helper(name, self._access(), *thunks))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return at(node, helper("test_not", self.test(node.operand)))
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            return self._compare(node, "test_compare")
        visited: ast.expr = self.visit(node)
        return visited

    def _compare(self, node: ast.Compare, name: str) -> ast.expr:
        left, right = self.visit(node.left), self.visit(node.comparators[0])
        special = _COMPARISONS.get(type(node.ops[0]))
        if special:
            return at(node, helper(special, left, right))
        return at(node, helper(name, operator_of(node.ops[0]), left, right))

    def visit_Compare(self, node: ast.Compare) -> ast.expr:  # noqa: D102
        if len(node.ops) == 1:
            return self._compare(node, "compare")
        links: list[ast.expr] = []
        for op, operand in zip(node.ops, node.comparators, strict=True):
            special = _COMPARISONS.get(type(op))
            pair = ast.Lambda(arguments("a", "b"), helper("compare", operator_of(op), load("a"), load("b"))) if (
                not special) else runtime(special)  # fmt: skip
            links.append(ast.Tuple([pair, self.thunk(operand, self.visit(operand))], ast.Load()))
        return at(node, helper("chain", self._access(), self.visit(node.left), *links))

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.expr:  # noqa: D102
        thunks = [self.thunk(value, self.visit(value)) for value in node.values]
        return at(node, helper("and_" if isinstance(node.op, ast.And) else "or_", self._access(), *thunks))

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:  # noqa: D102
        if isinstance(node.op, ast.Not):
            return at(node, helper("not_", self.test(node.operand)))
        return self.generic_visit(node)  # type: ignore[return-value]

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:  # noqa: D102
        left, right = self.visit(node.left), self.visit(node.right)
        if isinstance(node.op, _ARITHMETIC) and not isinstance(left, ast.Constant):
            return at(node, helper("binary", operator_of(node.op), left, right))
        if isinstance(node.op, _ARITHMETIC) and not isinstance(right, ast.Constant):
            return at(node, helper("binary", operator_of(node.op), left, right))
        return at(node, ast.BinOp(left, node.op, right))

    def visit_IfExp(self, node: ast.IfExp) -> ast.expr:  # noqa: D102
        then, orelse = (self.thunk(side, self.visit(side)) for side in (node.body, node.orelse))
        return at(node, helper("ifexp", self._access(), self.test(node.test), then, orelse))

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:  # noqa: D102
        self.generic_visit(node)
        if not isinstance(node.ctx, ast.Load):
            return node
        return at(node, helper("getitem", node.value, _index(node.slice)))

    def visit_Call(self, node: ast.Call) -> ast.expr:  # noqa: D102
        function = node.func
        if isinstance(function, ast.Name) and function.id == "super" and not node.args and self.first_argument:
            node.args = [load("__class__"), load(self.first_argument)]
            return at(node, node)
        if node.args and isinstance(node.args[0], ast.GeneratorExp):
            generator = node.args[0]
            if isinstance(function, ast.Name) and function.id == "next":
                return self._first(generator, node.args[1:])
            if len(node.args) == 1 and _consumes(function):
                node.args = [ast.copy_location(ast.ListComp(generator.elt, generator.generators), generator)]
        self.generic_visit(node)
        owner, name = _well_known(function)
        if name:
            node.func = at(function, helper("function", node.func, ast.Constant(owner), ast.Constant(name)))
        elif isinstance(function, ast.Attribute) and function.attr in ("tolist", "unbind", "get", "numel"):
            node.func = at(function, helper("method", node.func))
        if isinstance(function, ast.Name) and function.id == "super":
            return node
        node.args = [node.func, *node.args]
        node.func = at(function, runtime("invoke"))
        return node

    def visit_Dict(self, node: ast.Dict) -> ast.expr:  # noqa: D102
        self.generic_visit(node)
        node.values = [
            value if key else helper("spread", value) for key, value in zip(node.keys, node.values, strict=True)
        ]
        return node

    def visit_Lambda(self, node: ast.Lambda) -> ast.expr:  # noqa: D102
        name = self.unique("lambda")
        body: list[ast.stmt] = [at(node.body, ast.Return(node.body))]
        self.hoisted.append(self.define(at(node, ast.FunctionDef(name, node.args, body, []))))
        return at(node, load(name))

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.expr:  # noqa: D102
        names, values = list[str](), list[ast.expr]()
        for part in (part for part in node.values if isinstance(part, ast.FormattedValue)):
            names.append(self.unique("part"))
            values.append(self.visit(part.value))
            part.value = load(names[-1])
            for inner in ast.walk(part.format_spec) if part.format_spec else ():
                if isinstance(inner, ast.FormattedValue):
                    inner.value = self.visit(inner.value)
        return at(node, helper("text", ast.Lambda(arguments(*names), node), *values)) if names else node

    def _comprehension(self, node: Any, start: ast.expr, add: ast.stmt) -> ast.expr:
        """A comprehension as a function with a loop: its tests then are `if` statements like any other."""
        begin = ast.Assign([ast.Name("_gaudicc_out", ast.Store())], start)
        body = [begin, *_loops(node, load("_gaudicc_items"), add), ast.Return(load("_gaudicc_out"))]
        return self._looped(node, body, self.visit(node.generators[0].iter))

    def _first(self, node: ast.GeneratorExp, default: list[ast.expr]) -> ast.expr:
        """`next` of a generator expression, as a function that returns the first item."""
        end = ast.Return(load("_gaudicc_default")) if default else ast.Raise(load("StopIteration"))
        items = ast.Call(load("_gaudicc_items"), [], [])  # an iterator that is a variable may not move in a branch
        body = [*_loops(node, items, ast.Return(node.elt)), end]
        first = ast.Lambda(arguments(), self.visit(node.generators[0].iter))
        return self._looped(node, body, first, *map(self.visit, default))

    def _looped(self, node: Any, body: list[ast.stmt], *given: ast.expr) -> ast.expr:
        """A call of a function with a body, on what the expression is over and, with a default, on that."""
        walrus = {child.target.id for child in ast.walk(node) if isinstance(child, ast.NamedExpr)}
        if walrus:
            body.insert(0, ast.Nonlocal(sorted(walrus)))
        name = self.unique("comprehension")
        params = arguments(*("_gaudicc_items", "_gaudicc_default")[: len(given)])
        self.hoisted.append(self.define(at(node, ast.FunctionDef(name, params, body, []))))
        return at(node, ast.Call(load(name), list(given), []))

    def _add(self, method: str, *values: ast.expr) -> ast.stmt:
        return ast.Expr(ast.Call(ast.Attribute(load("_gaudicc_out"), method, ast.Load()), list(values), []))

    def visit_ListComp(self, node: ast.ListComp) -> ast.expr:  # noqa: D102
        return self._comprehension(node, ast.List([], ast.Load()), self._add("append", node.elt))

    def visit_SetComp(self, node: ast.SetComp) -> ast.expr:  # noqa: D102
        return self._comprehension(node, ast.Call(load("set"), [], []), self._add("add", node.elt))

    def visit_DictComp(self, node: ast.DictComp) -> ast.expr:  # noqa: D102
        target = ast.Subscript(load("_gaudicc_out"), node.key, ast.Store())
        return self._comprehension(node, ast.Dict([], []), ast.Assign([target], node.value))

    def visit_GeneratorExp(self, node: ast.GeneratorExp) -> ast.expr:  # noqa: D102
        node.generators[0].iter = self.visit(node.generators[0].iter)  # only this runs in the function itself
        return node


def _loops(node: Any, first: ast.expr, innermost: ast.stmt) -> list[ast.stmt]:
    """The loops and tests of a comprehension around a statement; `first`: what the outermost is over."""
    body = [innermost]
    for index, generator in reversed(list(enumerate(node.generators))):
        for test in reversed(generator.ifs):
            body = [at(test, ast.If(test, body, []))]
        items = first if index == 0 else generator.iter
        body = [at(node, ast.For(generator.target, items, body, []))]
    return body


def _index(node: ast.expr) -> ast.expr:
    """A subscript as an expression that stands alone: slices become calls of `slice`."""
    if isinstance(node, ast.Slice):
        parts = [part or ast.Constant(None) for part in (node.lower, node.upper, node.step)]
        return ast.Call(runtime("slice"), parts, [])
    if isinstance(node, ast.Tuple):
        return ast.Tuple([_index(item) for item in node.elts], ast.Load())
    return node


def _well_known(function: ast.expr) -> tuple[str, str]:
    """Module and name of a builtin or function of `math`, as it is written; empty for anything else."""
    if isinstance(function, ast.Name) and function.id in _BUILTINS:
        return "builtins", function.id
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id == "math":
        return "math", function.attr
    return "", ""


def _consumes(function: ast.expr) -> bool:
    """Whether a call surely takes all items of its only argument at once."""
    if isinstance(function, ast.Name):
        return function.id in _EAGER_CONSUMERS
    return isinstance(function, ast.Attribute) and function.attr in ("stack", "cat", "join", "ModuleList")
