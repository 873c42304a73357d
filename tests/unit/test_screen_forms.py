"""A screen written in every form that files have is read as the same canonical screen."""

import itertools

import anndata
import mudata
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from samsvae.runtime.errors import InputError
from samsvae.screen.canonical import DECLARED, content_digest, read_screen
from samsvae.screen.labels import CONTROL
from samsvae.sources.h5ad import write_h5ad_screen
from samsvae.sources.h5ad_source import H5adSource
from tests.conftest import canonical

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
GENES = ["KLF1", "CEBPA", "HLA-A", "NKX2-5", "BAK1"]
TYPES = ["float32", "float64", "int32", "int64", "uint16", "int8"]
LAYOUTS = {"dense": np.asarray, "csr": sparse.csr_matrix, "csc": sparse.csc_matrix}
# genes of each cell; the first two make sure of a control cell and a perturbed one
DESIGNS = st.lists(st.sets(st.sampled_from(GENES[:4]), max_size=3), max_size=10).map(
    lambda cells: [set(), {"KLF1"}, *cells]
)
GUIDES = [f"{gene}_g{k}" for gene in GENES[:4] for k in (1, 2)] + ["NT_1", "NT_2"]


def gene_of(guide):
    return "control" if guide.startswith("NT") else guide.rpartition("_")[0]


def guides_of(design):
    """One or two guides of each gene of a cell, and a non-targeting one where there is none."""
    return [
        [f"{gene}_g{1 + (at + len(gene)) % 2}" for gene in sorted(cell)] or [f"NT_{1 + at % 2}"]
        for at, cell in enumerate(design)
    ]


def membership(members, names):
    return np.array([[int(name in cell) for name in names] for cell in members])


def base(design, dtype, layout):
    counts = 1 + np.random.default_rng(len(design)).poisson(2.0, (len(design), len(GENES)))
    cells = pd.DataFrame(index=[f"cell{i}" for i in range(len(design))])
    return anndata.AnnData(
        LAYOUTS[layout](counts.astype(dtype)), cells, pd.DataFrame(index=list(GENES))
    )


def said(screen):
    """Everything that a canonical screen says, but for guides, which not every form tells."""
    bare = screen.copy()
    for key in DECLARED:
        bare.uns.pop(key, None)
    dosage = bare.obsm["dosage"].toarray().tolist()
    return content_digest(bare), list(bare.uns["perturbations"]), dosage


def guides_said(screen):
    """The guides of each cell, with their targets and kinds."""
    table = screen.uns["guides"].sort_values("guide").astype(str)
    cells = [set(text.split("|")) - {""} for text in screen.obs["guide"].astype(str)]
    held = screen.obsm["guides"].toarray() > 0
    names = screen.uns["guides"]["guide"].to_numpy()
    assert [set(names[row]) for row in held] == cells
    return cells, [tuple(row) for row in table.itertuples(index=False)]


@pytest.mark.slow
@settings(max_examples=12)
@given(DESIGNS, st.sampled_from(TYPES), st.sampled_from(sorted(LAYOUTS)), st.booleans())
def test_labels_in_any_convention_are_the_same_screen(
    tmp_path_factory, design, dtype, layout, reverse
):
    folder = tmp_path_factory.mktemp("labels")
    data = base(design, dtype, layout)
    ordered = [sorted(cell, reverse=reverse) for cell in design]

    def gears(genes):
        return "ctrl" if not genes else "+".join([*genes, "ctrl"] if len(genes) == 1 else genes)

    conventions = {
        "plain": (["+".join(genes) or "control" for genes in ordered], {}),
        "gears": ([gears(genes) for genes in ordered], {"control": "ctrl"}),
        "blanks": ([f" {' + '.join(genes) or 'NT'} " for genes in ordered], {"control": "NT"}),
        "scperturb": (["_".join(genes) or "control" for genes in ordered], {"delimiter": "_"}),
        "bars": (
            [" || ".join(genes) or "neg || neg" for genes in ordered],
            {"delimiter": "||", "control": "neg"},
        ),
        "dashes": (["-".join(genes) or "ctrl-ctrl" for genes in ordered],
                   {"delimiter": "-", "control": "ctrl"}),
        "several": (
            ["+".join(genes) or f"NT{at % 3}" for at, genes in enumerate(ordered)],
            {"control": ["NT0", "NT1", "NT2"]},
        ),
        "pattern": (
            ["+".join(genes) or f"non-targeting_{at:05d}" for at, genes in enumerate(ordered)],
            {"control": {"pattern": "^non-targeting"}},
        ),
    }  # fmt: skip
    for name, (labels, _) in conventions.items():
        data.obs[name] = pd.Categorical(labels) if reverse else labels
    data.write_h5ad(folder / "a.h5ad", compression="gzip" if reverse else None)
    data.write_zarr(folder / "a.zarr")
    with anndata.settings.override(allow_write_nullable_strings=True):
        nullable = data.copy()
        for name in conventions:
            nullable.obs[name] = pd.array(nullable.obs[name].astype(str), dtype="string")
        nullable.obs.index = pd.Index(pd.array(nullable.obs_names, dtype="string"))
        nullable.var.index = pd.Index(pd.array(nullable.var_names, dtype="string"))
        nullable.write_h5ad(folder / "nullable.h5ad")
    expected = ["+".join(sorted(cell)) or CONTROL for cell in design]
    first = None
    files = itertools.cycle(("a.h5ad", "a.zarr", "nullable.h5ad"))
    for (name, (_, chosen)), file in zip(conventions.items(), files, strict=False):
        screen = canonical(H5adSource(str(folder / file), perturbation_column=name, **chosen))
        assert list(screen.obs["perturbation"]) == expected, name
        first = first or said(screen)
        assert said(screen) == first, (name, file)


@pytest.mark.slow
@settings(max_examples=8)
@given(DESIGNS, st.sampled_from(TYPES), st.sampled_from(sorted(LAYOUTS)), st.integers(0, 999))
def test_guides_in_every_form_are_the_same_screen(tmp_path_factory, design, dtype, layout, seed):
    folder = tmp_path_factory.mktemp("guides")
    rng = np.random.default_rng(seed)
    of_cell = guides_of(design)
    present = membership(of_cell, GUIDES)
    # ambient molecules of every guide, and many of those that the cell has
    umis = np.where(present, 8 + rng.poisson(30, present.shape), rng.integers(0, 4, present.shape))
    table = folder / "guides.tsv"
    table.write_text("".join(f"{guide}\t{gene_of(guide)}\n" for guide in GUIDES), "utf-8-sig")

    data = base(design, dtype, layout)
    data.obs["gene"] = ["+".join(sorted(cell)) or "control" for cell in design]
    data.obs["guide"] = ["|".join(cell) for cell in of_cell]
    for column, name in enumerate(GUIDES):
        data.obs[f"g_{name}"], data.obs[f"u_{name}"] = present[:, column], umis[:, column]
    data.obsm["called"] = pd.DataFrame(present, data.obs_names, GUIDES)
    data.obsm["umis"] = sparse.csr_matrix(umis)
    data.uns["guide_names"] = np.array(GUIDES, dtype=object)
    path = str(folder / "a.h5ad")
    data.write_h5ad(path)

    by_table = {"guide_table": str(table)}
    forms = {
        "labels": {"perturbation_column": "guide", "delimiter": "|", **by_table},
        "columns": {"perturbation_columns": {"prefix": "g_"}, **by_table},
        "umi columns": {"perturbation_columns": {"prefix": "u_", "threshold": 6}, **by_table},
        "table": {"perturbation_matrix": {"obsm": "called"}, **by_table},
        "umis": {
            "perturbation_matrix": {"obsm": "umis", "names": "guide_names", "threshold": 5},
            **by_table,
        },
        "pattern": {
            "perturbation_matrix": {"obsm": "called"}, "guide_pattern": "^(.+)_g?[12]$",
            "control": "NT",
        },
    }  # fmt: skip
    screens = {name: canonical(H5adSource(path, **form)) for name, form in forms.items()}

    joint = anndata.AnnData(
        sparse.csr_matrix(np.hstack([np.asarray(base(design, dtype, "dense").X), umis])),
        data.obs[[]].copy(),
        pd.DataFrame(
            {
                "feature_types": ["Gene Expression"] * len(GENES)
                + ["CRISPR Guide Capture"] * len(GUIDES),
                "target": [*GENES, *map(gene_of, GUIDES)],
            },
            index=[*GENES, *GUIDES],
        ),
    )
    joint.write_h5ad(folder / "joint.h5ad")
    joint.write_zarr(folder / "joint.zarr")
    for file in ("joint.h5ad", "joint.zarr"):
        features = {"gene_column": "target", "threshold": 5}
        source = H5adSource(str(folder / file), guide_features=features)
        screens[file] = canonical(source)

    guides = anndata.AnnData(
        sparse.csr_matrix(umis.astype(np.float32)),
        data.obs[[]].copy(),
        pd.DataFrame({"intended_target_name": list(map(gene_of, GUIDES))}, index=GUIDES),
    )
    guides.layers["guide_assignment"] = sparse.csr_matrix(present.astype(np.float32))
    order = rng.permutation(len(design))
    both = mudata.MuData({"gene": data[:, :].copy(), "guide": guides[order].copy()})
    both.write_h5mu(folder / "a.h5mu")
    both.write_zarr(folder / "mu.zarr")
    for file in ("a.h5mu", "mu.zarr"):
        for how in ({"threshold": 5}, {"layer": "guide_assignment"}):
            modality = {"name": "guide", "gene_column": "intended_target_name", **how}
            source = H5adSource(str(folder / file), guide_modality=modality)
            screens[f"{file} {how}"] = canonical(source)

    expected = said(screens["labels"])
    kinds = guides_said(screens["labels"])
    assert kinds[0] == [set(cell) for cell in of_cell]
    for name, screen in screens.items():
        assert said(screen) == expected, name
        assert guides_said(screen) == kinds, name


def test_guides_beside_genes_are_kept_with_what_they_target(tmp_path):
    design = [set(), {"KLF1"}, {"KLF1"}, {"CEBPA", "BAK1"}, {"CEBPA", "BAK1"}]
    data = base(design, "float32", "csr")
    data.obs["gene"] = ["safe-targeting", "KLF1", "KLF1", "BAK1+CEBPA", "CEBPA+BAK1"]
    data.obs["sgrna"] = ["AAVS1_1", "KLF1_1", "KLF1_2", "BAK1_1+CEBPA_2", "dual_construct"]
    data.write_h5ad(tmp_path / "a.h5ad")
    screen = canonical(
        H5adSource(str(tmp_path / "a.h5ad"), "gene", "safe-targeting", guide_column="sgrna")
    )
    assert list(screen.obs["guide"]) == [
        "AAVS1_1", "KLF1_1", "KLF1_2", "BAK1_1|CEBPA_2", "dual_construct",
    ]  # fmt: skip
    table = screen.uns["guides"].set_index("guide")
    assert table["target"].to_dict() == {
        "AAVS1_1": "control", "BAK1_1": "BAK1", "CEBPA_2": "CEBPA", "KLF1_1": "KLF1",
        "KLF1_2": "KLF1", "dual_construct": "BAK1+CEBPA",
    }  # fmt: skip
    assert table["kind"].value_counts().to_dict() == {"targeting": 5, "safe-targeting": 1}
    data.obs["sgrna"] = ["a", "b", "b", "b", "c"]
    data.write_h5ad(tmp_path / "b.h5ad")
    with pytest.raises(InputError, match=r"'b'.*'BAK1\+CEBPA'.*one target"):
        canonical(
            H5adSource(str(tmp_path / "b.h5ad"), "gene", "safe-targeting", guide_column="sgrna")
        )


def test_counts_of_raw_and_of_a_layer_and_of_neither(tmp_path):
    data = base([set(), {"KLF1"}, {"CEBPA"}], "float32", "csr")
    data.obs["gene"] = ["control", "KLF1", "CEBPA"]
    expected = data.X.toarray()
    data.raw = data.copy()
    data.layers["counts"] = data.X.copy()
    few = data[:, :3].copy()
    few.X = sparse.csr_matrix(np.log1p(few.X.toarray()))
    few.write_h5ad(tmp_path / "a.h5ad")
    few.write_zarr(tmp_path / "a.zarr")
    for file in ("a.h5ad", "a.zarr"):
        source = {"path": str(tmp_path / file), "perturbation_column": "gene"}
        raw = canonical(H5adSource(**source, counts_layer="raw"))
        assert list(raw.var_names) == GENES
        np.testing.assert_array_equal(raw.X.toarray(), expected)
        layer = canonical(H5adSource(**source, counts_layer="counts"))
        np.testing.assert_array_equal(layer.X.toarray(), expected[:, :3])
    few.X = None
    few.write_h5ad(tmp_path / "none.h5ad")
    source = H5adSource(str(tmp_path / "none.h5ad"), perturbation_column="gene")
    with pytest.raises(InputError, match=r"no counts in X.*'counts', 'raw'"):
        canonical(source)


def test_batches_contexts_and_library_sizes_are_kept(tmp_path):
    design = [set(), set(), {"KLF1"}, {"CEBPA"}]
    data = base(design, "float32", "csr")
    data.obs["gene"] = ["control", "control", "KLF1", "CEBPA"]
    data.obs["rep"], data.obs["lane"] = ["a", "b", "a", "b"], [1, 1, 2, 2]
    data.obs["line"] = pd.Categorical(["K562", "RPE1", "K562", "RPE1"])
    data.obs["total"] = 1000.0 + np.arange(4)
    path = str(tmp_path / "a.h5ad")
    data.write_h5ad(path)
    plain = canonical(H5adSource(path, "gene"))
    screen = canonical(
        H5adSource(
            path, "gene", batch_column=["rep", "lane"], context_column="line",
            library_size_column="total", covariates=["lane"],
        )
    )  # fmt: skip
    assert list(screen.obs["batch"]) == ["a|1", "b|1", "a|2", "b|2"]
    assert list(screen.obs["context"]) == ["K562", "RPE1", "K562", "RPE1"]
    assert list(screen.obs["library_size"]) == [1000, 1001, 1002, 1003]
    assert screen.obs["library_size"].dtype == np.int64
    assert list(screen.obs["lane"]) == [1, 1, 2, 2]
    assert screen.uns["batch_column"] == "rep|lane"
    assert (screen.X != plain.X).nnz == 0
    assert content_digest(screen) != content_digest(plain)
    assert said(screen)[1:] == said(plain)[1:]

    def refused(match, **edits):
        changed = data.copy()
        for name, values in edits.items():
            changed.obs[name] = values
        changed.write_h5ad(tmp_path / "bad.h5ad")
        source = H5adSource(
            str(tmp_path / "bad.h5ad"), "gene", batch_column="rep", library_size_column="total"
        )
        with pytest.raises(InputError, match=match):
            canonical(source)
        assert not (tmp_path / "bad.screen.h5ad").exists()

    refused("library size 1 of a cell is below", total=[1.0, 1001, 1002, 1003])
    refused("the value 10.5 of cell 1", total=[1000, 10.5, 1002, 1003])
    refused(r"obs\['rep'\].*1 cell\(s\) have no value.*position 2", rep=["a", "b", None, "b"])
    with pytest.raises(InputError, match="the covariate 'batch'"):
        H5adSource(path, "gene", batch_column="rep", covariates=["batch"])


def test_what_is_left_out_is_counted_by_reason(tmp_path):
    labels = ["control"] * 4 + ["KLF1"] * 4 + ["A+B+C"] * 2 + ["rare", None, "nan", "Multiplet"]
    labels += ["unassigned", "*", "KLF1+unassigned", "CEBPA", "CEBPA"]
    data = base([set()] * len(labels), "float32", "csr")
    data.obs["gene"] = labels
    data.X[17] = 0
    data.X[17, 4] = 3
    data.X.eliminate_zeros()
    data.write_h5ad(tmp_path / "a.h5ad")
    (tmp_path / "genes.txt").write_text("KLF1\nCEBPA\n")
    source = H5adSource(
        str(tmp_path / "a.h5ad"), "gene", exclude=["nan", "unassigned", "*", "Multiplet"],
        max_perturbations=2, min_cells=2, genes=str(tmp_path / "genes.txt"),
    )  # fmt: skip
    write_h5ad_screen(source, "{}", tmp_path / "screen.h5ad")
    screen = read_screen(tmp_path / "screen.h5ad")
    assert list(screen.obs["perturbation"]) == ["control"] * 4 + ["KLF1"] * 4 + ["CEBPA"]
    lost = screen.uns["lost_cells"]
    assert dict(zip(lost["reason"], lost["cells"], strict=True)) == {
        "no label": 2, "excluded": 4, "several perturbations": 2, "below min_cells": 1,
        "no count": 1,
    }  # fmt: skip
    assert lost["cells"].sum() + screen.n_obs == len(labels)


@pytest.mark.parametrize(
    ("how", "no_guide", "expected"),
    [
        ({"threshold": 5}, None, ["control", "KLF1", None]),
        ({"threshold": 5}, "control", ["control", "KLF1", "control"]),
        ({"called": True}, None, ["control", "KLF1", "control"]),
        ({"called": True}, "exclude", ["control", "KLF1", None]),
    ],
)
def test_a_cell_without_a_guide_is_no_control_where_guides_were_called(
    tmp_path, how, no_guide, expected
):
    data = base([set()] * 3, "float32", "csr")
    called = "called" in how
    umis = np.array([[30, 1], [2, 40], [1, 1]])
    data.obsm["guides"] = pd.DataFrame(umis > 4 if called else umis, data.obs_names, ["NT", "KLF1"])
    data.obsm["guides"] = data.obsm["guides"].astype(int)
    data.write_h5ad(tmp_path / "a.h5ad")
    matrix = {"obsm": "guides", **({} if called else how)}
    screen = canonical(
        H5adSource(
            str(tmp_path / "a.h5ad"), control="NT", perturbation_matrix=matrix, no_guide=no_guide
        )
    )
    kept = [label for label in expected if label is not None]
    assert list(screen.obs["perturbation"]) == kept
    lost = screen.uns["lost_cells"]
    assert list(lost["reason"]) == (["no guide"] if None in expected else [])


def test_umi_counts_are_not_taken_for_doses(tmp_path):
    data = base([set()] * 4, "float32", "csr")
    for name, values in {
        "g_KLF1": [0, 40, 1, 0],
        "g_NT": [30, 1, 0, 1],
        "g_count": [1, 2, 1, 1],
    }.items():
        data.obs[name] = values
    data.obsm["umis"] = data.obs[["g_KLF1", "g_NT"]].copy()
    data.write_h5ad(tmp_path / "a.h5ad")
    path = str(tmp_path / "a.h5ad")
    for form in (
        {"perturbation_columns": {"prefix": "g_"}},
        {"perturbation_matrix": {"obsm": "umis"}},
    ):
        with pytest.raises(InputError, match=r"threshold: 5, or mixture.*doses: true") as refused:
            canonical(H5adSource(path, control="NT", **form))
        assert ("'except'" in str(refused.value)) == ("perturbation_columns" in form)
    columns = {"prefix": "g_", "except": ["g_count"], "threshold": 5}
    screen = canonical(H5adSource(path, control="NT", perturbation_columns=columns))
    assert list(screen.obs["perturbation"]) == ["control", "KLF1"]
    assert list(screen.obs_names) == ["cell0", "cell1"]
