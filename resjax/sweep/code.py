"""The code that a measurement uses, as a digest: once that changes, what was measured is measured again."""

import ast
import hashlib
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path

OURS = ("resjax", "experiments")
DEFINED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@cache
def digest(module: str) -> str:
    """Eight digits of a module and of all of this project's modules that it imports, directly or not.

    Comments, docstrings and the layout of lines have no part in it.
    """
    seen, todo = {}, [module]
    while todo:
        name = todo.pop()
        if name not in seen and (path := _path(name)):
            tree = ast.parse(path.read_text())
            todo += [found for found in _imported(tree) if found.partition(".")[0] in OURS]
            seen[name] = ast.unparse(_without_docstrings(tree))
    return hashlib.sha256(repr(sorted(seen.items())).encode()).hexdigest()[:8]


def _path(name: str) -> Path | None:
    """None for what is no module, such as a function that is imported by name."""
    try:
        spec = importlib.util.find_spec(name)
    except (ModuleNotFoundError, ValueError):  # its parent is no package
        return None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, DEFINED) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return tree
