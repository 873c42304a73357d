"""What made a file: digests of code, configuration and data, and versions."""

import ast
import functools
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import samsvae

PACKAGES = ("anndata", "gseapy", "illico", "numpy", "pandas", "pyro-ppl", "scipy", "torch")
LIBRARY = Path(__file__).resolve().parent


def digest_of(value: Any) -> str:
    """Digest a JSON-like value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def code_digest(script: str | Path, *modules: str) -> str:
    """Digest a script and the library modules that it imports, directly or through one another.

    Snakemake watches a script but not what it imports. With this digest among a rule's
    parameters, an edited module reruns the rules that use it and no others.

    Parameters
    ----------
    script
        A Python file.
    *modules
        Dotted names of library modules that it imports by name, while it runs.

    Returns
    -------
    str
        Hexadecimal digest of the source of the script and of every such module.
    """
    seen: set[Path] = set()
    waiting = [Path(script), *(file for module in modules for file in _files_of(module))]
    while waiting:
        path = waiting.pop()
        if path not in seen:
            seen.add(path)
            waiting += _imported_modules(path)
    digest = hashlib.sha256()
    for path in sorted(seen):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _imported_modules(path: Path) -> list[Path]:
    return [file for name in _imported_names(path.read_bytes()) for file in _files_of(name)]


@functools.cache  # most modules are behind many scripts
def _imported_names(source: bytes) -> frozenset[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(names)


def _files_of(module: str) -> list[Path]:
    first, *rest = module.split(".")
    if first != LIBRARY.name or not rest:
        return []
    base = LIBRARY.joinpath(*rest)
    candidates = (base.with_suffix(".py"), base / "__init__.py")
    return [candidate for candidate in candidates if candidate.is_file()]


def provenance(config: Mapping[str, Any], code: str, **inputs: str) -> str:
    """Describe what made a file, as JSON text to keep in its metadata.

    Parameters
    ----------
    config
        The part of the configuration that the file depends on.
    code
        What :func:`code_digest` gave.
    **inputs
        Digests of the data it was made from, by name.

    Returns
    -------
    str
        JSON with the configuration and its digest, the code's and the data's digests, versions
        of Python and packages, and the kind of machine.
    """
    return json.dumps(
        {
            "config": dict(config),
            "config_digest": digest_of(config),
            "code_digest": code,
            "inputs": inputs,
            "versions": versions(),
            "machine": f"{platform.system()} {platform.machine()}",
        },
        sort_keys=True,
        default=str,
    )


def versions() -> dict[str, str]:
    """Versions of this library, Python and the packages that results depend on."""
    return {
        "samsvae": samsvae.__version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }
