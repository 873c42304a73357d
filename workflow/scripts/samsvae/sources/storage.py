"""Safe access to HDF5 files and zarr stores.

An HDF5 file can refer to other files (external links, external storage, virtual data sets), to
itself in cycles, and declare terabytes of values that are not stored. A screen needs none of this.
"""

import importlib
import importlib.util
import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import anndata  # noqa: F401  (zarr logs less once anndata has configured it)
import h5py
import numpy as np
import zarr

from samsvae.runtime.errors import InputError

# a larger data set must be stored at least in part: the compressions of AnnData reduce values by
# less than this factor
UNCHECKED_BYTES = 2**26
LARGEST_COMPRESSION = 2000
MOST_OBJECTS = 1_000_000

READERS = ("h5py", "anndata", "zarr", "numcodecs")
# names of filters without a name in the file
FILTERS = {
    32001: "blosc", 32004: "lz4", 32008: "bitshuffle", 32013: "zfp", 32015: "zstd", 32026: "blosc2",
}  # fmt: skip


def check_contents(file: h5py.File) -> None:
    """Refuse an h5ad file with external references, cycles or values that are not stored.

    Only the file's metadata are read.

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
    """List the names of a file with the types of their links; each group is visited once."""
    found: list[tuple[bytes, int]] = []

    def note(name: bytes, info: Any) -> bool | None:
        found.append((name, info.type))
        return True if len(found) > MOST_OBJECTS else None  # True ends the visit

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
    """Refuse values that are compressed by a filter which is not installed."""
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
    """Refuse an array that declares far more values than are stored.

    Raises
    ------
    InputError
        Naming both numbers of bytes.
    """
    declared = math.prod(shape) * itemsize
    if declared > UNCHECKED_BYTES + LARGEST_COMPRESSION * stored:
        raise InputError(
            f"{where} declares {declared:,} bytes of values, but the file holds "
            f"{stored:,} of it. It is damaged or was cut short; get it again."
        )


def check_length(length: int, n_rows: int, where: str, rows: str) -> None:
    """Refuse a column whose length is not that of its table.

    Raises
    ------
    InputError
        Naming both lengths.
    """
    if length != n_rows:
        raise InputError(
            f"{where} has {length:,} values, but there are {n_rows:,} {rows}. The file is damaged; "
            "write it anew with anndata."
        )


@contextmanager
def explain_damage(path: str | Path) -> Iterator[None]:
    """Turn errors of the libraries that read a file into an error that names the damaged file.

    Raises
    ------
    InputError
        From any error raised within h5py, anndata, zarr or numcodecs.
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
    """Whether the innermost frame of an error belongs to one of some packages."""
    trace = error.__traceback__
    if trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    parts = Path(trace.tb_frame.f_code.co_filename).parts
    return any(package in parts for package in packages)


# h5py has no types, and zarr's are not compatible
Array: TypeAlias = Any  # h5py.Dataset or zarr.Array
Group: TypeAlias = Any  # h5py.Group or zarr.Group

CHUNK_CACHE_BYTES = 2**20  # of each data set; two blocks have at most one chunk in common
ZARR_METADATA = (".zarray", ".zgroup", ".zmetadata", "zarr.json")
PICKLE = re.compile(rb'"(id|name)"\s*:\s*"(numcodecs\.)?pickle"')
SIGNATURES = {
    b"\x1f\x8b": "compressed with gzip. Unpack it (gunzip)",
    b"PK": "a zip archive. Unpack it",
    b"BZh": "compressed with bzip2. Unpack it",
    b"\xfd7zXZ": "compressed with xz. Unpack it",
    b"\x28\xb5\x2f\xfd": "compressed with zstd. Unpack it",
}


def is_array(element: Any) -> bool:
    """Whether an element of a file is an array."""
    return isinstance(element, h5py.Dataset | zarr.Array)


def is_group(element: Any) -> bool:
    """Whether an element of a file is a group."""
    return isinstance(element, h5py.Group | zarr.Group)


def read_into(array: Array, selection: Any, into: np.ndarray) -> None:
    """Read a part of an array into existing memory.

    Parameters
    ----------
    array
        An array of an open file.
    selection
        A slice or indices, for one or both axes.
    into
        Destination, of the part's shape and the array's type.
    """
    if isinstance(array, h5py.Dataset):
        array.read_direct(into, selection)
    else:
        into[...] = array.oindex[selection]


def first_chunk(array: Array) -> int | None:
    """Return the number of rows, or entries, of a chunk; None for contiguous storage."""
    return None if array.chunks is None else int(array.chunks[0])


@contextmanager
def open_storage(path: str | Path) -> Iterator[Group]:
    """Open an HDF5 file or a zarr store for reading, after a check that it is safe.

    Parameters
    ----------
    path
        The file, or the folder of a zarr store.

    Yields
    ------
    Group
        Its root.

    Raises
    ------
    InputError
        If it does not exist, is neither of the two, refers to other files, or is compressed by a
        filter that is not installed.
    """
    file_or_folder = Path(path)
    if not file_or_folder.exists():
        sought = "" if file_or_folder.is_absolute() else f" (sought in {Path.cwd()})"
        raise InputError(f"{path}: no such file{sought}. Set 'path' to an existing h5ad file.")
    if file_or_folder.is_dir():
        yield _open_zarr(file_or_folder)
        return
    if not h5py.is_hdf5(path):
        raise InputError(f"{path}: {_kind_of_file(file_or_folder)}.")
    if importlib.util.find_spec("hdf5plugin") is not None:
        importlib.import_module("hdf5plugin")  # registers further compression filters
    try:
        file = h5py.File(path, "r", rdcc_nbytes=CHUNK_CACHE_BYTES)
    except OSError as error:
        raise InputError(f"{path}: cannot be read as an h5ad file: {error}.") from error
    with file:
        check_contents(file)
        yield file


def _kind_of_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            first = file.read(8)
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    for signature, what in SIGNATURES.items():
        if first.startswith(signature):
            return f"not an h5ad file but {what} first"
    return "not an h5ad file (it is not HDF5, or it was cut short)"


def _open_zarr(folder: Path) -> zarr.Group:
    if not any((folder / name).is_file() for name in ZARR_METADATA):
        raise InputError(
            f"{folder}: a folder, and not a zarr store. Set 'path' to an h5ad or h5mu file, or to "
            "the folder of a zarr store."
        )
    for parent, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            if os.path.islink(os.path.join(parent, name)):
                raise InputError(
                    f"{folder}: {os.path.relpath(os.path.join(parent, name), folder)!r} is a link "
                    "to another file. Copy what it leads to."
                )
        for name in set(files) & set(ZARR_METADATA):
            if PICKLE.search(Path(parent, name).read_bytes()):
                raise InputError(
                    f"{folder}: {os.path.relpath(parent, folder)!r} holds pickled objects, which "
                    "could run code. Write the store anew with anndata."
                )
    try:
        root = zarr.open_group(folder, mode="r")
        members = list(root.members(max_depth=None))
    except Exception as error:
        raise InputError(
            f"{folder}: cannot be read as a zarr store: {error or type(error).__name__}."
        ) from error
    for name, member in members:
        if isinstance(member, zarr.Array):
            stored = _bytes_below(folder / name)
            itemsize = getattr(member.dtype, "itemsize", 1) or 1
            check_declared(member.shape, itemsize, stored, f"{folder}: {name!r}")
    return root


def _bytes_below(folder: Path) -> int:
    return sum(
        os.path.getsize(os.path.join(parent, name))
        for parent, _, files in os.walk(folder)
        for name in files
    )
