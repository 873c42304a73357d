"""Digests of the code of scripts, so that an edit reruns only the jobs that it changes."""

import ast
import functools
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

LIBRARY = Path(__file__).resolve().parents[1]

# The runtime computes no results, and the configuration reaches scripts as parameters, which
# Snakemake watches. An edit of either reruns nothing.
RUNTIME = "samsvae.runtime"
LEFT_OUT = (RUNTIME, "samsvae.config.configuration", "samsvae.config.models")

LOGGERS = ("logger", "logging")
LEVELS = ("debug", "info", "warning", "error", "exception", "critical")
COMPUTES = (ast.Call, ast.NamedExpr, ast.Await, ast.Yield, ast.YieldFrom)


def code_digest(script: str | Path, *modules: str) -> str:
    """Digest a script and the library modules that it imports, directly or indirectly.

    Snakemake watches a script but not its imports. With this digest among a rule's parameters, an
    edited module reruns the rules that use it and no others. The digest ignores comments,
    docstrings, layout, texts of log messages and, unless named, the modules in :data:`LEFT_OUT`.

    Parameters
    ----------
    script
        A Python file.
    *modules
        Dotted names of library modules that it imports at run time, each optionally with a colon
        and a class.

    Returns
    -------
    str
        Hexadecimal digest of the statements of the script and of every such module.
    """
    script = Path(script)
    seen: set[Path] = set()
    named = [file for module in modules for file in _files_of(module.partition(":")[0])]
    waiting = [*_imported_modules(script), *named]
    while waiting:
        path = waiting.pop()
        if path not in seen:
            seen.add(path)
            waiting += _imported_modules(path)
    digest = hashlib.sha256("".join(modules).encode())
    for path in [script, *sorted(seen)]:
        digest.update(_statements(path)[0].encode())
    return digest.hexdigest()[:16]


def _imported_modules(path: Path) -> list[Path]:
    names = _statements(path)[1]
    return [file for name in names if not _is_left_out(name) for file in _files_of(name)]


def _files_of(module: str) -> list[Path]:
    """Find the files of a library module; none for other modules."""
    first, *rest = module.split(".")
    if first != LIBRARY.name or not rest:
        return []
    base = LIBRARY.joinpath(*rest)
    candidates = (base.with_suffix(".py"), base / "__init__.py")
    return [candidate for candidate in candidates if candidate.is_file()]


def _is_left_out(module: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in LEFT_OUT)


def _statements(path: Path) -> tuple[str, list[str]]:
    """Digest the statements of a file, and list the modules that they import."""
    return _reduced(path, path.read_bytes())


@functools.cache  # many scripts import the same modules
def _reduced(path: Path, source: bytes) -> tuple[str, list[str]]:
    """Reduce source code to its statements, or read the cached result.

    Parsing the library takes a second of every planning, so results are cached beside the
    bytecode, valid for this source, reduction and version of Python.
    """
    valid_for = hashlib.sha256(_own_source() + source).hexdigest()
    file = path.parent / "__pycache__" / f"{path.stem}.{sys.implementation.cache_tag}.digest"
    with suppress(OSError, ValueError):
        kept_for, digest, imported = json.loads(file.read_text())
        if kept_for == valid_for:
            return digest, imported
    tree = _Reduction().visit(ast.parse(source))
    found = hashlib.sha256(ast.unparse(tree).encode()).hexdigest(), sorted(_imported_names(tree))
    with suppress(OSError):  # the folder of an installed library may be read-only
        file.parent.mkdir(exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps([valid_for, *found]))
        partial.replace(file)
    return found


@functools.cache
def _own_source() -> bytes:
    return Path(__file__).read_bytes()


def _imported_names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


class _Reduction(ast.NodeTransformer):
    """Transformer that removes the parts of a syntax tree which cannot change results."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | list[ast.AST] | None:
        if isinstance(node.value, ast.Constant):
            return None  # a docstring
        if isinstance(node.value, ast.Call) and _is_log_call(node.value):
            arguments = [*node.value.args, *(keyword.value for keyword in node.value.keywords)]
            kept = [_without_text(argument) for argument in arguments if _computes(argument)]
            return [ast.Expr(argument) for argument in kept]
        return self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST | None:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return None
        return self.generic_visit(node)


def _is_log_call(call: ast.Call) -> bool:
    function = call.func
    return (
        isinstance(function, ast.Attribute)
        and function.attr in LEVELS
        and isinstance(function.value, ast.Name)
        and function.value.id in LOGGERS
    )


def _computes(argument: ast.expr) -> bool:
    """Whether an argument of a log call may have side effects."""
    return any(isinstance(node, COMPUTES) for node in ast.walk(argument))


def _without_text(argument: ast.expr) -> ast.expr:
    for node in ast.walk(argument):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node.value = ""
    return argument
