"""Capture, mending: rewriting a function so that its statements dispatch on tensor or plain value at run time.

`if`, `while` and `for` become calls of the runtime with their blocks as nested functions that share the function's
variables. A block returns how it ended (None, or a signal of the runtime), so early exits need no flags:

    if x.sum() > 0:            def then(): nonlocal y; y = f(x)
        y = f(x)         ->    ending = runtime.if_(compare(gt, x.sum(), 0), then, None, access)
                               if ending is not None: return ending
"""

from __future__ import annotations

import ast
import itertools
from typing import Any

from gaudicc.capture.mend.expressions import (
    ACCESS,
    ExpressionLowering,
    arguments,
    at,
    helper,
    load,
    operator_of,
    runtime,
)
from gaudicc.capture.mend.matching import as_ifs
from gaudicc.capture.mend.names import Names, maybe_unbound, names_of

PREFIX = "_gaudicc_"


def _store(name: str) -> ast.expr:
    return ast.Name(name, ast.Store())


def _assign(name: str, value: ast.expr) -> ast.stmt:
    return ast.Assign([_store(name)], value)


def _not_none(name: str) -> ast.expr:
    return ast.Compare(load(name), [ast.IsNot()], [ast.Constant(None)])


def lower_function(
    node: ast.FunctionDef, filename: str, counter: itertools.count[int] | None = None
) -> ast.FunctionDef:
    """Rewrite a function and everything defined in it.

    Args:
        node: its definition.
        filename: the file that it stands in, for errors.
        counter: numbers the names that rewriting adds.

    Raises:
        DynamicControlFlowError: the function is a generator or a coroutine.
    """
    return StatementLowering(names_of(node, filename), filename, counter or itertools.count()).function(node)


class StatementLowering(ExpressionLowering):
    """Rewrites the statements of one function."""

    def __init__(self, names: Names, filename: str, counter: itertools.count[int]) -> None:
        self._names, self._filename, self._counter = names, filename, counter
        first = names.params[0] if names.params else None
        super().__init__(first, ACCESS, lambda kind: f"{PREFIX}{kind}_{next(counter)}")

    def function(self, node: ast.FunctionDef) -> ast.FunctionDef:
        """The rewritten function: same name and parameters, the body run by the runtime."""
        names = self._names
        self.unsure = maybe_unbound(node, names)
        local = [name for name in names.locals if name not in names.params]
        body: list[ast.stmt] = [*self._shared(own=True)]
        body += [_assign(name, helper("undefined_local", ast.Constant(name))) for name in local]
        body += self._access_definition()
        block = self.block_function("body", node.body, [])
        body += [block, ast.Return(helper("call", load(block.name), load(ACCESS)))]
        return at(node, ast.FunctionDef(node.name, node.args, body, node.decorator_list))

    def _shared(self, *, own: bool = False) -> list[ast.stmt]:
        outside = list(self._names.nonlocals)
        inner = outside if own else [*self._names.locals, *outside]
        declared: list[ast.stmt] = [ast.Nonlocal(inner)] if inner else []
        return declared + ([ast.Global(list(self._names.globals))] if self._names.globals else [])

    def declared(self) -> list[ast.stmt]:
        """The declarations with which a nested block shares the variables of the function."""
        return self._shared()

    def _access_definition(self) -> list[ast.stmt]:
        outer, local = self._names.outer, self._names.locals
        # a name of an outer scope may be unbound still
        reads: list[ast.expr] = [
            helper("read_name", ast.Lambda(arguments(), load(name)), ast.Constant(name)) for name in outer
        ]
        reads += [load(name) for name in local]
        targets = ast.Tuple([_store(name) for name in [*outer, *local]], ast.Store())
        write: list[ast.stmt] = [ast.Assign([targets], load(PREFIX + "new"))] if targets.elts else [ast.Pass()]
        read_name, write_name, reach_name = PREFIX + "read", PREFIX + "write", PREFIX + "reach"
        reached: list[ast.expr] = [
            helper("read_name", ast.Lambda(arguments(), load(name)), ast.Constant(name)) for name in self._names.used
        ]
        counts = [ast.Constant(len(outer)), ast.Constant(len(self._names.params))]
        return [
            ast.FunctionDef(read_name, arguments(), [ast.Return(ast.Tuple(reads, ast.Load()))], []),
            ast.FunctionDef(write_name, arguments(PREFIX + "new"), [*self._shared(), *write], []),
            ast.FunctionDef(reach_name, arguments(), [ast.Return(ast.Tuple(reached, ast.Load()))], []),
            _assign(ACCESS, helper("Access", load(read_name), load(write_name), *counts, load(reach_name))),
        ]

    def define(self, function: ast.FunctionDef) -> ast.FunctionDef:
        """Rewrite a function defined in this one."""
        return lower_function(function, self._filename, self._counter)

    def block_function(
        self, kind: str, statements: list[ast.stmt], before: list[ast.stmt], *params: str
    ) -> ast.FunctionDef:
        """A block of statements as a nested function that returns how it ended."""
        body = [*self._shared(), *before, *self.block(statements)] or [ast.Pass()]
        return ast.FunctionDef(self.unique(kind), arguments(*params), body, [])

    def block(self, statements: list[ast.stmt]) -> list[ast.stmt]:
        """Rewrite a sequence of statements."""
        lowered: list[ast.stmt] = []
        for statement in statements:
            outside, self.hoisted = self.hoisted, []
            new = self.visit(statement)
            new = new if isinstance(new, list) else [new]
            lowered += [at(statement, item) for item in (*self.hoisted, *new)]
            self.hoisted = outside
        return lowered

    def _optional_block(self, kind: str, statements: list[ast.stmt]) -> tuple[list[ast.stmt], ast.expr]:
        if not statements:
            return [], ast.Constant(None)
        function = self.block_function(kind, statements, [])
        return [function], load(function.name)

    def _run(self, call: ast.expr) -> list[ast.stmt]:
        name = self.unique("ending")
        return [_assign(name, call), ast.If(_not_none(name), [ast.Return(load(name))], [])]

    def visit_If(self, node: ast.If) -> list[ast.stmt]:  # noqa: D102
        test = self.test(node.test)
        hoisted, self.hoisted = self.hoisted, []
        then, run_then = self._optional_block("then", node.body)
        orelse, run_else = self._optional_block("else", node.orelse)
        return [
            *hoisted,
            *then,
            *orelse,
            *self._run(at(node.test, helper("if_", test, run_then, run_else, load(ACCESS)))),
        ]

    def visit_Assert(self, node: ast.Assert) -> list[ast.stmt]:  # noqa: D102
        error: ast.expr = load("AssertionError")
        if node.msg is not None:
            error = ast.Call(error, [node.msg], [])
        failed = at(node, ast.Raise(error))
        return self.visit_If(at(node, ast.If(ast.UnaryOp(ast.Not(), node.test), [failed], [])))

    def visit_While(self, node: ast.While) -> list[ast.stmt]:  # noqa: D102
        outside, self.hoisted = self.hoisted, []
        lowered = self.test(node.test)
        name = self.unique("test")
        test = ast.FunctionDef(name, arguments(), [*self._shared(), *self.hoisted, ast.Return(lowered)], [])
        self.hoisted = outside
        body = self.block_function("loop", node.body, [])
        orelse, run_else = self._optional_block("else", node.orelse)
        call = helper("while_", load(name), load(body.name), run_else, load(ACCESS))
        return [at(node.test, test), body, *orelse, *self._run(at(node.test, call))]

    def visit_For(self, node: ast.For) -> list[ast.stmt]:  # noqa: D102
        items = self.visit(node.iter)
        hoisted, self.hoisted = self.hoisted, []
        item = PREFIX + "item"
        bind = at(node.target, ast.Assign([node.target], load(item)))
        body = self.block_function("loop", node.body, [bind], item)
        orelse, run_else = self._optional_block("else", node.orelse)
        call = helper("for_", items, load(body.name), run_else, load(ACCESS))
        return [*hoisted, body, *orelse, *self._run(at(node.iter, call))]

    def visit_Return(self, node: ast.Return) -> ast.stmt:  # noqa: D102
        value = self.visit(node.value) if node.value else ast.Constant(None)
        return ast.Return(helper("Return", value))

    def visit_Break(self, node: ast.Break) -> ast.stmt:  # noqa: D102
        return ast.Return(ast.Attribute(runtime("Signal"), "BREAK", ast.Load()))

    def visit_Continue(self, node: ast.Continue) -> ast.stmt:  # noqa: D102
        return ast.Return(ast.Attribute(runtime("Signal"), "CONTINUE", ast.Load()))

    def visit_Global(self, node: ast.Global) -> ast.stmt:  # noqa: D102
        return ast.Pass()

    def visit_Nonlocal(self, node: ast.Nonlocal) -> ast.stmt:  # noqa: D102
        return ast.Pass()

    def visit_AnnAssign(self, node: ast.AnnAssign) -> Any:  # noqa: D102
        if node.value is None:
            return ast.Pass()
        return self.visit(at(node, ast.Assign([node.target], node.value)))

    def visit_Assign(self, node: ast.Assign) -> Any:  # noqa: D102
        node.value = self.visit(node.value)
        target = node.targets[0]
        if len(node.targets) == 1 and isinstance(target, ast.Subscript) and not isinstance(target.slice, ast.Slice):
            return ast.Expr(helper("store", node.value, self.visit(target.value), self._subscript(target)))
        node.targets = [self.visit(item) for item in node.targets]
        if any(isinstance(item, (ast.Tuple, ast.List)) for item in node.targets):
            node.value = helper("unpack", node.value)
        return node

    def _subscript(self, target: ast.Subscript) -> ast.expr:
        """The index of a subscript as an expression of its own."""
        read = ast.copy_location(ast.Subscript(load("_"), target.slice, ast.Load()), target)
        call: ast.Call = self.visit(read)
        return call.args[1]

    def visit_AugAssign(self, node: ast.AugAssign) -> list[ast.stmt]:  # noqa: D102
        target, before = node.target, list[ast.stmt]()
        value = self.visit(node.value)
        function = operator_of(node.op, "i")
        if isinstance(target, ast.Name):
            return [_assign(target.id, helper("inplace", function, load(target.id), value))]
        owner = self.unique("owner")
        before.append(_assign(owner, self.visit(target.value)))
        if isinstance(target, ast.Attribute):
            old: ast.expr = ast.Attribute(load(owner), target.attr, ast.Load())
            new = ast.Attribute(load(owner), target.attr, ast.Store())
            return [*before, ast.Assign([new], helper("inplace", function, old, value))]
        index = self.unique("index")
        before.append(_assign(index, self._subscript(target)))
        old = helper("getitem", load(owner), load(index))
        changed = helper("inplace", function, old, value)
        return [*before, ast.Expr(helper("store", changed, load(owner), load(index)))]

    def visit_Delete(self, node: ast.Delete) -> list[ast.stmt]:  # noqa: D102
        statements: list[ast.stmt] = []
        for target in node.targets:
            if isinstance(target, ast.Name):
                statements.append(_assign(target.id, helper("undefined_local", ast.Constant(target.id))))
            elif isinstance(target, ast.Subscript):
                statements.append(ast.Expr(helper("delete", self.visit(target.value), self._subscript(target))))
            elif isinstance(target, ast.Attribute):
                name = ast.Constant(target.attr)
                statements.append(ast.Expr(helper("delete_attribute", self.visit(target.value), name)))
            else:
                statements.append(ast.Delete([self.visit(target)]))
        return statements

    def visit_With(self, node: ast.With) -> ast.stmt:  # noqa: D102
        for item in node.items:
            item.context_expr = helper("manager", self.visit(item.context_expr))
        node.body = self.block(node.body)
        return node

    def visit_Try(self, node: ast.Try) -> Any:  # noqa: D102
        if node.finalbody:
            inner: list[ast.stmt] = node.body
            if node.handlers:
                inner = [at(node, ast.Try(node.body, node.handlers, node.orelse, []))]
            body, last = (
                self.block_function(kind, part, []) for kind, part in (("try", inner), ("finally", node.finalbody))
            )
            return [body, last, *self._run(helper("finally_", load(body.name), load(last.name), load(ACCESS)))]
        for handler in node.handlers:
            lowered = self.block(handler.body)
            if handler.name:  # Python unbinds the name afterwards, which no shared variable survives
                kept, handler.name = handler.name, self.unique("error")
                lowered.insert(0, at(handler, _assign(kept, load(handler.name))))
            handler.body = lowered
        node.body, node.orelse = self.block(node.body), self.block(node.orelse)
        return node

    def visit_Match(self, node: ast.Match) -> Any:  # noqa: D102
        subject = self.unique("subject")
        if (plain := as_ifs(node, subject)) is not None:
            return [_assign(subject, self.visit(node.subject)), *self.block([plain])]
        node.subject = self.visit(node.subject)
        for case in node.cases:
            case.guard = self.visit(case.guard) if case.guard else None
            case.body = self.block(case.body)
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.stmt:  # noqa: D102
        node.decorator_list = [self.visit(item) for item in node.decorator_list]
        node.args.defaults = [self.visit(item) for item in node.args.defaults]
        node.args.kw_defaults = [self.visit(item) if item else None for item in node.args.kw_defaults]
        return self.define(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.stmt:  # noqa: D102
        node.body = [self.define(item) if isinstance(item, ast.FunctionDef) else item for item in node.body]
        return node
