"""Atomic writing of files, and reading and writing of tables."""

import contextlib
import errno
import hashlib
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow
import pyarrow.parquet

from samsvae.runtime.errors import InputError, StorageError

# advice by the error of writing a file
REMEDIES = {
    errno.ENOSPC: "Free some space there",
    errno.EDQUOT: "Free some of your quota there",
    errno.EROFS: "Choose a folder that can be written to",
    errno.EACCES: "Ask for permission to write there",
    errno.EPERM: "Ask for permission to write there",
}
ERRORS_IN_TEXT = (errno.ENOSPC, errno.EDQUOT)  # found in the messages of libraries
# arguments of pandas to read text unchanged: "NA" and "null" may be names
AS_WRITTEN: dict[str, Any] = {"sep": "\t", "keep_default_na": False, "na_values": [""]}
PIECES, PIECE_BYTES = 16, 2**16  # of a large file, for its fingerprint
ROWS_PER_GROUP = 2**12  # at least, of a parquet file that is written in parts
UNSUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EPERM)


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Write a file atomically: yield a temporary path, and rename it to `path` on success.

    One process at a time writes a file, so that temporary files of a killed process are removed.

    Parameters
    ----------
    path
        The final name. Its folder is created if necessary.

    Yields
    ------
    Path
        A path in the same folder with the same suffix, to write to.

    Raises
    ------
    StorageError
        If the disk is full, read-only or fails; `path` is then unchanged.
    """
    final = Path(path)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(final)
        handle, name = tempfile.mkstemp(
            prefix=_prefix(final), suffix=final.suffix, dir=final.parent
        )
        os.close(handle)
    except OSError as error:
        raise _explained(error, final) from error
    temporary = Path(name)
    try:
        yield temporary
        _change_mode(temporary)
        _flush(temporary)
        os.replace(temporary, final)
    except Exception as error:
        explained = _explained(error, final)
        if explained is error:
            raise
        raise explained from error
    finally:
        temporary.unlink(missing_ok=True)


def _prefix(final: Path) -> str:
    return f".{final.stem[:40]}-"


def _remove_leftovers(final: Path) -> None:
    pattern = re.compile(re.escape(_prefix(final)) + r"[a-z0-9_]{8}" + re.escape(final.suffix))
    for name in os.listdir(final.parent):
        if pattern.fullmatch(name):
            (final.parent / name).unlink(missing_ok=True)


def _change_mode(temporary: Path) -> None:
    """Set the mode by the user's umask; some file systems have no modes."""
    try:
        temporary.chmod(0o666 & ~_umask())
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def _flush(temporary: Path) -> None:
    """Flush the content to the disk, which may report only now that it is full."""
    handle = os.open(temporary, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
    finally:
        os.close(handle)


def _explained(error: Exception, final: Path) -> Exception:
    """Build the error that explains why a file cannot be written, if the disk is the cause."""
    if isinstance(error, InputError):
        return error
    number = next((n for n in ERRORS_IN_TEXT if os.strerror(n) in str(error)), None)
    if isinstance(error, OSError):
        path = error.filename and Path(os.fsdecode(error.filename))
        if path and path != final.parent and path.parent != final.parent:
            return error
        number = error.errno if number is None else number
    if number not in REMEDIES:
        return error
    return StorageError(
        f"{final}: cannot be written: {os.strerror(number)}. {REMEDIES[number]} and run the same "
        "command again; nothing that was there is lost."
    )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_tsv(table: pd.DataFrame, path: str | Path, first: Sequence[str] = ()) -> None:
    """Write a table as tab-separated text, atomically.

    Parameters
    ----------
    table
        Its index is not written.
    path
        The file.
    first
        Columns to put first, if the table has them.
    """
    leading = [name for name in first if name in table.columns]
    ordered = table[leading + [name for name in table.columns if name not in leading]]
    with whole_file(path) as temporary:
        ordered.to_csv(temporary, sep="\t", index=False)


def read_lines(path: str | Path, what: str, most_bytes: int = 2**27) -> list[str]:
    """Read the lines of a user's text file.

    Parameters
    ----------
    path
        UTF-8, with or without a byte-order mark, or UTF-16 with one; lines end as on any system.
    what
        Description of the file with its configuration key, for messages.
    most_bytes
        Largest number of bytes of a file that is read.

    Returns
    -------
    list of str
        Without line ends; the last one may be empty.

    Raises
    ------
    InputError
        If there is no such file, it is too large, or is in another encoding.
    """
    file = Path(path)
    if not file.is_file():
        sought = "" if file.is_absolute() else f" (sought in {Path.cwd()})"
        raise InputError(f"{path}: no such file{sought}. Set {what} to an existing one.")
    if file.stat().st_size > most_bytes:
        raise InputError(
            f"{path}: {file.stat().st_size:,} bytes, more than any collection of "
            f"names has ({most_bytes:,}). Set {what} to another file."
        )
    content = file.read_bytes()
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = 1 + content[: error.start].count(b"\n")
        raise InputError(
            f"{path}: line {line} is not UTF-8 text (the byte 0x{content[error.start]:02x}); the "
            "file seems to be in another encoding, such as Latin-1. Save it as UTF-8."
        ) from error
    if "\0" in text:
        raise InputError(
            f"{path}: not a text file, or UTF-16 without a byte-order mark. Save it as UTF-8."
        )
    return re.split(r"\r\n|\n|\r", text)


def fingerprint(path: str | Path) -> str:
    """Digest the size of a file and parts of its content, in milliseconds for any size.

    The fingerprint also detects a file that was replaced by one with an older date.

    Parameters
    ----------
    path
        A file, read completely up to 1 MiB, else in evenly spread pieces; or a folder, such as a
        zarr store, by names and sizes of its files.

    Returns
    -------
    str
        Hexadecimal digits; ``absent`` if it does not exist.
    """
    root = Path(path)
    digest = hashlib.sha256()
    if root.is_dir():
        for part in sorted(one for one in root.rglob("*") if one.is_file()):
            digest.update(f"{part.relative_to(root)}\t{part.stat().st_size}\n".encode())
            if part.suffix == ".json" or part.name.startswith(".z"):
                digest.update(part.read_bytes())
        return digest.hexdigest()[:16]
    if not root.is_file():
        return "absent"
    size = root.stat().st_size
    digest.update(str(size).encode())
    with root.open("rb") as file:
        for piece in range(PIECES if size > PIECES * PIECE_BYTES else 1):
            file.seek(piece * max(size - PIECE_BYTES, 0) // (PIECES - 1))
            digest.update(file.read(PIECE_BYTES if size > PIECES * PIECE_BYTES else size))
    return digest.hexdigest()[:16]


def write_text(text: str, path: str | Path) -> None:
    """Write text atomically."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_parquet(table: pd.DataFrame, provenance: str, path: str | Path) -> None:
    """Write a table as parquet, with its provenance in the metadata, atomically."""
    content = pyarrow.Table.from_pandas(table, preserve_index=False)
    metadata = {**(content.schema.metadata or {}), b"provenance": provenance.encode()}
    with whole_file(path) as temporary:
        pyarrow.parquet.write_table(content.replace_schema_metadata(metadata), temporary)


def write_parquet_parts(
    parts: Iterable[pd.DataFrame], names: Sequence[str], provenance: str, path: str | Path
) -> None:
    """Write a table as parquet part by part, in bounded memory, atomically.

    Parameters
    ----------
    parts
        Tables with the same columns.
    names
        Columns of names, which are read as categories.
    provenance
        Provenance record, JSON, stored in the metadata.
    path
        The file.
    """
    with whole_file(path) as temporary, contextlib.ExitStack() as open_files:
        writer = None
        for content in _gathered(_as_arrow(part, names, provenance) for part in parts):
            if writer is None:
                writer = open_files.enter_context(
                    pyarrow.parquet.ParquetWriter(temporary, content.schema)
                )
            writer.write_table(content)


def _as_arrow(part: pd.DataFrame, names: Sequence[str], provenance: str) -> pyarrow.Table:
    columns = {
        name: _dictionary(part[name]) if name in names else pyarrow.array(part[name])
        for name in part
    }
    return pyarrow.table(columns, metadata={b"provenance": provenance.encode()})


def _gathered(parts: Iterable[pyarrow.Table]) -> Iterator[pyarrow.Table]:
    """Join small parts, since each written part is a row group with metadata of its own."""
    waiting: list[pyarrow.Table] = []
    for part in parts:
        waiting.append(part)
        if sum(len(one) for one in waiting) >= ROWS_PER_GROUP:
            yield pyarrow.concat_tables(waiting).unify_dictionaries()
            waiting = []
    if waiting:
        yield pyarrow.concat_tables(waiting).unify_dictionaries()


def _dictionary(column: "pd.Series[Any]") -> pyarrow.DictionaryArray:
    """Encode names by 32-bit integers, so that all parts have the same schema."""
    if not isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(object)  # an empty column may have any type
    names = column.astype("category").cat
    codes = names.codes.to_numpy(dtype="int32")
    return pyarrow.DictionaryArray.from_arrays(
        pyarrow.array(codes, mask=codes < 0), pyarrow.array(names.categories, pyarrow.string())
    )


def read_table(
    path: str | Path,
    text: Sequence[str] = (),
    columns: Sequence[str] | None = None,
    model: str | None = None,
) -> pd.DataFrame:
    """Read a table that :func:`write_tsv` or :func:`write_parquet` wrote, by its suffix.

    Parameters
    ----------
    path
        The file.
    text
        Columns of a TSV file to read as text, even if they look like numbers.
    columns
        Columns of a parquet file to read; None for all.
    model
        Model of a parquet file whose rows to read; None for all.

    Returns
    -------
    DataFrame
        Columns of a parquet file may be read-only; change a copy.
    """
    if Path(path).suffix == ".parquet":
        rows = None if model is None else [("model", "==", model)]
        chosen = None if columns is None else list(columns)
        content = pyarrow.parquet.read_table(path, columns=chosen, filters=rows)
        # memory of each column is given back, since the largest tables have 10^8 rows
        table = content.to_pandas(split_blocks=True, self_destruct=True)
        pyarrow.default_memory_pool().release_unused()
        return table
    return pd.read_csv(path, dtype=dict.fromkeys(text, str), **AS_WRITTEN)


def read_tables(
    paths: Sequence[str | Path], runs: Sequence[Mapping[str, Any]] = ()
) -> pd.DataFrame:
    """Read and concatenate tables of one kind.

    Parameters
    ----------
    paths
        The files.
    runs
        Columns to add to each table, such as its split, model and seed; none if empty.
    """
    added = runs or [{}] * len(paths)
    tables = [read_table(path).assign(**run) for run, path in zip(added, paths, strict=True)]
    table = pd.concat([each for each in tables if len(each)] or tables[:1], ignore_index=True)
    if "seed" in table:
        table["seed"] = table["seed"].astype("Int64")
    return table


def read_table_in_parts(
    path: str | Path, n_rows: int, text: Sequence[str] = ()
) -> Iterator[pd.DataFrame]:
    """Read a table that :func:`write_tsv` wrote in parts of `n_rows` rows."""
    with pd.read_csv(path, dtype=dict.fromkeys(text, str), chunksize=n_rows, **AS_WRITTEN) as parts:
        yield from parts
