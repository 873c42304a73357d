"""HDF5 files and zarr stores behind one face: groups, arrays, and how they are opened safely."""

import importlib
import importlib.util
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import anndata  # noqa: F401  (zarr logs less once anndata has configured it)
import h5py
import numpy as np
import zarr

from samsvae.errors import InputError
from samsvae.sources.h5ad_safety import check_contents, check_declared

# h5py comes without types, and zarr's fit no other library
Array: TypeAlias = Any  # h5py.Dataset or zarr.Array
Group: TypeAlias = Any  # h5py.Group or zarr.Group

CHUNK_CACHE_BYTES = 2**20  # of each data set; blocks share at most the chunk between them
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
    """Whether a part of a file is an array of values."""
    return isinstance(element, h5py.Dataset | zarr.Array)


def is_group(element: Any) -> bool:
    """Whether a part of a file holds other parts."""
    return isinstance(element, h5py.Group | zarr.Group)


def read_into(array: Array, place: Any, into: np.ndarray) -> None:
    """Read a part of an array into memory that is there already.

    Parameters
    ----------
    array
        Of an open file.
    place
        A slice, positions, or such for both axes.
    into
        Of the part's shape and the array's type.
    """
    if isinstance(array, h5py.Dataset):
        array.read_direct(into, place)
    else:
        into[...] = array.oindex[place]


def first_chunk(array: Array) -> int | None:
    """Count the rows, or entries, that a file keeps together; None if all of them."""
    return None if array.chunks is None else int(array.chunks[0])


@contextmanager
def open_storage(path: str | Path) -> Iterator[Group]:
    """Open an HDF5 file or a zarr store for reading, once it is known to be safe.

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
        If there is nothing there, it is neither, it leads elsewhere, or was compressed by what is
        not installed.
    """
    place = Path(path)
    if not place.exists():
        sought = "" if place.is_absolute() else f" (sought in {Path.cwd()})"
        raise InputError(f"{path}: no such file{sought}. Set 'path' to an existing h5ad file.")
    if place.is_dir():
        yield _open_zarr(place)
        return
    if not h5py.is_hdf5(path):
        raise InputError(f"{path}: {_kind_of_file(place)}.")
    if importlib.util.find_spec("hdf5plugin") is not None:
        importlib.import_module("hdf5plugin")  # registers more filters of compression
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
