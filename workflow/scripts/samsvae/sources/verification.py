"""Verification of published files by size and checksums."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from samsvae.runtime.errors import InputError
from samsvae.runtime.files import write_text
from samsvae.runtime.script import Progress

BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class PublishedFile:
    """Published file; the configuration's schema describes each field."""

    file: str
    urls: tuple[str, ...]
    size: int
    md5: str | None = None
    sha256: str | None = None

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "PublishedFile":
        """Build from an entry of the configuration's downloads."""
        return cls(**{**settings, "urls": tuple(settings["urls"])})

    @property
    def checksums(self) -> dict[str, str]:
        """The published checksums by name of the algorithm, in lower case."""
        given = {"md5": self.md5, "sha256": self.sha256}
        return {name: value.lower() for name, value in given.items() if value is not None}


class ByteProgress(Progress):
    """Progress of a file in the log.

    Parameters
    ----------
    what
        Description of the work, with the file's name.
    total
        Number of bytes of the file.
    done
        Number of bytes that were done before.
    """

    def __init__(self, what: str, total: int, done: int = 0) -> None:
        super().__init__(f"{what}:", total, "B", done, unit_scale=True, unit_divisor=1024)

    def update(self, n: float | None = 1) -> bool | None:
        """Add bytes, and log a line every few seconds and at the end."""
        logged = super().update(n)
        if not logged and self.n == self.total:
            self.display()
        return logged


class RunningChecksums:
    """Incremental checksums of a file.

    Parameters
    ----------
    published
        The published file, with its algorithms.
    """

    def __init__(self, published: PublishedFile) -> None:
        self.published = published
        self.size = 0
        self._running = {
            name: hashlib.new(name, usedforsecurity=False) for name in published.checksums
        }

    def update(self, block: bytes) -> None:
        """Add bytes."""
        self.size += len(block)
        for running in self._running.values():
            running.update(block)

    def difference(self) -> str | None:
        """Describe how the bytes so far differ from the published file; None if they are equal."""
        if self.size != self.published.size:
            return f"it has {self.size:,} bytes, not the published {self.published.size:,}"
        for name, expected in self.published.checksums.items():
            found = self._running[name].hexdigest()
            if found != expected:
                return f"its {name} is {found}, not the published {expected}"
        return None


def checksums_of(path: Path, published: PublishedFile) -> RunningChecksums:
    """Compute the checksums of a file."""
    checksums = RunningChecksums(published)
    progress = ByteProgress(f"checking {path.name}", path.stat().st_size)
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            checksums.update(block)
            progress.update(len(block))
    return checksums


def verify(path: str | Path, published: PublishedFile) -> None:
    """Refuse a file that is not the published one.

    Parameters
    ----------
    path
        The file.
    published
        The published file.

    Raises
    ------
    InputError
        If the file is missing, has another size (found without reading it) or another checksum.
    """
    check_file_size(path, published)
    difference = checksums_of(Path(path), published).difference()
    if difference:
        raise InputError(_not_the_file(path, published, difference))


def check_file_size(path: str | Path, published: PublishedFile) -> None:
    """Refuse a file that is missing or has not the published size, without reading it.

    Raises
    ------
    InputError
        Naming the sizes.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"{path}: no such file. Set 'path' to the file, or to null to download it."
        )
    size = path.stat().st_size
    if size != published.size:
        difference = f"it has {size:,} bytes, not the published {published.size:,}"
        raise InputError(_not_the_file(path, published, difference))


def _not_the_file(path: str | Path, published: PublishedFile, difference: str) -> str:
    return (
        f"{path}: not the published {published.file}: {difference}. It was cut short, or it is "
        "another file. Remove it and let it be downloaded, or set 'path' to the right one."
    )


def write_receipt(path: str | Path, published: PublishedFile, receipt: str | Path) -> None:
    """Write a receipt of a verified file as JSON: its path and the published file."""
    text = json.dumps({"path": str(path), "published": asdict(published)}, indent=2)
    write_text(text + "\n", receipt)


def read_receipt(receipt: str | Path) -> tuple[str, PublishedFile]:
    """Read the receipt of a verified file.

    Parameters
    ----------
    receipt
        A file of :func:`write_receipt`.

    Returns
    -------
    path : str
        The file.
    published : PublishedFile
        The published file.

    Raises
    ------
    InputError
        If the file does not exist any more, or has another size.
    """
    written = json.loads(Path(receipt).read_text(encoding="utf-8"))
    published = PublishedFile.of(written["published"])
    path = Path(written["path"])
    if not path.is_file() or path.stat().st_size != published.size:
        raise InputError(
            f"{path}: verified before, but gone or changed since. Remove {receipt}, so that the "
            "file is fetched or verified again."
        )
    return str(path), published
