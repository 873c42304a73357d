"""Files that are either whole or absent, and tables in them."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pyarrow
import pyarrow.parquet


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; rename it to `path` only when all went well.

    Parameters
    ----------
    path
        The final name. Its folder is made if need be.

    Yields
    ------
    Path
        A name in the same folder with the same suffix, to write to.
    """
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(
        prefix=f".{final.stem[:40]}-", suffix=final.suffix, dir=final.parent
    )
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, final)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_tsv(table: pd.DataFrame, path: str | Path, first: Sequence[str] = ()) -> None:
    """Write a table as tab-separated text, whole or not at all.

    Parameters
    ----------
    table
        Its index is not written.
    path
        The file.
    first
        Columns to put first, as far as the table has them.
    """
    leading = [name for name in first if name in table.columns]
    ordered = table[leading + [name for name in table.columns if name not in leading]]
    with whole_file(path) as temporary:
        ordered.to_csv(temporary, sep="\t", index=False)


def write_text(text: str, path: str | Path) -> None:
    """Write text, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_parquet(table: pd.DataFrame, provenance: str, path: str | Path) -> None:
    """Write a table as parquet with its provenance in the metadata, whole or not at all."""
    content = pyarrow.Table.from_pandas(table, preserve_index=False)
    metadata = {**(content.schema.metadata or {}), b"provenance": provenance.encode()}
    with whole_file(path) as temporary:
        pyarrow.parquet.write_table(content.replace_schema_metadata(metadata), temporary)


def read_table(path: str | Path) -> pd.DataFrame:
    """Read a table that :func:`write_tsv` or :func:`write_parquet` wrote, by its suffix."""
    if Path(path).suffix == ".parquet":
        return pd.read_parquet(path)
    return pd.read_csv(path, sep="\t", keep_default_na=False, na_values=[""])
