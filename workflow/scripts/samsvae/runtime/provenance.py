"""Provenance of results: records of jobs, and the lineage of a file.

Each job writes a record of every output: the digests of the file and of its inputs, the
configuration, code, versions, seed and machine. The records give the lineage of a figure, back to
the data of its screen.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import samsvae
from samsvae.runtime.files import write_text

PACKAGES = ("anndata", "gseapy", "numpy", "pandas", "pyro-ppl", "scipy", "torch")


def digest_of(value: Any) -> str:
    """Digest a JSON-like value, independent of the order of its keys."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def provenance(config: Mapping[str, Any], code: str, **inputs: str) -> str:
    """Build the provenance record of a file, as JSON for its metadata.

    Parameters
    ----------
    config
        The part of the configuration that the file depends on.
    code
        A digest of :func:`samsvae.runtime.digest.code_digest`.
    **inputs
        Digests of the input data, by name.

    Returns
    -------
    str
        JSON with the configuration and its digest, the digests of code and data, versions of
        Python and packages, and the kind of machine.
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
    """Return the versions of this library, Python and the packages that results depend on."""
    return {
        "samsvae": samsvae.__version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }


RECORDS = Path("results/provenance")
SHOWN = 6  # files of a rule


def record_path(path: str | Path) -> Path:
    """Return the path of the record of a result below ``results``."""
    *folders, name = Path(path).relative_to("results").parts
    return RECORDS.joinpath(*folders, f"{name}.json")


def write_records(snakemake: Any) -> None:
    """Write the records of the outputs of a finished job.

    Parameters
    ----------
    snakemake
        The job object that Snakemake gives to a script.
    """
    params = {name: value for name, value in snakemake.params.items() if name != "code"}
    config = json.loads(json.dumps(params, default=str))
    record = {
        "rule": str(snakemake.rule),
        "wildcards": {name: str(value) for name, value in snakemake.wildcards.items()},
        "inputs": {str(path): known_digest(path) for path in snakemake.input},
        "config": config,
        "config_digest": digest_of(config),
        "code_digest": snakemake.params.get("code"),
        "seed": seed_of(config, dict(snakemake.wildcards.items())),
        "threads": snakemake.threads,
        "versions": versions(),
        "machine": machine(),
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    for path in snakemake.output:
        status = os.stat(path)
        own = {"size": status.st_size, "modified": status.st_mtime_ns, "sha256": file_digest(path)}
        write_text(json.dumps({"file": str(path), **own, **record}), record_path(path))


def seed_of(config: Mapping[str, Any], wildcards: Mapping[str, str]) -> int | None:
    """Find the seed of a job in its settings or wildcards; None if the job is deterministic."""
    sections = (config, config.get("split"), config.get("settings"))
    given = [part["seed"] for part in sections if isinstance(part, Mapping) and "seed" in part]
    if given:
        return int(given[0])
    return int(wildcards["seed"]) if "seed" in wildcards else None


def machine() -> dict[str, str]:
    """Describe the machine: name, kind, and the GPU if the job has used one."""
    found = {"name": platform.node(), "kind": f"{platform.system()} {platform.machine()}"}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def file_digest(path: str | Path) -> str:
    """Digest the content of a file, or of all files of a folder such as a zarr store, SHA-256."""
    if Path(path).is_dir():
        inside = sorted(file for file in Path(path).rglob("*") if file.is_file())
        lines = [f"{file.relative_to(path)}\t{file_digest(file)}\n" for file in inside]
        return hashlib.sha256("".join(lines).encode()).hexdigest()
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_record(path: str | Path) -> dict[str, Any] | None:
    """Read the record of a file; None if there is none, as for files that are not results."""
    try:
        return json.loads(record_path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # relative_to also raises ValueError
        return None


def known_digest(path: str | Path) -> str:
    """Return the digest of a file, from its record if the file has not changed since."""
    record, status = read_record(path), os.stat(path)
    if record and (record["size"], record["modified"]) == (status.st_size, status.st_mtime_ns):
        return str(record["sha256"])
    return file_digest(path)


def lineage(path: str | Path) -> list[dict[str, Any]]:
    """List the records of a file and of all its direct and indirect inputs, its own first."""
    seen: dict[str, dict[str, Any]] = {}
    waiting = [str(path)]
    while waiting:
        at = waiting.pop(0)
        if at in seen:
            continue
        record = read_record(at) or {"file": at, "rule": None, "inputs": {}}
        seen[at] = record
        waiting += record["inputs"]
    return list(seen.values())


def describe_lineage(path: str | Path) -> str:
    """Format the lineage of a file: inputs, code and configuration, rule by rule.

    Parameters
    ----------
    path
        A file below ``results``, relative to the working directory.

    Returns
    -------
    str
        One paragraph per rule, back to the data, and the files that have changed since.
    """
    records = lineage(path)
    made = [record for record in records if record["rule"]]
    by_rule: dict[str, list[dict[str, Any]]] = {}
    for record in made:
        by_rule.setdefault(record["rule"], []).append(record)
    lines = [str(path)]
    for rule, of_rule in by_rule.items():
        lines += ["", *_describe_rule(rule, of_rule)]
    given = [record["file"] for record in records if not record["rule"]]
    if given:
        lines += ["", "given"]
        digests = {file: digest for record in made for file, digest in record["inputs"].items()}
        lines += [f"  {file}  sha256 {digests.get(file, 'unknown')}" for file in sorted(given)]
    for what, values in _environment(made):
        lines += ["", what, *(f"  {value}  ({number} files)" for value, number in values.items())]
    lines += ["", *(list(changes(records)) or ["No file has changed since."])]
    return "\n".join(lines) + "\n"


def _describe_rule(rule: str, records: list[dict[str, Any]]) -> Iterator[str]:
    yield f"{rule}: {len(records)} file(s)"
    for record in records[:SHOWN]:
        seed = "" if record["seed"] is None else f"  seed {record['seed']}"
        yield f"  {record['file']}  sha256 {record['sha256'][:16]}{seed}"
    if len(records) > SHOWN:
        yield f"  and {len(records) - SHOWN} more"
    for name in ("code_digest", "config_digest"):
        values = sorted({str(record[name])[:16] for record in records})
        yield f"  {name.replace('_', ' ')} {', '.join(values)}"


def _environment(records: list[dict[str, Any]]) -> Iterator[tuple[str, Counter[str]]]:
    yield (
        "versions",
        Counter(", ".join(f"{n} {v}" for n, v in record["versions"].items()) for record in records),
    )
    yield "machines", Counter(", ".join(record["machine"].values()) for record in records)


def changes(records: list[dict[str, Any]]) -> Iterator[str]:
    """List the files that have changed since others were made from them."""
    for record in records:
        for file, digest in record["inputs"].items():
            if not Path(file).exists():
                yield f"Gone: {file}, from which {record['file']} was made."
            elif known_digest(file) != digest:
                yield f"Changed: {file}, since {record['file']} was made from it."
