"""What an h5ad file may not do: lead elsewhere, run in circles, or promise more than it holds.

HDF5 lets a file refer to other files (external links, external storage, virtual data sets), to
itself without end, and to terabytes of values that nobody wrote. No screen needs any of it.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py

from samsvae.errors import InputError

# a data set of more bytes must have been written in part at least: no compression that AnnData
# uses makes values smaller by more than this factor
UNCHECKED_BYTES = 2**26
LARGEST_COMPRESSION = 2000
MOST_OBJECTS = 1_000_000

READERS = ("h5py", "anndata", "zarr", "numcodecs")
# names of filters that do not name themselves
FILTERS = {
    32001: "blosc", 32004: "lz4", 32008: "bitshuffle", 32013: "zfp", 32015: "zstd", 32026: "blosc2",
}  # fmt: skip


def check_contents(file: h5py.File) -> None:
    """Refuse an h5ad file that leads elsewhere, runs in circles or promises too much.

    Nothing but the file's table of contents is read.

    Raises
    ------
    InputError
        Naming the object and what is wrong with it.
    """
    try:
        _check_object(file, b".", f"{file.filename}: the file")
        for name, kind in _links(file):
            where = f"{file.filename}: {name.decode(errors='replace')!r}"
            if kind not in (h5py.h5l.TYPE_HARD, h5py.h5l.TYPE_SOFT):
                raise InputError(f"{where} is a link to another file. Copy what it leads to.")
            if kind == h5py.h5l.TYPE_SOFT and not _leads_somewhere(file, name):
                raise InputError(f"{where} is a link that leads nowhere. Remove it.")
            _check_object(file, name, where)
    except InputError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise InputError(f"{file.filename}: its contents cannot be read: {error}.") from error


def _links(file: h5py.File) -> list[tuple[bytes, int]]:
    """List all names in a file, and what kind of link each is; a group once, whatever its names."""
    found: list[tuple[bytes, int]] = []

    def note(name: bytes, info: Any) -> bool | None:
        found.append((name, info.type))
        return True if len(found) > MOST_OBJECTS else None  # which ends the visit

    file.id.links.visit(note, info=True)
    if len(found) > MOST_OBJECTS:
        raise InputError(f"{file.filename}: more than {MOST_OBJECTS:,} objects in the file.")
    return found


def _leads_somewhere(file: h5py.File, name: bytes) -> bool:
    try:
        return bool(file.id.links.exists(name)) and h5py.h5o.exists_by_name(file.id, name)
    except (OSError, RuntimeError, KeyError):
        return False


def _check_object(file: h5py.File, name: bytes, where: str) -> None:
    found = h5py.h5o.open(file.id, name)
    if isinstance(found, h5py.h5g.GroupID):
        if h5py.h5o.get_info(found).rc > 1:
            raise InputError(
                f"{where} is a group of several names, as where a file runs in circles. Write it "
                "anew with anndata."
            )
    elif isinstance(found, h5py.h5d.DatasetID):
        plan = found.get_create_plist()
        _check_filters(plan, where)
        if plan.get_external_count() or plan.get_layout() == h5py.h5d.VIRTUAL:
            raise InputError(f"{where} has its values in another file. Copy them into this one.")
        check_declared(found.shape or (), found.dtype.itemsize, found.get_storage_size(), where)


def _check_filters(plan: h5py.h5p.PropDCID, where: str) -> None:
    """Refuse values that were compressed by a filter which is not installed."""
    for number in range(plan.get_nfilters()):
        code, _, _, name = plan.get_filter(number)
        if not h5py.h5z.filter_avail(code):
            known = name.decode(errors="replace") or FILTERS.get(code, "unknown")
            raise InputError(
                f"{where} is compressed by the filter {known} ({code}), which is not installed. "
                "Install the package hdf5plugin into the environment (pip install hdf5plugin), or "
                "write the file anew with compression='gzip'."
            )


def check_declared(shape: Sequence[int], itemsize: int, stored: int, where: str) -> None:
    """Refuse an array that declares far more values than the file can hold.

    Raises
    ------
    InputError
        Giving both numbers of bytes.
    """
    declared = math.prod(shape) * itemsize
    if declared > UNCHECKED_BYTES + LARGEST_COMPRESSION * stored:
        raise InputError(
            f"{where} declares {declared:,} bytes of values, but the file holds "
            f"{stored:,} of it. It is damaged or was cut short; get it again."
        )


def check_length(length: int, n_rows: int, where: str, rows: str) -> None:
    """Refuse a column that is not as long as its table.

    Raises
    ------
    InputError
        Giving both lengths.
    """
    if length != n_rows:
        raise InputError(
            f"{where} has {length:,} values, but there are {n_rows:,} {rows}. The file is damaged; "
            "write it anew with anndata."
        )


@contextmanager
def damage_told(path: str | Path) -> Iterator[None]:
    """Say that a file is damaged where a library that reads it fails in any way.

    Raises
    ------
    InputError
        In the place of an error that h5py or anndata raised.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if not _raised_by(error, READERS):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{path}: cannot be read: {reason[:300]}. The file is damaged, or not as AnnData "
            "writes it; get it again, or write it anew with anndata."
        ) from error


def _raised_by(error: BaseException, packages: Sequence[str]) -> bool:
    """Whether the innermost code in which an error arose belongs to one of some packages."""
    trace = error.__traceback__
    if trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    parts = Path(trace.tb_frame.f_code.co_filename).parts
    return any(package in parts for package in packages)
