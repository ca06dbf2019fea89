"""Modules of this package as one file that imports nothing of it: what a hub folder needs, where each part brings its own code.

Every module keeps its text; only what it imports from its neighbours goes, because they stand above it. Names at the top of the
modules must therefore differ from one another, which is checked. A function that imports from a module left out says so when it is called.
"""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent
HEAD = '''"""{title}

Written by `worldmodel export` from the modules {modules} of worldmodel {version} (Apache-2.0).
"""

from __future__ import annotations
'''


def single_file(roots: tuple[str, ...], title: str) -> str:
    """Source of the modules `roots` ("model", "transformer", ...) and all that they import at their top, as one module."""
    from worldmodel import __version__

    order: list[str] = []
    for root in roots:
        _visit(root, order)
    _refuse_same_names(order)
    head = HEAD.format(title=title, modules=", ".join(order), version=__version__)
    return head + "".join(f"\n# {'-' * 40} worldmodel/{name}.py\n{_without_imports(name, set(order))}" for name in order)


def _parse(name: str) -> tuple[str, ast.Module]:
    source = (PACKAGE / f"{name}.py").read_text()
    return source, ast.parse(source)


def _module(node: ast.AST) -> str | None:
    """Which module of the package is imported from here"""
    found = isinstance(node, ast.ImportFrom) and (node.module or "").startswith("worldmodel.")
    return node.module.partition(".")[2] if found else None


def _visit(name: str, order: list[str]) -> None:
    """Append `name` after the modules that it imports at its top."""
    for node in _parse(name)[1].body:
        module = _module(node)
        if module is not None and module not in order:
            _visit(module, order)
    if name not in order:
        order.append(name)


def _without_imports(name: str, present: set[str]) -> str:
    source, tree = _parse(name)
    lines, gone = source.splitlines(), set()
    for node in ast.walk(tree):
        types_only = isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        future = isinstance(node, ast.ImportFrom) and node.module == "__future__"
        if not (types_only or future or _module(node)) or getattr(node, "lineno", 0) in gone:
            continue
        if any(alias.asname for alias in getattr(node, "names", ())):
            raise ValueError(f"worldmodel/{name}.py, line {node.lineno}: imports under another name cannot go into one file.")
        gone.update(range(node.lineno, node.end_lineno + 1))
        if _module(node) not in {None, *present}:
            gone.remove(node.lineno)
            lines[node.lineno - 1] = " " * node.col_offset + 'raise ImportError("This needs worldmodel itself: pip install worldmodel")'
    return "\n".join(line for number, line in enumerate(lines, 1) if number not in gone) + "\n"


def _refuse_same_names(order: list[str]) -> None:
    homes: dict[str, str] = {}
    for module in order:
        for node in _parse(module)[1].body:
            for name in _defined(node):
                if homes.setdefault(name, module) != module:
                    raise ValueError(f"{homes[name]}.py and {module}.py both define {name}: they cannot go into one file.")


def _defined(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]
