"""Reads source code and says where it breaks the rules of the design. Pure functions on syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Import:
    """One imported module of one file."""

    module: str
    line: int
    types_only: bool
    """Under ``if TYPE_CHECKING``: no dependency at run time."""
    inside_function: bool


@dataclass(frozen=True, kw_only=True)
class Source:
    """One parsed file."""

    name: str
    """Dotted module name, as ``distrib.data.loader``."""
    tree: ast.Module
    num_lines: int

    @classmethod
    def parse(cls, text: str, *, name: str) -> Source:
        return cls(name=name, tree=ast.parse(text), num_lines=len(text.splitlines()))

    @classmethod
    def read(cls, path: Path, *, root: Path) -> Source:
        parts = path.relative_to(root).with_suffix("").parts
        return cls.parse(path.read_text(), name=".".join(parts).removesuffix(".__init__"))


def imports(source: Source) -> list[Import]:
    """Every import of the file, ``from a import b`` as ``a.b`` (which may be a module or a name in it)."""
    found: list[Import] = []

    def visit(node: ast.AST, types_only: bool, inside_function: bool) -> None:
        if isinstance(node, ast.Import | ast.ImportFrom):
            found.extend(
                Import(module=name, line=node.lineno, types_only=types_only, inside_function=inside_function)
                for name in _imported_names(node)
            )
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for statement in node.body:
                visit(statement, True, inside_function)
            for statement in node.orelse:
                visit(statement, types_only, inside_function)
        else:
            is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            for child in ast.iter_child_nodes(node):
                visit(child, types_only, inside_function or is_function)

    visit(source.tree, False, False)
    return found


def _imported_names(node: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if node.level:
        return ["<relative>"]
    return [f"{node.module}.{alias.name}" for alias in node.names]


def layer(module: str) -> str:
    """The file or folder directly under ``distrib`` that a module belongs to."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def wrong_arrows(source: Source, allowed: dict[str, set[str]], types: dict[str, set[str]]) -> list[str]:
    """Imports inside distrib that the tables do not allow; ``types`` holds what annotations may add."""
    own = layer(source.name)
    if own not in allowed:
        return [f"{source.name}: no row for '{own}' in the table of arrows"]
    return [
        f"{source.name}:{found.line} imports {found.module}"
        for found in imports(source)
        if found.module.split(".")[0] in ("distrib", "<relative>")
        and not _may_import(own, found, allowed[own] | (types.get(own, set()) if found.types_only else set()))
    ]


def _may_import(own: str, found: Import, targets: set[str]) -> bool:
    if found.module == "<relative>":
        return False
    path = found.module.split(".")[1:]
    return path[0] == own or any(path[: len(target)] == target for target in (t.split(".") for t in targets))


def misplaced_engines(source: Source, engines: dict[str, str]) -> list[str]:
    """Imports of an engine outside the one place that may, or there but not inside a function."""
    return [
        f"{source.name}:{found.line} imports {found.module}"
        for found in imports(source)
        for engine, home in engines.items()
        if found.module.split(".")[0] == engine
        and not (source.name.startswith(home) and (found.inside_function or found.types_only))
    ]


def strategy_tests(source: Source, *, classes: set[str], names: set[str]) -> list[str]:
    """Places that ask which strategy runs: ``isinstance`` on its class, or a comparison with its name."""
    return [
        f"{source.name}:{node.lineno} asks for the strategy: {ast.unparse(node)}"
        for node in ast.walk(source.tree)
        if (isinstance(node, ast.Call) and _is_type_test(node, classes))
        or (isinstance(node, ast.Compare) and _names_strategy(node, names))
    ]


def _is_type_test(call: ast.Call, classes: set[str]) -> bool:
    function = call.func.id if isinstance(call.func, ast.Name) else ""
    if function not in ("isinstance", "issubclass") or len(call.args) != 2:
        return False
    return any(isinstance(node, ast.Name) and node.id in classes for node in ast.walk(call.args[1])) or any(
        isinstance(node, ast.Attribute) and node.attr in classes for node in ast.walk(call.args[1])
    )


def _names_strategy(comparison: ast.Compare, names: set[str]) -> bool:
    return "strategy" in ast.unparse(comparison).lower() and any(
        isinstance(node, ast.Constant) and node.value in names for node in ast.walk(comparison)
    )


def undocumented(source: Source) -> list[str]:
    """Public modules, classes and functions without a docstring."""
    if any(part.startswith("_") and part != "__main__" for part in source.name.split(".")):
        return []
    is_silent = source.tree.body and not ast.get_docstring(source.tree)
    found = [f"{source.name} has no docstring"] if is_silent else []
    return found + [
        f"{source.name}.{node.name} has no docstring"
        for node in source.tree.body
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]


def functions(source: Source) -> Iterator[tuple[str, int]]:
    """Name and number of lines of every function, its docstring left out."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield node.name, node.end_lineno - node.lineno + 1 - _docstring_lines(node)


def classes(source: Source, *, base: str) -> Iterator[tuple[str, int]]:
    """Name and number of lines of every class that derives directly from ``base``."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ClassDef) and base in map(ast.unparse, node.bases):
            assert node.end_lineno is not None
            yield node.name, node.end_lineno - node.lineno + 1


def _docstring_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = node.body[0]
    if not ast.get_docstring(node):
        return 0
    assert first.end_lineno is not None
    return first.end_lineno - first.lineno + 1
