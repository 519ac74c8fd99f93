"""Mutants of a module: copies of its source with one small fault each, at the places of its syntax tree."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import attrs

_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
_OUR_FAULTS = {"LookupError", "TypeError", "AssertionError", "RuntimeError"}  # raised only if this program is wrong
_UNTESTED_CALLS = {"debug", "info", "warning", "checkpoint"}  # log lines, and pauses of long loops


@attrs.frozen
class Mutant:
    """A module's source with one fault; `description` says in one line what was changed."""

    line: int
    lines: range  # from the start of the statement to the end of what was changed: a test that runs none cannot notice
    description: str
    source: str


def mutants_of(source: str) -> list[Mutant]:
    """Return the mutants of a module in the order of its lines; each parses, and differs from the source."""
    found = []
    for statement, node, text in sorted(_changes(ast.parse(source)), key=lambda change: change[1].lineno):
        lines = range(statement.lineno, (node.end_lineno or node.lineno) + 1)
        description = f"{_shortened(ast.unparse(node))}  ->  {_shortened(text)}"
        found.append(Mutant(node.lineno, lines, description, _spliced(source, node, text)))
    return found


_Change = tuple[ast.stmt, ast.stmt | ast.expr, str]  # a statement, the part of it to replace, and the text for it


def _changes(tree: ast.AST) -> Iterator[_Change]:
    """Yield what can be changed in the functions of a module."""
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for statement in function.body:
                yield from _changes_below(statement, statement)


def _changes_below(node: ast.AST, statement: ast.stmt) -> Iterator[_Change]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return  # it has its own turn
    if isinstance(node, ast.stmt):
        statement = node
        yield from ((statement, node, text) for text in _statements_for(node))
    if isinstance(node, ast.expr):
        yield from ((statement, node, f"({text})") for text in _expressions_for(node))
    if isinstance(node, ast.JoinedStr):
        return  # a text for people
    for name, value in ast.iter_fields(node):
        if name not in ("annotation", "returns"):
            for each in value if isinstance(value, list) else [value]:
                if isinstance(each, ast.AST):
                    yield from _changes_below(each, statement)


def _statements_for(node: ast.stmt) -> Iterator[str]:
    """Yield what replaces a statement: a refusal, a call or a change of an attribute is left out."""
    if isinstance(node, ast.Raise) and node.exc is not None and _name(node.exc) not in _OUR_FAULTS:
        yield "pass"
    if isinstance(node, ast.Expr) and _is_call(node.value) and _name(node.value) not in _UNTESTED_CALLS:
        yield "pass"
    if isinstance(node, ast.Assign | ast.AugAssign) and _is_stored(node):
        yield "pass"
    if isinstance(node, ast.Continue):
        yield "break"
    if isinstance(node, ast.Break):
        yield "continue"


def _expressions_for(node: ast.expr) -> Iterator[str]:
    """Yield what replaces an expression."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        yield ast.unparse(ast.Compare(node.left, [_COMPARISONS[type(node.ops[0])]()], node.comparators))
    elif isinstance(node, ast.Compare):
        for at, operator in enumerate(node.ops):
            ops = [*node.ops[:at], _COMPARISONS[type(operator)](), *node.ops[at + 1 :]]
            yield ast.unparse(ast.Compare(node.left, ops, node.comparators))
    elif isinstance(node, ast.BoolOp):
        yield ast.unparse(ast.BoolOp(ast.And() if isinstance(node.op, ast.Or) else ast.Or(), node.values))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield ast.unparse(node.operand)
    elif isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        yield ast.unparse(ast.BinOp(node.left, _OPERATORS[type(node.op)](), node.right))
    elif isinstance(node, ast.IfExp):
        yield ast.unparse(ast.IfExp(node.test, node.orelse, node.body))
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield repr(not node.value)
    elif isinstance(node, ast.Constant) and type(node.value) is int:
        yield repr(node.value + 1)


def _is_call(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) or (isinstance(node, ast.Await) and isinstance(node.value, ast.Call))


def _is_stored(node: ast.Assign | ast.AugAssign) -> bool:
    """Tell whether an assignment changes something that outlives the function; without it names stay defined."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return all(isinstance(each, ast.Attribute | ast.Subscript) for each in targets)


def _name(node: ast.expr) -> str:
    """Return the last part of the name that is called or raised, "" if there is none."""
    if isinstance(node, ast.Await):
        return _name(node.value)
    if isinstance(node, ast.Call):
        return _name(node.func)
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _spliced(source: str, node: ast.stmt | ast.expr, text: str) -> str:
    """Return the source with a node's text replaced; lines and columns of what is before it stay."""
    if node.end_lineno is None or node.end_col_offset is None:
        raise TypeError("a parsed node has an end")
    lines = source.encode().splitlines(keepends=True)
    first, last = lines[node.lineno - 1], lines[node.end_lineno - 1]
    changed = first[: node.col_offset] + text.encode() + last[node.end_col_offset :]
    return b"".join([*lines[: node.lineno - 1], changed, *lines[node.end_lineno :]]).decode()


def _shortened(text: str) -> str:
    line = text.partition("\n")[0]
    return line if len(line) <= 90 else f"{line[:87]}..."
