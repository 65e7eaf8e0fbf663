"""Capture, mending: `match` statements as `if` statements, which can be decided by data."""

from __future__ import annotations

import ast

from gaudicc.capture.mend.expressions import at, load


def as_ifs(node: ast.Match, subject: str) -> ast.stmt | None:
    """The statement as a chain of `if`, over a variable that holds its subject; None if a pattern takes things apart.

    Args:
        node: the statement.
        subject: the name of the variable.
    """
    chain: list[ast.stmt] = []
    for case in reversed(node.cases):
        test = _test(case.pattern, subject)
        if test is None:
            return None
        if case.guard is not None:
            test = ast.BoolOp(ast.And(), [test, case.guard])
        chain = [at(case.pattern, ast.If(test, case.body, chain))]
    return chain[0]


def _test(pattern: ast.pattern, subject: str) -> ast.expr | None:
    if isinstance(pattern, ast.MatchValue):
        return ast.Compare(load(subject), [ast.Eq()], [pattern.value])
    if isinstance(pattern, ast.MatchSingleton):
        return ast.Compare(load(subject), [ast.Is()], [ast.Constant(pattern.value)])
    if isinstance(pattern, ast.MatchAs) and pattern.pattern is None and pattern.name is None:
        return ast.Constant(value=True)
    if isinstance(pattern, ast.MatchOr):
        tests = [_test(part, subject) for part in pattern.patterns]
        known = [test for test in tests if test is not None]
        return ast.BoolOp(ast.Or(), known) if len(known) == len(tests) else None
    return None
