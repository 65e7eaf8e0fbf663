"""Bundle: symbolic sizes <-> text such as `2*s27 + floor_div(s70, 8)`; the only place that knows torch's symbols.

The grammar: integers, names of declared symbols, `+`, `*`, unary `-`, and calls of the functions named below. Text is
parsed with `ast` and rebuilt node by node; nothing is evaluated.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from typing import Any

import sympy
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._sympy import functions as torch_sympy
from torch.utils._sympy.numbers import int_oo

from gaudicc.bundle.item import Item

MAX_LENGTH = 4096
MAX_SYMBOL = 10_000
MAX_EXPONENT = 8

FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "max": torch_sympy.Max,
    "min": torch_sympy.Min,
    "floor_div": torch_sympy.FloorDiv,
    "clean_div": torch_sympy.CleanDiv,
    "ceil_to_int": torch_sympy.CeilToInt,
    "floor_to_int": torch_sympy.FloorToInt,
    "trunc_to_int": torch_sympy.TruncToInt,
    "mod": torch_sympy.Mod,
    "python_mod": torch_sympy.PythonMod,
    "to_float": torch_sympy.ToFloat,
    "true_div": torch_sympy.IntTrueDiv,
    "float_true_div": torch_sympy.FloatTrueDiv,
    "pow_by_natural": torch_sympy.PowByNatural,
    "where": torch_sympy.Where,
    "rational": sympy.Rational,
    "pow": sympy.Pow,
    "eq": sympy.Eq,
    "ne": sympy.Ne,
    "lt": sympy.Lt,
    "le": sympy.Le,
    "gt": sympy.Gt,
    "ge": sympy.Ge,
    "and_": sympy.And,
    "or_": sympy.Or,
    "not_": sympy.Not,
}
_NAMES = {function: name for name, function in FUNCTIONS.items()}
_COMMUTE = (torch_sympy.Max, torch_sympy.Min, sympy.And, sympy.Or)
_SYMBOL = re.compile(r"[su]\d{1,18}")


class SizeWriter:
    """Turns sizes into JSON and collects the symbols that they use.

    Attributes:
        symbols: symbol name -> what a reader must know of it.
    """

    def __init__(self) -> None:
        self.symbols: dict[str, dict[str, object]] = {}

    def size(self, value: object) -> int | str:
        """A size, int or truth value as JSON: a number, or text over symbols.

        Raises:
            TypeError: the expression holds what the grammar lacks.
        """
        if not isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            return int(value)  # type: ignore[call-overload, no-any-return]
        expression = value.node.expr
        for symbol in expression.free_symbols:
            self.symbols.setdefault(symbol.name, _describe(symbol, value.node.shape_env))
        return int(expression) if expression.is_Integer else _text(expression)


def _describe(symbol: sympy.Symbol, env: ShapeEnv) -> dict[str, object]:
    bounds, hint = env.var_to_range.get(symbol), _hints(env).get(symbol)
    low, high = (bounds.lower, bounds.upper) if bounds is not None else (int_oo, int_oo)
    return {
        "low": int(low) if low.is_Integer else None,
        "high": int(high) if high.is_Integer else None,
        "hint": None if hint is None else int(hint),
        "positive": symbol.is_positive is True,
        "size_like": symbol in env.size_like,
    }


def _hints(env: ShapeEnv) -> Mapping[sympy.Symbol, Any]:
    # Newer torch has it under another name, and warns about the old one.
    hints: Mapping[sympy.Symbol, Any] = vars(env).get("backed_var_to_val") or vars(env).get("var_to_val") or {}
    return hints


def _text(expression: Any) -> str:
    if isinstance(expression, sympy.Symbol):
        return str(expression.name)
    if expression.is_Integer:
        return str(int(expression))
    if isinstance(expression, sympy.Rational):
        return f"rational({expression.p}, {expression.q})"
    parts = [_text(part) for part in expression.args]
    if isinstance(expression, sympy.Add):
        return f"({' + '.join(sorted(parts))})"
    if isinstance(expression, sympy.Mul):
        return "*".join(sorted(parts))
    if name := _NAMES.get(type(expression)):
        return f"{name}({', '.join(sorted(parts) if isinstance(expression, _COMMUTE) else parts)})"
    raise TypeError(f"the size {expression} holds {type(expression).__name__}, which the grammar of sizes lacks")


class SizeReader:
    """Rebuilds sizes and fake values in a fake mode of its own.

    Args:
        symbols: the declared symbols.

    Attributes:
        mode: the fake mode.

    Raises:
        BundleError: a declaration is malformed.
    """

    def __init__(self, symbols: Item) -> None:
        self.env = ShapeEnv()
        self.mode = FakeTensorMode(shape_env=self.env, allow_non_fake_inputs=True)
        self.symbols: dict[str, sympy.Symbol] = {}
        unbacked = -1
        for name, item in symbols.entries().items():
            self._declare(name, item)
            if name.startswith("u"):
                unbacked = max(unbacked, int(name[1:]))
        if unbacked > MAX_SYMBOL:
            symbols.fail(f"u{unbacked} is beyond u{MAX_SYMBOL}")
        with self.env.ignore_fresh_unbacked_symbols():
            for _ in range(unbacked + 1):  # so that a pass which makes a new one does not meet an old name
                self.env.create_unbacked_symint()

    def _declare(self, name: str, item: Item) -> None:
        if not _SYMBOL.fullmatch(name):
            item.fail(f"{name[:80]!r} is no symbol")
        fields = item.fields(("low", "high", "hint", "positive", "size_like"))
        low, high, hint = (
            None if fields[key].value is None else fields[key].integer(-(2**63), 2**63)
            for key in ("low", "high", "hint")
        )
        assumptions = {"integer": True, **({"positive": True} if fields["positive"].boolean() else {})}
        symbol = self.symbols[name] = sympy.Symbol(name, **assumptions)
        if low is not None and high is not None and low > high:
            item.fail(f"no size is in {low} .. {high}")
        if hint is not None and not (low is None or low <= hint) & (high is None or hint <= high):
            item.fail(f"the hint {hint} is outside the range")
        if hint is not None:
            add = getattr(self.env, "add_backed_var_to_val", None) or self.env.add_var_to_val
            add(symbol, hint)
        self.env.constrain_symbol_range(
            symbol, compiler_min=-int_oo if low is None else low, compiler_max=int_oo if high is None else high
        )
        if fields["size_like"].boolean():
            self.env.size_like.add(symbol)

    def size(self, item: Item, low: int = -(2**63)) -> int | torch.SymInt:
        """A size: a number not below `low`, or an expression.

        Raises:
            BundleError: it is neither.
        """
        if not isinstance(item.value, str):
            return item.integer(low, 2**63 - 1)
        found: int | torch.SymInt = self.symbolic(item, "int")
        return found

    def symbolic(self, item: Item, kind: str) -> Any:
        """The symbolic value that a text stands for.

        Args:
            item: the text.
            kind: `int`, `float` or `bool`.

        Raises:
            BundleError: the text is not in the grammar, or its value is not defined.
        """
        text = item.text()
        if len(text) > MAX_LENGTH:
            item.fail("the size expression is too long")
        try:
            expression = self._build(ast.parse(text, mode="eval").body)
            if kind == "bool":
                return self.env.create_symboolnode(expression)
            create = self.env.create_symintnode if kind == "int" else self.env.create_symfloatnode
            return create(expression, hint=None)
        except Exception as problem:  # sympy documents no bound on what it raises on bad arguments
            item.fail(f"{text[:80]!r} is no size expression: {str(problem)[:200]}")

    def _build(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Constant) and type(node.value) is int and node.value < 2**63:
            return sympy.Integer(node.value)
        if isinstance(node, ast.Name) and node.id in self.symbols:
            return self.symbols[node.id]
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -self._build(node.operand)
        if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Mult)):
            operation = sympy.Add if isinstance(node.op, ast.Add) else sympy.Mul
            return operation(self._build(node.left), self._build(node.right))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
            return self._call(node.func.id, [self._build(arg) for arg in node.args])
        raise ValueError(f"{ast.unparse(node)[:80]} is not in the grammar")

    def _call(self, name: str, args: list[Any]) -> Any:
        if name not in FUNCTIONS:
            raise ValueError(f"there is no function {name}")
        if name.startswith("pow"):
            base, exponent = args
            if base.is_number or not exponent.is_Integer or abs(exponent) > MAX_EXPONENT:
                raise ValueError(f"a power has a symbol below and a number up to {MAX_EXPONENT} above")
        return FUNCTIONS[name](*args)
