import io
import tracemalloc

import anndata
import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from samsvae.runtime.errors import InputError
from samsvae.sources.counts import CountMatrix

LAYOUTS = ["contiguous", "chunked", "compressed", "csr", "csc", "csr_gzip", "unsorted", "old"]
TYPES = ["float32", "float64", "int32", "int64", "uint16"]


def store(file, counts, layout, rng):
    """Write counts as element `m`, in one of the forms that files have."""
    rows, columns = (max(n // 3, 1) for n in counts.shape)
    if layout in ("contiguous", "chunked", "compressed"):
        chunks = None if layout == "contiguous" else (rows, columns)
        compression = "gzip" if layout == "compressed" else None
        file.create_dataset("m", data=counts, chunks=chunks, compression=compression)
        return
    matrix = sparse.csc_matrix(counts) if layout == "csc" else sparse.csr_matrix(counts)
    if layout == "unsorted":
        matrix = shuffled(matrix, rng)
    if layout == "old":
        group = file.create_group("m")
        group.attrs["h5sparse_format"] = "csr"
        group.attrs["h5sparse_shape"] = counts.shape
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(matrix, name)
        return
    options = {"compression": "gzip"} if layout == "csr_gzip" else {}
    anndata.io.write_elem(file, "m", matrix, dataset_kwargs=options)


def shuffled(matrix, rng):
    """Put the entries of each row in any order, split one in two and store some zeros."""
    data, indices, indptr = [], [], [0]
    for row in range(matrix.shape[0]):
        span = slice(matrix.indptr[row], matrix.indptr[row + 1])
        values, columns = list(matrix.data[span]), list(matrix.indices[span])
        if values:
            values, columns = [values[0] - 1, 1, *values[1:]], [columns[0], *columns]
        values, columns = [*values, 0], [*columns, int(rng.integers(matrix.shape[1]))]
        order = rng.permutation(len(values))
        data += [values[i] for i in order]
        indices += [columns[i] for i in order]
        indptr.append(len(data))
    made = sparse.csr_matrix(matrix.shape, dtype=matrix.dtype)
    made.data = np.array(data, dtype=matrix.dtype)
    made.indices, made.indptr = np.array(indices, np.int32), np.array(indptr, np.int32)
    return made


@pytest.fixture
def element():
    with h5py.File(io.BytesIO(), "w") as file:
        yield file


@settings(max_examples=150)
@given(
    st.sampled_from(LAYOUTS),
    st.sampled_from(TYPES),
    st.tuples(st.integers(0, 25), st.integers(1, 9)),
    st.sampled_from([1, 50, 300, 2**20]),
    st.integers(0, 2**32 - 1),
)
def test_blocks_are_the_chosen_cells_and_genes(layout, dtype, shape, block_bytes, seed):
    rng = np.random.default_rng(seed)
    counts = rng.poisson(0.7, shape).astype(dtype)
    cells = None if rng.random() < 0.3 else np.flatnonzero(rng.random(shape[0]) < rng.random())
    genes = (
        None if rng.random() < 0.3 else rng.permutation(shape[1])[: rng.integers(1, shape[1] + 1)]
    )
    with h5py.File(io.BytesIO(), "w") as file:
        if shape[0] == 0 and layout in ("chunked", "compressed"):
            layout = "contiguous"
        store(file, counts, layout, rng)
        matrix = CountMatrix(file["m"], "test", block_bytes)
        assert matrix.shape == shape
        blocks = list(matrix.blocks(cells, genes))
    wanted = np.arange(shape[0]) if cells is None else cells
    columns = np.arange(shape[1]) if genes is None else genes
    found = [np.empty(0, int), *(positions for positions, _ in blocks)]
    np.testing.assert_array_equal(np.concatenate(found), wanted)
    values = [np.empty((0, len(columns))), *(block.toarray() for _, block in blocks)]
    np.testing.assert_array_equal(np.concatenate(values), counts[np.ix_(wanted, columns)])
    for _, block in blocks:
        assert block.format == "csr"
        assert block.dtype == dtype
        assert (block.data != 0).all()
        fresh = sparse.csr_matrix((block.data, block.indices, block.indptr), block.shape)
        assert fresh.has_canonical_format


@pytest.mark.parametrize("layout", ["contiguous", "chunked", "csr", "csc"])
def test_blocks_keep_to_their_size_and_outlive_one_another(layout, element):
    counts = np.random.default_rng(0).poisson(1.0, (600, 40)).astype(np.float32)
    store(element, counts, layout, None)
    blocks = list(CountMatrix(element["m"], "test", 40 * 4 * 50).blocks())
    assert len(blocks) >= 600 // 200
    assert max(block.nnz for _, block in blocks) <= 200 * 40
    np.testing.assert_array_equal(np.concatenate([b.toarray() for _, b in blocks]), counts)


def test_stretches_without_a_chosen_cell_are_not_read(element):
    element.create_dataset("m", (10_000, 100), np.float32, chunks=(100, 100))
    matrix = CountMatrix(element["m"], "test")
    read = [rows.stop - rows.start for rows in matrix.reads(np.array([3, 5, 7_000, 9_999]))]
    assert sum(read) <= 400
    element["dense"] = np.zeros((10_000, 100), np.float32)
    assert [list(r) for r in CountMatrix(element["dense"], "t").reads(np.array([3, 7_000]))] == [
        [3, 7_000]
    ]


@pytest.mark.parametrize("layout", ["contiguous", "chunked", "csr_gzip", "csc"])
def test_memory_does_not_grow_with_the_cells(layout, tmp_path):
    def peak(n_cells):
        path = tmp_path / f"{n_cells}.h5"
        counts = np.random.default_rng(0).poisson(0.5, (n_cells, 200)).astype(np.float32)
        with h5py.File(path, "w") as file:
            store(file, counts, layout, None)
        del counts
        with h5py.File(path, "r") as file:
            tracemalloc.start()
            for _ in CountMatrix(file["m"], "test", 2**18).blocks(genes=np.arange(0, 200, 2)):
                pass
            most = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        return most

    few, many = peak(5_000), peak(20_000)
    # besides a block, some bytes for each cell
    assert many - few < 15_000 * 60
    assert many < 20_000 * 200 * 4 / 3


def test_cells_must_ascend(element):
    element["m"] = np.ones((3, 2))
    with pytest.raises(ValueError, match="ascend"):
        CountMatrix(element["m"], "test").blocks(np.array([1, 0]))


def test_what_is_no_matrix_is_refused(element):
    element["line"] = np.ones(3)
    element.create_group("group")
    for name in ("line", "group"):
        with pytest.raises(InputError, match=r"file: X: not a matrix"):
            CountMatrix(element[name], "file: X")


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [("indices", 99, "out of bounds"), ("indices", -1, "out of bounds"), ("indptr", 99, "indptr")],
)
@pytest.mark.parametrize("layout", ["csr", "csc"])
def test_damaged_indices_are_found(layout, part, value, said, element):
    store(element, np.ones((4, 4), np.float32), layout, None)
    element[f"m/{part}"][-1] = value
    with pytest.raises(InputError, match=said):
        list(CountMatrix(element["m"], "file: X").blocks())


def test_a_file_that_was_cut_short_or_changed_is_named(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("m", data=np.ones((1000, 50)), chunks=(100, 50), fletcher32=True)
        place = file["m"].id.get_chunk_info(5).byte_offset
    content = bytearray(path.read_bytes())
    content[place : place + 4] = b"gone"
    path.write_bytes(content)
    with h5py.File(path) as file, pytest.raises(InputError, match="file: X: cannot be read"):
        list(CountMatrix(file["m"], "file: X").blocks())
