"""What made a file: digests of code, configuration and data, and versions."""

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from typing import Any

import samsvae

PACKAGES = ("anndata", "gseapy", "illico", "numpy", "pandas", "pyro-ppl", "scipy", "torch")


def digest_of(value: Any) -> str:
    """Digest a JSON-like value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def provenance(config: Mapping[str, Any], code: str, **inputs: str) -> str:
    """Describe what made a file, as JSON text to keep in its metadata.

    Parameters
    ----------
    config
        The part of the configuration that the file depends on.
    code
        What :func:`samsvae.runtime.digest.code_digest` gave.
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
